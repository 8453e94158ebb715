"""`entropy`: the range that keeps the shape of the distribution, as in TensorRT's calibration."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, ClassVar

import msgspec
import numpy as np

from qcli.contracts import Format
from qcli.distribution import Distribution
from qcli.plugins import create
from qcli.ranges._divergence import Shape, divergences, partition
from qcli.ranges._interval import Float64Array, around_zero, rungs, step_ratio, typical_magnitude
from qcli.types import Grid, Interval

_COARSE = np.arange(32.0)
_FINE = np.arange(-4, 5) / 5
"""Exponents of the bounds to try, in coarse steps: all the way down, then around the best of those."""

_Measure = Callable[[Float64Array, Float64Array], Float64Array]


class Entropy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Clips where the Kullback-Leibler divergence between the values and their quantized selves is smallest.

    The reference P is the distribution, with what a candidate range clips added to the last of its `bins`
    equal bins on either side. Q is P without what is clipped, each level's share spread evenly over what P
    fills of it. Clipping costs because Q lacks what P has at the ends; a wide range costs because a level
    then blurs more of the shape. Source: Migacz 2017, "8-bit Inference with TensorRT" (GTC), with these
    differences:

    * P is known on one fixed partition, re-binned from the histogram: linear up to the typical magnitude and
      logarithmic beyond, `bins` on each side. A far outlier then cannot push all other values into a few
      bins, which is how equal bins over everything end up at min-max (as do 128 bins for 128 levels,
      onnxruntime's default, where nothing else is left to choose).
    * Zeros are left out: they are exact on every grid, and after a ReLU they would outweigh everything else.
    * Q is smoothed by a millionth, so that an empty last level makes a clip expensive instead of impossible.
    * Chance makes the shape look richer than it is; each filled level is charged 1 / (2 * values) for it
      (Miller 1955, bias of the plug-in entropy). With few values this favours min-max.
    * Where a channel has values on both sides, an asymmetric grid first tries both ends at one magnitude,
      then each on its own. A symmetric grid is judged by magnitudes, on its non-negative levels.

    Data that is mostly tiny with rare large values that matter is clipped hard; mse is better there.
    One-sided channels keep exactly 0 as their other end. Channels are searched one by one.
    """

    statistic: ClassVar[str] = "histogram"

    bins: Annotated[int, msgspec.Meta(ge=128, le=1 << 16)] = 2048

    def interval(self, distribution: Distribution, grid: Grid) -> Interval:
        """The interval [channels] of the smallest divergence for `grid`."""
        levels = _levels(grid)
        below, above = np.maximum(-distribution.lower, 0.0), np.maximum(distribution.upper, 0.0)
        typical = typical_magnitude(distribution)
        low, high = below.copy(), above.copy()
        for channel in np.flatnonzero((distribution.lower < distribution.upper) & (typical > 0)).tolist():
            here = slice(channel, channel + 1)
            edges = partition(typical[here], below[here], above[here], self.bins, grid.symmetric)
            shape = Shape.of(distribution.channel(channel), edges, folded=grid.symmetric)
            measure = partial(divergences, shape, levels, self.bins)
            search = _one_bound if grid.symmetric else _two_bounds
            low[here], high[here] = search(measure, typical[here], below[here], above[here])
        return around_zero(-low, high)


def _levels(grid: Grid) -> int:
    """How many levels a range is divided into; of a symmetric grid, those from zero upwards."""
    number_format: Format = create("formats", grid.format)
    scale = number_format.scale(Interval(lower=-np.ones(1), upper=np.ones(1)), grid)
    return scale.highest + 1 - (int(scale.zero_point[0]) if grid.symmetric else scale.lowest)


def _one_bound(
    measure: _Measure, typical: Float64Array, below: Float64Array, above: Float64Array
) -> tuple[Float64Array, Float64Array]:
    """The best bounds below and above zero, magnitudes [1], if both are the same clip of the data."""
    most = np.maximum(below, above)
    best = _descend(lambda bound: measure(np.minimum(bound, below), np.minimum(bound, above)), typical, most, most)
    return np.minimum(best, below), np.minimum(best, above)


def _two_bounds(
    measure: _Measure, typical: Float64Array, below: Float64Array, above: Float64Array
) -> tuple[Float64Array, Float64Array]:
    """The best bounds below and above zero, magnitudes [1]: as one clip first, then each on its own."""
    low, high = _one_bound(measure, typical, below, above)
    if low > 0 and high > 0:
        high = _descend(lambda bound: measure(low, bound), typical, above, high)
        low = _descend(lambda bound: measure(bound, high), typical, below, low)
    return low, high


def _descend(
    measure: Callable[[Float64Array], Float64Array],
    typical: Float64Array,
    most: Float64Array,
    known: Float64Array,
) -> Float64Array:
    """The best bound [1] from `most` down to about `typical`, or `known` if none is better."""
    ratio = step_ratio(typical, most, len(_COARSE))
    coarse = np.concatenate([known, rungs(most, ratio, _COARSE, most)[0]])
    best = coarse[np.argmin(measure(coarse))][None]
    fine = rungs(best, ratio, _FINE, most)[0]
    return np.asarray(fine[np.argmin(measure(fine))][None])
