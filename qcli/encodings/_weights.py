"""What an encoding is given: the constants of one node as codes, and what was written so far."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

import numpy as np

from qcli.contracts import along
from qcli.graph import (
    Graph,
    Node,
    Value,
    add_initializer,
    add_packed,
    enclosing_node,
    graph_of,
    insert_before,
    make_node,
    packed_type,
    share_initializer,
)
from qcli.types import Array, Deferred, Scale


@dataclass(frozen=True)
class Coded:
    """A constant operand with its codes."""

    node: Node
    operand: int
    codes: Array | Deferred
    scale: Scale

    @property
    def value(self) -> Value:
        value = self.node.inputs[self.operand]
        if value is None:
            raise ValueError(f"operand {self.operand} of {self.node.name} is empty")
        return value

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight, which is that of its codes but for vectors."""
        return self.codes.shape if self.scale.vectors is None else self.scale.vectors.shape

    @property
    def name(self) -> str:
        return self.value.name or f"{self.node.name}_{self.operand}"


@dataclass(frozen=True)
class Pool:
    """What was written into a model, so that nothing is written twice."""

    known: dict[Hashable, Value] = field(default_factory=dict)

    def once(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """What was made for this key before, or what is made now."""
        if key not in self.known:
            self.known[key] = make()
        return self.known[key]

    def stored(self, coded: Coded, *, pack: bool) -> Value:
        """The codes as a constant, with `pack` of as few bits as hold them."""
        key = (coded.name, id(coded.codes), "stored")
        return self.once(key, lambda: stored_codes(coded, coded.codes, pack=pack))

    def codes(self, coded: Coded, *, pack: bool = False) -> Value:
        """The codes in the graph that holds the original weight: a constant, with `pack` a Cast of a smaller one."""
        name = f"{coded.name}_unpacked"
        return self.once((coded.name, id(coded.codes)), lambda: unpacked(coded, self.stored(coded, pack=pack), name))

    def zeros(self, coded: Coded, *, pack: bool) -> Value:
        """The zero points of blocks as a constant of the type that the codes are stored in."""
        return self.once((coded.name, id(coded.scale), "zeros"), lambda: zero_points(coded, pack=pack))

    def steps(self, coded: Coded, *, spread: bool = False) -> Value:
        """The scale: one number, or one for each channel; with `spread` so that it broadcasts to the codes."""
        scale, home = coded.scale, home_of(coded)
        steps = scale.scale.reshape(()) if scale.axis is None else scale.scale
        if spread:
            steps, _ = along(scale, coded.codes.shape)
        key = (coded.name, id(scale), "scale", spread)
        return self.once(key, lambda: add_initializer(home, f"{coded.name}_scale", steps))


def home_of(coded: Coded) -> Graph:
    """The graph that a weight is stored in: one that encloses all of its readers."""
    home = coded.value.graph or coded.node.graph
    if not isinstance(home, Graph):
        raise ValueError(f"{coded.node.name} lies in no graph")
    return home


def constant_codes(coded: Coded, codes: Array | Deferred, *, pack: bool) -> Value:
    """`codes`, which are those of `coded` in a layout of their own, as `Pool.codes` gives them."""
    return unpacked(coded, stored_codes(coded, codes, pack=pack), f"{coded.name}_unpacked")


def unpacked(coded: Coded, stored: Value, name: str) -> Value:
    """A constant of the codes' own type: what is `stored`, or a Cast of it where it takes fewer bits."""
    home = home_of(coded)
    if stored.dtype is not None and stored.dtype.numpy().name == coded.scale.dtype:
        return stored
    node = make_node("Cast", [stored], name=name, output=name, attributes={"to": _ONNX_TYPES[coded.scale.dtype]})
    insert_before(enclosing_node(home, coded.node), node, home)
    return node.outputs[0]


def stored_codes(coded: Coded, codes: Array | Deferred, *, pack: bool) -> Value:
    """`codes` as a constant, with `pack` of as few bits as hold them."""
    return _stored(coded, f"{coded.name}_q", codes, pack=pack)


def zero_points(coded: Coded, *, pack: bool) -> Value:
    """The zero points as a constant of the type that the codes are stored in, as DequantizeLinear wants it."""
    return _stored(coded, f"{coded.name}_zero", coded.scale.zero_point.astype(coded.scale.dtype), pack=pack)


def _stored(coded: Coded, name: str, array: Array | Deferred, *, pack: bool) -> Value:
    home, levels = home_of(coded), (coded.scale.lowest, coded.scale.highest)
    kind = packed_type(coded.codes.size, levels) if pack else None
    return add_initializer(home, name, array) if kind is None else add_packed(home, name, array, kind)


_ONNX_TYPES = {"uint8": 2, "int8": 3}
"""ONNX's numbers for the types that packed codes become."""


def dequantized(coded: Coded, pool: Pool, reader: Node, *, pack: bool = False) -> Value:
    """The real value of a coded constant, behind a DequantizeLinear in front of `reader`.

    A zero point of zero is left out where onnxruntime does without: for biases and for kernels. Those of matrices
    are written, and each on its own, since `session.x64quantprecision` rewrites them one by one.
    """
    scale, name = coded.scale, coded.name
    inputs = [pool.codes(coded, pack=pack), pool.steps(coded)]
    if scale.zero_point.any() or (scale.dtype != "int32" and coded.codes.ndim < _KERNEL_RANK):
        zero = scale.zero_point.astype(scale.dtype)
        zero = zero.reshape(()) if scale.axis is None else zero
        inputs.append(add_initializer(home_of(coded), f"{name}_zero", zero))
    attributes = {} if scale.axis is None else {"axis": scale.axis}
    node = make_node("DequantizeLinear", inputs, name=f"{name}_dq", output=f"{name}_dq", attributes=attributes)
    insert_before(reader, node, graph_of(reader))
    return node.outputs[0]


def block_numbers(coded: Coded) -> Value:
    """The number of the block that each element along the axis of the blocks belongs to; weights share it."""
    size, block = coded.codes.shape[coded.scale.axis or 0], coded.scale.block or 1
    numbers = (np.arange(size) // block).astype(np.int32)
    return share_initializer(home_of(coded), f"blocks_{size}_{block}", numbers)


def fetches_rows(coded: Coded) -> bool:
    """True for a Gather of whole rows whose scale or blocks lie along them, or is one number."""
    node, scale = coded.node, coded.scale
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
    plain = scale.block is not None or not scale.zero_point.any()
    along = scale.axis in (None, len(coded.shape) - 1) and plain and len(coded.shape) > 1
    return node.op_type == "Gather" and coded.operand == 0 and axis == 0 and along


_KERNEL_RANK = 3
"""Weights of convolutions have at least this many dimensions."""
