"""Channels that share a tensor get similar ranges, so that one scale serves them all.

    y = W2 f(W1 x + b1) + b2  =  (W2 / s) f((s W1) x + s b1) + b2          for f(s z) = s f(z), s > 0

The factors s, one for each channel, belong to a *stream*: all values that Add, Relu, LeakyRelu and pooling tie to each
other must be scaled alike. A stream begins in layers whose output channels are multiplied by s and ends in layers whose
input channels are divided by it. A residual stream, which pairwise equalization has to leave alone, is one of them.

Source: Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.1, there
for pairs of layers and from weight ranges; here for streams and from activation ranges.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from qcli.graph import Graph, Model, Node, Value, constant_of, dimensions, infer_shapes, set_constant
from qcli.statistics import Statistics
from qcli.steps._base import MeasuredStep
from qcli.types import Array, Request

_HOMOGENEOUS = ("Relu", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool")


class Equalize(MeasuredStep, frozen=True, kw_only=True):
    """Rescales the channels of every stream between convolutions to similar ranges; exact in float.

    `strength` 1 makes all channels' ranges equal, 0 does nothing; in between, weights of the layers behind keep
    more of their own balance. `limit` bounds each factor.
    """

    strength: float = 0.5
    limit: float = 16.0

    def requests(self, model: Model) -> tuple[Request, ...]:
        """The extrema of each channel of each value in a stream."""
        names = [value.name or "" for stream in _streams(model) for value in stream.values]
        return tuple(Request(value=name, statistic="extrema", axis=1) for name in names)

    def run_measured(self, model: Model, statistics: Statistics) -> int:
        scaled = 0
        for stream in _streams(model):
            ranges = np.max([_range(statistics, value) for value in stream.values], axis=0)
            live = ranges > 0
            if not live.any():
                continue
            factors = np.ones(ranges.shape)
            factors[live] = np.clip((ranges.max() / ranges[live]) ** self.strength, 1.0, self.limit)
            _rescale(model.graph, stream, factors)
            scaled += 1
        return scaled


@dataclass
class _Stream:
    """Values that are scaled alike, the layers that write them and the layers that read them."""

    values: list[Value] = field(default_factory=list)
    writers: list[Node] = field(default_factory=list)
    readers: list[Node] = field(default_factory=list)


def _range(statistics: Statistics, value: Value) -> Array:
    known = statistics.get(Request(value=value.name or "", statistic="extrema", axis=1)).distribution()
    return np.maximum(np.abs(known.lower), np.abs(known.upper))


def _rescale(graph: Graph, stream: _Stream, factors: Array) -> None:
    """Multiplies the writers' output channels and divides the readers' input channels."""
    for node in stream.writers:
        weight = _weight(node)
        set_constant(graph, node, 1, (weight * _along(factors, weight.ndim, 0)).astype(weight.dtype))
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            bias = np.asarray(constant_of(node.inputs[2]))
            set_constant(graph, node, 2, (bias * factors).astype(bias.dtype))
    for node in stream.readers:
        weight = _weight(node)
        axis = 0 if _is_depthwise(node) else 1
        set_constant(graph, node, 1, (weight / _along(factors, weight.ndim, axis)).astype(weight.dtype))


def _streams(model: Model) -> list[_Stream]:
    """All streams that can be rescaled, in graph order."""
    infer_shapes(model)
    groups = _groups(model.graph)
    found: dict[Value, _Stream] = {}
    for node in model.graph:
        for value in node.outputs:
            if value in groups:
                found.setdefault(groups[value], _Stream()).values.append(value)
    return [stream for stream in found.values() if _complete(stream)]


def _groups(graph: Graph) -> dict[Value, Value]:
    """The representative of each value's stream."""
    parent: dict[Value, Value] = {}

    def find(value: Value) -> Value:
        while parent.setdefault(value, value) is not value:
            value = parent[value]
        return value

    for node in graph:
        for value in _tied_inputs(node):
            parent[find(node.outputs[0])] = find(value)
        if node.op_type == "Conv":
            find(node.outputs[0])
    return {value: find(value) for value in parent}


def _tied_inputs(node: Node) -> Iterator[Value]:
    """The inputs that a node ties to its output channel by channel."""
    if node.op_type in _HOMOGENEOUS and len(node.outputs) == 1 and node.inputs[0] is not None:
        yield node.inputs[0]
    elif node.op_type == "Add" and _same_shapes(node):
        yield from (value for value in node.inputs if value is not None)


def _same_shapes(node: Node) -> bool:
    shapes = [dimensions(value) if value is not None else None for value in (*node.inputs, node.outputs[0])]
    known = shapes[0] is not None and len(shapes[0]) > 2 and shapes[0][1] is not None
    return known and all(shape is not None and shape[1:] == (shapes[0] or ())[1:] for shape in shapes)


def _complete(stream: _Stream) -> bool:
    """Finds the layers around a stream; False if something else writes or reads it, or a layer cannot be scaled."""
    inside = set(stream.values)
    for value in stream.values:
        producer = value.producer()
        tied = producer is not None and all(source in inside for source in _tied_inputs(producer))
        if producer is None or value.is_graph_output():
            return False
        if producer.op_type == "Conv" and _scalable(producer):
            stream.writers.append(producer)
        elif producer.op_type == "Conv" or not tied or not any(True for _ in _tied_inputs(producer)):
            return False
        for reader, operand in value.uses():
            if reader.outputs[0] in inside and reader.op_type != "Conv":
                continue
            if reader.op_type != "Conv" or operand != 0 or not (_scalable(reader) and _takes_channels(reader)):
                return False
            stream.readers.append(reader)
    return bool(stream.writers and stream.readers)


def _scalable(node: Node) -> bool:
    """True if the weight and the bias are constant and belong to this node alone."""
    for value in node.inputs[1:3]:
        if value is not None and (constant_of(value) is None or len(tuple(value.uses())) != 1):
            return False
    return True


def _takes_channels(node: Node) -> bool:
    return _group(node) == 1 or _is_depthwise(node)


def _is_depthwise(node: Node) -> bool:
    weight = _weight(node)
    return weight.shape[1] == 1 and _group(node) == weight.shape[0] and _group(node) > 1


def _group(node: Node) -> int:
    return node.attributes["group"].as_int() if "group" in node.attributes else 1


def _weight(node: Node) -> Array:
    return np.asarray(constant_of(node.inputs[1]))


def _along(vector: Array, rank: int, axis: int) -> Array:
    return vector.reshape([-1 if index == axis else 1 for index in range(rank)])
