"""Integers of two and four bits: several in a byte of the file, one in a byte of memory.

No kernel of onnxruntime multiplies them. A Cast of the constant to 8 bits is computed once, when onnxruntime loads the
model and before it looks for what it can fuse, so the kernels are those of 8-bit codes and the results too.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qcli.graph.edit import add_initializer
from qcli.types import Array, Deferred

_KINDS = (
    (-2, 1, ir.DataType.INT2),
    (0, 3, ir.DataType.UINT2),
    (-8, 7, ir.DataType.INT4),
    (0, 15, ir.DataType.UINT4),
)
_SAVED = 128
"""Bytes that must be saved: the Cast in front takes about as many."""

_PACKED_OPSETS = {2: 25, 4: 21}
"""The operator sets that brought integers of so many bits, all of their operators included."""


def stored_bits(bits: int) -> int:
    """The bits that a code takes in a file, where it is packed."""
    return next((size for size in (*_PACKED_OPSETS, 8) if bits <= size), 16)


def packed_opset(bits: int) -> int:
    """The operator set in which codes of so many bits can be packed; 1 where they are as wide as their kernel's."""
    return _PACKED_OPSETS.get(stored_bits(bits), 1)


def packed_type(size: int, levels: tuple[int, int]) -> ir.DataType | None:
    """What `size` codes within `levels` are packed in, a type of fewer than eight bits; None where it saves nothing."""
    kind = next((kind for lowest, highest, kind in _KINDS if lowest <= levels[0] and levels[1] <= highest), None)
    return None if kind is None or size * (8 - kind.bitwidth) < 8 * _SAVED else kind


def add_packed(graph: ir.Graph, name: str, codes: Array | Deferred, kind: ir.DataType) -> ir.Value:
    """The codes as a constant of fewer than eight bits each."""
    small = kind.numpy()
    if isinstance(codes, Deferred):
        make = codes.make
        deferred = Deferred(codes.shape, small.name, lambda: make().astype(small), codes.pieces)
        return add_initializer(graph, name, deferred, kind)
    return add_initializer(graph, name, np.asarray(codes).astype(small), kind)


def native_type(name: str) -> ir.DataType:
    """ONNX's type of this name, as in `FLOAT8E4M3FN`."""
    return ir.DataType.__members__[name]


def is_packed(array: Array) -> bool:
    """True for the array of a constant of less than eight bits."""
    return array.dtype.name in {kind.numpy().name for _, _, kind in _KINDS}
