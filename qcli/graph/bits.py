"""Codes of less than eight bits as a file holds them: several in a byte, the first in the lowest bits."""

from __future__ import annotations

import numpy as np

from qcli.types import Array

_BYTE = 8


def packed(codes: Array, bits: int) -> Array:
    """The bytes of integers of 2 or 4 bits; codes of 8 bits or more as they are. The last byte is filled up with zeros.

    Source: the ONNX standard, docs/docsgen/source/technical/int4.md and int2.md ("Packing and unpacking").
    """
    if bits >= _BYTE:
        return np.ascontiguousarray(codes)
    flat = np.ascontiguousarray(codes).reshape(-1).view(np.uint8)
    if flat.size * bits % _BYTE:
        flat = np.concatenate([flat, np.zeros(-flat.size % (_BYTE // bits), np.uint8)])
    while bits < _BYTE:
        flat, bits = _pairs(flat, bits), 2 * bits
    return flat


def _pairs(codes: Array, bits: int) -> Array:
    """Two neighbours in one byte. As halves of a 16-bit number they are moved together, which is fast."""
    both = codes.view("<u2")
    mask = (1 << bits) - 1
    high = both >> (_BYTE - bits)
    np.bitwise_and(high, mask << bits, out=high)
    np.bitwise_or(high, both & mask, out=high)
    return high.astype(np.uint8)
