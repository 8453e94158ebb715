"""`sqnr`: how far the noise lies below the signal."""

from __future__ import annotations

from typing import ClassVar, Self

import msgspec
import numpy as np

from qcli.types import Array


class Sqnr(msgspec.Struct, forbid_unknown_fields=True):
    """The signal-to-quantization-noise ratio in dB over all values seen: 10·log10(Σ ref² / Σ (ref − out)²).

    Kept within ±`LIMIT`, so that JSON can hold it: no error is +200 dB; an error where the reference is all
    zero, or a result with NaN or Inf, is -200 dB. Sums are float64.
    """

    LIMIT: ClassVar[float] = 200.0

    signal: float = 0.0
    noise: float = 0.0

    def update(self, reference: Array, result: Array) -> None:
        """Takes in two arrays of one shape, `reference` finite."""
        expected = reference.astype(np.float64).ravel()
        self.signal += float(np.dot(expected, expected))
        if not np.isfinite(result).all():
            self.noise = float("inf")
            return
        error = expected - result.astype(np.float64).ravel()
        self.noise += float(np.dot(error, error))

    def merge(self, other: Self) -> None:
        self.signal += other.signal
        self.noise += other.noise

    def value(self) -> float:
        if self.noise == 0:
            return self.LIMIT
        if self.signal == 0 or not np.isfinite(self.noise):
            return -self.LIMIT
        ratio = 10 * (np.log10(self.signal) - np.log10(self.noise))
        return float(np.clip(ratio, -self.LIMIT, self.LIMIT))
