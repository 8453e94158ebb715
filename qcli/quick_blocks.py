"""The ranges of the blocks of large weights, many at once and some rows at a time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import prod

import msgspec
import numpy as np

from qcli.contracts import Format
from qcli.errors import InputError
from qcli.parallel import in_order
from qcli.pieces import row_slices
from qcli.plugins import create
from qcli.types import Array, FloatArray, Grid, Interval, Scale

Quick = Callable[[FloatArray], Interval]
"""The intervals [...] of runs of weights that lie along the first axis of an array [size, ...]."""

_RUN = 1 << 13
"""Blocks in one go: few enough that what is computed of them stays near, and enough that threads seldom meet."""


def quick_scale(weight: FloatArray, grid: Grid, quick: Quick, threads: int) -> Scale:
    """The scale of each block, found on several threads; the same on any number of them."""
    slices = row_slices(weight.shape, grid.axis, grid.block)
    work = partial(_scale_of_piece, weight, grid, quick)
    found = list(in_order(work, slices, threads))
    steps = np.concatenate([one.scale for one in found])
    zeros = [one.zero_point for one in found]
    if any(zero.strides and max(zero.strides) for zero in zeros):
        return msgspec.structs.replace(found[0], scale=steps, zero_point=np.concatenate(zeros))
    return msgspec.structs.replace(found[0], scale=steps, zero_point=np.broadcast_to(zeros[0].flat[0], steps.shape))


def _scale_of_piece(weight: FloatArray, grid: Grid, quick: Quick, rows: slice) -> Scale:
    number_format: Format = create("formats", grid.format)
    return number_format.scale(quick_intervals(weight[rows], grid, quick), grid)


def quick_intervals(weight: FloatArray, grid: Grid, quick: Quick) -> Interval:
    """The interval of each block, in the shape of the scale.

    Some blocks at a time; a last block that is shorter comes by itself. Raises InputError for Inf or NaN.
    """
    axis, block = grid.axis or 0, grid.block or 1
    size = weight.shape[axis]
    whole = size // block * block
    found = []
    for begin, end, length in ((0, whole, block), (whole, size, size - whole)):
        if begin < end:
            run = np.moveaxis(weight, axis, 0)[begin:end]
            found.append(_run_ends(run.reshape(-1, length, *run.shape[1:]), quick))
    lower, upper = (np.concatenate(parts) if len(parts) > 1 else parts[0] for parts in zip(*found, strict=True))
    return Interval(lower=np.moveaxis(lower, 0, axis), upper=np.moveaxis(upper, 0, axis))


def _run_ends(run: FloatArray, quick: Quick) -> tuple[Array, Array]:
    """The lower and the upper ends [blocks, ...] of blocks [blocks, size, ...]."""
    blocks, size = run.shape[:2]
    shape = (blocks, *run.shape[2:])
    columns = prod(shape[1:])
    ends = np.empty((blocks, columns)), np.empty((blocks, columns))
    rows = run.reshape(blocks, size, columns)
    high, wide = max(1, _RUN // max(1, columns)), max(1, _RUN)
    for top in range(0, blocks, high):
        for left in range(0, columns, wide):
            here = (slice(top, top + high), slice(left, left + wide))
            interval = quick(np.moveaxis(rows[here[0], :, here[1]], 1, 0))
            _check(interval)
            for target, array in zip(ends, (interval.lower, interval.upper), strict=True):
                target[here] = array
    return ends[0].reshape(shape), ends[1].reshape(shape)


def _check(interval: Interval) -> None:
    if not (np.isfinite(interval.lower.min(initial=0)) and np.isfinite(interval.upper.max(initial=0))):
        raise InputError("the weight holds Inf or NaN")
