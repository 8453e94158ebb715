"""The levels with the least squared error for weights in rows: where they begin, and how they improve."""

from __future__ import annotations

import numpy as np

from qcli.formats._table import Float64Array
from qcli.levels import Cells, middles
from qcli.types import Array

_ROUNDS = 200
_SETTLED = 1e-5
"""Of the span of a row: levels that move less than this have arrived."""

_MOST_BINS = 2048
_VALUES_PER_BIN = 8

_STARTS = (1.0, 0.85, 0.92, 1.1, 1.25)
_SCALE_ROUNDS = 4


def best_levels(cells: Cells, entries: int, start: Float64Array | None = None) -> Float64Array:
    """Levels [G, entries], ascending, each the mean of the values that are nearest to it.

    Source: Lloyd 1982, "Least squares quantization in PCM", method I; sums over cells are differences of sums from the
    beginning, so that a round costs a search for each level and not a look at each value.
    """
    levels = _companded(cells, entries) if start is None else start
    for _ in range(_ROUNDS):
        weights, firsts, _ = cells.within(cells.places(middles(levels)))
        moved = np.where(weights > 0, np.divide(firsts, weights, out=levels.copy(), where=weights > 0), levels)
        settled = np.abs(moved - levels).max() <= _SETTLED * cells.widths.max()
        levels = np.maximum.accumulate(moved, axis=1)
        if settled:
            break
    return levels


def _companded(cells: Cells, entries: int) -> Float64Array:
    """Levels whose density is that of the values to the power of a third.

    Between quantiles that lie `width` apart the density is 1 / width, so that the levels there are as many as
    width**(2/3). Source: Panter and Dite 1951, "Quantization Distortion in Pulse-Count Modulation with Nonuniform
    Spacing of Levels".
    """
    size = cells.values.shape[1]
    bins = max(min(size, 2 * entries), min(size // _VALUES_PER_BIN, _MOST_BINS), 1)
    shares = np.arange(1, bins) / bins
    wanted = (np.arange(entries) + 0.5) / entries
    found = np.empty((len(cells.values), entries))
    for row, (values, sums) in enumerate(zip(cells.values, cells.weights, strict=True)):
        distinct = values[np.concatenate([[True], values[1:] != values[:-1]])]
        if distinct.size <= entries:  # nothing needs to be lost
            found[row] = np.pad(distinct, (0, entries - distinct.size), mode="edge")
            continue
        inner = values[np.searchsorted(sums[1:], shares * sums[-1]).clip(0, size - 1)]
        edges = np.concatenate([values[:1], inner, values[-1:]])
        many = np.concatenate([[0.0], np.cumsum(np.diff(edges) ** (2 / 3))])
        found[row] = np.interp(wanted * many[-1], many, edges)
    return found


def scales_for(cells: Cells, levels: Array, start: Float64Array | None = None) -> Float64Array:
    """The scale [G] of each row with the least squared error for a table [K]; 0 for rows of zeros.

    From several sizes around `start`, or the root of the mean square, in turn the nearest levels and, for these, the
    scale by least squares: the sum of c w q over that of c q**2.
    """
    size = root_mean_squares(cells) if start is None else start
    tables = np.broadcast_to(levels.astype(np.float64), (len(size), levels.size))
    best, least = np.zeros_like(size), np.full(size.shape, np.inf)
    for factor in _STARTS:
        steps = size * factor
        for _ in range(_SCALE_ROUNDS):
            weights, firsts, _ = cells.within(cells.places(middles(tables * steps[:, None])))
            above, below = (tables * firsts).sum(axis=1), (tables**2 * weights).sum(axis=1)
            sound = (above > 0) & (below > 0)
            steps = np.where(sound, np.divide(above, below, out=steps.copy(), where=sound), steps)
        errors = cells.errors(tables * steps[:, None])
        best, least = np.where(errors < least, steps, best), np.minimum(errors, least)
    return best


def root_mean_squares(cells: Cells) -> Float64Array:
    """Of each row, [G]."""
    return np.sqrt(np.maximum(cells.seconds[:, -1], 0.0) / cells.weights[:, -1])
