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
    """The median magnitude [channels] of the values that are not zero; 0 where all are.

    No grid of two bits or more is best clipped below it, however far away the outliers are, so it is where a
    search over clips can begin.
    """
    magnitudes = np.abs(distribution.points)
    order = np.argsort(magnitudes, axis=1)
    weights = np.take_along_axis(np.where(magnitudes > 0, distribution.counts, 0.0), order, axis=1)
    reached = np.cumsum(weights, axis=1)
    median = np.argmax(reached >= reached[:, -1:] / 2, axis=1)
    found = np.take_along_axis(order, median[:, None], axis=1)
    result: Float64Array = np.take_along_axis(magnitudes, found, axis=1)[:, 0]
    return result


def clips(least: Float64Array, most: Float64Array, number: int) -> Float64Array:
    """`number` bounds [channels, number] from `most` down to `least`, evenly spaced in their logarithm.

    The first is exactly `most`; where `most` is 0, all are.
    """
    least = np.minimum(np.where(least > 0, least, most), most / 8)
    ratio = np.divide(least, most, out=np.ones_like(most), where=most > 0)
    bounds: Float64Array = most[:, None] * ratio[:, None] ** np.linspace(0.0, 1.0, number)
    return bounds


def refined(best: Float64Array, bounds: Float64Array, number: int) -> Float64Array:
    """`number` bounds (odd) [channels, number] around `best` [channels], up to its neighbours in `bounds`.

    `best` itself is the middle one; none exceeds the largest of `bounds`.
    """
    most = bounds.max(axis=1)
    ends = np.divide(bounds[:, 1], bounds[:, 0], out=np.ones_like(most), where=bounds[:, 0] > 0)
    offsets = np.linspace(-1.0, 1.0, number + 2)[1:-1]
    return np.minimum(best[:, None] * ends[:, None] ** offsets, most[:, None])
