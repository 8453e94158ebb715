"""Codes as onnxruntime's own operators for blocks want them: unsigned, several in a byte."""

from __future__ import annotations

import numpy as np

from qcli.types import Array, Scale

BYTE = 8
_WIDTHS = (2, 4, BYTE)
"""Bits of a code that the kernels of onnxruntime 1.31.1 take."""


def bits_of(scale: Scale) -> int:
    """The bits that a code takes."""
    return next(width for width in _WIDTHS if scale.highest - scale.lowest < 1 << width)


def packed(codes: Array, bits: int) -> Array:
    """Codes [N, n] of `bits` each as bytes [N, ceil(n * bits / 8)], the first code in the lowest bits."""
    each = BYTE // bits
    whole = np.pad(codes, ((0, 0), (0, -codes.shape[1] % each)))
    joined = np.zeros((codes.shape[0], whole.shape[1] // each), np.uint8)
    for place in range(each):
        joined |= whole[:, place::each] << np.uint8(place * bits)
    return joined


def unsigned_shift(scale: Scale, bits: int) -> tuple[int, bool]:
    """What makes codes unsigned, and whether it brings all zero points to the middle, which the operators assume."""
    middle, zero = 1 << (bits - 1), scale.zero_point
    centred = middle - int(zero.flat[0])
    fits = scale.lowest + centred >= 0 and scale.highest + centred < 1 << bits
    if fits and bool((zero == zero.flat[0]).all()):
        return centred, True
    return (middle if scale.lowest < 0 else 0), False
