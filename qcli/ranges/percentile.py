"""`percentile`: everything but the rarest values."""

from __future__ import annotations

from typing import Annotated, ClassVar

import msgspec
import numpy as np

from qcli.distribution import Distribution
from qcli.ranges._interval import Float64Array, around_zero
from qcli.types import Grid, Interval


class Percentile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Spans `keep` percent of the values and lets the rest saturate, e.g. 99.99 for activations with outliers.

    Where a channel has values on both sides of zero, half of what is cut is cut from each side; otherwise all
    of it from the far side, and the interval begins at exactly 0. Never more than asked for is cut, and
    `keep: 100` is exactly minmax. A channel that would be left with nothing but zeros keeps its extrema: a tensor
    that is almost always zero still has to show the rest. Bounds are exact to a bin (0.4 %).
    """

    statistic: ClassVar[str] = "histogram"

    keep: Annotated[float, msgspec.Meta(gt=0, le=100)] = 99.999

    def interval(self, distribution: Distribution, grid: Grid) -> Interval:
        """The percentiles [channels], extended to zero."""
        both_sides = (distribution.lower < 0) & (distribution.upper > 0)
        total = distribution.counts.sum(axis=1)
        cut = total * ((100 - self.keep) / 100) / np.where(both_sides, 2, 1)
        upper = _bound(distribution.points, distribution.counts, cut, distribution.upper)
        lower = -_bound(-distribution.points, distribution.counts, cut, -distribution.lower)
        collapsed = (lower >= 0) & (upper <= 0)
        return around_zero(
            np.where(collapsed, distribution.lower, np.where(distribution.lower < 0, lower, 0.0)),
            np.where(collapsed, distribution.upper, np.where(distribution.upper > 0, upper, 0.0)),
        )


def _bound(points: Float64Array, counts: Float64Array, cut: Float64Array, most: Float64Array) -> Float64Array:
    """The smallest point [channels] that has at most `cut` counts above it, `most` if that is the last one."""
    order = np.argsort(-points, axis=1, kind="stable")
    reached = np.cumsum(np.take_along_axis(counts, order, axis=1), axis=1)
    # Rounding of `cut` must not cut one value more than asked for; hence nothing is cut by a share of 1e-9.
    above = reached > cut[:, None] * (1 + 1e-9)
    first = np.argmax(above, axis=1)[:, None]
    bound = np.take_along_axis(points, np.take_along_axis(order, first, axis=1), axis=1)[:, 0]
    nothing_cut = np.take_along_axis(reached, first, axis=1)[:, 0] <= np.take_along_axis(
        counts, np.take_along_axis(order, first, axis=1), axis=1
    )[:, 0]
    return np.where(nothing_cut, most, bound)
