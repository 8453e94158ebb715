"""Weights of nodes that static quantization leaves aside: quantized dynamically, or only stored as integers.

A weight that nothing multiplies as an integer still takes a quarter of the bytes. It is left alone where that gains
nothing: where it is small, and where some reader needs the float form all the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from qcli.granularity import bits_of_scales, codes_of, is_unscaled, laid_out, no_vectors, scales_of
from qcli.graph import (
    Model,
    Node,
    Value,
    constant_of,
    dimensions,
    is_finite,
    node_key,
    original_name,
    stored_bits,
)
from qcli.halves import beyond
from qcli.layers import weight_operands
from qcli.legality import TABLE, UNEVEN, no_form
from qcli.levels import code_bits, is_uniform
from qcli.matching import RuleBook
from qcli.plugins import choice_of, create
from qcli.types import Entry, Grid, KeptFloat, Role, Site, Spec

_OVERHEAD = 256
"""Bytes that the nodes and names around a stored weight take in the file."""

_SMALLEST_DYNAMIC = 16
"""Matrices with a smaller side take longer to quantize for than they save."""


@dataclass(frozen=True)
class Stored:
    """Entries for weights, and why the weights of other nodes stay as they are, by first output of the node."""

    entries: tuple[Entry, ...]
    reasons: dict[str, str]


def store_weights(model: Model, rules: RuleBook, taken: tuple[Entry, ...], unfit: Mapping[str, str]) -> Stored:
    """What becomes of the weights that `taken` leaves over. `unfit` nodes must not quantize their data: the reasons."""
    coded = {(entry.site.node, entry.site.operand) for entry in taken if entry.site.role is not Role.OUTPUT}
    placed = {entry.site.node for entry in taken if entry.site.role is Role.WEIGHT}
    reasons: dict[str, str] = {}
    found: list[Entry] = []
    for node in model.nodes():
        key = node_key(node)
        if key in placed:
            continue
        operands = [(operand, axis) for operand, axis in weight_operands(node) if (key, operand) not in coded]
        refusal = rules.weight_refusal(node) if operands else None
        if refusal is not None:
            reasons[key] = refusal
            continue
        found += _in_unison(node, tuple(_entries(node, operands, rules, reasons, unfit)))
    return _without_float_readers(model, taken, found, reasons)


def _entries(
    node: Node,
    operands: list[tuple[int, int | None]],
    rules: RuleBook,
    reasons: dict[str, str],
    unfit: Mapping[str, str],
) -> Iterator[Entry]:
    for operand, axis in operands:
        value = node.inputs[operand]
        array = constant_of(value)
        if value is None or array is None or array.dtype.name != "float32":
            reasons[node_key(node)] = "its weight is not float32"
            continue
        if not is_finite(value):
            reasons[node_key(node)] = "its weight holds Inf or NaN"
            continue
        entry = laid_out(rules.entry(_site(node, operand, value)), node, array.shape, axis)
        entry = _encoded(_as_numbers(entry), node, [other for other, _ in operands], unfit)
        unstorable = beyond(array, entry.grid)
        if unstorable is not None:
            reasons[node_key(node)] = f"its weight {unstorable}"
            continue
        short = no_vectors(entry.grid, node, operand, array.shape)
        if short is not None:
            reasons[node_key(node)] = f"its {short}"
            continue
        scales = scales_of(entry.grid, array.shape)
        codes = _bits(entry.grid) * codes_of(entry.grid, node, operand, array.shape)
        if _FLOAT_BITS * array.size <= codes + _beside(entry.grid, array.shape) + 8 * _OVERHEAD:
            small = "its blocks are" if entry.grid.block is not None and scales > array.size // 4 else "its weight is"
            reasons[node_key(node)] = f"{small} too small for {_written_as(entry.grid)} to save bytes"
            continue
        yield entry


def _written_as(grid: Grid) -> str:
    if is_unscaled(grid.format):
        return choice_of(grid.format).name
    return "integers" if is_uniform(grid) else f"the tables and codes of {_named(grid)}"


def _as_numbers(entry: Entry) -> Entry:
    """Without a scale there is no range to find, and one way to round."""
    if not is_unscaled(entry.grid.format):
        return entry
    return msgspec.structs.replace(entry, range="minmax", rounding="nearest")


def _bits(grid: Grid) -> float:
    """The bits that a code takes in the file."""
    if not is_uniform(grid):
        return code_bits(create("formats", grid.format).entries(grid))
    return stored_bits(int(create("formats", grid.format).bits(grid)))


def _beside(grid: Grid, shape: tuple[int, ...]) -> float:
    """The bits that scales and tables take in the file."""
    if is_uniform(grid):
        return bits_of_scales(grid, shape)
    return float(create("formats", grid.format).side_bits(grid, scales_of(grid, shape)))


_FLOAT_BITS = 32


def _in_unison(node: Node, entries: tuple[Entry, ...]) -> Iterator[Entry]:
    """The dynamic form of an LSTM takes both of its weights as integers; where one stays float, the other is stored."""
    both = len(entries) == 2 and all(_is_dynamic(entry) for entry in entries)
    for entry in entries:
        if node.op_type != "LSTM" or both or not _is_dynamic(entry):
            yield entry
        else:
            yield _stored_only(entry, "not dynamic: its other weight is not")


def _is_dynamic(entry: Entry) -> bool:
    return choice_of(entry.encoding).name == "dynamic"


def _encoded(entry: Entry, node: Node, operands: list[int], unfit: Mapping[str, str]) -> Entry:
    """The entry with an encoding that the node can have: the one that was asked for if it fits, or weight-only."""
    asked = choice_of(entry.encoding).name
    if not is_uniform(entry.grid):
        return entry if asked == TABLE else _in_table(entry, asked)
    if asked == "weight_only":
        return entry
    if asked == TABLE:
        return _stored_only(entry, no_form(entry, node, operands) or "")
    if asked not in _OWN_FORMS:
        return _stored_only(entry, "stored only, no integer kernel multiplies it")
    misfit = _misfit(entry, node, operands, unfit)
    return entry if misfit is None else _stored_only(entry, f"not {asked}: {misfit}")


def _in_table(entry: Entry, asked: str) -> Entry:
    """The entry as a table that is looked up; it is decoded when it would have been."""
    named = choice_of(entry.grid.format).name
    reason = "" if asked == "weight_only" else f"; not {asked}: {UNEVEN} multiplies {named}"
    decode = choice_of(entry.encoding).options.get("decode") if asked == "weight_only" else None
    spec: Spec = {TABLE: {"decode": decode}} if decode is not None else TABLE
    return msgspec.structs.replace(entry, encoding=spec, because=f"{entry.because}{reason}")


_OWN_FORMS = ("dynamic", "matmul_nbits")
"""Encodings that replace a node by another operator."""


def _stored_only(entry: Entry, reason: str) -> Entry:
    """The entry in an encoding that every node takes, packed if the one that was asked for is."""
    asked = choice_of(entry.encoding).options
    passed: dict[str, Any] = {key: asked[key] for key in ("pack", "decode") if key in asked}
    spec: Spec = {"weight_only": passed} if passed else "weight_only"
    return msgspec.structs.replace(entry, encoding=spec, because=f"{entry.because}; {reason}")


def _misfit(entry: Entry, node: Node, operands: list[int], unfit: Mapping[str, str]) -> str | None:
    """Why a node does not get the form of its own that `entry` asks for, or None."""
    reason = no_form(entry, node, operands)
    if reason is not None or not _is_dynamic(entry):
        return reason
    if node_key(node) in unfit:
        return unfit[node_key(node)]
    weight = dimensions(node.inputs[1]) if len(node.inputs) > 1 and node.inputs[1] is not None else None
    thin = node.op_type != "LSTM" and min(size or 0 for size in weight or ()) < _SMALLEST_DYNAMIC
    return f"one side of its weight is below {_SMALLEST_DYNAMIC}" if thin else None


def _without_float_readers(
    model: Model, taken: tuple[Entry, ...], found: list[Entry], reasons: dict[str, str]
) -> Stored:
    """Drops weights that are only stored while another reader keeps the float form in the file."""
    covered = {
        (entry.site.node, entry.site.operand) for entry in (*taken, *found) if entry.site.role is not Role.OUTPUT
    }
    values = {value.name or "": value for graph in model.graphs() for value in graph.initializers.values()}
    kept: list[Entry] = []
    for entry in found:
        value = values.get(entry.site.value)
        reader = _uncovered(value, covered) if value is not None else None
        if reader is None or choice_of(entry.encoding).name not in ("weight_only", TABLE):
            kept.append(entry)
        else:
            reasons[entry.site.node] = f"its weight is also needed in float by {reader}"
    return Stored(tuple(kept), reasons)


def _uncovered(value: Value, covered: set[tuple[str, int]]) -> str | None:
    if value.is_graph_output():
        return "an output of the model"
    for node, operand in value.uses():
        if (node_key(node), operand) not in covered:
            return f"'{original_name(node) or node_key(node)}' ({node.op_type})"
    return None


def described(kept: KeptFloat, stored: Stored) -> KeptFloat:
    """The reason why a node runs in float, with what became of its weight."""
    formats = [_named(entry.grid) for entry in stored.entries if entry.site.node == kept.node]
    if formats:
        return msgspec.structs.replace(kept, reason=f"{kept.reason}; its weight is stored as {formats[0]}")
    reason = stored.reasons.get(kept.node, "")
    said = reason in kept.reason  # a rule without a role keeps node and weight float
    return kept if said else msgspec.structs.replace(kept, reason=f"{kept.reason}; {reason}")


def _named(grid: Grid) -> str:
    name = choice_of(grid.format).name
    named = name if grid.bits is None or is_uniform(grid) else f"{name} of {grid.bits} bits"
    return named if grid.block is None else f"{named} in blocks of {grid.block}"


def _site(node: Node, operand: int, value: Value) -> Site:
    array = constant_of(value)
    return Site(
        value=value.name or "",
        role=Role.WEIGHT,
        node=node_key(node),
        name=original_name(node),
        op=node.op_type,
        operand=operand,
        shape=array.shape if array is not None else None,
    )
