"""`minmax`: everything that was seen."""

from __future__ import annotations

from typing import ClassVar

import msgspec

from qcli.distribution import Distribution
from qcli.ranges._interval import around_zero
from qcli.ranges._quick import extrema_of
from qcli.types import FloatArray, Grid, Interval


class MinMax(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Spans all values that were seen, so that nothing is clipped. One outlier makes every step coarse."""

    statistic: ClassVar[str] = "extrema"

    def quick(self, values: FloatArray, grid: Grid) -> Interval:
        """The extrema [...] of runs along the first axis of `values` [size, ...], extended to zero."""
        return extrema_of(values)

    def interval(self, distribution: Distribution, grid: Grid) -> Interval:
        """The extrema [channels], extended to zero."""
        return around_zero(distribution.lower, distribution.upper)
