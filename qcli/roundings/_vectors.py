"""Vectors of weights that share a code, chosen by the error of the layer's output; see `_quadratic`.

What is done there for a weight is done here for the D columns of a vector: squares become products with a matrix
[D, D]. Columns are filled up with zeros, which nothing reads, until they are whole vectors.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, Self

import msgspec
import numpy as np

from qcli.roundings._quadratic import better, error_of, inverse_factor
from qcli.roundings._rows import Float64Array, Rows
from qcli.types import Array
from qcli.vectors import nearest_words

_BLOCK = 64
"""Columns whose changes reach the others together, as one product of matrices."""

_UNREAD = 1e-9
"""Of the mean energy of an input: that of the zeros that fill up the last vector."""

_STEPS = 24
"""Of the conjugate gradients that fit codewords to their codes."""


class Moments(Protocol):
    """A statistic of a layer's inputs, see `_learned`."""

    def moments(self) -> tuple[Float64Array, Float64Array]: ...


class LearnedVectors(Protocol):
    """A rounding that chooses codewords by samples."""

    @property
    def refit(self) -> int: ...

    def products(self, measured: Moments) -> Float64Array: ...

    def learn(self, rows: Rows, measured: Moments) -> Float64Array: ...


class VectorRows(NamedTuple):
    """Rows in whole vectors: `exact` [groups, R, n * D] and `products` of that size, with the codewords [K, D]."""

    exact: Float64Array
    products: Float64Array
    words: Float64Array

    @classmethod
    def of(cls, rows: Rows, products: Float64Array) -> Self:
        """Filled up from rows with codewords."""
        words = _words_of(rows)
        size, missing = rows.exact.shape[-1], -rows.exact.shape[-1] % words.shape[1]
        exact = np.pad(rows.exact, ((0, 0), (0, 0), (0, missing)))
        whole = np.pad(products, ((0, 0), (0, missing), (0, missing)))
        unread = np.arange(size, size + missing)
        whole[:, unread, unread] = _UNREAD * np.einsum("gkk->g", products)[:, None] / size
        return cls(exact, whole, words)

    @property
    def dimensions(self) -> int:
        return int(self.words.shape[1])

    def nearest(self, points: Float64Array, metric: Float64Array) -> Array:
        """The numbers [groups, R] of the codewords next to points [groups, R, D]; an error e costs |e metric|^2."""
        found = np.empty(points.shape[:2], np.intp)
        for group, (some, turned) in enumerate(zip(points, metric, strict=True)):
            found[group] = nearest_words(some @ turned, self.words @ turned)
        return found


def nearest_vectors(rows: Rows) -> Float64Array:
    """The codewords next to the exact vectors, as weights [groups, R, K] in units of their steps."""
    words = _words_of(rows)
    return _weights(words, _codes(rows.exact, words), rows.exact.shape)


def _codes(values: Float64Array, words: Float64Array) -> Array:
    """The numbers [groups * R * n] of the codewords next to weights [groups, R, K]; what fills up does not count."""
    size, dimensions = values.shape[-1], words.shape[1]
    room = ((0, 0), (0, 0), (0, -size % dimensions))
    points = np.pad(values, room).reshape(-1, dimensions)
    counts = np.pad(np.ones_like(values), room).reshape(-1, dimensions) if size % dimensions else None
    return nearest_words(points, words, counts)


def _weights(words: Float64Array, codes: Array, shape: tuple[int, ...]) -> Float64Array:
    """The weights of `shape` [groups, R, K] that codes of rows stand for."""
    return np.asarray(words[codes].reshape(*shape[:2], -1)[..., : shape[-1]])


def _words_of(rows: Rows) -> Float64Array:
    if rows.words is None:
        raise ValueError("the rows have no codewords")
    return rows.words


def compensate_vectors(rows: Rows, products: Float64Array) -> Float64Array:
    """Chooses vector after vector; what each errs is made up for by the columns that are still exact.

    With H^-1 = U^T U, the vector in the columns Q costs |e U_QQ^-1|^2 whatever the columns behind it do best, and moves
    these by e U_QQ^-1 U_Q. Vectors with large inputs come first; a row that nearest codewords serve better gets those.
    Source: van Baalen et al. 2024, "GPTVQ: The Blessing of Dimensionality for LLM Quantization", algorithm 1.
    """
    whole = VectorRows.of(rows, products)
    dimensions, size = whole.dimensions, whole.exact.shape[-1]
    energies = np.einsum("gkk->gk", whole.products).mean(axis=0).reshape(-1, dimensions).sum(axis=1)
    order = (np.argsort(-energies, kind="stable")[:, None] * dimensions + np.arange(dimensions)).reshape(-1)
    upper = inverse_factor(whole.products[:, order][:, :, order])
    left, chosen = whole.exact[..., order], np.empty_like(whole.exact)
    block = max(1, _BLOCK // dimensions) * dimensions
    for begin in range(0, size, block):
        end = min(begin + block, size)
        errors = np.empty((*left.shape[:2], end - begin))
        for at in range(begin, end, dimensions):
            here = slice(at, at + dimensions)
            metric = np.asarray(np.linalg.inv(upper[:, here, here]), np.float64)
            codes = whole.nearest(left[..., here], metric)
            chosen[..., order[here]] = whole.words[codes]
            wrong = (left[..., here] - whole.words[codes]) @ metric
            errors[..., at - begin : at - begin + dimensions] = wrong
            left[..., here.stop : end] -= wrong @ upper[:, here, here.stop : end]
        left[..., end:] -= errors @ upper[:, begin:end, end:]
    kept = chosen[..., : rows.exact.shape[-1]]
    return better(kept, nearest_vectors(rows), rows, products)


def descend_vectors(values: Float64Array, rows: Rows, products: Float64Array, sweeps: int) -> Float64Array:
    """Gives each vector in turn its best codeword, all others being as they are, until nothing changes.

    The error never grows. It is coordinate descent as of single weights, over vectors.
    """
    whole = VectorRows.of(rows, products)
    size = rows.exact.shape[-1]
    values = np.pad(values, ((0, 0), (0, 0), (0, whole.exact.shape[-1] - size)))
    block = max(1, _BLOCK // whole.dimensions) * whole.dimensions
    for _ in range(sweeps):
        slope = (values - whole.exact) @ whole.products
        changed = False
        for begin in range(0, values.shape[-1], block):
            some = slice(begin, begin + block)
            moved = _descend_block(values, slope, whole, some)
            if moved.any():
                changed = True
                slope += moved @ whole.products[:, some]
        if not changed:
            break
    return values[..., :size]


def _descend_block(values: Float64Array, slope: Float64Array, whole: VectorRows, some: slice) -> Float64Array:
    """One pass over the vectors of a block, whose `values` change; by how much they did, [groups, R, columns]."""
    near, before = slope[..., some].copy(), values[..., some].copy()
    products = whole.products[:, some, some]
    for at in range(0, near.shape[-1], whole.dimensions):
        here = slice(at, at + whole.dimensions)
        there = slice(some.start + at, some.start + at + whole.dimensions)
        curve = products[:, here, here]
        metric = np.asarray(np.linalg.cholesky(curve), np.float64)
        pull = near[..., here] @ np.linalg.inv(curve)
        best = whole.words[whole.nearest(values[..., there] - pull, metric)]
        moved = best - values[..., there]
        worse = np.square((pull + moved) @ metric).sum(axis=-1) >= np.square(pull @ metric).sum(axis=-1)
        moved[worse] = 0.0
        if moved.any():
            values[..., there] += moved
            near += moved @ products[:, here]
    return values[..., some] - before


class FittedWords(NamedTuple):
    """Weights [groups, R, K] as codewords, in units of their steps, and the codewords [K, D]."""

    values: Float64Array
    words: Float64Array


def fitted_words(values: Float64Array, rows: Rows, products: Float64Array, steps: Float64Array) -> FittedWords:
    """The codes of `values` with the codewords that are best for them, numbers of float16.

    Minimizes the sum of (q - w) H (q - w)^T over all rows, each times the square of its step [groups or 1, R or 1, 1],
    by conjugate gradients. Source: van Baalen et al. 2024, section 3.3 (codebook update), there by gradient descent.
    """
    whole = VectorRows.of(rows, products)
    codes = _codes(values, whole.words)
    weigh = np.square(steps)

    def slopes(wrong: Float64Array) -> Float64Array:
        """Of half the error by each codeword, [K, D], for weights that err so much."""
        sums = ((wrong * weigh) @ whole.products).reshape(-1, whole.dimensions)
        return np.stack([np.bincount(codes, column, len(whole.words)) for column in sums.T], axis=1)

    words, direction, last = whole.words.copy(), np.zeros_like(whole.words), 0.0
    left = slopes(whole.exact - words[codes].reshape(whole.exact.shape))
    for _ in range(_STEPS):
        power = float(np.square(left).sum())
        direction = left + (direction * (power / last) if last else 0.0)
        bent = slopes(direction[codes].reshape(whole.exact.shape))
        curve = float((direction * bent).sum())
        if curve <= 0:
            break
        words += direction * (power / curve)
        left, last = left - bent * (power / curve), power
    rounded = words.clip(-_LARGEST, _LARGEST).astype(np.float16).astype(np.float64)
    return FittedWords(_weights(rounded, codes, rows.exact.shape), rounded)


_LARGEST = float(np.finfo(np.float16).max)


def learned_words(rounding: LearnedVectors, rows: Rows, measured: Moments, steps: Float64Array) -> FittedWords:
    """What a rounding makes of rows, with the codewords fitted `refit` times to the codes and the codes chosen again.

    Ends where the error of all rows together, in the unit of the weights, gets no smaller.
    """
    products = rounding.products(measured)
    best = FittedWords(rounding.learn(rows, measured), _words_of(rows))

    def error(values: Float64Array) -> float:
        return float((error_of(values, rows.exact, products)[..., None] * np.square(steps)).sum())

    least = error(best.values)
    for _ in range(rounding.refit):
        fitted = fitted_words(best.values, msgspec.structs.replace(rows, words=best.words), products, steps)
        fresh = rounding.learn(msgspec.structs.replace(rows, words=fitted.words), measured)
        tried = min((fresh, fitted.values), key=error)
        if error(tried) >= least:
            break
        best, least = FittedWords(tried, fitted.words), error(tried)
    return best
