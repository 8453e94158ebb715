"""`reach`: how far from zero the finite values lie, and whether others were seen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import numpy as np
import numpy.typing as npt

from qcli.distribution import Distribution
from qcli.errors import InputError
from qcli.types import Array, FloatArray


class Reach:
    """The largest finite magnitude of each channel, which tells whether a narrower type holds the values.

    `largest` is float32 [channels], `infinite` int64 [channels] counts values that are Inf or NaN; both have the shape
    [0] before the first value.
    """

    def __init__(self, largest: FloatArray, infinite: npt.NDArray[np.int64]) -> None:
        self.largest = largest
        self.infinite = infinite

    @classmethod
    def empty(cls) -> Self:
        return cls(np.zeros(0, np.float32), np.zeros(0, np.int64))

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array]) -> Self:
        largest, infinite = np.array(arrays["largest"], np.float32), np.array(arrays["infinite"], np.int64)
        if largest.ndim != 1 or largest.shape != infinite.shape:
            raise ValueError("the magnitudes and the counts do not fit together")
        if not np.isfinite(largest).all() or (largest < 0).any() or (infinite < 0).any():
            raise ValueError("the magnitudes or the counts are none")
        return cls(largest, infinite)

    def update(self, batch: FloatArray) -> None:
        """Takes in [channels, n]; n may be 0. Raises InputError if the channels change."""
        if not batch.size:
            return
        finite = np.isfinite(batch)
        largest = np.abs(batch).max(axis=1, where=finite, initial=0.0).astype(np.float32)
        self._include(largest, np.count_nonzero(~finite, axis=1).astype(np.int64))

    def merge(self, other: Self) -> None:
        """Takes in what `other` has seen. Raises InputError if their channels differ."""
        if other.largest.size:
            self._include(other.largest, other.infinite)

    def arrays(self) -> dict[str, Array]:
        return {"largest": self.largest, "infinite": self.infinite}

    def distribution(self) -> Distribution:
        """The magnitude on both sides of zero as points of count 1. Raises InputError if no value was seen."""
        if self.largest.size == 0:
            raise InputError("no values were seen")
        upper = self.largest.astype(np.float64)
        points = np.stack([-upper, upper], axis=1)
        return Distribution(lower=-upper, upper=upper, points=points, counts=np.ones_like(points))

    def _include(self, largest: FloatArray, infinite: npt.NDArray[np.int64]) -> None:
        if self.largest.size not in (0, largest.size):
            raise InputError(f"the number of channels changed from {self.largest.size} to {largest.size}")
        known = self.largest.size > 0
        self.largest = np.maximum(self.largest, largest) if known else largest
        self.infinite = self.infinite + infinite if known else infinite
