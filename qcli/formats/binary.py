"""`binary`: two levels, -a and a."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from qcli.formats._table import FLOAT_BITS, Fitted, Float64Array, LearnedFormat, dense
from qcli.types import FloatArray, Grid

_LEVELS = np.array([-1.0, 1.0], np.float32)


class Binary(LearnedFormat, frozen=True):
    """The sign of each weight, one bit, times the mean magnitude of its group, which is the best a there is.

    Zero is no level. Accuracy is lost unless the network was trained for it; `residual_binary` adds more bits of the
    same kind. Source: Rastegari et al. 2016, "XNOR-Net", equation 6.
    """

    default_bits: ClassVar[int] = 1
    least_bits: ClassVar[int] = 1
    most_bits: ClassVar[int] = 1

    def side_bits(self, grid: Grid, scales: int) -> int:
        """A scale for each group."""
        return FLOAT_BITS * (scales + _LEVELS.size)

    def fit(self, rows: FloatArray, counts: Float64Array, grid: Grid) -> Fitted:
        """The scale [G] of each row."""
        values, many = dense(rows, counts)
        scale = (np.abs(values) * many).sum(axis=1) / many.sum(axis=1)
        return Fitted(scale.astype(np.float32), _LEVELS)
