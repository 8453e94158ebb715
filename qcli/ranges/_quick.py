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
    """The extrema [n] of runs that are the columns of `values` [size, n], extended to zero."""
    upper = np.maximum(values.max(axis=0), 0).astype(np.float64)
    return Interval(lower=np.minimum(values.min(axis=0), 0).astype(np.float64), upper=upper)


def best_clip(values: FloatArray, grid: Grid) -> Interval:
    """Of eight clips of the extrema, all of both ends alike, the one with the least squared error on the grid [n].

    Clips are spaced in their logarithm, more densely near the extrema, from none down to what a grid of so many bits
    can gain by. Errors are measured in float32.
    """
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
