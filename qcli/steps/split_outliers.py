"""The few channels of a layer's input that dwarf the others take a path of their own, in float.

    x W  =  (x * m) W  +  x[o] W[o]          m = 0 for the outlying channels o, 1 elsewhere

One scale has to span the largest channel; with two or three of 384 channels ten times the others, as LayerNormalization
leaves them in transformers, most of the levels stand for nothing. The second product is thin and costs little.

Source: Dettmers et al. 2022, "LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale", section 3.2, with
channels that are fixed by calibration, since a graph is fixed; how many is chosen by the measured error of the outputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from qcli.graph import (
    Graph,
    Model,
    Node,
    Value,
    add_initializer,
    constant_of,
    infer_shapes,
    insert_after,
    insert_before,
    make_node,
    replace_value,
    set_constant,
    sole_consumer,
)
from qcli.statistics import Statistics
from qcli.steps._base import MeasuredStep
from qcli.steps._linear import Linear, comes_in_codes, linears, may_be_integer
from qcli.steps._noise import Measured, Samples, Trials, measured
from qcli.types import Array, Request

_FEWEST = 64
"""Inputs of fewer channels are not worth two products."""


class SplitOutliers(MeasuredStep, frozen=True, kw_only=True):
    """Splits MatMul, Gemm and Conv inputs whose outputs lose at least `gain_db` less error without a few channels.

    Of the numbers of channels up to `limit`, the one with the best gain is taken, where each channel must be worth
    `price_db`. The error is that of an input and a weight of 8 bits. Exact in float.
    """

    worth_db: ClassVar[float | None] = 1.0

    gain_db: float = 6.0
    price_db: float = 0.5
    limit: int = 8

    def requests(self, model: Model) -> tuple[Request, ...]:
        """Some rows of each layer's input."""
        return tuple(readers[0].request() for _, readers in _sites(model))

    def run_measured(self, model: Model, statistics: Statistics) -> int:
        split = 0
        for value, readers in tuple(_sites(model)):
            known = measured(statistics, readers[0].request())
            channels = self.outliers(known, readers) if known is not None else ()
            if len(channels):
                _split_site(model.graph, value, readers, np.asarray(channels))
                split += len(readers)
        return split

    def outliers(self, known: Measured, readers: Sequence[Linear]) -> Array:
        """The channels that are worth a path of their own, ascending, int64; none if the outputs gain too little."""
        trials = Trials(known, readers)
        most = min(self.limit, known.whole.lower.size - 1)
        gains = [0.0]
        for count in range(1, most + 1):
            gains.append(trials.gain(lambda samples, count=count: (_mask(samples, count),) * 2))  # type: ignore[misc]
        best = int(np.argmax(np.array(gains) - self.price_db * np.arange(len(gains))))
        return np.sort(_largest(known.whole, best if gains[best] >= self.gain_db else 0))


def _largest(samples: Samples, count: int) -> Array:
    order: Array = np.argsort(-samples.peaks, kind="stable")[:count]
    return order


def _mask(samples: Samples, count: int) -> Array:
    mask = np.ones(len(samples.peaks))
    mask[_largest(samples, count)] = 0
    return mask


def _sites(model: Model) -> Iterator[tuple[Value, tuple[Linear, ...]]]:
    """Values with the layers that read them alike: along one axis, with as many channels."""
    infer_shapes(model)
    groups: dict[tuple[Value, int], list[Linear]] = {}
    for layer in linears(model.graph):
        if layer.channels >= _FEWEST:
            groups.setdefault((layer.data, layer.axis), []).append(layer)
    for (value, _), readers in groups.items():
        alike = len({reader.channels for reader in readers}) == 1
        if alike and not comes_in_codes(value, [reader.node for reader in readers]):
            yield value, tuple(readers)


@dataclass(frozen=True)
class _Paths:
    """An input without its outlying channels, those alone, and their numbers."""

    rest: Value
    few: Value
    channels: Array


def _split_site(graph: Graph, value: Value, readers: Sequence[Linear], channels: Array) -> None:
    paths = _paths(graph, value, readers[0], channels)
    for reader in readers:
        _split(graph, reader, paths)


def _paths(graph: Graph, value: Value, reader: Linear, channels: Array) -> _Paths:
    name = value.name or "data"
    mask = np.ones(reader.channels, np.float32)
    mask[channels] = 0
    if reader.axis == 1:
        mask = mask.reshape(-1, *[1] * (reader.weight.ndim - 2))
    rest = _masked(graph, value, name, mask)
    index = add_initializer(graph, f"{name}_outlying", channels.astype(np.int64))
    few = make_node(
        "Gather", [value, index], name=f"{name}_outliers", output=f"{name}_outliers", attributes={"axis": reader.axis}
    )
    for made in (rest, few):
        insert_before(reader.node, made, graph)
        made.outputs[0].type = value.type
    rest.outputs[0].shape = value.shape
    return _Paths(rest.outputs[0], few.outputs[0], channels)


def _masked(graph: Graph, value: Value, name: str, mask: Array) -> Node:
    """A Mul, or, where that might become an integer kernel with a grid over all channels, a Where, which cannot."""
    if not may_be_integer(value):
        keep = add_initializer(graph, f"{name}_mask", mask)
        return make_node("Mul", [value, keep], name=f"{name}_inliers", output=f"{name}_inliers")
    keep = add_initializer(graph, f"{name}_mask", mask > 0)
    zero = add_initializer(graph, f"{name}_zero", np.zeros((), np.float32))
    return make_node("Where", [keep, value, zero], name=f"{name}_inliers", output=f"{name}_inliers")


def _split(graph: Graph, reader: Linear, paths: _Paths) -> None:
    """The layer without the outlying channels, and behind its bias the sum with a thin one of those alone."""
    node, weight = reader.node, reader.weight
    outlying = [slice(None)] * reader.inner + [paths.channels]
    rows = np.ascontiguousarray(weight[tuple(outlying)])
    inner = weight.copy()
    inner[tuple(outlying)] = 0
    name = node.name or node.outputs[0].name
    set_constant(graph, node, 1, inner)
    node.replace_input_with(0, paths.rest)
    thin_weight = add_initializer(graph, f"{name}_outlier_rows", rows)
    attributes = {key: item.value for key, item in node.attributes.items() if key != "beta"}
    thin_name = f"{name}_outliers"
    thin = make_node(node.op_type, [paths.few, thin_weight], name=thin_name, output=thin_name, attributes=attributes)
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
