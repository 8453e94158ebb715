"""What values are expected to be, from BatchNormalization's parameters alone.

BatchNormalization gives each channel the mean beta and the standard deviation |gamma|, on the data it was trained on.
From there a normal distribution for each channel is followed through the graph:

    f(x)              an elementwise function is applied to the distribution's quantiles
    x + y             means and variances add
    W x + b           mean W E[x] + b, variance W^2 Var[x]: one layer without normalization, not several
    pooling, moves    keep the distribution of a channel, which for averages is wider than need be

Values are taken to be independent, channels to lie along axis 1.

Source: Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", sections 4.2 and 5;
propagation beyond activation functions is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
import numpy.typing as npt

from qcli.graph import Graph, Node, Value, constant_of, dimensions
from qcli.layers import LAYERS, batchnorm_of, output_channel_axis
from qcli.types import Array

Float64Array = npt.NDArray[np.float64]

_NODES = 65
_ASSUMED_SIGMAS = 4.0
"""Inputs of which nothing is known are taken to be standard normal, up to here."""

_MOST_LAYERS = 1
"""So many layers without normalization one behind the other are followed: independence is an assumption that fails."""


@dataclass(frozen=True)
class Expected:
    """A distribution for each channel: quantiles `points` [channels, nodes], where `weights` [nodes] add up to 1.

    `layers` counts the layers since BatchNormalization or the model's input.
    """

    points: Float64Array
    weights: Float64Array
    layers: int = 0

    @property
    def mean(self) -> Float64Array:
        return np.asarray(self.points @ self.weights)

    @property
    def variance(self) -> Float64Array:
        return np.asarray((self.points - self.mean[:, None]) ** 2 @ self.weights)

    @property
    def lower(self) -> float:
        return float(self.points.min(initial=0.0))

    @property
    def upper(self) -> float:
        return float(self.points.max(initial=0.0))


class Expectations:
    """The distributions of a graph's values within `sigmas` standard deviations, as far as they can be known.

    `inputs` are the ends of the model's inputs, those that are known; with `assume`, others are standard normal.
    """

    def __init__(
        self, graph: Graph, sigmas: float, inputs: Mapping[str, tuple[float, float]], *, assume: bool = True
    ) -> None:
        self._deviations = np.linspace(-sigmas, sigmas, _NODES)
        density = np.exp(-(self._deviations**2) / 2)
        self._weights = density / density.sum()
        self._known: dict[Value, Expected] = {}
        self._unknown: dict[str, str] = {}
        for value in graph.inputs:
            if not value.is_initializer() and (assume or value.name in inputs):
                self._known[value] = self._input(value, inputs.get(value.name or ""))
        for node in graph:
            self._follow(node)
        self._by_name = {value.name or "": expected for value, expected in self._known.items()}

    def get(self, name: str) -> Expected | None:
        """The distribution of a value, None where it is not known."""
        return self._by_name.get(name)

    def why_not(self, name: str) -> str:
        """Which node a value that is not known comes from."""
        return self._unknown.get(name, "it lies in the body of an If, Loop or Scan")

    def _input(self, value: Value, ends: tuple[float, float] | None) -> Expected:
        shape = dimensions(value) or ()
        channels = (shape[1] if len(shape) > 1 else None) or 1
        if ends is None:
            return self._normal(np.zeros(channels), np.ones(channels), (-_ASSUMED_SIGMAS, _ASSUMED_SIGMAS))
        reached = np.cumsum(self._weights) - self._weights / 2
        even = ends[0] + (ends[1] - ends[0]) * (reached - reached[0]) / (reached[-1] - reached[0])
        return Expected(np.tile(even, (channels, 1)), self._weights)

    def _normal(
        self, mean: Float64Array, deviation: Float64Array, ends: tuple[float, float], layers: int = 0
    ) -> Expected:
        points = mean[:, None] + deviation[:, None] * self._deviations
        return Expected(points.clip(*ends), self._weights, layers)

    def _follow(self, node: Node) -> None:
        """Notes what is expected of a node's results."""
        described = batchnorm_of(node)
        if described is not None:
            beta, gamma = described
            self._known[node.outputs[0]] = self._normal(beta, np.abs(gamma), _UNBOUNDED)
            return
        read = [self._known.get(value) for value in node.inputs if value is not None and constant_of(value) is None]
        found = None
        if node.domain in ("", "ai.onnx") and read and all(item is not None for item in read):
            found = self._result(node, [item for item in read if item is not None])
        for value in node.outputs:
            if found is not None:
                self._known[value] = found
            else:
                self._unknown[value.name or ""] = self._reason(node)

    def _reason(self, node: Node) -> str:
        """What breaks the chain: the first node, seen from the input, of whose result nothing is known."""
        before = (self._unknown.get(value.name or "") for value in node.inputs if value is not None)
        if (known := next((reason for reason in before if reason), None)) is not None:
            return known
        many = f"is more than {_MOST_LAYERS} layer behind the last BatchNormalization or the input"
        return f"{node.op_type} '{node.name}' {many if node.op_type in LAYERS else 'cannot be followed'}"

    def _result(self, node: Node, read: list[Expected]) -> Expected | None:
        first = read[0]
        if node.op_type in _FUNCTIONS and len(read) == 1:
            return Expected(_FUNCTIONS[node.op_type](node, first.points), first.weights, first.layers)
        if node.op_type in _KEPT:
            return first
        if node.op_type in ("Conv", "Gemm", "MatMul"):
            return self._layer(node, first) if len(read) == 1 else None
        if node.op_type in _CUTS:
            return _CUTS[node.op_type](node, first) if len(read) == 1 else None
        combine = {"Add": self._sum, "Mul": self._product, "Concat": _joined}.get(node.op_type)
        if combine is not None and len(read) == sum(value is not None for value in node.inputs):
            return combine(node, read)
        return None

    def _layer(self, node: Node, read: Expected) -> Expected | None:
        matrix = _matrix(node, read.mean.size)
        if matrix is None or read.layers >= _MOST_LAYERS:
            return None
        sums, squares, bias = matrix
        deviation = np.sqrt(squares @ read.variance)
        return self._normal(sums @ read.mean + bias, deviation, _UNBOUNDED, read.layers + 1)

    def _sum(self, node: Node, read: list[Expected]) -> Expected | None:
        if len({item.mean.size for item in read}) > 1:
            return None
        mean = np.sum([item.mean for item in read], axis=0)
        deviation = np.sqrt(np.sum([item.variance for item in read], axis=0))
        lower = np.sum([item.points.min(axis=1) for item in read], axis=0)[:, None]
        upper = np.sum([item.points.max(axis=1) for item in read], axis=0)[:, None]
        points = (mean[:, None] + deviation[:, None] * self._deviations).clip(lower, upper)
        return Expected(points, self._weights, max(item.layers for item in read))

    def _product(self, node: Node, read: list[Expected]) -> Expected | None:
        """Var[xy] = Var[x] Var[y] + Var[x] E[y]^2 + Var[y] E[x]^2."""
        one, two = read
        if one.mean.size != two.mean.size:
            return None
        variance = one.variance * two.variance + one.variance * two.mean**2 + two.variance * one.mean**2
        ends = np.stack(
            [a[:, [place]] * b[:, [other]] for a, b in ((one.points, two.points),) for place, other in _CORNERS]
        )
        points = (one.mean * two.mean)[:, None] + np.sqrt(variance)[:, None] * self._deviations
        return Expected(points.clip(ends.min(axis=0), ends.max(axis=0)), self._weights, max(one.layers, two.layers))


_UNBOUNDED = (-np.inf, np.inf)
_CORNERS = ((0, 0), (0, -1), (-1, 0), (-1, -1))

_KEPT = (
    "Identity", "Dropout", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Resize", "Upsample",
)  # fmt: skip
"""Operators whose results have the distribution of what they read, channel by channel, or a narrower one."""


def _clip(node: Node, points: Float64Array) -> Float64Array:
    ends = [constant_of(value) if value is not None else None for value in (*node.inputs[1:3], None, None)[:2]]
    lower, upper = (None if end is None else float(end.reshape(-1)[0]) for end in ends)
    named = {key: node.attributes[key].as_float() for key in ("min", "max") if key in node.attributes}
    return np.asarray(np.clip(points, named.get("min", lower), named.get("max", upper)))


def _alpha(node: Node, default: float) -> float:
    return node.attributes["alpha"].as_float() if "alpha" in node.attributes else default


def _sigmoid(points: Float64Array) -> Float64Array:
    return np.asarray(1 / (1 + np.exp(-points.clip(-500, 500))))


_FUNCTIONS: Mapping[str, Callable[[Node, Float64Array], Float64Array]] = {
    "Relu": lambda node, points: np.maximum(points, 0),
    "Clip": _clip,
    "LeakyRelu": lambda node, points: np.where(points < 0, _alpha(node, 0.01) * points, points),
    "Sigmoid": lambda node, points: _sigmoid(points),
    "Tanh": lambda node, points: np.tanh(points),
    "HardSwish": lambda node, points: points * np.clip(points / 6 + 0.5, 0, 1),
    "HardSigmoid": lambda node, points: np.clip(_alpha(node, 0.2) * points + 0.5, 0, 1),
}


def _matrix(node: Node, channels: int) -> tuple[Array, Array, Array] | None:
    """Sums over the kernel of a layer's weights and of their squares, both [outputs, inputs], and its bias."""
    weight = constant_of(node.inputs[1])
    bias = constant_of(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else np.zeros(1)
    if weight is None or bias is None or weight.ndim < 2:
        return None
    rows = np.asarray(weight, np.float64)
    group = node.attributes["group"].as_int() if "group" in node.attributes else 1
    if node.op_type != "Conv":
        if weight.ndim != 2:
            return None
        rows = rows if output_channel_axis(node) == 0 else rows.T
    kernel = tuple(range(2, rows.ndim))
    if rows.shape[1] * group != channels:
        return None
    sums, squares = (_by_group(item.sum(axis=kernel), group) for item in (rows, rows**2))
    return sums, squares, np.asarray(bias, np.float64).reshape(-1)


def _by_group(matrix: Float64Array, group: int) -> Float64Array:
    """[outputs, inputs / group] as [outputs, inputs], with zeros between the groups."""
    if group == 1:
        return matrix
    outputs, inputs = matrix.shape
    full = np.zeros((outputs, inputs * group))
    for number in range(group):
        rows = slice(number * outputs // group, (number + 1) * outputs // group)
        full[rows, number * inputs : (number + 1) * inputs] = matrix[rows]
    return full


def _joined(node: Node, read: list[Expected]) -> Expected | None:
    if node.attributes["axis"].as_int() != 1:
        return None
    return Expected(np.concatenate([item.points for item in read]), read[0].weights, max(item.layers for item in read))


def _padded(node: Node, read: Expected) -> Expected | None:
    """Padding beside channels adds channels of zeros; elsewhere it adds zeros to what is there."""
    pads = constant_of(node.inputs[1]) if len(node.inputs) > 1 else None
    mode = node.attributes["mode"].as_string() if "mode" in node.attributes else "constant"
    value = constant_of(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else np.zeros(1)
    if pads is None or value is None or value.any() or mode != "constant" or len(node.inputs) > 3:
        return None
    before, after = (int(pads[1]), int(pads[pads.size // 2 + 1])) if pads.size > 2 else (0, 0)
    if min(before, after) < 0:
        return None
    points = np.pad(read.points, ((before, after), (0, 0)))
    return Expected(points, read.weights, read.layers)


def _sliced(node: Node, read: Expected) -> Expected | None:
    """Which positions are kept does not matter, which channels are kept does."""
    given = [constant_of(value) if value is not None else None for value in node.inputs[1:]]
    if len(given) < 3 or any(array is None for array in given):
        return None
    starts, ends, axes, *steps = (np.asarray(array).tolist() for array in given)
    rank = len(dimensions(node.inputs[0]) or ()) if node.inputs[0] is not None else 0
    for place, axis in enumerate(axes):
        if axis in (1, 1 - rank):
            kept = slice(starts[place], ends[place], steps[0][place] if steps else 1)
            return Expected(read.points[kept], read.weights, read.layers)
    return read if rank else None


def _flattened(node: Node, read: Expected) -> Expected | None:
    """Features behind the batch, each channel's side by side."""
    data, result = (dimensions(value) if value is not None else None for value in (node.inputs[0], node.outputs[0]))
    if data is None or len(data) < 2 or result is None or len(result) < 2:
        return None
    if node.op_type == "Squeeze":
        return read if result[1] == data[1] else None
    if len(result) != 2 or any(size is None for size in data[1:]):
        return None
    return Expected(np.repeat(read.points, prod(size or 1 for size in data[2:]), axis=0), read.weights, read.layers)


_CUTS: Mapping[str, Callable[[Node, Expected], Expected | None]] = {
    "Pad": _padded,
    "Slice": _sliced,
    "Flatten": _flattened,
    "Reshape": _flattened,
    "Squeeze": _flattened,
}
