"""`octav`: the clip with the least mean squared error, found by Newton's method."""

from __future__ import annotations

from typing import ClassVar

import msgspec
import numpy as np

from qcli.contracts import Format
from qcli.distribution import Distribution
from qcli.plugins import create
from qcli.ranges._interval import Float64Array, around_zero
from qcli.types import Grid, Interval

_ROUNDS = 100
_SETTLED = 1e-6


class Octav(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Clips where one more clipped value would cost as much as finer steps gain, under the model that rounding
    makes an error of step**2 / 12.

    From the mean magnitude on, a bound b becomes

        b' = (E[x; x > b] - a * q * P[inside]) / (q * P[inside] + P[x > b])        with q = steps**-2 / 12

    until it stays. `a` is the bound on the other side, found in turn, and 0 for symmetric grids and one-sided
    channels; zeros make no error and are not counted. Ten times as fast as `mse`, which measures each clip on the
    grid itself; where a channel holds few different values, rounding is not uniform and `mse` is better.

    Source: Sakr et al. 2022, "Optimal Clipping and Magnitude-aware Differentiation for Improved Quantization-aware
    Training", equation 6; the second bound is ours.
    """

    statistic: ClassVar[str] = "histogram"

    def interval(self, distribution: Distribution, grid: Grid) -> Interval:
        """The interval [channels] of the least modelled error for `grid`."""
        points, counts = distribution.points, np.where(distribution.points == 0, 0.0, distribution.counts)
        if grid.symmetric:
            bound = _settle(np.abs(points), counts, _rounding(grid), one_sided=True)[1]
            return _within(distribution, bound, bound)
        below, above = _settle(points, counts, _rounding(grid), one_sided=False)
        return _within(distribution, below, above)


def _rounding(grid: Grid) -> float:
    """The mean squared rounding error of a value, in units of the squared width that the levels divide."""
    number_format: Format = create("formats", grid.format)
    scale = number_format.scale(Interval(lower=-np.ones(1), upper=np.ones(1)), grid)
    steps = scale.highest - (int(scale.zero_point[0]) if grid.symmetric else scale.lowest)
    return float(steps**-2 / 12)


def _settle(
    points: Float64Array, counts: Float64Array, rounding: float, *, one_sided: bool
) -> tuple[Float64Array, Float64Array]:
    """The bounds below and above zero, magnitudes [channels]."""
    below, above = _mean(-points, counts), _mean(points, counts)
    moving = np.arange(len(points))
    for _ in range(_ROUNDS):
        some, many, low, high = points[moving], counts[moving], below[moving], above[moving]
        above[moving] = _newton(some, many, rounding, (low, high))
        if not one_sided:
            below[moving] = _newton(-some, many, rounding, (above[moving], low))
        moved = np.abs(below[moving] - low) + np.abs(above[moving] - high)
        moving = moving[moved > _SETTLED * (below[moving] + above[moving])]
        if moving.size == 0:
            break
    return below, above


def _mean(points: Float64Array, counts: Float64Array) -> Float64Array:
    """The mean [channels] of the values above zero; 0 where there are none."""
    weights = np.where(points > 0, counts, 0.0)
    total = weights.sum(axis=1)
    return np.asarray(np.divide((points * weights).sum(axis=1), total, out=np.zeros_like(total), where=total > 0))


def _newton(
    points: Float64Array, counts: Float64Array, rounding: float, bounds: tuple[Float64Array, Float64Array]
) -> Float64Array:
    """The next upper bound [channels]; it stays where nothing lies above it."""
    other, bound = bounds
    clipped = np.where(points > bound[:, None], counts, 0.0)
    many = clipped.sum(axis=1)
    inside = np.where(points < -other[:, None], 0.0, counts).sum(axis=1) - many
    wanted = (clipped * points).sum(axis=1) - other * rounding * inside
    found = np.divide(wanted, rounding * inside + many, out=bound.copy(), where=many > 0)
    return np.where(found > 0, found, bound)


def _within(distribution: Distribution, below: Float64Array, above: Float64Array) -> Interval:
    """The clip of the extrema [channels]; all of them where no value is large enough for its bin to be known."""
    unknown = (below <= 0) & (above <= 0)
    lower = np.where(unknown, distribution.lower, np.maximum(distribution.lower, -below))
    upper = np.where(unknown, distribution.upper, np.minimum(distribution.upper, above))
    return around_zero(lower, upper)
