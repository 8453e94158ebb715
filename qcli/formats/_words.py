"""Codewords that stand for several weights, and those with the least squared error: k-means."""

from __future__ import annotations

import numpy as np

from qcli.errors import UsageError
from qcli.formats._table import Fitted, Float64Array, LearnedFormat
from qcli.plugins import choice_of
from qcli.types import FloatArray, Grid
from qcli.vectors import nearest_words

_ROUNDS = 60
_SETTLED = 1e-4
"""A round that lowers the error by less than this part of it is the last one."""

_SEEDED = 1 << 14
"""Points among which the first codewords are sought."""


class VectorFormat(LearnedFormat, frozen=True):
    """A format in which one code stands for a vector of weights; its table is made of codewords.

    Scales are for the whole weight or for channels, since blocks would cut vectors.
    """

    def bits(self, grid: Grid) -> int:
        """The bits of a code, which are those of a whole vector."""
        if grid.block is not None:
            name = choice_of(grid.format).name
            raise UsageError(f"format '{name}' has no scales for blocks", "use granularity: channel or tensor")
        return super().bits(grid)

    def shares(self, grid: Grid) -> bool:
        """True: a weight has one table."""
        return True

    def fit(self, rows: FloatArray, counts: Float64Array, grid: Grid) -> Fitted:
        """Raises UsageError: codewords are found from vectors, by `words`."""
        raise UsageError(f"format '{choice_of(grid.format).name}' is fitted to vectors")

    def words(
        self, points: FloatArray, counts: FloatArray | None, grid: Grid, start: FloatArray | None = None
    ) -> FloatArray:
        """The codewords float32 [K, D] for vectors [N, D], whose elements count `counts` [N, D] times each."""
        raise NotImplementedError


def best_words(
    points: FloatArray, counts: FloatArray | None, entries: int, start: FloatArray | None = None
) -> FloatArray:
    """Codewords [entries, D], each the mean of the points [N, D] that are nearest to it.

    Begins with `start`, or with points far from each other. A codeword without points takes the place of the point
    that is farthest from its own. Source: Linde, Buzo and Gray 1980, "An Algorithm for Vector Quantizer Design", its
    iteration; Arthur and Vassilvitskii 2007, "k-means++: The Advantages of Careful Seeding", for the first codewords.
    """
    words = _seeds(points, counts, entries) if start is None else start
    best, least = words, np.inf
    for _ in range(_ROUNDS):
        codes = nearest_words(points, words, counts)
        errors = _errors(points - words[codes], counts)
        error = float(errors.sum())
        settled = error > least * (1 - _SETTLED)
        best, least = (words, error) if error < least else (best, least)
        if settled or error == 0:
            break
        words = _means(points, counts, codes, words)
        _fill(words, points, errors, np.bincount(codes, minlength=entries))
    return best


def _errors(wrong: FloatArray, counts: FloatArray | None) -> Float64Array:
    """The squared error of each point, [N]."""
    squares = np.square(wrong)
    return np.asarray((squares if counts is None else squares * counts).sum(axis=1), np.float64)


def _means(points: FloatArray, counts: FloatArray | None, codes: np.ndarray, words: FloatArray) -> FloatArray:
    """The weighted mean of the points of each codeword; as it was where nothing counts."""
    moved = words.copy()
    for axis in range(points.shape[1]):
        much = np.ones(len(points)) if counts is None else counts[:, axis].astype(np.float64)
        weights = np.bincount(codes, much, len(words))
        sums = np.bincount(codes, much * points[:, axis], len(words))
        used = weights > 0
        moved[used, axis] = sums[used] / weights[used]
    return moved


def _fill(words: FloatArray, points: FloatArray, errors: Float64Array, sizes: np.ndarray) -> None:
    """Codewords that no point is nearest to go where the error is largest."""
    empty = np.flatnonzero(sizes == 0)[: len(points)]
    if empty.size:
        farthest = np.argsort(-errors, kind="stable")[: empty.size]
        words[empty] = points[farthest]


def _seeds(points: FloatArray, counts: FloatArray | None, entries: int) -> FloatArray:
    """Points drawn one after the other, each with a chance that grows with the square of its distance to the others.

    The draws are those of a fixed generator, so that the same weights get the same codewords.
    """
    step = -(-len(points) // _SEEDED)
    some, much = points[::step], None if counts is None else counts[::step]
    draws = np.random.default_rng(0).random(entries)
    words = np.zeros((entries, points.shape[1]), np.float32)
    distances = np.ones(len(some))
    for number, draw in enumerate(draws):
        sums = np.cumsum(distances)
        if not sums[-1] > 0:  # fewer distinct points than codewords
            words[number:] = words[0]
            break
        words[number] = some[min(int(np.searchsorted(sums, draw * sums[-1], side="right")), len(some) - 1)]
        fresh = _errors(some - words[number], much)
        distances = fresh if number == 0 else np.minimum(distances, fresh)
    return words
