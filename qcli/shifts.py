"""Which channels of which tensors can be shifted by a constant, and which biases make up for it.

A layer y = W x + b takes any shift on both sides: y - d = W (x - c) + (b + W c - d). Operators between layers pass
shifts on: f(x - c) = f(x) - c for pooling, (x - c) + (y - d) = (x + y) - (c + d) for Add, and Concat puts channels side
by side. So every shift is a sum of *terms*, each given by one bias, and each with a number. What anything else reads
must not be shifted: a linear constraint, as the terms of an Add's operands may cancel.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from qcli.graph import Graph, Node, Value, add_initializer, constant_of, set_constant

Float64Array = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.int64]

NO_TERM = 0
"""The number of the term that is always 0."""


@dataclass(frozen=True)
class Track:
    """What shifts a tensor's channels, along `axis` counted from the end: the sum of `signs` * terms `numbers`.

    Both have the shape [terms, channels].
    """

    axis: int
    numbers: Numbers
    signs: Float64Array

    @property
    def channels(self) -> int:
        return int(self.numbers.shape[1])

    def shift(self, terms: Float64Array) -> Float64Array:
        """The shift of each channel, for the value of each term."""
        return np.asarray((self.signs * terms[self.numbers]).sum(axis=0))


@dataclass(frozen=True)
class Bias:
    """A constant that is added, operand `operand` of `node`, with `sign`; one that is missing is made.

    `own` are the terms that it gives [channels], along `axis` of the result. Where `layer` reads a tensor that `reads`
    shifts, the constant takes in what the layer makes of that.
    """

    node: Node
    operand: int
    own: Numbers
    axis: int = -1
    sign: float = 1.0
    reads: Track | None = None
    layer: Node | None = None


@dataclass(frozen=True)
class Gate:
    """A Relu or a Clip from `lower` to `upper`: a shift passes where a channel stays within, before and after."""

    value: Value
    lower: float
    upper: float
    track: Track


@dataclass
class Shifts:
    """What can be shifted in a graph. `fixed` must stay: their terms add up to 0 in each channel."""

    tracks: dict[Value, Track] = field(default_factory=dict)
    biases: list[Bias] = field(default_factory=list)
    gates: list[Gate] = field(default_factory=list)
    fixed: list[Track] = field(default_factory=list)
    count: int = 1

    def fresh(self, size: int) -> Numbers:
        self.count += size
        return np.arange(self.count - size, self.count, dtype=np.int64)

    def give(self, value: Value, axis: int, own: Numbers) -> None:
        self.tracks[value] = Track(axis, own[None], np.ones((1, own.size)))

    def of(self, value: Value | None) -> Track | None:
        return self.tracks.get(value) if value is not None else None


def shift(graph: Graph, found: Shifts, terms: Float64Array) -> None:
    """Subtracts from every tensor what `terms` (float64, one for each number, 0 for the first) come to."""
    for bias in found.biases:
        change = -terms[bias.own]
        if bias.reads is not None and bias.layer is not None:
            change = change + matrix_of(bias.layer, bias.own.size) @ bias.reads.shift(terms)
        if change.any():
            _add(graph, bias, bias.sign * change)


def matrix_of(layer: Node, outputs: int) -> Float64Array:
    """What a layer does to an input that is the same everywhere: [outputs, inputs], or [outputs, inputs / groups]."""
    weight = np.asarray(constant_of(layer.inputs[1]), np.float64)
    if layer.op_type != "Conv":
        return weight if _number(layer, "transB", 0) else weight.T
    sums: Float64Array = weight.reshape(*weight.shape[:2], -1).sum(axis=2)
    groups = _number(layer, "group", 1)
    if groups == 1:
        return sums
    full = np.zeros((groups, outputs // groups, groups, sums.shape[1]))
    for group, part in enumerate(sums.reshape(groups, outputs // groups, -1)):
        full[group, :, group] = part
    return full.reshape(outputs, -1)


def _add(graph: Graph, bias: Bias, change: Float64Array) -> None:
    node, operand = bias.node, bias.operand
    if operand < len(node.inputs) and node.inputs[operand] is not None:
        old = np.asarray(constant_of(node.inputs[operand]))
        along = change.reshape(-1, *[1] * (-bias.axis - 1)) if node.op_type in ("Add", "Sub") else change
        set_constant(graph, node, operand, (old + along).astype(old.dtype).reshape(old.shape))
        return
    dtype = np.asarray(constant_of(node.inputs[1])).dtype
    node.resize_inputs(operand + 1)
    node.replace_input_with(operand, add_initializer(graph, f"{node.name}_bias", change.astype(dtype)))


def _number(node: Node, key: str, default: int) -> int:
    return int(node.attributes[key].as_int()) if key in node.attributes else default
