"""Nodes that compute in 16 bits, in a graph of float32.

What they give has 16 bits; Casts stand where that meets operators of float32, the bodies of If, Loop and Scan, and
inputs and outputs that keep their types.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx_ir as ir

from qcli.graph.edit import add_initializer, free_name, insert_after, is_constant, make_node
from qcli.graph.half_types import Halves
from qcli.graph.model import Model
from qcli.types import Array, Deferred

_FLOAT = ir.DataType.FLOAT
KINDS = {"float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16}
"""The types of 16 bits by their names."""


def compute_in_half(model: Model, nodes: Mapping[ir.Node, Halves], to: str, *, ends: bool) -> None:
    """Makes nodes of the main graph compute in `to`, in place; with `ends` inputs and outputs have this type too.

    The types of all values have to be known, and constants have to fit: none of them is looked at. A constant that
    nodes of both types read is stored in both.
    """
    work = _Halving(model, KINDS[to])
    if ends:
        work.inputs()
    for node, halves in nodes.items():
        work.results(node, halves)
    for node, halves in nodes.items():
        work.operands(node, halves)
    work.borders(nodes)
    work.outputs(ends=ends)
    _drop_idle_casts(model)
    model.remove_unused()


class _Halving:
    def __init__(self, model: Model, kind: ir.DataType) -> None:
        self._graph = model.graph
        self._kind = kind
        self._halved: set[ir.Value] = set()
        self._casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}

    def inputs(self) -> None:
        for value in self._graph.inputs:
            if _is(value, _FLOAT) and not value.is_initializer():
                self._halve(value)

    def results(self, node: ir.Node, halves: Halves) -> None:
        for index in halves.results:
            self._halve(node.outputs[index])
        if node.op_type == "Cast" and halves.results:
            node.attributes["to"] = ir.AttrInt64("to", int(self._kind))

    def operands(self, node: ir.Node, halves: Halves) -> None:
        for index in halves.operands:
            value = node.inputs[index]
            if value is None or value in self._halved:
                continue
            if is_constant(value) and value.name in self._graph.initializers:
                node.replace_input_with(index, self._constant(value))
            else:
                node.replace_input_with(index, self._cast(value, self._kind))

    def borders(self, nodes: Mapping[ir.Node, Halves]) -> None:
        """Whatever reads 16 bits and wants float32 reads a Cast."""
        made = set(self._casts.values())
        for value in tuple(self._halved):
            readers = [
                (node, index)
                for node, index in value.uses()
                if not (node in nodes and index in nodes[node].operands) and node.outputs[0] not in made
            ]
            bodies = tuple(self._given_by_bodies(value))
            if readers or bodies:
                real = self._cast(value, _FLOAT)
                for node, index in readers:
                    node.replace_input_with(index, real)
                for body, index in bodies:
                    body.outputs[index] = real

    def outputs(self, *, ends: bool) -> None:
        """Outputs that were float32 are so again, or with `ends` all of them have 16 bits."""
        for index, value in enumerate(tuple(self._graph.outputs)):
            wrong = _is(value, _FLOAT) if ends else value in self._halved
            if wrong and value.producer() is not None:
                self._cast_output(index, value, self._kind if ends else _FLOAT)

    def _halve(self, value: ir.Value) -> None:
        value.type = ir.TensorType(self._kind)
        self._halved.add(value)

    def _constant(self, value: ir.Value) -> ir.Value:
        """The constant in 16 bits, made once."""
        key = (value, self._kind)
        if key not in self._casts:
            name = f"{value.name}_{self._kind.numpy().name}"
            self._casts[key] = add_initializer(self._graph, name, _in_half(value, self._kind), self._kind)
        return self._casts[key]

    def _cast(self, value: ir.Value, kind: ir.DataType) -> ir.Value:
        key = (value, kind)
        if key not in self._casts:
            cast = cast_node(self._graph, value, kind, free_name(self._graph, f"{value.name}_{kind.numpy().name}"))
            insert_after(value, cast, self._graph)
            self._casts[key] = cast.outputs[0]
        return self._casts[key]

    def _cast_output(self, index: int, value: ir.Value, kind: ir.DataType) -> None:
        """The output keeps its name; what computes it gets another one."""
        name = value.name or ""
        value.name = free_name(self._graph, f"{name}_{'float32' if value in self._halved else 'half'}_before")
        cast = cast_node(self._graph, value, kind, name)
        self._graph.outputs[index] = cast.outputs[0]
        self._graph.append(cast)

    def _given_by_bodies(self, value: ir.Value) -> Iterator[tuple[ir.Graph, int]]:
        for body in self._graph.subgraphs():
            yield from ((body, index) for index, output in enumerate(body.outputs) if output is value)


def _in_half(value: ir.Value, kind: ir.DataType) -> Array | Deferred:
    """A constant in 16 bits; where it lies in a file, so does this one: it is computed when it is needed."""
    tensor, small = value.const_value, kind.numpy()
    if tensor is None:
        raise ValueError(f"'{value.name}' is not constant")
    if isinstance(tensor, ir.LazyTensor):
        return Deferred(tuple(tensor.shape.numpy()), small.name, lambda: tensor.numpy().astype(small))
    return np.asarray(tensor.numpy()).astype(small)


def cast_node(graph: ir.Graph, value: ir.Value, kind: ir.DataType, output: str) -> ir.Node:
    """A Cast of a value, not yet placed in the graph; `output` names its result."""
    cast = make_node("Cast", [value], name=free_name(graph, f"{output}_cast"), output=output, attributes={"to": kind})
    cast.outputs[0].type = ir.TensorType(kind)
    cast.outputs[0].shape = value.shape
    return cast


def _drop_idle_casts(model: Model) -> None:
    """Takes out Casts to the type that a value has, and those that undo a Cast from it to a wider one."""
    for node in tuple(model.graph):
        source = node.inputs[0] if node.op_type == "Cast" and node.domain in ("", "ai.onnx") else None
        result = node.outputs[0]
        if source is None or result.is_graph_output():
            continue
        before = _widened(source)
        if result.dtype is not None and result.dtype == source.dtype:
            _replace(model.graph, node, source)
        elif before is not None and result.dtype == before.dtype:
            _replace(model.graph, node, before)


def _widened(value: ir.Value) -> ir.Value | None:
    """What a Cast made a value of, if float32 holds all of it."""
    producer = value.producer()
    source = producer.inputs[0] if producer is not None and producer.op_type == "Cast" else None
    return source if source is not None and _is(value, _FLOAT) and source.dtype in KINDS.values() else None


def _replace(graph: ir.Graph, node: ir.Node, source: ir.Value) -> None:
    node.outputs[0].replace_all_uses_with(source)
    for body in graph.subgraphs():
        for index, output in enumerate(body.outputs):
            if output is node.outputs[0]:
                body.outputs[index] = source
    graph.remove(node, safe=True)


def _is(value: ir.Value, kind: ir.DataType) -> bool:
    return isinstance(value.type, ir.TensorType) and value.type.dtype == kind
