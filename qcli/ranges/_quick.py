"""Ranges of many short runs of weights at once, by a coarser search: what large models have time for."""

from __future__ import annotations

import numpy as np

from qcli.contracts import Format
from qcli.plugins import create
from qcli.types import Array, FloatArray, Grid, Interval

_CLIPS = 8
"""How many clips are tried, the extrema among them."""

_LOWEST = 0.25
"""The strongest clip, of the extrema; grids of many levels are never clipped so far."""


def extrema_of(values: FloatArray) -> Interval:
    """The extrema [...] of runs along the first axis of `values` [size, ...], extended to zero."""
    lower, upper = _reduced(np.minimum, values), _reduced(np.maximum, values)
    return Interval(lower=np.minimum(lower, 0).astype(np.float64), upper=np.maximum(upper, 0).astype(np.float64))


def _reduced(ufunc: np.ufunc, values: FloatArray) -> FloatArray:
    """Over the first axis; where runs lie one behind the other in memory, in the order of the memory."""
    size, width = len(values), values.itemsize
    others = sorted(range(1, values.ndim), key=lambda axis: -values.strides[axis])
    runs = values.transpose(*others, 0)
    if values.ndim < 2 or size < 2 or values.size == 0 or runs.strides[-2:] != (size * width, width):
        return np.asarray(ufunc.reduce(values, axis=0))
    lines = runs.reshape(*runs.shape[:-2], -1)
    found = ufunc.reduceat(lines, np.arange(0, lines.shape[-1], size), axis=-1)
    return np.asarray(found.transpose(np.argsort(others)))


def best_clip(values: FloatArray, grid: Grid) -> Interval:
    """Of eight clips of the extrema, all of both ends alike, the one with the least squared error on the grid [...].

    `values` are runs along the first axis, [size, ...].

    Clips are spaced in their logarithm, more densely near the extrema, from none down to what a grid of so many bits
    can gain by. Errors are measured in float32.
    """
    found = _best_of_columns(np.ascontiguousarray(values).reshape(len(values), -1), grid)
    return Interval(lower=found.lower.reshape(values.shape[1:]), upper=found.upper.reshape(values.shape[1:]))


def _best_of_columns(values: FloatArray, grid: Grid) -> Interval:
    number_format: Format = create("formats", grid.format)
    whole = extrema_of(values)
    bits = number_format.bits(grid)
    clips = max(_LOWEST, 1 - 8 / 2**bits) ** np.linspace(0, 1, _CLIPS) ** 1.3
    scale = number_format.scale(whole, grid)  # clips alike leave the zero point where it is
    low, high = ((end - scale.zero_point).astype(np.float32) for end in (scale.lowest, scale.highest))
    ends = (low, high) if (low != low[:1]).any() else (low[0], high[0])
    work, levels = np.empty_like(values), np.empty_like(values)
    errors = np.array([_errors(values, scale.scale * np.float32(clip), ends, (work, levels)) for clip in clips])
    best = clips[errors.argmin(axis=0)]
    return Interval(lower=whole.lower * best, upper=whole.upper * best)


def _errors(
    values: FloatArray, steps: FloatArray, ends: tuple[Array, Array], room: tuple[FloatArray, FloatArray]
) -> Array:
    """The squared errors [n]; `room` is for what lies between."""
    work, levels = room
    np.multiply(values, 1 / steps, out=work)
    np.rint(work, out=levels)
    np.clip(levels, *ends, out=levels)
    work -= levels
    return np.asarray(np.einsum("bn,bn->n", work, work) * np.square(steps))
