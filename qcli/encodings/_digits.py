"""Codes of two or three levels: several in a byte, as its digits, which a table takes apart again."""

from __future__ import annotations

import numpy as np

from qcli.levels import digits_of
from qcli.types import Array, Deferred


def as_digits(codes: Array | Deferred, base: int) -> Array | Deferred:
    """Bytes [ceil(n / digits)] of the codes in their order, the first digit of each the lowest."""
    digits = digits_of(base)
    if isinstance(codes, Deferred):
        make = codes.make
        return Deferred((-(-codes.size // digits),), "uint8", lambda: _packed(make(), base))
    return _packed(codes, base)


def _packed(codes: Array, base: int) -> Array:
    digits = digits_of(base)
    flat = np.asarray(codes, np.uint8).reshape(-1)
    rows = np.pad(flat, (0, -flat.size % digits)).reshape(-1, digits)
    return np.asarray(rows @ (base ** np.arange(digits)).astype(np.uint8), np.uint8)


def digit_table(base: int) -> Array:
    """The digits uint8 [base**digits, digits] of every byte that there can be."""
    digits = digits_of(base)
    return np.asarray(np.arange(base**digits)[:, None] // base ** np.arange(digits) % base, np.uint8)
