"""How operators give, pass on and take in shifts of channels (`qcli/shifts.py`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from qcli.axes import clip_bounds, flatten_run, is_set, joined_sizes, rank_of
from qcli.graph import Model, Node, Value, constant_of, dimensions, infer_shapes, sole_consumer
from qcli.shifts import Bias, Gate, Numbers, Shifts, Track
from qcli.types import Array


def shifts_of(model: Model) -> Shifts:
    """The shifts of the main graph's channels; values that bodies read, and outputs, are fixed."""
    infer_shapes(model)
    found = Shifts()
    for node in model.graph:
        rule = _RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        if rule is None or not rule(found, node):
            found.fixed.extend(track for value in node.inputs if (track := found.of(value)) is not None)
    for value, track in found.tracks.items():
        captured = any(reader.graph is not model.graph for reader, _ in value.uses())
        if value.is_graph_output() or captured:
            found.fixed.append(track)
    return found


def _groups(node: Node) -> int:
    return node.attributes["group"].as_int() if "group" in node.attributes else 1


def _float(value: Value | None) -> Array | None:
    array = constant_of(value)
    return array if array is not None and array.dtype in (np.float32, np.float64) else None


def _vector(node: Node, operand: int, size: int, *, may_lack: bool = True) -> bool:
    """True if an operand is a constant with a number for each channel, its last axis, or can become one."""
    if operand >= len(node.inputs) or node.inputs[operand] is None:
        return may_lack
    array = _float(node.inputs[operand])
    return array is not None and array.ndim > 0 and array.size == array.shape[-1] == size


def _read(found: Shifts, node: Node, axis: int, channels: int, *, passes: bool = True) -> Track | None:
    """What shifts a layer's input; None, and fixed, if the layer cannot make up for it."""
    track = found.of(node.inputs[0])
    if track is not None and passes and track.axis == axis and track.channels == channels:
        return track
    if track is not None:
        found.fixed.append(track)
    return None


def _convolution(found: Shifts, node: Node) -> bool:
    weight, rank = _float(node.inputs[1]), rank_of(node.inputs[0])
    if weight is None or rank is None or rank != weight.ndim:
        return False
    turned = node.op_type == "ConvTranspose"
    outputs = weight.shape[1] * _groups(node) if turned else weight.shape[0]
    if not _vector(node, 2, outputs):
        return False
    passes = not turned and (_pads_nothing(node) or _is_pointwise(node, weight))
    reads = _read(found, node, 1 - rank, weight.shape[1] * _groups(node), passes=passes)
    own = found.fresh(outputs)
    found.biases.append(Bias(node, 2, own, reads=reads, layer=node))
    found.give(node.outputs[0], 1 - rank, own)
    return True


def _is_pointwise(node: Node, weight: Array) -> bool:
    """A kernel of one position, which pads nothing of its own accord."""
    return set(weight.shape[2:]) <= {1} and not _has_pads(node)


def _pads_nothing(node: Node) -> bool:
    kind = node.attributes["auto_pad"].as_string() if "auto_pad" in node.attributes else "NOTSET"
    return kind in ("NOTSET", "VALID") and (kind == "VALID" or not _has_pads(node))


def _has_pads(node: Node) -> bool:
    return "pads" in node.attributes and any(node.attributes["pads"].as_ints())


def _gemm(found: Shifts, node: Node) -> bool:
    weight = _float(node.inputs[1])
    factors = [node.attributes[key].as_float() for key in ("alpha", "beta") if key in node.attributes]
    if weight is None or weight.ndim != 2 or is_set(node, "transA") or any(factor != 1 for factor in factors):
        return False
    reads, outputs = weight.shape[::-1] if is_set(node, "transB") else weight.shape
    if not _vector(node, 2, outputs):
        return False
    own = found.fresh(outputs)
    found.biases.append(Bias(node, 2, own, reads=_read(found, node, -1, reads), layer=node))
    found.give(node.outputs[0], -1, own)
    return True


def _matmul(found: Shifts, node: Node) -> bool:
    """Its bias is the Add behind it, which makes up for the shift; the product in between moves by W c."""
    weight, rank, behind = _float(node.inputs[1]), rank_of(node.inputs[0]), sole_consumer(node.outputs[0])
    if weight is None or weight.ndim != 2 or rank is None or rank < 2 or behind is None or behind.op_type != "Add":
        return False
    operand = 1 if behind.inputs[0] is node.outputs[0] else 0
    if behind.graph is not node.graph or not _vector(behind, operand, weight.shape[1], may_lack=False):
        return False
    reads = _read(found, node, -1, weight.shape[0])
    if reads is not None:
        nothing = np.zeros(weight.shape[1], np.int64)
        found.biases.append(Bias(behind, operand, nothing, reads=reads, layer=node))
    return True


def _normalization(found: Shifts, node: Node) -> bool:
    """LayerNormalization: its own bias shifts what it writes; what it reads is fixed."""
    rank, gain = rank_of(node.inputs[0]), constant_of(node.inputs[1])
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else -1
    if rank is None or gain is None or gain.ndim != 1 or axis not in (-1, rank - 1) or not _vector(node, 2, gain.size):
        return False
    own = found.fresh(gain.size)
    found.biases.append(Bias(node, 2, own))
    found.give(node.outputs[0], -1, own)
    return False


def _same(found: Shifts, node: Node) -> bool:
    """One input whose channels the result keeps where they are."""
    track = found.of(node.inputs[0])
    used = sum(bool(output.name) and bool(tuple(output.uses())) for output in node.outputs)
    if track is None or used > 1 or rank_of(node.outputs[0]) != rank_of(node.inputs[0]):
        return False
    found.tracks[node.outputs[0]] = track
    return True


def _mean(found: Shifts, node: Node) -> bool:
    """AveragePool passes shifts on unless zeros around the input count."""
    counts = is_set(node, "count_include_pad")
    return not (counts and (not _pads_nothing(node) or is_set(node, "ceil_mode"))) and _same(found, node)


def _gate(found: Shifts, node: Node) -> bool:
    value = node.inputs[0]
    lower, upper = (0.0, np.inf) if node.op_type == "Relu" else clip_bounds(node)
    if value is None or not lower <= upper or not _same(found, node):
        return False
    found.gates.append(Gate(value, lower, upper, found.tracks[value]))
    return True


def _sum(found: Shifts, node: Node) -> bool:
    """Two tensors whose shifts add up, or a tensor and a constant that gives a shift of its own."""
    if len(node.inputs) != 2 or any(value is None for value in node.inputs):
        return False
    for operand in (0, 1):
        if constant_of(node.inputs[operand]) is not None:
            return _constant(found, node, operand)
    known = [(track, sign) for value, sign in zip(node.inputs, _signs(node), strict=True) if (track := found.of(value))]
    if len({(track.axis, track.channels) for track, _ in known}) != 1:
        return False
    axis = known[0][0].axis
    if _size(node.outputs[0], axis) != known[0][0].channels:
        return False
    found.tracks[node.outputs[0]] = _together(axis, *zip(*known, strict=True))
    return True


def _signs(node: Node) -> tuple[float, float]:
    return (1.0, -1.0) if node.op_type == "Sub" else (1.0, 1.0)


def _size(value: Value | None, axis: int) -> int | None:
    shape = dimensions(value) if value is not None else None
    return shape[axis] if shape is not None and len(shape) >= -axis else None


def _constant(found: Shifts, node: Node, operand: int) -> bool:
    array, track = _float(node.inputs[operand]), found.of(node.inputs[1 - operand])
    if array is None:
        return False
    wide = [axis - array.ndim for axis, size in enumerate(array.shape) if size > 1]
    axis = track.axis if track is not None else wide[0] if len(wide) == 1 else 0
    size = _size(node.outputs[0], axis) if axis else None
    if size is None or (track is not None and size != track.channels):
        return False
    if track is not None:
        numbers, signs = track.numbers, track.signs * _signs(node)[1 - operand]
        found.tracks[node.outputs[0]] = Track(axis, numbers, signs)
    if array.ndim >= -axis and array.shape[axis] == size:
        own = found.fresh(size)
        found.biases.append(Bias(node, operand, own, axis, _signs(node)[operand]))
        _join(found, node.outputs[0], axis, own)
    return True


def _join(found: Shifts, value: Value, axis: int, own: Numbers) -> None:
    """Adds terms to those of a value, if it has any."""
    known = found.of(value)
    found.give(value, axis, own)
    if known is not None:
        found.tracks[value] = _together(axis, [known, found.tracks[value]], (1.0, 1.0))


def _together(axis: int, tracks: Sequence[Track], signs: Sequence[float]) -> Track:
    scaled = [track.signs * sign for track, sign in zip(tracks, signs, strict=True)]
    return Track(axis, np.concatenate([track.numbers for track in tracks]), np.concatenate(scaled))


def _concat(found: Shifts, node: Node) -> bool:
    tracks = [found.of(value) for value in node.inputs]
    known = next((track for track in tracks if track is not None), None)
    sizes = joined_sizes(node, known.axis) if known is not None else None
    if known is None or sizes is None:
        return False
    pairs = tuple(zip(tracks, sizes, strict=True))
    if any(track is not None and (track.axis, track.channels) != (known.axis, size) for track, size in pairs):
        return False
    depth = max(len(track.numbers) for track in tracks if track is not None)
    numbers, signs = np.zeros((depth, sum(sizes)), np.int64), np.zeros((depth, sum(sizes)))
    start = 0
    for track, size in pairs:
        if track is not None:
            place = np.s_[: len(track.numbers), start : start + size]
            numbers[place], signs[place] = track.numbers, track.signs
        start += size
    found.tracks[node.outputs[0]] = Track(known.axis, numbers, signs)
    return True


def _flatten(found: Shifts, node: Node) -> bool:
    track = found.of(node.inputs[0])
    run = flatten_run(node, track.axis, track.channels) if track is not None else None
    if track is None or run is None:
        return False
    numbers = np.repeat(track.numbers, run, axis=1)
    found.tracks[node.outputs[0]] = Track(-1, numbers, np.repeat(track.signs, run, axis=1))
    return True


_Rule = Callable[[Shifts, Node], bool]

_RULES: dict[str, _Rule] = {
    **dict.fromkeys(("Conv", "ConvTranspose"), _convolution),
    "Gemm": _gemm,
    "MatMul": _matmul,
    "LayerNormalization": _normalization,
    **dict.fromkeys(("Identity", "Dropout", "MaxPool", "GlobalAveragePool", "GlobalMaxPool"), _same),
    "AveragePool": _mean,
    **dict.fromkeys(("Relu", "Clip"), _gate),
    **dict.fromkeys(("Add", "Sub"), _sum),
    "Concat": _concat,
    **dict.fromkeys(("Flatten", "Reshape"), _flatten),
}
"""How an operator passes shifts on; False fixes what it reads."""
