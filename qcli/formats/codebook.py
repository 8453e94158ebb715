"""`codebook`: the table of levels that serves the weights themselves best."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np

from qcli.formats._lloyd import best_levels, root_mean_squares, scales_for
from qcli.formats._table import FLOAT_BITS, Fitted, Float64Array, LearnedFormat, dense
from qcli.levels import Cells
from qcli.types import FloatArray, Grid

_ROUNDS = 3


class Codebook(LearnedFormat, frozen=True, kw_only=True):
    """2**`bits` levels by k-means, `bits` from 2 to 8 (4): the least squared error that a table can have.

    With `tables: shared`, a weight has one table, and a scale of its own for each channel or block where the grid asks
    for those; with `tables: own`, each channel or block has a table. Errors count by the energy of the input that a
    weight meets where the range is `{mse: {weighted: true}}`.

    Source: Lloyd 1982, "Least squares quantization in PCM"; the first levels by the rule that their density follows the
    cube root of the values' (Panter and Dite 1951); tables of weights after Han et al. 2016, "Deep Compression".
    """

    default_bits: ClassVar[int] = 4

    tables: Literal["shared", "own"] = "shared"

    def shares(self, grid: Grid) -> bool:
        """True for one table for all groups."""
        return self.tables == "shared"

    def side_bits(self, grid: Grid, scales: int) -> int:
        """A table for each scale, which then is 1 and not stored, or one table with the scales beside it."""
        if not self.shares(grid):
            return FLOAT_BITS * self.entries(grid) * scales
        return FLOAT_BITS * (self.entries(grid) + (scales if grid.granularity != "tensor" else 0))

    def fit(self, rows: FloatArray, counts: Float64Array, grid: Grid) -> Fitted:
        """A table for each row, or one for all with a scale for each."""
        values, many = dense(rows, counts)
        entries = self.entries(grid)
        if not self.shares(grid) or grid.granularity == "tensor":
            levels = best_levels(Cells.of(values, many), entries).astype(np.float32)
            return Fitted(np.ones(len(rows), np.float32), levels[0] if self.shares(grid) else levels)
        return _shared(values, many, entries)


def _shared(values: Float64Array, many: Float64Array, entries: int) -> Fitted:
    """In turn the best table for the scales, and the best scales for the table. Rows of any size count alike."""
    cells = Cells.of(values, many)
    shares = (many / many.mean(axis=1, keepdims=True)).reshape(1, -1)
    steps = sizes = root_mean_squares(cells)
    levels = best_levels(_alike(values, shares, steps), entries)
    for _ in range(_ROUNDS):
        steps = scales_for(cells, levels[0], steps)
        levels = best_levels(_alike(values, shares, steps), entries, levels)
    usual = float(np.median(steps[sizes > 0] / sizes[sizes > 0])) if sizes.any() else 1.0
    return Fitted((steps / usual).astype(np.float32), (levels[0] * usual).astype(np.float32))


def _alike(values: Float64Array, shares: Float64Array, steps: Float64Array) -> Cells:
    unit = np.where(steps > 0, steps, 1.0)[:, None]
    return Cells.of((values / unit).reshape(1, -1), shares)
