"""`entropy`: the range that keeps the shape of the distribution, as in TensorRT's calibration."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, ClassVar, Self

import msgspec
import numpy as np

from qcli.contracts import Format
from qcli.distribution import Distribution
from qcli.plugins import create
from qcli.ranges._interval import Float64Array, around_zero, rungs, step_ratio, typical_magnitude
from qcli.types import Grid, Interval, Noun

_COARSE = np.arange(32.0)
_FINE = np.arange(-4, 5) / 5
"""Exponents of the bounds to try, in coarse steps: all the way down, then around the best of those."""

_Measure = Callable[[Float64Array, Float64Array], Float64Array]

_LEAST_WIDTH = 2.0**-20
_SMOOTHING = 1e-6


class Entropy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Clips where the Kullback-Leibler divergence between the values and their quantized selves is smallest.

    Of each candidate range, `bins` equal bins make the reference P: what is clipped is added to its end bins.
    Q is P without what is clipped, each level's share spread evenly over those of its bins that P fills.
    Clipping costs because Q lacks what P has at the ends; a wide range costs because a level then blurs more
    of the shape. Source: Migacz 2017, "8-bit Inference with TensorRT" (GTC), with four differences:

    * Every candidate gets `bins` bins of its own instead of a share of those of the widest, so the resolution
      does not shrink with the clip, and a far outlier cannot push the useful range into a few bins. With bins
      tied to levels one to one (as in onnxruntime, 128 of each) only min-max is left to choose.
    * Zeros are left out: they are exact on every grid, and after a ReLU they would outweigh everything else.
    * Q is smoothed by a millionth, so that an empty last level makes a clip expensive instead of impossible.
    * Where a channel has values on both sides, an asymmetric grid first tries both ends at one magnitude,
      then each on its own. A symmetric grid is judged by magnitudes, on its non-negative levels.

    Few values (less than some thousands) leave most bins empty; little then speaks against min-max, which is
    what comes out. One-sided channels keep exactly 0 as their other end. Channels are searched one by one.
    """

    statistic: ClassVar[str] = "histogram"

    bins: Annotated[int, msgspec.Meta(ge=128, le=1 << 16)] = 2048

    def interval(self, distribution: Distribution, grid: Grid) -> Interval:
        """The interval [channels] of the smallest divergence for `grid`."""
        levels = _levels(grid)
        bins = levels * max(4, -(-self.bins // levels))
        below, above = np.maximum(-distribution.lower, 0.0), np.maximum(distribution.upper, 0.0)
        typical = typical_magnitude(distribution)
        low, high = below.copy(), above.copy()
        for channel in np.flatnonzero((distribution.lower < distribution.upper) & (typical > 0)).tolist():
            here = slice(channel, channel + 1)
            shape = _Shape.of(distribution, channel, folded=grid.symmetric)
            measure = partial(_divergences, shape, levels, bins)
            search = _one_bound if grid.symmetric else _two_bounds
            low[here], high[here] = search(measure, typical[here], below[here], above[here])
        return around_zero(-low, high)


class _Shape(Noun, frozen=True, kw_only=True):
    """One channel's distribution without its zeros: `reached` of its mass (0 to 1) lies below `positions`.

    Both float64 [2 n]: the two ends of what each point stands for, with a straight line between them.
    `folded` takes the magnitudes of the values for the values.
    """

    positions: Float64Array
    reached: Float64Array
    folded: bool

    @classmethod
    def of(cls, distribution: Distribution, channel: int, *, folded: bool) -> Self:
        starts, ends = (edge[channel] for edge in distribution.edges(_LEAST_WIDTH))
        counts = np.where(distribution.points[channel] == 0, 0.0, distribution.counts[channel])
        before = np.concatenate([[0.0], np.cumsum(counts)]) / counts.sum()
        positions = np.maximum.accumulate(np.stack([starts, ends], axis=1).ravel())
        return cls(positions=positions, reached=np.repeat(before, 2)[1:-1], folded=folded)

    def below(self, values: Float64Array) -> Float64Array:
        """The share of the mass below each of `values`, of any shape."""
        share = np.interp(values, self.positions, self.reached)
        return share - np.interp(-values, self.positions, self.reached) if self.folded else share


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
    best = _descend(
        lambda bound: measure(np.minimum(bound, below), np.minimum(bound, above)), typical, most, most
    )
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


def _divergences(
    shape: _Shape, levels: int, bins: int, lows: Float64Array, highs: Float64Array
) -> Float64Array:
    """The divergences [candidates] of the ranges from -lows to highs, or up to the larger one if folded.

    Migacz 2017: KL(P || Q) = sum of P * log(P / Q).
    """
    lows, highs = np.broadcast_arrays(lows, highs)
    first = np.zeros_like(lows) if shape.folded else -lows
    last = np.maximum(lows, highs) if shape.folded else highs
    below = shape.below(first[:, None] + (last - first)[:, None] * np.linspace(0.0, 1.0, bins + 1))
    inside = np.diff(below, axis=1)
    reference = inside.copy()
    reference[:, 0] += below[:, 0]
    reference[:, -1] += 1.0 - below[:, -1]
    filled = (reference > 0).reshape(len(lows), levels, -1)
    share = inside.reshape(filled.shape).sum(axis=2) / np.maximum(filled.sum(axis=2), 1)
    quantized = (filled * share[:, :, None]).reshape(reference.shape)
    quantized *= (1 - _SMOOTHING) / np.maximum(quantized.sum(axis=1, keepdims=True), _SMOOTHING)
    quantized += _SMOOTHING / bins
    terms = np.where(reference > 0, reference, 1.0) / quantized
    return np.asarray((reference * np.log(terms)).sum(axis=1))
