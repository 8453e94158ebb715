"""Tables of levels for weights: groups of them, channels or blocks, are what a format learns its levels from."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from qcli.blocks import across, interval_of, parts_of
from qcli.formats._lloyd import scales_for
from qcli.formats._table import Fitted, LearnedFormat, table_scale
from qcli.formats._words import VectorFormat
from qcli.levels import Cells
from qcli.plugins import create
from qcli.types import Array, Entry, FloatArray, Grid, Scale
from qcli.vector_tables import vector_scale

Float64Array = npt.NDArray[np.float64]

_SAMPLE = 1 << 20
"""Of the weights that one table is learned from: as many as that, evenly spread."""


def table_of(
    weight: FloatArray, entry: Entry, energies: Float64Array | None, *, rows: int = 0, thin: bool = False
) -> Scale:
    """The levels of a weight that are not evenly spaced: learned from it, or a table scaled to the entry's range.

    Vectors of weights lie in the rows that the weight has along the axis `rows`.
    """
    number_format = create("formats", entry.grid.format)
    if isinstance(number_format, LearnedFormat):
        return fitted_scale(weight, entry.grid, number_format, energies, rows)
    find = partial(create("ranges", entry.range).interval, grid=entry.grid)
    interval, _ = interval_of(weight, entry.grid, find, thin=thin, energies=energies)
    scale: Scale = number_format.scale(interval, entry.grid)
    return scale


def fitted_scale(
    weight: FloatArray,
    grid: Grid,
    number_format: LearnedFormat,
    energies: Float64Array | None = None,
    rows: int = 0,
) -> Scale:
    """The levels and scales of a weight. With `energies`, of its shape, each element counts that much instead of once.

    Groups with tables of their own are worked on some at a time; for a shared table, a sample of them is.
    """
    if isinstance(number_format, VectorFormat):
        return vector_scale(weight, grid, number_format, energies, rows)
    groups = list(_groups(weight, grid, energies)) if weight.ndim else []
    if number_format.shares(grid):
        sample = number_format.fit(*_sample(groups), grid)
        if grid.granularity == "tensor":
            return table_scale(sample.scale, sample.levels, grid)
        whole = len(groups) == 1 and weight.size <= _SAMPLE
        found = [sample] if whole else [Fitted(_steps(group, sample.levels), sample.levels) for group in groups]
    else:
        found = [number_format.fit(group.rows(), group.counts(), grid) for group in groups]
    levels = found[0].levels
    if levels.ndim > 1:
        levels = _joined([one.levels for one in found], groups, grid)
    return table_scale(_joined([one.scale for one in found], groups, grid), levels, grid)


def _steps(group: _Group, levels: FloatArray) -> FloatArray:
    counts = group.counts()
    used = np.where(counts.sum(axis=1, keepdims=True) > 0, counts, 1.0)
    return scales_for(Cells.of(group.rows(), used), levels).astype(np.float32)


class _Group(NamedTuple):
    """Some of a weight's channels or blocks, and what their elements count; rows are made when they are needed."""

    weight: FloatArray
    energies: Float64Array | None
    grid: Grid

    def rows(self, every: int = 1) -> FloatArray:
        """One row [G, n] for each scale, in the order that they have in the file; of many, one in so many."""
        return _rows(self.weight, self.grid)[::every]

    def counts(self, every: int = 1) -> Float64Array:
        """What the elements of the rows count; nothing for those that fill up a block."""
        counts = np.ones((1,) * self.weight.ndim) if self.energies is None else self.energies
        return _rows(np.broadcast_to(counts, self.weight.shape), self.grid)[::every]


def _groups(weight: FloatArray, grid: Grid, energies: Float64Array | None) -> Iterator[_Group]:
    axis = grid.axis if grid.block is None else across(grid.axis, weight.ndim)
    for part in parts_of(weight, axis):
        yield _Group(weight[part], None if energies is None else energies[part], grid)


def _rows(array: Array, grid: Grid) -> Array:
    """One row for each scale; the last block of an axis is filled up with zeros."""
    if grid.axis is None:
        return array.reshape(1, -1)
    if grid.block is None:
        return np.moveaxis(array, grid.axis, 0).reshape(array.shape[grid.axis], -1)
    moved = np.moveaxis(array, grid.axis, -1)
    missing = -moved.shape[-1] % grid.block
    whole = np.pad(moved, [(0, 0)] * (moved.ndim - 1) + [(0, missing)])
    return whole.reshape(-1, grid.block)


def _sample(groups: list[_Group]) -> tuple[FloatArray, Float64Array]:
    """Some of the rows, evenly spread; of a single one some of its weights."""
    every = -(-sum(group.weight.size for group in groups) // _SAMPLE)
    if groups[0].grid.axis is None:
        return groups[0].rows()[:, ::every], groups[0].counts()[:, ::every]
    rows = np.concatenate([group.rows(every) for group in groups])
    return rows, np.concatenate([group.counts(every) for group in groups])


def _joined(parts: list[FloatArray], groups: list[_Group], grid: Grid) -> FloatArray:
    """What was found for each row, [G, ...], in the shape that the grid's scales have."""
    if grid.block is None:
        return np.concatenate(parts)
    axis = grid.axis or 0
    laid = []
    for part, group in zip(parts, groups, strict=True):
        others = [size for at, size in enumerate(group.weight.shape) if at != axis]
        laid.append(np.moveaxis(part.reshape(*others, -1, *part.shape[1:]), len(others), axis))
    return np.concatenate(laid, axis=across(grid.axis, groups[0].weight.ndim))
