"""Operators that compute in 16 bits: the recipe's key `convert`, carried out on a finished model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import msgspec

from qcli.amendments import ConversionFacts
from qcli.calibrate import Samples, collect
from qcli.conversion import Convert
from qcli.errors import RuntimeFailure, UnsupportedError
from qcli.files import scratch_folder
from qcli.graph import (
    Halves,
    Model,
    Node,
    Value,
    compute_in_half,
    half_trial,
    infer_shapes,
    node_key,
    original_name,
    round_as_halves,
    save_model,
)
from qcli.half_nodes import Choice, first_choice, keep_islands, keep_presumed
from qcli.held_out import Yardstick, few_of
from qcli.plugins import create
from qcli.runtime import Session, survives
from qcli.statistics import Statistics
from qcli.types import KeptFloat, Request

_ROUNDS = 8
"""Times that the result is run and mended."""

_SPARE = 0.5
"""How much of the type's range samples may fill: others will reach further."""

_NAMED = 5
_LISTED = 3


class Converted(NamedTuple):
    """The model, what the report says of it, and the nodes that compute in 16 bits, by their first outputs."""

    model: Model
    facts: ConversionFacts
    nodes: tuple[str, ...]

    def reasons(self) -> dict[str, str]:
        """What to say of each node in a list of those that compute in floats."""
        kept = {one.node: f"it stays in float32: {one.reason}" for one in self.facts.kept_float}
        return {**kept, **dict.fromkeys(self.nodes, f"it computes in {self.facts.to}")}

    def why(self) -> str:
        """The reasons for which operators stay in float32, the most frequent ones."""
        reasons = Counter(f"{one.op}: {one.reason}" for one in self.facts.kept_float)
        return "; ".join(text for text, _ in reasons.most_common(_LISTED)) or "it has no operators on float32"


class Evidence(NamedTuple):
    """What a conversion is judged by: the float model that all began with, and samples."""

    source: Model
    samples: Samples
    threads: int = 1


def convert_model(model: Model, convert: Convert, kept: Mapping[str, str], evidence: Evidence | None) -> Converted:
    """A copy of a model of float32 that computes in 16 bits where operators, kernels and samples allow it.

    `kept` are the reasons for which rules keep nodes float, by their first outputs. What the samples show to leave the
    type's range stays in float32, with its neighbours; so does what is no longer finite in 16 bits. Raises
    UnsupportedError for operators without kernels, if the recipe does not keep them.
    """
    work = model.copy()
    infer_shapes(work)
    choice = first_choice(work, convert, kept)
    _keep_without_kernels(choice, work, convert)
    known = _reaches(work, _read_or_given(choice), evidence)
    seen = {value: one.largest for value, one in known.items()}
    keep_presumed(choice, work, convert.to, seen)
    _keep_too_large(choice, work, convert, seen)
    draft = _emulated(work, choice, convert)
    for _ in range(_ROUNDS):
        if evidence is None or not _mended(choice, draft, known, evidence):
            break
        draft = _emulated(work, choice, convert)
    result = _loadable(work, choice, convert)
    facts = _facts(choice, convert)
    if evidence is not None:
        ratio = Yardstick(evidence.source, few_of(evidence.samples), evidence.threads).decibels(draft.model)
        facts = msgspec.structs.replace(facts, samples=len(evidence.samples), sqnr=ratio)
    return Converted(result, facts, tuple(map(node_key, choice.nodes)))


class _Seen(NamedTuple):
    """How far the finite numbers of a value reach, and how many others there were."""

    largest: float
    infinite: int


def _reaches(model: Model, values: Iterable[str], evidence: Evidence | None) -> dict[str, _Seen]:
    requests = tuple(Request(value=value, statistic="reach") for value in dict.fromkeys(values))
    if evidence is None or not requests:
        return {}
    statistics = collect(model, Statistics.empty(requests), evidence.samples, threads=evidence.threads)
    states = {request.value: statistics.get(request).arrays() for request in requests}
    return {
        value: _Seen(float(state["largest"][0]), int(state["infinite"][0]))
        for value, state in states.items()
        if state["largest"].size
    }


def _read_or_given(choice: Choice) -> list[str]:
    """The values that would have 16 bits, constants apart."""
    found: list[str] = []
    for node, halves in choice.nodes.items():
        operands = [node.inputs[index] for index in halves.operands]
        found += [value.name or "" for value in operands if value is not None and value.const_value is None]
        found += [node.outputs[index].name or "" for index in halves.results]
    return [name for name in found if name]


def _keep_without_kernels(choice: Choice, model: Model, convert: Convert) -> None:
    """Asks onnxruntime about every kind of node, by loading it alone."""
    known: dict[str, bool] = {}
    lacking: dict[str, None] = {}
    for node, halves in tuple(choice.nodes.items()):
        kinds = [value.dtype.name if value is not None and value.dtype is not None else "" for value in node.inputs]
        key = f"{node.op_type} {kinds} {halves}"
        if key not in known:
            known[key] = _loads(half_trial(model, node, halves, convert.to))
        if not known[key]:
            choice.keep(node, f"onnxruntime's CPU provider has no {convert.to} kernel for {node.op_type}")
            lacking[node.op_type] = None
    if lacking and convert.without_kernel == "refuse":
        more = f" and {len(lacking) - _NAMED} more" if len(lacking) > _NAMED else ""
        problem = f"onnxruntime's CPU provider has no {convert.to} kernel for {', '.join(list(lacking)[:_NAMED])}{more}"
        hint = "leave them in float32 with --set convert.without_kernel=keep, or convert to float16"
        raise UnsupportedError(problem, hint)


def _loads(model: bytes) -> bool:
    try:
        Session(model)
    except RuntimeFailure:
        return False
    return True


def _keep_too_large(choice: Choice, model: Model, convert: Convert, seen: Mapping[str, float]) -> None:
    most = _SPARE * create("formats", convert.to).largest
    ends = (*model.graph.inputs, *model.graph.outputs) if convert.io == "convert" else ()
    for value in _values(model):
        reached = seen.get(value.name or "", 0.0)
        if reached > most:
            part = "" if reached > 2 * most else "half of "
            reason = f"'{value.name}' reaches {reached:.3g} in the samples, beyond {part}what {convert.to} holds"
            if value in ends:
                raise UnsupportedError(reason, "leave inputs and outputs as they are: --set convert.io=keep")
            for node in tuple(choice.touching(value)):
                choice.keep(node, reason)


def _values(model: Model) -> Iterator[Value]:
    yield from model.graph.inputs
    for node in model.graph:
        yield from node.outputs


def _converted(work: Model, choice: Choice, convert: Convert) -> Model:
    """The graph that `choice` describes; the model given stays as it is."""
    result = work.copy()
    compute_in_half(result, _copied(choice, result), convert.to, ends=convert.io == "convert")
    result.import_domains()
    result.sort()
    result.forget_shapes()
    result.fix_names()
    return result


def _loadable(work: Model, choice: Choice, convert: Convert) -> Model:
    """The converted model; where onnxruntime dies of it, without what it is known to die of.

    Behind a Transpose of 16 bits it puts a Cast in front of each MatMul, exchanges the two, and may then read an
    operator that is not resolved yet (NchwcTransformer in 1.31.1, issue 28392 of its tracker).
    """
    result = _converted(work, choice, convert)
    fatal = [node for node in choice.nodes if node.op_type == "Transpose" and _feeds_product(choice, node)]
    if not fatal or _survives(result):
        return result
    for node in fatal:
        choice.keep(node, "onnxruntime may crash on it in 16 bits in front of a MatMul")
    result = _converted(work, choice, convert)
    if not _survives(result):
        raise RuntimeFailure(
            f"onnxruntime crashes on the model in {convert.to}", "store the weights alone: leave out 'convert'"
        )
    return result


def _feeds_product(choice: Choice, node: Node) -> bool:
    return any(reader.op_type == "MatMul" for reader in choice.touching(node.outputs[0]))


def _survives(model: Model) -> bool:
    with scratch_folder() as folder:
        save_model(model, folder / "model.onnx")
        return survives(folder / "model.onnx")


class _Emulated(NamedTuple):
    """The model as a machine would compute it in 16 bits, and the names that its rounded values had before."""

    model: Model
    names: dict[str, str]


def _emulated(work: Model, choice: Choice, convert: Convert) -> _Emulated:
    keep_islands(choice, work, ends=convert.io == "convert")
    result = work.copy()
    names = round_as_halves(result, _copied(choice, result), convert.to)
    result.sort()
    result.forget_shapes()
    return _Emulated(result, names)


def _copied(choice: Choice, copy: Model) -> dict[Node, Halves]:
    nodes = {node_key(node): node for node in copy.graph}
    return {nodes[node_key(node)]: halves for node, halves in choice.nodes.items()}


def _mended(choice: Choice, draft: _Emulated, known: Mapping[str, _Seen], evidence: Evidence) -> bool:
    """Keeps in float32 what first gives Inf or NaN in 16 bits though it did not before; False if nothing does."""
    found = _reaches(draft.model, draft.names, evidence)
    lost = {draft.names[new] for new, one in found.items() if one.infinite and not _infinite(known, draft.names[new])}
    for node in tuple(choice.nodes):
        if any(value is not None and value.name in lost for value in node.inputs):
            continue
        for value in node.outputs:
            if value.name in lost:
                for touched in (node, *choice.touching(value)):
                    choice.keep(touched, f"'{value.name}' is Inf or NaN in 16 bits")
    return bool(lost)


def _infinite(known: Mapping[str, _Seen], value: str) -> bool:
    return value in known and known[value].infinite > 0


def _facts(choice: Choice, convert: Convert) -> ConversionFacts:
    kept = (
        KeptFloat(node=node_key(node), name=original_name(node), op=node.op_type, reason=reason)
        for node, reason in choice.reasons.items()
    )
    return ConversionFacts(to=convert.to, io=convert.io, nodes=len(choice.nodes), kept_float=tuple(kept))
