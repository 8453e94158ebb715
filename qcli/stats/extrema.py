"""`extrema`: the exact smallest and largest value of each channel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import numpy as np

from qcli.distribution import Distribution
from qcli.errors import InputError
from qcli.types import Array, FloatArray

_CHUNK_VALUES = 1 << 18


class Extrema:
    """The exact smallest and largest value of each channel, all that a min-max range needs.

    `lower` and `upper` are float32 [channels], of shape [0] before the first value. -0.0 is kept as 0.0,
    since which zero comes first would otherwise decide the bytes.
    """

    def __init__(self, lower: FloatArray, upper: FloatArray) -> None:
        self.lower = lower
        self.upper = upper

    @classmethod
    def empty(cls) -> Self:
        return cls(np.zeros(0, dtype=np.float32), np.zeros(0, dtype=np.float32))

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array]) -> Self:
        lower, upper = np.array(arrays["lower"], dtype=np.float32), np.array(arrays["upper"], dtype=np.float32)
        if lower.ndim != 1 or lower.shape != upper.shape or not np.all(np.isfinite(upper) & (lower <= upper)):
            raise ValueError("the extrema do not fit together")
        if not np.isfinite(lower).all():
            raise ValueError("the extrema are not finite")
        return cls(lower, upper)

    def update(self, batch: FloatArray) -> None:
        """Takes in [channels, n]; n may be 0. Raises InputError on Inf or NaN, or if the channels change."""
        width = max(1, _CHUNK_VALUES // max(1, len(batch)))
        for start in range(0, batch.shape[1] if batch.size else 0, width):
            chunk = batch[:, start : start + width]  # both reductions read it while it is in the cache
            lower, upper = chunk.min(axis=1), chunk.max(axis=1)
            if not (np.isfinite(lower).all() and np.isfinite(upper).all()):
                raise InputError("the activations hold Inf or NaN")
            self._include(lower, upper)

    def merge(self, other: Self) -> None:
        """Takes in what `other` has seen. Raises InputError if their channels differ."""
        if other.lower.size:
            self._include(other.lower, other.upper)

    def arrays(self) -> dict[str, Array]:
        return {"lower": self.lower, "upper": self.upper}

    def distribution(self) -> Distribution:
        """The extrema as two points of count 1. Raises InputError if no value was seen."""
        if self.lower.size == 0:
            raise InputError("no values were seen")
        lower, upper = self.lower.astype(np.float64), self.upper.astype(np.float64)
        points = np.stack([lower, upper], axis=1)
        return Distribution(lower=lower, upper=upper, points=points, counts=np.ones_like(points))

    def _include(self, lower: FloatArray, upper: FloatArray) -> None:
        if self.lower.size not in (0, lower.size):
            raise InputError(f"the number of channels changed from {self.lower.size} to {lower.size}")
        known = self.lower.size > 0
        self.lower = (np.minimum(self.lower, lower) if known else lower) + np.float32(0.0)
        self.upper = (np.maximum(self.upper, upper) if known else upper) + np.float32(0.0)
