"""The error of a layer's output as a quadratic function of its codes, and two ways to make it small.

With rows of weights w in units of their steps, codes q and H = E[x x^T], the mean squared error of the output is
(q - w) H (q - w)^T in units of the step squared. Where the steps of a row differ, both are multiplied by the sizes of
the steps. Rows share H, so all of them are worked on at once, column by column.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from qcli.errors import InputError
from qcli.roundings._rows import Float64Array, Rows, column_of
from qcli.types import Array

_MOST_DAMPING = 1e3

_PULL = 1e-6

_BLOCK = 64
"""Columns whose changes reach the others together, as one product of matrices."""


def damped(products: Float64Array, damp: float) -> Float64Array:
    """`products` [groups, K, K] plus `damp` times the mean of the diagonal: singular matrices become regular ones."""
    size = products.shape[-1]
    mean = np.einsum("gkk->g", products) / size
    extra = damp * mean + np.finfo(np.float64).tiny ** 0.5
    result: Float64Array = products + extra[:, None, None] * np.eye(size)
    return result


def error_of(codes: Float64Array, exact: Float64Array, products: Float64Array) -> Float64Array:
    """The quadratic [groups, R] for weights [groups, R, K] in place of the exact ones, both in the same unit."""
    wrong = codes - exact
    errors: Float64Array = np.einsum("grk,grk->gr", wrong @ products, wrong)
    return errors


def better(first: Float64Array, second: Float64Array, rows: Rows, products: Float64Array) -> Float64Array:
    """Of two choices of codes [groups, R, K] the one with the smaller error, row by row.

    With the difference d of two choices p and q of weights w, their errors differ by d H (p + q - 2 w)^T.
    """
    chosen = first.copy()
    for some in _runs(first.shape[1]):
        sizes, target = _rows_of(rows.sizes, some), rows.target_of(some)
        apart = (first[:, some] - second[:, some]) * sizes
        wrong = (first[:, some] + second[:, some]) * sizes - 2 * target
        worse = np.einsum("grk,grk->gr", apart @ products, wrong) > 0
        chosen[:, some] = np.where(worse[..., None], second[:, some], first[:, some])
    return chosen


def _runs(count: int) -> Iterator[slice]:
    """Some rows at a time, so that what is computed of them stays near."""
    for begin in range(0, count, _ROWS):
        yield slice(begin, begin + _ROWS)


_ROWS = 512


def _rows_of(array: Float64Array, some: slice) -> Float64Array:
    """Some rows of an array [groups, R, K]; of one that has a single row for all of them, this one."""
    return array[:, some] if array.shape[1] > 1 else array


def nearest(rows: Rows) -> Float64Array:
    """The codes next to the exact positions [groups, R, K]."""
    return rows.nearest(rows.exact, slice(None))


@dataclass(frozen=True)
class Factor:
    """What is computed of the products alone: the order of the columns, and the triangular factor [groups, K, K].

    `turn` is for threads that work on several layers: many small steps of two at a time would only wait for each other.
    """

    order: Array
    upper: Float64Array
    turn: threading.Lock = field(default_factory=threading.Lock)


def factor_of(products: Float64Array) -> Factor:
    """Columns with large inputs come first. Raises InputError for what are no sums of products."""
    order = np.argsort(-np.einsum("gkk->gk", products).mean(axis=0), kind="stable")
    return Factor(order, inverse_factor(products[:, order][:, :, order]))


def compensate(rows: Rows, products: Float64Array, factor: Factor | None = None) -> Float64Array:
    """Rounds column after column; what each rounding errs is made up for by the columns that are still exact.

    Columns with large inputs come first. A row that nearest codes serve better gets those: where many codes end at a
    bound, there is little left to make up with. `factor` is that of the products, if it is known. Source: Frantar et
    al. 2022, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", algorithm 1, with its
    activation order and its lazy updates, of two sizes.
    """
    factor = factor_of(products) if factor is None else factor
    order, upper = factor.order, factor.upper
    left = rows.target[..., order]
    codes = np.empty_like(left)
    size = left.shape[-1]
    for begin in range(0, size, _BLOCK):
        end = min(begin + _BLOCK, size)
        block = _Columns(rows, order[begin:end], left[..., begin:end])
        with factor.turn:
            errors = block.compensate(upper[:, begin:end, begin:end])
        codes[..., begin:end] = block.codes
        if end < size:
            for some in _runs(left.shape[1]):
                left[:, some, end:] -= errors[:, some] @ upper[:, begin:end, end:]
    return better(codes[..., np.argsort(order)], nearest(rows), rows, products)


class _Columns:
    """Some columns of the rows [groups, R, columns] one behind the other in memory, as they are worked on."""

    def __init__(self, rows: Rows, inputs: Array, left: Float64Array) -> None:
        self._rows = rows
        self._inputs = inputs
        self._left = np.ascontiguousarray(np.swapaxes(left, 1, 2))
        self._grid = [_turned(array, inputs) for array in rows.grid()]
        self._codes = np.empty_like(self._left)

    @property
    def codes(self) -> Float64Array:
        return np.swapaxes(self._codes, 1, 2)

    def compensate(self, upper: Float64Array) -> Float64Array:
        """Rounds them in order; what each errs [groups, R, columns], in the unit of the factor `upper`."""
        errors = np.empty_like(self._left)
        size = self._left.shape[1]
        for begin in range(0, size, _STEP):
            end = min(begin + _STEP, size)
            for column in range(begin, end):
                self._round(column, errors[:, column], upper[:, column, column, None])
                for later in range(column + 1, end):
                    self._left[:, later] -= errors[:, column] * upper[:, column, later, None]
            if end < size:
                self._left[:, end:] -= np.swapaxes(upper[:, begin:end, end:], 1, 2) @ errors[:, begin:end]
        return np.swapaxes(errors, 1, 2)

    def _round(self, column: int, errors: Float64Array, diagonal: Float64Array) -> None:
        """Rounds one of them; `errors` [groups, R] is what it errs."""
        lowest, highest, step = (array[:, column if array.shape[1] > 1 else 0] for array in self._grid)
        exact, codes = self._left[:, column], self._codes[:, column]
        np.divide(exact, step, out=codes)
        if self._rows.table is None:
            np.rint(codes, out=codes)
            np.clip(codes, lowest, highest, out=codes)
        else:
            codes[:] = self._rows.nearest(codes, int(self._inputs[column]))
        np.multiply(codes, step, out=errors)
        np.subtract(exact, errors, out=errors)
        errors /= diagonal


_STEP = 8
"""Columns of a block whose errors reach each other one by one, and the rest of it together."""


def _turned(array: Float64Array, columns: Array) -> Float64Array:
    """Columns of an array [groups, R, K] as [groups, columns, R]; of one with a single column for all, this one."""
    some = array[..., columns] if array.shape[-1] > 1 else array
    return np.ascontiguousarray(np.swapaxes(some, 1, 2))


def inverse_factor(products: Float64Array) -> Float64Array:
    """The upper triangular factor of the inverses; matrices that are not quite positive are damped until they are."""
    damping = 0.0
    while True:
        try:
            return np.swapaxes(np.linalg.cholesky(np.linalg.inv(damped(products, damping))), 1, 2)
        except np.linalg.LinAlgError:
            damping = max(1e-6, damping * 10)
            if damping > _MOST_DAMPING:
                raise InputError("the statistics of a layer's inputs are damaged", "calibrate again") from None


def descend(codes: Float64Array, rows: Rows, products: Float64Array, sweeps: int) -> Float64Array:
    """Gives each column in turn its best codes, all others being as they are, until nothing changes.

    The error never grows. Source: Behdin et al. 2023, "QuantEase: Optimization-based Quantization for Language
    Models", algorithm 1 (cyclic coordinate descent, equation 5).
    """
    codes = codes.copy()
    for _ in range(sweeps):
        slope = ((codes - rows.exact) * rows.sizes) @ products
        changed = False
        for begin in range(0, codes.shape[-1], _BLOCK):
            block = slice(begin, begin + _BLOCK)
            before = codes[..., block].copy()
            near = slope[..., block].copy()
            _descend_block(codes[..., block], near, products[:, block, block], rows.some(block))
            moved = (codes[..., block] - before) * column_of(rows.sizes, block)
            if moved.any():
                changed = True
                slope += moved @ products[:, block]
        if not changed:
            break
    return codes


def _descend_block(codes: Float64Array, slope: Float64Array, products: Float64Array, rows: Rows) -> None:
    """One pass over the columns of a block, of which `rows` are; `codes` and `slope` [groups, R, columns] change."""
    for column in range(codes.shape[-1]):
        step = column_of(rows.sizes, column)
        curve = products[:, column, column, None] * step
        best = rows.nearest(codes[..., column] - slope[..., column] / curve, column)
        moved = best - codes[..., column]
        if moved.any():
            codes[..., column] = best
            slope += (moved * step)[..., None] * products[:, None, column]


def refitted(codes: Float64Array, exact: Float64Array, products: Float64Array) -> Float64Array:
    """The factor [groups, R] by which the steps of each row should change for these codes: least squares.

    Minimizes (f q - w) H (f q - w)^T over f: f = (w H q^T) / (q H q^T); 1 where the codes say nothing.
    """
    weighted = codes @ products
    numerator = np.einsum("grk,grk->gr", weighted, exact)
    denominator = np.einsum("grk,grk->gr", weighted, codes)
    sound = (denominator > 0) & (numerator > 0)
    return np.where(sound, np.divide(numerator, denominator, out=np.ones_like(numerator), where=sound), 1.0)


def refitted_parts(codes: Float64Array, rows: Rows, products: Float64Array, parts: Array) -> Float64Array:
    """The same where a row has several steps: factors [groups, R, K], equal within each part of a row.

    `parts` [groups, K] numbers the steps that the columns have. The factors f of a row minimize
    (sum of f_b q_b - w) H (sum of f_b q_b - w)^T, which is a system of as many equations as it has parts; a weak pull
    towards 1 makes it regular. None is below a half or above two.
    """
    found = np.ones(codes.shape)
    for group, (real, exact) in enumerate(zip(codes * rows.sizes, rows.target, strict=True)):
        products_, numbers = products[group], np.unique(parts[group], return_inverse=True)[1].reshape(-1)
        columns = [np.flatnonzero(numbers == number) for number in range(numbers.max() + 1)]
        belongs = (numbers[:, None] == np.arange(len(columns))).astype(np.float64)
        matrix = np.stack([((real[:, some] @ products_[some]) * real) @ belongs for some in columns], axis=1)
        wanted = (real * (exact @ products_)) @ belongs
        diagonal = np.einsum("rbb->rb", matrix)
        pull = _PULL * np.maximum(diagonal, diagonal.mean(axis=1, keepdims=True)) + np.finfo(np.float64).tiny
        regular = matrix + pull[..., None] * np.eye(len(columns))
        factors = np.linalg.solve(regular, (wanted + pull)[..., None])[..., 0]
        found[group] = factors.clip(0.5, 2.0)[:, numbers]
    return found
