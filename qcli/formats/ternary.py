"""`ternary`: three levels, -a, 0 and a."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from qcli.formats._table import FLOAT_BITS, Fitted, Float64Array, LearnedFormat, dense
from qcli.types import FloatArray, Grid

_LEVELS = np.array([-1.0, 0.0, 1.0], np.float32)


class Ternary(LearnedFormat, frozen=True):
    """Weights of -a, 0 and a, with the a of each group, and the threshold, that have the least squared error of all.

    With the magnitudes of a group in descending order, keeping the first t at their mean a leaves an error that is
    smaller by (sum of the first t)**2 / t; the best t is found by trying them all. Needs about two bits and a scale for
    each channel or block; accuracy is low unless the network was trained for it. Source: Li et al. 2016, "Ternary
    Weight Networks", equations 3 to 5, whose approximate threshold this makes exact.
    """

    default_bits: ClassVar[int] = 2
    most_bits: ClassVar[int] = 2

    def entries(self, grid: Grid) -> int:
        """Three; five codes share a byte in the file."""
        self.bits(grid)
        return _LEVELS.size

    def side_bits(self, grid: Grid, scales: int) -> int:
        """A scale for each group."""
        return FLOAT_BITS * (scales + _LEVELS.size)

    def fit(self, rows: FloatArray, counts: Float64Array, grid: Grid) -> Fitted:
        """The scale [G] of each row."""
        values, many = dense(rows, counts)
        sizes = np.abs(values)
        order = np.argsort(-sizes, axis=1, kind="stable")
        weights = np.cumsum(np.take_along_axis(many, order, axis=1), axis=1)
        sums = np.cumsum(np.take_along_axis(many * sizes, order, axis=1), axis=1)
        gains = np.divide(sums**2, weights, out=np.zeros_like(sums), where=weights > 0)
        best = np.argmax(gains, axis=1)[:, None]
        kept, total = (np.take_along_axis(array, best, axis=1)[:, 0] for array in (weights, sums))
        scale = np.divide(total, kept, out=np.zeros_like(total), where=kept > 0)
        return Fitted(scale.astype(np.float32), _LEVELS)
