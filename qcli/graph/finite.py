"""Whether constants hold Inf or NaN, asked once of each."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qcli.graph.edit import constant_of
from qcli.types import Array

_KNOWN = "qcli.finite"
"""Where a tensor keeps the answer: what it holds never changes, and reading a large one takes its time."""

_PIECE = 1 << 20


def is_finite(value: ir.Value | None) -> bool:
    """False for a constant of floats that holds Inf or NaN."""
    array = constant_of(value)
    if value is None or array is None or value.const_value is None:
        return True
    notes = value.const_value.meta
    if _KNOWN not in notes:
        notes[_KNOWN] = _all_finite(array)
    return bool(notes[_KNOWN])


def _all_finite(array: Array) -> bool:
    if array.dtype.kind != "f":
        return True
    flat = array.reshape(-1) if array.flags.c_contiguous else array.T.reshape(-1)
    pieces = (flat[begin : begin + _PIECE] for begin in range(0, flat.size, _PIECE))
    return all(bool(np.isfinite(piece).all()) for piece in pieces)
