"""What a target's runtime cannot run, with reasons: newer operator sets, others' operators, grids, encodings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from qcli.errors import UnsupportedError, UsageError
from qcli.granularity import is_unscaled
from qcli.graph import Model, file_version_with, original_name
from qcli.legality import TABLE, not_as_numbers
from qcli.levels import native_of
from qcli.plugins import choice_of, create
from qcli.targets._support import Traits, traits_of
from qcli.types import Entry, Grid, Role, Spec

_SUGGESTED = 2
_NAMED = 3


def refuse_version(model: Model, spec: Spec, opset: int) -> None:
    """Raises UnsupportedError if the runtime is too old for the model's file version or for operator set `opset`.

    One that reads an operator set is taken to read the file version that ONNX published with it, and those before.
    """
    name, newest = choice_of(spec).name, traits_of(create("targets", spec)).newest_opset
    if newest is None:
        return
    needed = max(opset, model.opset)
    if needed > newest:
        what = "the model is of" if model.opset == needed else "the recipe's grids need"
        hint = f"export it with an older one, or name the runtime's own as target: {{{name}: {{opset: {needed}}}}}"
        raise UnsupportedError(f"{what} opset {needed}, the target '{name}' reads up to {newest}", hint)
    version, limit = model.file_version, file_version_with(newest)
    if version > limit:
        problem = f"the model is of IR version {version}; the target '{name}' with opset {newest} reads up to {limit}"
        raise UnsupportedError(problem, "export the model again with an older version of onnx")


def refuse_operators(model: Model, spec: Spec) -> None:
    """Raises UnsupportedError for operators of domains that the runtime lacks."""
    domains = traits_of(create("targets", spec)).domains
    if domains is None:
        return
    foreign = [node for node in model.nodes() if node.domain not in domains]
    if foreign:
        kinds = sorted({f"{node.domain}.{node.op_type}" for node in foreign})
        named = f"{', '.join(kinds[:_NAMED])}, as '{original_name(foreign[0])}'"
        problem = f"the model has operators that the target '{choice_of(spec).name}' lacks: {named}"
        raise UnsupportedError(problem, "export it with standard operators; the step 'unfuse' writes some of them out")


def check_entries(entries: Iterable[Entry], spec: Spec) -> None:
    """Raises UsageError for an entry whose grid or encoding the target cannot run."""
    target, name = create("targets", spec), choice_of(spec).name
    traits = traits_of(target)
    for entry in entries:
        if entry.site.role is Role.BIAS:
            continue
        role = "weight" if entry.site.role is Role.WEIGHT else "activation"
        if role == "activation" and entry.grid.granularity != "tensor":
            raise UsageError(f"{entry.because}: activations have one scale for each tensor", "use granularity: tensor")
        allowed = target.formats(role)
        named = choice_of(entry.grid.format).name
        if named not in allowed:
            raise UsageError(
                f"{entry.because}: the target {spec} has no kernel for {named} as {entry.site.role.value}",
                f"use {' or '.join(allowed[:_SUGGESTED])}",
            )
        unwritten = not_as_numbers(entry)
        if unwritten is not None:
            where = f"'{entry.site.value}' in {named}"
            raise UsageError(f"{entry.because}: {where}: {unwritten}", "use encoding: {weight_only: {decode: load}}")
        problem = _misfit(entry, role, target, traits)
        if problem is not None:
            where = f"'{entry.site.value}' of '{entry.site.name or entry.site.node}'"
            hint = f"change the rule, or begin with a preset for '{name}' ('qcli recipe list')"
            raise UsageError(f"{entry.because}: the target '{name}' does not take {where}: {problem}", hint)


def _misfit(entry: Entry, role: str, target: Any, traits: Traits) -> str | None:
    """Why a target does not take an entry, or None."""
    encoding = choice_of(entry.encoding)
    if traits.encodings is not None and encoding.name not in traits.encodings:
        return f"it has no operators for the encoding '{encoding.name}', only for {' and '.join(traits.encodings)}"
    decode = encoding.options.get("decode")
    if encoding.name in _STORED and decode is not None and decode not in traits.decode:
        return f"it cannot decode weights with 'decode: {decode}'"
    told = getattr(target, "misfit", None)
    return None if told is None else told(role, entry.grid, encoding.name)


_STORED = ("weight_only", TABLE)
"""Encodings of weights that are decoded before anything multiplies them."""


def decoded_there(spec: Spec, grid: Grid, traits: Traits) -> Spec:
    """The encoding with the runtime's own way to decode stored weights where the recipe says none.

    Floats of 16 bits have one way alone, a Cast; tables are read by a Gather, but those that are the numbers of a type.
    """
    encoding = choice_of(spec)
    known = encoding.name == "weight_only" or (encoding.name == TABLE and native_of(grid) is not None)
    if not known or "decode" in encoding.options or is_unscaled(grid.format) or traits.decode[0] == "load":
        return spec
    return {encoding.name: {**encoding.options, "decode": traits.decode[0]}}


def multiplied_there(entry: Entry, traits: Traits) -> Entry:
    """A weight in floats of 8 bits that a layer multiplies by such data, in the form that the runtime takes."""
    encoding = choice_of(entry.encoding)
    native = entry.site.role is Role.WEIGHT and native_of(entry.grid) is not None
    if not native or encoding.name != "qdq" or "decode" in encoding.options or "load" not in traits.decode:
        return entry
    if not traits.here and entry.site.op != "MatMul":
        return entry
    why = f"; {IN_FLOAT}" if traits.here else "; behind a Sum, so that onnxruntime takes it for no product of integers"
    spec: Spec = {"qdq": {**encoding.options, "decode": "load" if traits.here else "shielded"}}
    return msgspec.structs.replace(entry, encoding=spec, because=f"{entry.because}{why}")


IN_FLOAT = "onnxruntime's CPU provider multiplies no floats of 8 bits: it computes in float between them"


def of_small_floats(entries: Iterable[Entry]) -> Iterator[str]:
    """The layers, by first output, that multiply floats of eight bits, as far as a runtime can."""
    for entry in entries:
        native = entry.site.role is Role.WEIGHT and native_of(entry.grid) is not None
        if native and create("encodings", entry.encoding).calibrated:
            yield entry.site.node


def stored_there(entries: Iterable[Entry], spec: Spec) -> tuple[tuple[Entry, ...], dict[str, str]]:
    """Weights that are stored, in the runtime's form, and why others are left in float, by first output of the node."""
    target, name = create("targets", spec), choice_of(spec).name
    traits = traits_of(target)
    kept: list[Entry] = []
    reasons: dict[str, str] = {}
    for entry in entries:
        form = msgspec.structs.replace(entry, encoding=decoded_there(entry.encoding, entry.grid, traits))
        problem = None
        if choice_of(entry.encoding).name in _STORED:
            elsewhere = traits.stores is not None and entry.site.op not in traits.stores
            problem = "it reads the weight in float" if elsewhere else _misfit(form, "weight", target, traits)
        if problem is None:
            kept.append(form)
        else:
            reasons[entry.site.node] = f"the target '{name}' does not take its weight as integers: {problem}"
    return tuple(kept), reasons
