"""`residual_binary`: sums of a few signs with a factor each."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from qcli.formats._table import FLOAT_BITS, Fitted, Float64Array, LearnedFormat, dense
from qcli.levels import Cells, middles
from qcli.types import FloatArray, Grid

_ROUNDS = 20

_PULL = 1e-9


class ResidualBinary(LearnedFormat, frozen=True):
    """`bits` (1 to 4, 2) signs for each weight: the levels of a group are all sums of +a_1 or -a_1, +a_2 or -a_2, ...

    Each factor first is the mean magnitude of what the signs before it left; then all factors by least squares for the
    signs, and the signs that are best for the factors, in turn. Each group has a table of 2**`bits` levels of its own.
    Source: Guo et al. 2017, "Network Sketching", algorithm 1; Xu et al. 2018, "Alternating Multi-bit Quantization for
    Recurrent Neural Networks", algorithm 2.
    """

    default_bits: ClassVar[int] = 2
    least_bits: ClassVar[int] = 1
    most_bits: ClassVar[int] = 4

    def side_bits(self, grid: Grid, scales: int) -> int:
        """A table for each group; the scales are 1 and not stored."""
        return FLOAT_BITS * self.entries(grid) * scales

    def fit(self, rows: FloatArray, counts: Float64Array, grid: Grid) -> Fitted:
        """The tables [G, 2**bits] of the rows."""
        values, many = dense(rows, counts)
        bits = self.bits(grid)
        signs = np.array([[1.0 if code >> bit & 1 else -1.0 for code in range(1 << bits)] for bit in range(bits)])
        cells = Cells.of(values, many)
        factors = _greedy(values, many, bits)
        best, least = factors, np.full(len(values), np.inf)
        for _ in range(_ROUNDS):
            order, levels = _table(factors, signs)
            errors = cells.errors(levels)
            better = errors < least
            if not better.any():
                break
            best, least = np.where(better[:, None], factors, best), np.minimum(errors, least)
            factors = _least_squares(cells, levels, signs.T[order])
        return Fitted(np.ones(len(values), np.float32), _table(best, signs)[1].astype(np.float32))


def _greedy(values: Float64Array, many: Float64Array, bits: int) -> Float64Array:
    """Each factor is the mean magnitude of what is left, [G, bits]."""
    left, total, found = values.copy(), many.sum(axis=1), []
    for _ in range(bits):
        factor = (np.abs(left) * many).sum(axis=1) / total
        found.append(factor)
        left -= np.where(left < 0, -1.0, 1.0) * factor[:, None]
    return np.stack(found, axis=1)


def _table(
    factors: Float64Array, signs: Float64Array
) -> tuple[np.ndarray[tuple[int, ...], np.dtype[np.intp]], Float64Array]:
    """The levels [G, 2**bits] in ascending order, and the order."""
    levels = factors @ signs
    order = np.argsort(levels, axis=1, kind="stable")
    return order, np.take_along_axis(levels, order, axis=1)


def _least_squares(cells: Cells, levels: Float64Array, signs: Float64Array) -> Float64Array:
    """The factors [G, bits] that are best where each value has the signs [G, 2**bits, bits] of the level next to it."""
    weights, firsts, _ = cells.within(cells.places(middles(levels)))
    matrix = np.einsum("gk,gki,gkj->gij", weights, signs, signs)
    wanted = np.einsum("gk,gki->gi", firsts, signs)
    pull = _PULL * weights.sum(axis=1)[:, None, None] * np.eye(signs.shape[-1])
    return np.asarray(np.linalg.solve(matrix + pull, wanted[..., None])[..., 0])
