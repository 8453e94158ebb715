"""A large model cut into parts that run one after the other, each with its own weights alone.

Parts follow the order of the main graph. What one of them gives and a later one reads crosses the cut; where inputs of
the model are needed later, they are fed again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import onnx_ir as ir

from qcli.graph.model import Model
from qcli.graph.on_disk import stay_large

PART_BYTES = 1 << 28
"""Bytes of weights that a part may have; a single larger weight makes a part of its own."""


@dataclass(frozen=True)
class Part:
    """A part as a model. Its inputs are inputs of the whole or come from parts before it; `gives` is what later parts
    read, and `holds` are the names of all values that it can show, those in bodies included.
    """

    model: Model
    gives: tuple[str, ...]
    holds: frozenset[str]


def parts_of(model: Model, wanted: Iterable[str]) -> tuple[Part, ...]:
    """The parts that lead to the values `wanted`, in the order in which they run.

    What nobody needs is in none of them; inputs of the model that are wanted are held by the first.
    """
    whole = model.copy()
    whole.sort()
    steps = _needed(whole, frozenset(wanted))
    if not steps:
        return ()
    parts = [_part(whole, steps, begin, end) for begin, end in _cuts(steps, PART_BYTES)]
    inputs = frozenset(value.name or "" for value in whole.graph.inputs)
    first = Part(parts[0].model, parts[0].gives, parts[0].holds | inputs)
    return (first, *parts[1:])


def part_bytes(model: Model) -> int:
    """About what the weights of the largest part take while it runs."""
    sizes = [tensor.nbytes for tensor in model.constants()]
    return min(sum(sizes), max([PART_BYTES, *sizes]))


class _Step(NamedTuple):
    """A node of the main graph with the values that it and its bodies read, constants apart."""

    node: ir.Node
    reads: tuple[ir.Value, ...]
    constants: tuple[ir.Value, ...]
    inside: tuple[str, ...]


def _needed(model: Model, wanted: frozenset[str]) -> list[_Step]:
    """The nodes that lead to the values, in order."""
    own = {id(value) for value in (*model.graph.inputs, *model.graph.initializers.values())}
    own |= {id(value) for node in model.graph for value in node.outputs}
    steps = [_step(node, own) for node in model.graph]
    needed: set[int] = set()
    found = []
    for step in reversed(steps):
        names = {*(value.name for value in step.node.outputs), *step.inside}
        if names & wanted or any(id(value) in needed for value in step.node.outputs):
            needed.update(id(value) for value in step.reads)
            found.append(step)
    return found[::-1]


def _step(node: ir.Node, own: set[int]) -> _Step:
    inner = [deeper for body in _all_bodies(node) for deeper in body]
    read = [value for one in (node, *inner) for value in one.inputs if value is not None and id(value) in own]
    read += [value for body in _all_bodies(node) for value in body.outputs if id(value) in own]
    unique = tuple(dict.fromkeys(read))
    constants = tuple(value for value in unique if value.is_initializer())
    inside = tuple(value.name or "" for one in inner for value in one.outputs)
    handed = tuple(value.name or "" for body in _all_bodies(node) for value in body.inputs)
    return _Step(node, tuple(value for value in unique if not value.is_initializer()), constants, (*inside, *handed))


def _bodies(node: ir.Node) -> Iterator[ir.Graph]:
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def _all_bodies(node: ir.Node) -> Iterator[ir.Graph]:
    for body in _bodies(node):
        yield body
        yield from body.subgraphs()


def _cuts(steps: Sequence[_Step], limit: int) -> Iterator[tuple[int, int]]:
    """Begin and end of each part: as many weights as fit, cut where the fewest values cross."""
    crossing = _crossing(steps)
    begin = 0
    while begin < len(steps):
        end = _reach(steps, begin, limit)
        if end < len(steps):
            half = _reach(steps, begin, limit // 2)
            places = [place for place in range(half, end + 1) if crossing[place] is not None]
            places = places or [place for place in range(end, len(steps) + 1) if crossing[place] is not None][:1]
            end = min(reversed(places), key=lambda place: crossing[place] or 0)
        yield begin, end
        begin = end


def _reach(steps: Sequence[_Step], begin: int, limit: int) -> int:
    """The first step behind `begin` whose weights do not fit any more; at least one step further."""
    seen: set[int] = set()
    size = 0
    for place in range(begin, len(steps)):
        fresh = [value for value in steps[place].constants if id(value) not in seen]
        seen.update(id(value) for value in fresh)
        added = sum(value.const_value.nbytes for value in fresh if value.const_value is not None)
        added += _inner_bytes(steps[place].node)
        size += added
        if added and size > limit and place > begin:
            return place
    return len(steps)


def _inner_bytes(node: ir.Node) -> int:
    constants = (value.const_value for body in _all_bodies(node) for value in body.initializers.values())
    return sum(constant.nbytes for constant in constants if constant is not None)


def _crossing(steps: Sequence[_Step]) -> list[int | None]:
    """How many values cross a cut in front of each step; None where one of them is no plain array."""
    last = {id(value): place for place, step in enumerate(steps) for value in step.reads}
    alive: set[ir.Value] = set()
    found: list[int | None] = []
    for place, step in enumerate(steps):
        alive = {value for value in alive if last[id(value)] >= place}
        found.append(len(alive) if all(_is_plain(value) for value in alive) else None)
        alive.update(value for value in step.node.outputs if id(value) in last)
    return [*found, 0]


def _is_plain(value: ir.Value) -> bool:
    """True for a tensor of a type that numpy knows by itself."""
    if not isinstance(value.type, ir.TensorType) or value.dtype in (None, ir.DataType.STRING, ir.DataType.UNDEFINED):
        return False
    return value.dtype.bitwidth >= _BYTE and value.dtype.numpy().isbuiltin == 1


_BYTE = 8


def _part(whole: Model, steps: Sequence[_Step], begin: int, end: int) -> Part:
    own = steps[begin:end]
    made = {id(value) for step in own for value in step.node.outputs}
    reads = list(dict.fromkeys(value for step in own for value in step.reads if id(value) not in made))
    constants = list(dict.fromkeys(value for step in own for value in step.constants))
    later = {id(value) for step in steps[end:] for value in step.reads}
    gives = [value for step in own for value in step.node.outputs if id(value) in later]
    ends = gives or [value for value in own[-1].node.outputs if value.name][:1]
    graph = whole.graph
    view = ir.GraphView(
        reads, ends, nodes=[step.node for step in own], initializers=constants, opset_imports=graph.opset_imports
    )
    copy = view.clone()
    copy.name = graph.name
    for value in copy.inputs:
        if value.shape is not None:  # what inference took for a size may be another one in a sample
            value.shape = ir.Shape([None] * len(value.shape))
    stay_large(graph, copy)
    functions = [function.clone() for function in whole.ir.functions.values()]
    model = ir.Model(copy, ir_version=whole.ir.ir_version, functions=functions)
    names = {value.name or "" for step in own for value in step.node.outputs}
    holds = frozenset(names | {name for step in own for name in step.inside})
    return Part(Model(model, whole.path), tuple(value.name or "" for value in gives), holds)
