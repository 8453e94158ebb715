"""Making values visible as outputs of a model, also those inside the bodies of If, Loop, Scan and SequenceMap.

A value in a body leaves it as a vector of its elements: through an If together with an empty vector from the other
branch, through a Loop appended to what earlier rounds left, through a Scan as one row for each round, through a
SequenceMap as one more sequence.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_FLAT = np.array([-1], np.int64)
_EMPTY = np.empty(0, np.float32)


def expose(proto: onnx.ModelProto, names: Sequence[str]) -> None:
    """Adds outputs to the main graph, in place; a name of a body's value becomes a vector's in the main graph."""
    graph = proto.graph
    present = {output.name for output in graph.output}
    inside = {name for node in graph.node for body in _bodies(node) for name in _values(body)}
    types = {info.name: info for info in graph.value_info}
    numbers = count()
    for name in names:
        if name in present:
            continue
        if name in inside:
            _lead_out(graph, name, numbers)
        graph.output.append(types.get(name, onnx.ValueInfoProto(name=name)))


def _values(body: onnx.GraphProto) -> Iterator[str]:
    """The names of what a body is handed in each round, of what its nodes produce, and the same of deeper bodies."""
    yield from _own_values(body)
    for node in body.node:
        for deeper in _bodies(node):
            yield from _values(deeper)


def _own_values(body: onnx.GraphProto) -> Iterator[str]:
    yield from (value.name for value in body.input)
    for node in body.node:
        yield from node.output


def _bodies(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    return [attribute.g for attribute in node.attribute if attribute.HasField("g")]


def _lead_out(graph: onnx.GraphProto, name: str, numbers: Iterator[int]) -> None:
    """Gives `graph` a vector called `name`, which one of its nodes passes on from its body."""
    for at, node in enumerate(graph.node):
        for body in _bodies(node):
            if name not in set(_values(body)):
                continue
            inner = f"{name}__inside_{next(numbers)}"
            direct = name in set(_own_values(body))
            if not direct:
                _lead_out(body, name, numbers)
            _flatten(body, name, inner)
            if not direct:
                _rename(body, name, f"{inner}_deeper")
            before = _PASSED_ON[node.op_type](node, body, inner, name)
            for number, extra in enumerate(before):
                graph.node.insert(at + number + (extra.op_type in _BEHIND), extra)
            return


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    """A value led out of a deeper body must not carry the name that the outer graph will use for it."""
    for node in graph.node:
        for index, output in enumerate(node.output):
            if output == old:
                node.output[index] = new
        for index, value in enumerate(node.input):
            if value == old:
                node.input[index] = new


def _flatten(body: onnx.GraphProto, name: str, inner: str) -> None:
    shape = helper.make_node("Constant", [], [f"{inner}_shape"], value=numpy_helper.from_array(_FLAT))
    body.node.append(shape)
    body.node.append(helper.make_node("Reshape", [name, f"{inner}_shape"], [inner]))


def _declared(name: str, rank: int = 1) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * rank)


def _empty(name: str) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(_EMPTY))


def _through_if(node: onnx.NodeProto, body: onnx.GraphProto, inner: str, name: str) -> list[onnx.NodeProto]:
    for branch in _bodies(node):
        result = inner
        if branch is not body:
            result = f"{inner}_none"
            branch.node.append(_empty(result))
        branch.output.append(_declared(result))
    node.output.append(name)
    return []


def _through_loop(node: onnx.NodeProto, body: onnx.GraphProto, inner: str, name: str) -> list[onnx.NodeProto]:
    """A variable carried from round to round, to which each round appends."""
    node.input.extend([""] * (2 - len(node.input)))  # the count and the condition may be left out
    carried = len(node.input) - 2
    body.input.append(_declared(f"{inner}_before"))
    body.node.append(helper.make_node("Concat", [f"{inner}_before", inner], [f"{inner}_after"], axis=0))
    body.output.insert(1 + carried, _declared(f"{inner}_after"))
    node.input.append(f"{inner}_start")
    node.output.insert(carried, name)
    return [_empty(f"{inner}_start")]


def _through_scan(node: onnx.NodeProto, body: onnx.GraphProto, inner: str, name: str) -> list[onnx.NodeProto]:
    """One more output that is stacked over the rounds."""
    body.output.append(_declared(inner))
    node.output.append(name)
    for attribute in node.attribute:
        if attribute.name in ("scan_output_directions", "scan_output_axes"):
            attribute.ints.append(0)
    return []


def _through_sequence_map(node: onnx.NodeProto, body: onnx.GraphProto, inner: str, name: str) -> list[onnx.NodeProto]:
    """One more sequence, whose elements are joined behind the node."""
    body.output.append(_declared(inner))
    node.output.append(f"{inner}_sequence")
    return [helper.make_node("ConcatFromSequence", [f"{inner}_sequence"], [name], axis=0)]


_BEHIND = ("ConcatFromSequence",)
"""Operators that stand behind the node whose values they pass on; others stand in front of it."""

_PASSED_ON = {
    "If": _through_if,
    "Loop": _through_loop,
    "Scan": _through_scan,
    "SequenceMap": _through_sequence_map,
}
