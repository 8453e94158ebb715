"""The values of a tensor as far as they are known: exact extrema, and points with counts between them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from qcli.errors import InputError
from qcli.stats import _bins
from qcli.types import Array, FloatArray, Noun

Float64Array = npt.NDArray[np.float64]

_EXACT_SIZE = 1 << 16
_BLOCK = 1 << 20


class Rows(Noun, frozen=True, kw_only=True):
    """Values as they stood together: `values` float32 [n, classes], each row seen `counts` float64 [n] times."""

    values: FloatArray
    counts: Float64Array


class Distribution(Noun, frozen=True, kw_only=True):
    """How often which values occur, for each channel.

    `lower` and `upper` float64 [channels] are the exact extrema. `points` float64 [channels, n] ascend along
    n, and `counts` float64 [channels, n] say how many values each point stands for (0 is allowed: padding).
    `resolution` is the width of what a point stands for, relative to the power of two at or below its
    magnitude: 0 for exact values, 2**-7 for the bins of a histogram. `rows` is known of a statistic that keeps them.

    Example: the values 0, 0, 3 of one channel: lower [0], upper [3], points [[0, 3]], counts [[2, 1]].
    """

    lower: Float64Array
    upper: Float64Array
    points: Float64Array
    counts: Float64Array
    resolution: float = 0.0
    rows: Rows | None = None

    def channel(self, index: int) -> Distribution:
        """The distribution of one channel, as a distribution of one channel."""
        here = slice(index, index + 1)
        return Distribution(
            lower=self.lower[here],
            upper=self.upper[here],
            points=self.points[here],
            counts=self.counts[here],
            resolution=self.resolution,
        )

    def edges(self, least: float) -> tuple[Float64Array, Float64Array]:
        """Where the values behind each point begin and end, two arrays [channels, n] within the extrema.

        Points at zero stand for zero alone. Elsewhere the width is at least `least` of the magnitude, so that
        a density exists for exact values too.
        """
        _, exponent = np.frexp(self.points)
        widths = np.ldexp(self.resolution, exponent - 1)
        half = np.where(self.points == 0, 0.0, np.maximum(widths, least * np.abs(self.points)) / 2)
        lower, upper = self.lower[:, None], self.upper[:, None]
        return np.clip(self.points - half, lower, upper), np.clip(self.points + half, lower, upper)


def from_weights(weight: FloatArray, axis: int | None, energies: Float64Array | None = None) -> Distribution:
    """The distribution of a weight as a whole, or of each slice along `axis`.

    With `energies`, not negative and of the weight's shape, an element counts that much instead of once.

    Exact values with unit counts; a weight of more than 65,536 values taken as a whole is counted in bfloat16
    bins instead, so that the result stays bounded. An empty weight counts nothing and has the extrema 0.
    Raises InputError if the weight holds Inf or NaN.
    """
    values = np.asarray(weight, dtype=np.float32)
    values = _channels_first(values, axis)
    counted = None if energies is None else _channels_first(energies, axis)
    if not np.isfinite(values).all():
        raise InputError("the weight holds Inf or NaN")
    if values.size == 0:
        nothing = np.zeros((len(values), 1))
        return Distribution(lower=nothing[:, 0], upper=nothing[:, 0], points=nothing, counts=nothing)
    if axis is None and values.size > _EXACT_SIZE:
        return from_bins(_binned(values, counted)[None], values.min(axis=1), values.max(axis=1))
    if counted is not None:
        order = np.argsort(values, axis=1, kind="stable")
        points = np.take_along_axis(values, order, axis=1).astype(np.float64)
        counts = np.take_along_axis(counted, order, axis=1)
        return Distribution(lower=points[:, 0], upper=points[:, -1], points=points, counts=counts)
    points = np.sort(values, axis=1).astype(np.float64)
    ones = np.broadcast_to(np.float64(1.0), points.shape)
    return Distribution(lower=points[:, 0], upper=points[:, -1], points=points, counts=ones)


def _binned(values: FloatArray, counted: Float64Array | None) -> Array:
    """Counts [65536] of values [1, n], or the sums of what each of them counts."""
    total = np.zeros(_bins.BINS)
    for at in range(0, values.size, _BLOCK):
        numbers = _bins.bin_numbers(values[0, at : at + _BLOCK])
        weights = None if counted is None else counted[0, at : at + _BLOCK]
        total += np.bincount(numbers, weights, minlength=_bins.BINS)
    return total


def from_bins(counts: Array, lower: Array, upper: Array) -> Distribution:
    """The distribution behind counts [channels, 65536] of bfloat16 bins, with extrema of shape [channels].

    A point is the middle of its bin, clamped into the extrema. Bins that are empty in all channels are left
    out.
    """
    order = _bins.ascending()
    used = order[np.any(counts > 0, axis=0)[order]]
    if used.size == 0:
        used = order[_bins.BINS // 2 :][:1]
    low, high = lower.astype(np.float64), upper.astype(np.float64)
    points = np.clip(_bins.middles(used)[None], low[:, None], high[:, None])
    return Distribution(
        lower=low,
        upper=high,
        points=points,
        counts=counts[:, used].astype(np.float64),
        resolution=_bins.RESOLUTION,
    )


def union(distributions: Sequence[Distribution]) -> Distribution:
    """All values of several distributions together, for values that must share one scale.

    Raises ValueError if there is none, or if their numbers of channels differ.
    """
    if not distributions:
        raise ValueError("a union needs at least one distribution")
    if len(distributions) == 1:
        return distributions[0]
    if len({len(item.lower) for item in distributions}) > 1:
        raise ValueError("distributions of different numbers of channels have no union")
    points = np.concatenate([item.points for item in distributions], axis=1)
    counts = np.concatenate([item.counts for item in distributions], axis=1)
    order = np.argsort(points, axis=1, kind="stable")
    return Distribution(
        lower=np.min([item.lower for item in distributions], axis=0),
        upper=np.max([item.upper for item in distributions], axis=0),
        points=np.take_along_axis(points, order, axis=1),
        counts=np.take_along_axis(counts, order, axis=1),
        resolution=max(item.resolution for item in distributions),
    )


def _channels_first(values: Array, axis: int | None) -> Array:
    if axis is None:
        return values.reshape(1, -1)
    moved = np.moveaxis(values, axis, 0)
    return moved.reshape(len(moved), moved[0].size if len(moved) else 0)
