"""Which nodes compute in 16 bits, and why the others stay in float32."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from qcli.conversion import Convert
from qcli.existing import touches_quantized
from qcli.graph import Halves, Model, Node, Value, computes_in_float, constant_of, halves_of, node_key
from qcli.layers import LAYERS
from qcli.plugins import create
from qcli.types import Array

_BODIES = ("If", "Loop", "Scan", "SequenceMap")
_SIZES = ("Shape", "Size")
_WIDE = ("int32", "int64", "uint32", "uint64", "float64")


@dataclass
class Choice:
    """The nodes of the main graph that compute in 16 bits, and the reasons of those that could and do not.

    What computes with constants and sizes alone is in neither: a runtime does that when it loads the model. Nor is what
    moves data in float32.
    """

    nodes: dict[Node, Halves] = field(default_factory=dict)
    reasons: dict[Node, str] = field(default_factory=dict)

    def keep(self, node: Node, reason: str) -> None:
        """From here on the node stays in float32."""
        if self.nodes.pop(node, None) is not None:
            self.reasons[node] = reason

    def touching(self, value: Value) -> Iterator[Node]:
        """The nodes that would give or read a value in 16 bits."""
        producer = value.producer()
        if producer is not None and producer in self.nodes and value.index() in self.nodes[producer].results:
            yield producer
        for reader, operand in tuple(value.uses()):
            if reader in self.nodes and operand in self.nodes[reader].operands:
                yield reader


def first_choice(model: Model, convert: Convert, ruled: Mapping[str, str]) -> Choice:
    """What operators, types and constants allow. The types of all values have to be known.

    `ruled` are the reasons for which rules keep nodes float, by their first outputs.
    """
    choice, static = Choice(), _static(model)
    kept = convert.kept()
    inside = [node for graph in model.graphs() if graph is not model.graph for node in graph]
    choice.reasons.update((node, "it lies in the body of another node") for node in inside if computes_in_float(node))
    for node in model.graph:
        if node in static or not computes_in_float(node):
            continue
        if node.op_type in _BODIES:
            choice.reasons[node] = f"the bodies of {node.op_type} stay in float32"
            continue
        reason = ruled.get(node_key(node)) or _beside_integers(node) or kept.get(node.op_type)
        reason = reason or _too_large(node, convert.to) or _too_small(node, convert.to)
        halves = halves_of(node, model.opset, convert.to)
        if reason is not None or isinstance(halves, str):
            choice.reasons[node] = reason or str(halves)
        else:
            choice.nodes[node] = halves
    return choice


def keep_presumed(choice: Choice, model: Model, to: str, seen: Mapping[str, float]) -> None:
    """Readers of what is presumed not to fit stay in float32, too.

    That is what nodes give whose constants do not fit, unless `seen` says how far it reaches, and whole numbers.
    """
    for node in model.graph:
        for value in node.outputs:
            if _counts(node) and node not in choice.nodes:
                reason = f"it reads whole numbers, of which {to} holds the small ones alone"
            elif value.name not in seen and _too_large(node, to) is not None:
                reason = f"it reads what '{node.name}' gives, which has a constant beyond {to}"
            else:
                continue
            for reader in tuple(choice.touching(value)):
                choice.keep(reader, reason)


def keep_islands(choice: Choice, model: Model, *, ends: bool) -> None:
    """Operators among those in float32 stay so, too, where two Casts would cost more than they gain.

    That is one alone that is no layer, and any number of them that only move data. With `ends` the inputs and outputs
    of the model have 16 bits.
    """
    for group in _groups(choice):
        computing = [node for node in group if node.op_type not in _MOVES]
        layers = any(node.op_type in LAYERS for node in group)
        at_ends = ends and any(_at_end(node, model) for node in group)
        if not computing or (len(group) == 1 and not layers and not at_ends):
            for node in group:
                choice.keep(node, "it stands alone between operators in float32")
                if node.op_type in _MOVES:
                    del choice.reasons[node]  # it has no work to do


_MOVES = (
    "Identity", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Split", "Concat", "Gather",
    "GatherND", "GatherElements", "ScatterND", "ScatterElements", "Expand", "Tile", "Pad", "DepthToSpace",
    "SpaceToDepth", "Cast", "Sign",
)  # fmt: skip


def _groups(choice: Choice) -> Iterator[tuple[Node, ...]]:
    """The nodes in groups that pass values of 16 bits to each other."""
    seen: set[Node] = set()
    for first in tuple(choice.nodes):
        group = [first] if first not in seen else []
        seen.add(first)
        for node in group:  # it grows
            values = [node.inputs[index] for index in choice.nodes[node].operands]
            values += [node.outputs[index] for index in choice.nodes[node].results]
            passed = [value for value in values if value is not None and _made(choice, value)]
            others = dict.fromkeys(other for value in passed for other in choice.touching(value))
            group += [other for other in others if other not in seen]
            seen.update(others)
        if group:
            yield tuple(group)


def _made(choice: Choice, value: Value) -> bool:
    """True for a value that some node gives in 16 bits."""
    producer = value.producer()
    return producer is not None and producer in choice.nodes and value.index() in choice.nodes[producer].results


def _at_end(node: Node, model: Model) -> bool:
    reads = any(value in model.graph.inputs for value in node.inputs if value is not None)
    return reads or any(value.is_graph_output() for value in node.outputs)


def _static(model: Model) -> set[Node]:
    """The nodes that read nothing but constants and sizes."""
    known: set[Node] = set()
    for node in model.graph:
        given = [value for value in node.inputs if value is not None]
        fixed = all(constant_of(value) is not None or value.producer() in known for value in given)
        bodies = node.op_type in _BODIES
        if node.op_type in _SIZES or (fixed and not bodies and (given or node.op_type == "Constant")):
            known.add(node)
    return known


def _beside_integers(node: Node) -> str | None:
    if _counts(node):
        return "it makes floats of whole numbers, which 16 bits may not hold"
    return "it stands beside what is quantized" if touches_quantized(node) else None


def _counts(node: Node) -> bool:
    """True for a Cast of integers of many bits."""
    source = node.inputs[0] if node.op_type == "Cast" and node.inputs else None
    return source is not None and source.dtype is not None and source.dtype.numpy().name in _WIDE


def _too_large(node: Node, to: str) -> str | None:
    """Which constant that a node reads is beyond `to`, or None."""
    largest = create("formats", to).largest
    return next(
        (
            f"its constant '{name}' reaches {reach:.3g}, beyond {to}"
            for name, reach in _reaches(node)
            if reach > largest
        ),
        None,
    )


def _too_small(node: Node, to: str) -> str | None:
    smallest = create("formats", to).smallest_normal
    return next(
        (
            f"its constant '{name}' is at most {reach:.3g}, which {to} cannot hold well"
            for name, reach in _reaches(node)
            if 0 < reach < smallest
        ),
        None,
    )


def _reaches(node: Node) -> Iterator[tuple[str, float]]:
    """The float constants that a node reads, with how far they reach."""
    for value in node.inputs:
        array = constant_of(value)
        if value is not None and array is not None and array.dtype == np.float32 and array.size:
            yield value.name or "", _reach(array)


def _reach(array: Array) -> float:
    """The largest finite magnitude. Inf stays what it is in any float."""
    with np.errstate(invalid="ignore"):
        upper, lower = float(np.max(array)), float(np.min(array))
    if np.isfinite(upper) and np.isfinite(lower):
        return max(upper, -lower)
    return float(np.max(np.abs(array), where=np.isfinite(array), initial=0.0))
