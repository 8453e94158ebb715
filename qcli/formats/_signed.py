"""Tables that are the same on both sides of zero."""

from __future__ import annotations

import numpy as np

from qcli.types import Array, FloatArray


def both_signs(magnitudes: Array) -> FloatArray:
    """The magnitudes with both signs and zero, ascending, each once."""
    return np.unique(np.concatenate([-magnitudes, [0.0], magnitudes]) + 0.0).astype(np.float32)


def float_levels(exponent_bits: int, mantissa_bits: int, bias: int, largest: float) -> FloatArray:
    """All finite numbers of a small float type, up to `largest`; its lowest exponent stands for numbers below 1."""
    exponents = np.arange(1 << exponent_bits)[:, None].astype(np.float64)
    parts = np.arange(1 << mantissa_bits) / (1 << mantissa_bits)
    normal = (1 + parts) * np.exp2(exponents - bias)
    small = parts * np.exp2(1.0 - bias)
    magnitudes = np.where(exponents == 0, small, normal).ravel()
    return both_signs(magnitudes[magnitudes <= largest])
