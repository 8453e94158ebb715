"""`percentile`: everything but the rarest values."""

from __future__ import annotations

from typing import Annotated, ClassVar

import msgspec
import numpy as np

from qcli.distribution import Distribution
from qcli.ranges._interval import Float64Array, around_zero
from qcli.types import Grid, Interval


class Percentile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Spans `keep` percent of the values and lets the rest saturate, e.g. 99.99 where there are outliers.

    Where a channel has values on both sides of zero, half of what is cut is cut from each side; otherwise all
    of it from the far side, and the interval begins at exactly 0. Never more than asked for is cut, and
    `keep: 100` is exactly minmax. A channel that would be left with nothing but zeros keeps its extrema: a
    tensor that is almost always zero still has to show the rest. Bounds are exact to a bin (0.4 %).
    """

    statistic: ClassVar[str] = "histogram"

    keep: Annotated[float, msgspec.Meta(gt=0, le=100)] = 99.999

    def interval(self, distribution: Distribution, grid: Grid) -> Interval:
        """The percentiles [channels], extended to zero."""
        lower, upper = distribution.lower, distribution.upper
        points, counts = distribution.points, distribution.counts
        both_sides = (lower < 0) & (upper > 0)
        cut = counts.sum(axis=1) * ((100 - self.keep) / 100) / np.where(both_sides, 2, 1)
        low = _bound(points, counts, cut, lower)
        high = _bound(points[:, ::-1], counts[:, ::-1], cut, upper)
        collapsed = (low >= 0) & (high <= 0)
        return around_zero(np.where(collapsed, lower, low), np.where(collapsed, upper, high))


def _bound(points: Float64Array, counts: Float64Array, cut: Float64Array, extreme: Float64Array) -> Float64Array:
    """The last point [channels] with at most `cut` counts before it; `extreme` where none come before."""
    reached = np.cumsum(counts, axis=1)
    # The tolerance keeps a `cut` of 0.9999999999 values from being none.
    first = np.argmax(reached > cut[:, None] * (1 + 1e-9), axis=1)
    outermost = np.argmax(counts > 0, axis=1)
    return np.where(first == outermost, extreme, points[np.arange(len(points)), first])
