"""What the range estimators share: intervals around zero, and which clips of the data are worth trying."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from qcli.distribution import Distribution
from qcli.types import Interval

Float64Array = npt.NDArray[np.float64]


def around_zero(lower: Float64Array, upper: Float64Array) -> Interval:
    """The interval from `lower` to `upper` [channels], extended to zero where it leaves zero out."""
    return Interval(lower=np.minimum(lower, 0.0), upper=np.maximum(upper, 0.0))


def typical_magnitude(distribution: Distribution) -> Float64Array:
    """The larger magnitude [channels] of the two quartiles of the values that are not zero; 0 where all are.

    About half of the values are no larger, and no grid of two bits or more is best clipped further down,
    however far away the outliers are: this is where a search over clips can end.
    """
    points = distribution.points
    reached = np.cumsum(np.where(points == 0, 0.0, distribution.counts), axis=1)
    rows = np.arange(len(points))
    places = [np.argmax(reached >= share * reached[:, -1:], axis=1) for share in (0.25, 0.75)]
    larger = np.abs([points[rows, place] for place in places]).max(axis=0)
    return np.where(reached[:, -1] > 0, larger, 0.0)


def step_ratio(least: Float64Array, most: Float64Array, number: int) -> Float64Array:
    """The ratio [channels] at which `number` bounds lead from `most` down to `least`; 1 where `most` is 0.

    `least` is an eighth of `most` at most, so that there is always something to search.
    """
    floor = np.minimum(np.where(least > 0, least, most), most / 8)
    ratio = np.divide(floor, most, out=np.ones_like(most), where=most > 0)
    result: Float64Array = ratio ** (1 / (number - 1))
    return result


def rungs(start: Float64Array, ratio: Float64Array, exponents: Float64Array, most: Float64Array) -> Float64Array:
    """Bounds [channels, len(exponents)] to try: start * ratio**exponent, none above `most` [channels]."""
    return np.minimum(start[:, None] * ratio[:, None] ** exponents, most[:, None])
