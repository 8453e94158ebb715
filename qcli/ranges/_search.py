"""The search for the range that makes an error smallest, whatever the error is."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from qcli.distribution import Distribution
from qcli.ranges._interval import Float64Array, around_zero, rungs, step_ratio, typical_magnitude
from qcli.types import Grid, Interval

# Exponents of the bounds that each round tries, in coarse steps: all the way down, more densely near the
# extrema, where the best bound of most data lies; then around the best one.
_ONE_BOUND = (np.arange(32.0) ** 1.5 / 31**0.5, np.arange(-4, 5) / 5, np.arange(-4, 5) / 25)
_TWO_BOUNDS = (
    np.arange(16.0) ** 1.5 / 15**0.5,
    np.arange(-2, 3) / 3,
    np.arange(-2, 3) / 9,
    np.arange(-2, 3) / 27,
)

_TWO_BOUNDS_OF_FEW = (np.arange(6.0) ** 1.5 / 5**0.5, np.arange(-2, 3) / 3, np.arange(-2, 3) / 9)
"""For the blocks of weights: the error of a few values has few turns, and there are many blocks."""

_FEW = 64

Measure = Callable[[Float64Array, Float64Array], Float64Array]
"""The errors of the grids that span -lows to highs, all of shape [channels, candidates]."""


def least(measure: Measure, distribution: Distribution, grid: Grid) -> Interval:
    """The interval [channels] with the smallest error; never worse than the extrema, which are tried first."""
    below, above = np.maximum(-distribution.lower, 0.0), np.maximum(distribution.upper, 0.0)
    typical = typical_magnitude(distribution)
    two_bounds = not grid.symmetric and bool(((below > 0) & (above > 0)).any())
    if not two_bounds:
        low, high = _one_bound(measure, typical, below, above)
    else:
        rounds = _TWO_BOUNDS if distribution.points.shape[1] > _FEW else _TWO_BOUNDS_OF_FEW
        low, high = _two_bounds(measure, typical, below, above, rounds)
    return around_zero(-low, high)


def _one_bound(
    measure: Measure, typical: Float64Array, below: Float64Array, above: Float64Array
) -> tuple[Float64Array, Float64Array]:
    """The best bounds below and above zero, magnitudes [channels], if both are the same clip of the data."""
    most = np.maximum(below, above)
    ratio = step_ratio(typical, most, len(_ONE_BOUND[0]))
    best = most
    for exponents in _ONE_BOUND:
        bounds = rungs(best, ratio, exponents, most)
        errors = measure(np.minimum(bounds, below[:, None]), np.minimum(bounds, above[:, None]))
        best = bounds[np.arange(len(bounds)), np.argmin(errors, axis=1)]
    return np.minimum(best, below), np.minimum(best, above)


def _two_bounds(
    measure: Measure,
    typical: Float64Array,
    below: Float64Array,
    above: Float64Array,
    rounds: tuple[Float64Array, ...],
) -> tuple[Float64Array, Float64Array]:
    """The best bounds below and above zero, magnitudes [channels], each on its own."""
    low, high = below, above
    low_ratio, high_ratio = (step_ratio(typical, most, len(rounds[0])) for most in (below, above))
    rows = np.arange(len(below))
    for exponents in rounds:
        lows = np.repeat(rungs(low, low_ratio, exponents, below), len(exponents), axis=1)
        highs = np.tile(rungs(high, high_ratio, exponents, above), len(exponents))
        best = np.argmin(measure(lows, highs), axis=1)
        low, high = lows[rows, best], highs[rows, best]
    return low, high
