"""Computing in 16 bits as it is on a machine that does, in float32: every value is rounded where it would be stored.

A runtime without kernels of 16 bits computes in float32 and leaves out the roundings between its operators; two Casts
that stand in the file it keeps.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from qcli.graph.edit import add_initializer, constant_of, free_name, insert_after, insert_before
from qcli.graph.half import KINDS, cast_node
from qcli.graph.half_types import Halves
from qcli.graph.model import Model


def round_as_halves(model: Model, nodes: Mapping[ir.Node, Halves], to: str) -> dict[str, str]:
    """Rounds what nodes of the main graph read and give to numbers of `to`, in place; constants have to fit.

    The names that values have before they are rounded, by those of the rounded ones.
    """
    work = _Rounding(model.graph, KINDS[to])
    for node, halves in nodes.items():
        for index in halves.results:
            work.result(node.outputs[index])
    for node, halves in nodes.items():
        for index in halves.operands:
            work.operand(node, index)
    return work.names


class _Rounding:
    def __init__(self, graph: ir.Graph, kind: ir.DataType) -> None:
        self._graph = graph
        self._kind = kind
        self._rounded: dict[ir.Value, ir.Value] = {}
        self.names: dict[str, str] = {}

    def result(self, value: ir.Value) -> None:
        readers, name = tuple(value.uses()), value.name or ""
        bodies = [
            (graph, index)
            for graph in (self._graph, *self._graph.subgraphs())
            for index, output in enumerate(graph.outputs)
            if output is value
        ]
        rounded = self._pair(value)
        for reader, operand in readers:
            reader.replace_input_with(operand, rounded)
        for graph, index in bodies:
            graph.outputs[index] = rounded
        if any(graph is self._graph for graph, _ in bodies):
            value.name, rounded.name = free_name(self._graph, f"{name}_exact"), name
        self.names[rounded.name or ""] = name
        self._rounded[rounded] = rounded

    def operand(self, node: ir.Node, index: int) -> None:
        value = node.inputs[index]
        if value is None or value in self._rounded.values():
            return
        if value not in self._rounded:
            array = constant_of(value)
            self._rounded[value] = self._pair(value) if array is None else self._constant(value, array)
        node.replace_input_with(index, self._rounded[value])

    def _constant(self, value: ir.Value, array: np.ndarray) -> ir.Value:
        rounded = array.astype(self._kind.numpy()).astype(np.float32)
        return add_initializer(self._graph, f"{value.name}_rounded", rounded)

    def _pair(self, value: ir.Value) -> ir.Value:
        half = cast_node(self._graph, value, self._kind, free_name(self._graph, f"{value.name}_half"))
        real = cast_node(self._graph, half.outputs[0], ir.DataType.FLOAT, free_name(self._graph, f"{value.name}_again"))
        insert_after(value, real, self._graph)
        insert_before(real, half, self._graph)
        return real.outputs[0]
