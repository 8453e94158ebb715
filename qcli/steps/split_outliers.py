"""The few channels of a product's input that dwarf the others take a path of their own, in float.

    x W  =  (x * m) W  +  x[o] W[o]          m = 0 for the outlying channels o, 1 elsewhere

One scale has to span the largest channel; with two or three of 384 channels ten times the others, as LayerNormalization
leaves them in transformers, most of the levels stand for nothing. The second product is thin and costs little.

Source: Dettmers et al. 2022, "LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale", section 3.2, with
channels that are fixed by calibration, since a graph is fixed.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from qcli.errors import InputError
from qcli.graph import (
    Graph,
    Model,
    Node,
    Value,
    add_initializer,
    constant_of,
    insert_after,
    insert_before,
    make_node,
    replace_value,
    set_constant,
    sole_consumer,
)
from qcli.statistics import Statistics
from qcli.steps._base import MeasuredStep
from qcli.types import Array, Request

_FEWEST = 64
"""Inputs of fewer channels are not worth two products."""


class SplitOutliers(MeasuredStep, frozen=True, kw_only=True):
    """Splits MatMul inputs whose range shrinks by at least `gain_db` when at most `limit` channels leave it.

    Of the numbers of channels up to `limit`, the one with the best gain is taken, where each channel must be worth
    `price_db`. Exact in float.
    """

    gain_db: float = 6.0
    price_db: float = 0.5
    limit: int = 8

    def requests(self, model: Model) -> tuple[Request, ...]:
        """The extrema of each channel of each product's input.

        Products in bodies are left alone: a value leaves a body as a vector, whose channels are lost.
        """
        names = dict.fromkeys(_name(node) for node in _products(model.graph))
        return tuple(Request(value=name, statistic="extrema", axis=-1) for name in names)

    def run_measured(self, model: Model, statistics: Statistics) -> int:
        split = 0
        paths: dict[str, tuple[Value, Value, Array]] = {}
        for node in tuple(_products(model.graph)):
            name = _name(node)
            try:
                known = statistics.get(Request(value=name, statistic="extrema", axis=-1)).distribution()
            except InputError:  # it is empty in every sample
                continue
            channels = self.outliers(known.lower, known.upper)
            if channels.size:
                if name not in paths:
                    paths[name] = _paths(model.graph, node, channels, known.lower.size)
                _split(model.graph, node, paths[name])
                split += 1
        return split

    def outliers(self, lower: Array, upper: Array) -> Array:
        """The channels that are worth a path of their own, ascending; none if the range gains too little by it.

        `lower` and `upper` are float64 [channels].
        """
        order = np.argsort(-np.maximum(np.abs(lower), np.abs(upper)), kind="stable")
        most = min(self.limit, order.size - 1)
        spans = np.array([_span(lower[order[count:]], upper[order[count:]]) for count in range(most + 1)])
        if most < 1 or spans[0] <= 0:
            return order[:0]
        gains = 20 * np.log10(spans[0] / np.maximum(spans, spans[0] * 1e-6))
        best = int(np.argmax(gains - self.price_db * np.arange(most + 1)))
        return np.sort(order[:best]) if gains[best] >= self.gain_db else order[:0]


def _span(lower: Array, upper: Array) -> float:
    return float(max(upper.max(), 0.0) - min(lower.min(), 0.0))


def _products(graph: Graph) -> Iterator[Node]:
    """MatMul of float data by a constant matrix that is large enough, whose input is no constant."""
    for node in graph:
        weight = constant_of(node.inputs[1]) if node.op_type == "MatMul" and node.domain in ("", "ai.onnx") else None
        if weight is None or weight.ndim != 2 or weight.shape[0] < _FEWEST or weight.dtype.name != "float32":
            continue
        if node.inputs[0] is not None and node.inputs[0].name and constant_of(node.inputs[0]) is None:
            yield node


def _name(node: Node) -> str:
    return (node.inputs[0].name if node.inputs[0] is not None else "") or ""


def _paths(graph: Graph, node: Node, channels: Array, size: int) -> tuple[Value, Value, Array]:
    """The input without its outlying channels, those channels alone, and their numbers."""
    source = node.inputs[0]
    if source is None:
        raise ValueError(f"{node.name} reads no data")
    mask = np.ones(size, np.float32)
    mask[channels] = 0
    name = source.name or "data"
    keep = add_initializer(graph, f"{name}_mask", mask)
    rest = make_node("Mul", [source, keep], name=f"{name}_inliers", output=f"{name}_inliers")
    index = add_initializer(graph, f"{name}_outlying", channels.astype(np.int64))
    few = make_node(
        "Gather", [source, index], name=f"{name}_outliers", output=f"{name}_outliers", attributes={"axis": -1}
    )
    for made in (rest, few):
        insert_before(node, made, graph)
        made.outputs[0].type = source.type
    rest.outputs[0].shape = source.shape
    return rest.outputs[0], few.outputs[0], channels


def _split(graph: Graph, node: Node, paths: tuple[Value, Value, Array]) -> None:
    rest, few, channels = paths
    weight = np.asarray(constant_of(node.inputs[1]))
    inner = weight.copy()
    inner[channels] = 0
    name = node.name or node.outputs[0].name
    set_constant(graph, node, 1, inner)
    node.replace_input_with(0, rest)
    rows = add_initializer(graph, f"{name}_outlier_rows", np.ascontiguousarray(weight[channels]))
    thin = make_node("MatMul", [few, rows], name=f"{name}_outliers", output=f"{name}_outliers")
    insert_before(node, thin, graph)
    end = _behind_bias(node)
    total = make_node("Add", [thin.outputs[0], thin.outputs[0]], name=f"{name}_both", output=f"{end.name}_both")
    total.outputs[0].type, total.outputs[0].shape = end.type, end.shape
    replace_value(graph, end, total.outputs[0])
    total.replace_input_with(0, end)
    insert_after(end, total, graph)


def _behind_bias(node: Node) -> Value:
    """The result, behind the bias that the runtime adds inside of the product's kernel."""
    value = node.outputs[0]
    follower = sole_consumer(value)
    if follower is not None and follower.op_type == "Add" and follower.graph is node.graph:
        other = follower.inputs[1] if follower.inputs[0] is value else follower.inputs[0]
        bias = constant_of(other)
        if bias is not None and bias.ndim == 1:
            return follower.outputs[0]
    return value
