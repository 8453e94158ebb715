"""The scales of blocks in the graph: a float32 constant, or what onnxruntime makes one of when it loads the model."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from qcli.encodings._weights import Coded, Pool, home_of
from qcli.graph import (
    Graph,
    Node,
    Value,
    add_initializer,
    add_packed,
    enclosing_node,
    insert_before,
    make_node,
    packed_type,
    share_initializer,
)
from qcli.scale_forms import group_numbers, scale_codes
from qcli.types import Array, ScaleCodes

_FLOAT = 1


class Layout(NamedTuple):
    """How an operator wants scales: `turned`, the axes of a matrix are exchanged; all are multiplied by `factor`."""

    turned: bool = False
    factor: float = 1.0


AS_STORED = Layout()


def block_steps(coded: Coded, pool: Pool, layout: Layout = AS_STORED) -> Value:
    """The scales of blocks as float32, in the shape of the scale or of its transpose.

    Stored as float16 there is a Cast behind them, as codes a Cast and a Mul by the unit of each group.
    """
    key = (coded.name, id(coded.scale), "steps", layout)
    return pool.once(key, lambda: _made(_Place(coded), layout))


class _Place:
    """Where the constants and the nodes of one weight's scales go."""

    def __init__(self, coded: Coded) -> None:
        self.scale, self._name = coded.scale, f"{coded.name}_scale"
        self._home: Graph = home_of(coded)
        self._reader: Node = enclosing_node(self._home, coded.node)

    def constant(self, array: Array, suffix: str = "") -> Value:
        return add_initializer(self._home, f"{self._name}{suffix}", array)

    def codes(self, array: Array, bits: int) -> Value:
        kind = packed_type(array.size, (0, (1 << bits) - 1))
        name = f"{self._name}_q"
        return add_initializer(self._home, name, array) if kind is None else add_packed(self._home, name, array, kind)

    def numbers(self, array: Array) -> Value:
        return share_initializer(self._home, f"groups_{array.size}_{int(array[-1]) + 1}", array)

    def node(self, operator: str, inputs: list[Value], suffix: str, **attributes: int) -> Value:
        name = f"{self._name}_{suffix}"
        made = make_node(operator, inputs, name=name, output=name, attributes=attributes)
        insert_before(self._reader, made, self._home)
        return made.outputs[0]


def _made(place: _Place, layout: Layout) -> Value:
    scale = place.scale

    def arranged(array: Array) -> Array:
        return np.ascontiguousarray(array.T) if layout.turned else array

    if isinstance(scale.form, ScaleCodes) and scale.units is not None:
        axis = 1 - (scale.axis or 0) if layout.turned else scale.axis or 0
        codes = place.codes(arranged(scale_codes(scale)), scale.form.bits)
        units = place.constant(arranged(scale.units * np.float32(layout.factor)), "_units")
        floats = place.node("Cast", [codes], "cast", to=_FLOAT)
        spread = place.node("Gather", [units, place.numbers(group_numbers(scale))], "spread", axis=axis)
        return place.node("Mul", [floats, spread], "decoded")
    if scale.form == "float16" and layout.factor == 1:
        halves = place.constant(arranged(scale.scale.astype(np.float16)))
        return place.node("Cast", [halves], "cast", to=_FLOAT)
    return place.constant(arranged(scale.scale * np.float32(layout.factor)))
