"""Which channels of which tensors must be scaled alike, and which constants can absorb the factors.

A layer's weight W [out, in] takes any factors on both sides, y' = (F W / G) x' with y' = F y and x' = G x. Operators
between layers tie channels: f(s x) = s f(x) for Relu or pooling, x + y for Add, and Concat puts channels side by side.
Every channel of every such tensor belongs to a *class*; all channels of one class share one factor. What anything else
reads or writes keeps the factor 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from qcli.axes import clip_bounds, flatten_run, is_set, joined_sizes, rank_of
from qcli.graph import Graph, Model, Node, Value, constant_of, dimensions, infer_shapes, set_constant
from qcli.types import Array

Classes = npt.NDArray[np.int64]

_FIXED = 0
"""The class of channels whose factor is 1."""


@dataclass(frozen=True)
class Track:
    """The classes [channels] of a tensor's channels, which lie along `axis`, counted from the end (-1 is the last)."""

    axis: int
    classes: Classes


@dataclass(frozen=True)
class Linear:
    """A layer: the classes of what it writes and reads, shaped so that they broadcast over its weight."""

    node: Node
    out: Classes
    rows: Classes
    columns: Classes
    depthwise: bool


@dataclass(frozen=True)
class Offset:
    """A constant that is added to a tensor and scales with it."""

    node: Node
    operand: int
    track: Track


@dataclass(frozen=True)
class Clipped:
    """The result of a Clip from `lower` (at most 0) to `upper`: only what stays within may be scaled."""

    value: Value
    lower: float
    upper: float
    track: Track


@dataclass
class Channels:
    """The classes of a graph. `root` maps the numbers used in tracks to classes, see `resolved`."""

    tracks: dict[Value, Track] = field(default_factory=dict)
    layers: list[Linear] = field(default_factory=list)
    offsets: list[Offset] = field(default_factory=list)
    clips: list[Clipped] = field(default_factory=list)
    _parents: list[int] = field(default_factory=lambda: [_FIXED])

    def fresh(self, size: int) -> Classes:
        start = len(self._parents)
        self._parents.extend(range(start, start + size))
        return np.arange(start, start + size, dtype=np.int64)

    def tie(self, first: Classes, second: Classes) -> None:
        """Channel by channel, both belong to one class; the lowest number, and so the fixed class, names it."""
        for one, other in zip(first.tolist(), second.tolist(), strict=True):
            low, high = sorted((self._find(one), self._find(other)))
            self._parents[high] = low

    def fix(self, classes: Classes) -> None:
        self.tie(classes, np.zeros_like(classes))

    def resolved(self) -> Classes:
        """The class of each number: an array to index with the numbers of a track."""
        return np.array([self._find(number) for number in range(len(self._parents))], np.int64)

    def _find(self, number: int) -> int:
        while self._parents[number] != number:
            self._parents[number] = self._parents[self._parents[number]]
            number = self._parents[number]
        return number


def channels_of(model: Model) -> Channels:
    """The classes of the main graph's channels; values that bodies read are fixed."""
    infer_shapes(model)
    found = Channels()
    for node in model.graph:
        rule = _RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        if rule is None or not rule(found, node):
            _fix(found, node.inputs)
    for value, track in found.tracks.items():
        captured = any(reader.graph is not model.graph for reader, _ in value.uses())
        if value.is_graph_output() or captured:
            found.fix(track.classes)
    return found


@np.errstate(over="ignore", invalid="ignore")  # the step is undone if anything is no longer finite
def rescale(graph: Graph, found: Channels, factors: Array) -> None:
    """Multiplies by `factors` (float64, one for each number, 1 for the fixed class) what writes and reads a class."""
    for layer in found.layers:
        weight = np.asarray(constant_of(layer.node.inputs[1]))
        scaled = weight * factors[layer.rows] / factors[layer.columns]
        if not np.array_equal(scaled, weight):
            set_constant(graph, layer.node, 1, scaled.astype(weight.dtype))
        if len(layer.node.inputs) > 2 and layer.node.inputs[2] is not None:
            bias = np.asarray(constant_of(layer.node.inputs[2]))
            set_constant(graph, layer.node, 2, (bias * factors[layer.out]).astype(bias.dtype))
    for offset in found.offsets:
        constant = np.asarray(constant_of(offset.node.inputs[offset.operand]))
        along = factors[offset.track.classes].reshape(-1, *[1] * (-offset.track.axis - 1))
        set_constant(graph, offset.node, offset.operand, (constant * along).astype(constant.dtype))


def _fix(found: Channels, values: Iterable[Value | None]) -> None:
    for value in values:
        if value is not None and value in found.tracks:
            found.fix(found.tracks[value].classes)


def _owned(value: Value | None) -> Array | None:
    """A constant that belongs to one operand alone."""
    array = constant_of(value)
    alone = value is not None and len(tuple(value.uses())) == 1
    return array if alone and array is not None and array.dtype.kind == "f" else None


def _own_bias(node: Node, channels: int) -> bool:
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return True
    bias = _owned(node.inputs[2])
    return bias is not None and bias.ndim > 0 and bias.shape[-1] == channels == bias.size


def _read(found: Channels, node: Node, axis: int, channels: int) -> Classes:
    """The classes of a layer's input; fixed ones if its channels are not known to be there."""
    value = node.inputs[0]
    track = found.tracks.get(value) if value is not None else None
    if track is not None and track.axis == axis and track.classes.size == channels:
        return track.classes
    if track is not None:
        found.fix(track.classes)
    return np.zeros(channels, np.int64)


def _convolution(found: Channels, node: Node) -> bool:
    weight, rank = _owned(node.inputs[1]), rank_of(node.inputs[0])
    if weight is None or rank is None or rank != weight.ndim:
        return False
    groups = node.attributes["group"].as_int() if "group" in node.attributes else 1
    turned = node.op_type == "ConvTranspose"
    written, read = (weight.shape[1] * groups, weight.shape[0])[:: 1 if turned else -1]
    if not turned:
        written, read = weight.shape[0], weight.shape[1] * groups
    if not _own_bias(node, written):
        return False
    ins, outs = _read(found, node, 1 - rank, read), found.fresh(written)
    spread, own = (outs, ins) if turned else (ins, outs)  # which of them the weight holds group by group
    grouped = np.repeat(spread.reshape(groups, 1, -1), own.size // groups, axis=1).reshape(own.size, -1)
    tail = [1] * (rank - 2)
    many, one = grouped.reshape(*grouped.shape, *tail), own.reshape(-1, 1, *tail)
    rows, columns = (many, one) if turned else (one, many)
    depthwise = groups > 1 and weight.shape[1] == 1 and not turned
    found.layers.append(Linear(node, outs, rows, columns, depthwise))
    found.tracks[node.outputs[0]] = Track(1 - rank, outs)
    return True


def _product(found: Channels, node: Node) -> bool:
    weight, rank = _owned(node.inputs[1]), rank_of(node.inputs[0])
    if weight is None or weight.ndim != 2 or rank is None or rank < 2 or is_set(node, "transA"):
        return False
    turned = is_set(node, "transB")
    read, written = weight.shape[::-1] if turned else weight.shape
    if not _own_bias(node, written):
        return False
    ins, outs = _read(found, node, -1, read), found.fresh(written)
    rows, columns = (outs[:, None], ins[None]) if turned else (outs[None], ins[:, None])
    found.layers.append(Linear(node, outs, rows, columns, depthwise=False))
    found.tracks[node.outputs[0]] = Track(-1, outs)
    return True


def _same(found: Channels, node: Node) -> bool:
    """One input whose channels the result keeps where they are."""
    value = node.inputs[0]
    track = found.tracks.get(value) if value is not None else None
    used = sum(bool(output.name) and bool(tuple(output.uses())) for output in node.outputs)
    others = any(other in found.tracks for other in node.inputs[1:] if other is not None)  # a slope that is computed
    if track is None or others or used > 1 or rank_of(node.outputs[0]) != rank_of(value):
        return False
    found.tracks[node.outputs[0]] = track
    return True


def _clip(found: Channels, node: Node) -> bool:
    lower, upper = clip_bounds(node)
    if not lower <= 0 <= upper or not _same(found, node):
        return False
    track = found.tracks[node.outputs[0]]
    found.clips.append(Clipped(node.outputs[0], lower, upper, track))
    return True


def _sum(found: Channels, node: Node) -> bool:
    """Two tensors whose channels meet, or a tensor and a constant that scales with it."""
    if len(node.inputs) != 2 or any(value is None for value in node.inputs):
        return False
    first, second = (found.tracks.get(value) for value in node.inputs if value is not None)
    if first is not None and second is not None:
        if first.axis != second.axis or first.classes.size != second.classes.size:
            return False
        found.tie(first.classes, second.classes)
        found.tracks[node.outputs[0]] = first
        return True
    track = first or second
    return track is not None and _offset(found, node, 1 if first is not None else 0, track)


def _offset(found: Channels, node: Node, operand: int, track: Track) -> bool:
    constant, value = constant_of(node.inputs[operand]), node.inputs[1 - operand]
    rank, channels = rank_of(value), track.classes.size
    if constant is None or rank is None or constant.dtype.kind != "f" or constant.ndim > rank:
        return False
    along = constant.shape[track.axis] if constant.ndim >= -track.axis else 1
    if along not in (1, channels):
        return False
    found.tracks[node.outputs[0]] = track
    found.offsets.append(Offset(node, operand, track))
    return True


def _factor(found: Channels, node: Node) -> bool:
    """A product with something of fixed scale, such as a constant or a gate."""
    tracks = [(value, found.tracks.get(value)) for value in node.inputs if value is not None]
    tracked = [(value, track) for value, track in tracks if track is not None]
    if len(tracked) != 1 or (node.op_type == "Div" and tracked[0][0] is not node.inputs[0]):
        return False
    value, track = tracked[0]
    shape, result = dimensions(value), dimensions(node.outputs[0])
    if shape is None or result is None or len(shape) != len(result) or result[track.axis] != track.classes.size:
        return False
    found.tracks[node.outputs[0]] = track
    return True


def _concat(found: Channels, node: Node) -> bool:
    tracks = [found.tracks.get(value) if value is not None else None for value in node.inputs]
    known = next((track for track in tracks if track is not None), None)
    sizes = joined_sizes(node, known.axis) if known is not None else None
    if known is None or sizes is None:
        return False
    parts = []
    for track, size in zip(tracks, sizes, strict=True):
        if track is not None and (track.axis != known.axis or track.classes.size != size):
            return False
        parts.append(track.classes if track is not None else np.zeros(size, np.int64))
    found.tracks[node.outputs[0]] = Track(known.axis, np.concatenate(parts))
    return True


def _flatten(found: Channels, node: Node) -> bool:
    """[N, C, ...] to [N, C * ...]: each channel becomes a run of features."""
    value = node.inputs[0]
    track = found.tracks.get(value) if value is not None else None
    run = flatten_run(node, track.axis, track.classes.size) if track is not None else None
    if track is None or run is None:
        return False
    found.tracks[node.outputs[0]] = Track(-1, np.repeat(track.classes, run))
    return True


_Rule = Callable[[Channels, Node], bool]

_RULES: dict[str, _Rule] = {
    **dict.fromkeys(("Conv", "ConvTranspose"), _convolution),
    **dict.fromkeys(("Gemm", "MatMul"), _product),
    **dict.fromkeys(("Relu", "LeakyRelu", "PRelu", "Identity", "Dropout"), _same),
    **dict.fromkeys(("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"), _same),
    "Clip": _clip,
    **dict.fromkeys(("Add", "Sub"), _sum),
    **dict.fromkeys(("Mul", "Div"), _factor),
    "Concat": _concat,
    **dict.fromkeys(("Flatten", "Reshape"), _flatten),
}
"""How an operator ties the channels of what it reads and writes; False leaves its inputs fixed."""
