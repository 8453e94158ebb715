"""The mean squared error that quantizing a distribution to many grids at once would make.

In units of one step, with t = x / scale, the error of a value is r = t - k, where k is the level that t
rounds to; k stops at the ends of the grid, so r covers rounding and clipping alike.

Exact values are measured as they are: sum of count * r**2. A bin of a histogram is as wide as a step in the
upper half of an 8-bit grid, and its middle says nothing about the rounding error of the values in it. There
the values are taken to be spread evenly over the bin [a, b], and the error is the exact mean of r**2 over it:

    (F(b) - F(a)) / (b - a)   with the antiderivative   F(t) = k / 12 + r**3 / 3,

which is continuous where k changes. For b - a >> 1 inside the grid this tends to the familiar 1/12
(step**2 / 12), for b - a << 1 to the r**2 of the middle, and beyond the grid it is the mean squared distance
from its last level.
"""

from __future__ import annotations

from typing import Self

import numpy as np

from qcli.distribution import Distribution
from qcli.levels import Cells, is_uniform
from qcli.ranges._interval import Float64Array
from qcli.types import Grid, Noun, Scale

_BLOCK = 1 << 16
"""Values times grids in one block: its temporaries (512 KiB of float64 each) stay in the cache."""

_LEAST_WIDTH = 2.0**-20
"""Relative width given to bins that clamping into the extrema made empty, so that the mean is defined."""


class LevelError(Noun, frozen=True, kw_only=True):
    """The same for tables of levels that are not evenly spaced: what a bin of a histogram holds lies in its middle."""

    cells: Cells

    @classmethod
    def of(cls, distribution: Distribution) -> Self:
        return cls(cells=Cells.sorted(distribution.points, distribution.counts))

    def of_grids(self, scale: Scale) -> Float64Array:
        """The sum of squared errors, float64 [channels, grids], for `scale` of shape [channels * grids]."""
        levels = np.asarray(scale.levels, np.float64)
        steps = scale.scale.astype(np.float64).reshape(len(self.cells.values), -1)
        errors = [self.cells.errors(steps[:, grid, None] * levels) for grid in range(steps.shape[1])]
        return np.stack(errors, axis=1)


def error_for(distribution: Distribution, grid: Grid) -> SquaredError | LevelError:
    """A distribution, prepared for measuring grids of this kind."""
    return SquaredError.of(distribution) if is_uniform(grid) else LevelError.of(distribution)


class SquaredError(Noun, frozen=True, kw_only=True):
    """A distribution, prepared for measuring grids: `positions` and `weights`, both float64 [channels, n]."""

    positions: Float64Array
    weights: Float64Array
    binned: bool

    @classmethod
    def of(cls, distribution: Distribution) -> Self:
        if distribution.resolution == 0:
            return cls(positions=distribution.points, weights=distribution.counts, binned=False)
        starts, ends = distribution.edges(_LEAST_WIDTH)
        counted = (distribution.points != 0) & (ends > starts)  # zero is a level of every grid: no error
        density = np.divide(distribution.counts, ends - starts, out=np.zeros_like(starts), where=counted)
        positions = np.concatenate([starts, ends], axis=1)
        return cls(positions=positions, weights=np.concatenate([-density, density], axis=1), binned=True)

    def of_grids(self, scale: Scale) -> Float64Array:
        """The sum of squared errors, float64 [channels, grids], for `scale` of shape [channels * grids]."""
        channels, values = self.positions.shape
        grids = max(1, scale.scale.size // max(1, channels))
        steps = scale.scale.astype(np.float64).reshape(channels, grids)
        zero_points = scale.zero_point.reshape(steps.shape)
        ends = np.stack([scale.lowest - zero_points, scale.highest - zero_points]).astype(np.float64)
        errors = np.empty_like(steps)
        height = max(1, _BLOCK // max(1, values))
        width = min(height, grids)
        for top in range(0, channels, max(1, height // width)):
            rows = slice(top, top + max(1, height // width))
            for left in range(0, grids, width):
                block = (rows, slice(left, left + width))
                errors[block] = self._block(rows, steps[block], ends[:, *block])
        return errors

    def _block(self, rows: slice, steps: Float64Array, ends: Float64Array) -> Float64Array:
        """The errors [r, g] of `r` channels and `g` grids. `ends` [2, r, g] are the last levels from zero."""
        residue = self.positions[rows, None, :] * (1 / steps)[:, :, None]
        level = np.rint(residue)
        np.maximum(level, ends[0, :, :, None], out=level)  # twice as fast as clip with arrays
        np.minimum(level, ends[1, :, :, None], out=level)
        residue -= level
        power = residue * residue
        if self.binned:
            power *= residue
            level *= 1 / 4
            power += level
        total = np.matmul(power, self.weights[rows, :, None])[:, :, 0]
        return np.asarray(total * (steps**3 / 3 if self.binned else steps**2))
