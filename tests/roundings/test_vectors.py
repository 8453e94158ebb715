"""Vectors of weights chosen by samples: as for single weights where vectors are short, and never worse than before."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcli.formats._words import best_words
from qcli.plugins import create
from qcli.roundings._quadratic import compensate, damped, descend, error_of
from qcli.roundings._rows import Float64Array, Rows
from qcli.roundings._vectors import (
    compensate_vectors,
    descend_vectors,
    fitted_words,
    learned_words,
    nearest_vectors,
)

ONE = np.ones((1, 1, 1))


class Measured:
    """Inputs [groups, K, n] that move together."""

    def __init__(self, seed: int, groups: int, size: int) -> None:
        generator = np.random.default_rng(seed)
        mixed = generator.standard_normal((groups, size, 6)) @ generator.standard_normal((groups, 6, 400))
        self.inputs = mixed + generator.standard_normal(mixed.shape) / 3

    def moments(self) -> tuple[Float64Array, Float64Array]:
        return self.inputs @ np.swapaxes(self.inputs, 1, 2) / 400, self.inputs.mean(axis=2)


def problem(seed: int, size: int, dimensions: int, groups: int = 1, entries: int = 16) -> tuple[Rows, Measured]:
    exact = np.random.default_rng(seed + 1).standard_normal((groups, 40, size))
    points = np.random.default_rng(seed + 2).standard_normal((2000, dimensions)).astype(np.float32)
    words = best_words(points, None, entries).astype(np.float64)
    return Rows(exact=exact, lowest=ONE * 0, highest=ONE, words=words), Measured(seed, groups, size)


def is_made_of(values: Float64Array, words: Float64Array) -> bool:
    """True for rows of whole codewords, the last of which may be cut."""
    size, dimensions = values.shape[-1], words.shape[1]
    for at in range(0, size, dimensions):
        some = values[..., at : at + dimensions].reshape(-1, min(dimensions, size - at))
        if not (some[:, None] == words[:, : some.shape[1]]).all(axis=2).any(axis=1).all():
            return False
    return True


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 99), size=st.integers(5, 30), dimensions=st.integers(2, 5), groups=st.sampled_from([1, 3]))
def test_no_step_makes_it_worse(seed: int, size: int, dimensions: int, groups: int) -> None:
    """Row by row: compensating errs no more than nearest codewords, and descending no more than compensating."""
    rows, measured = problem(seed, size, dimensions, groups)
    assert rows.words is not None
    products = damped(measured.moments()[0], 0.01)
    near = nearest_vectors(rows)
    made_up = compensate_vectors(rows, products)
    down = descend_vectors(made_up, rows, products, 8)
    errors = [error_of(values, rows.exact, products) for values in (near, made_up, down)]
    assert (errors[1] <= errors[0] * (1 + 1e-9)).all() and (errors[2] <= errors[1] * (1 + 1e-6)).all()
    assert all(is_made_of(values, rows.words) for values in (near, made_up, down))


def test_inputs_that_move_together_gain_most() -> None:
    rows, measured = problem(1, 48, 4)
    products = damped(measured.moments()[0], 0.01)
    found = (nearest_vectors(rows), compensate_vectors(rows, products))
    errors = [error_of(values, rows.exact, products).sum() for values in found]
    assert errors[1] < 0.5 * errors[0]


def test_vectors_of_one_weight_are_levels() -> None:
    """With a single dimension the codewords are a table, and the choice is that of single weights."""
    rows, measured = problem(2, 24, 1, entries=8)
    assert rows.words is not None
    table = np.sort(rows.words.reshape(1, 1, -1), axis=2)
    single = Rows(exact=rows.exact, lowest=rows.lowest, highest=rows.highest, table=table)
    products = damped(measured.moments()[0], 0.01)
    assert compensate_vectors(rows, products) == pytest.approx(compensate(single, products), abs=1e-9)
    start = nearest_vectors(rows)
    both = descend_vectors(start, rows, products, 3), descend(start, single, products, 3)
    errors = [error_of(values, rows.exact, products).sum() for values in both]
    assert errors[0] == pytest.approx(errors[1], rel=0.02)


def test_independent_inputs_of_one_size_leave_nearest_codewords() -> None:
    rows, _ = problem(3, 20, 4)
    values = compensate_vectors(rows, np.eye(20)[None])
    assert np.array_equal(values, nearest_vectors(rows))
    assert np.array_equal(descend_vectors(values, rows, np.eye(20)[None], 2), values)


@pytest.mark.parametrize("size", [24, 22])
def test_codewords_are_fitted_to_their_codes(size: int) -> None:
    """Less error than before, and nothing within float16 of it is better along the slope."""
    rows, measured = problem(4, size, 4)
    products = damped(measured.moments()[0], 0.01)
    values, steps = nearest_vectors(rows), np.linspace(0.5, 2, 40).reshape(1, 40, 1)
    fitted = fitted_words(values, rows, products, steps)
    assert np.array_equal(fitted.words.astype(np.float16), fitted.words)
    assert is_made_of(fitted.values, fitted.words)

    def error(some: Float64Array) -> float:
        return float((error_of(some, rows.exact, products) * np.square(steps[..., 0])).sum())

    assert error(fitted.values) < 0.8 * error(values)
    again = fitted_words(fitted.values, Rows(**_fields(rows) | {"words": fitted.words}), products, steps)
    assert error(again.values) > 0.98 * error(fitted.values)


def _fields(rows: Rows) -> dict[str, Float64Array]:
    return {name: getattr(rows, name) for name in ("exact", "lowest", "highest")}


@pytest.mark.parametrize("rounding", ["gptq", "coordinate"])
def test_refitting_never_hurts(rounding: str) -> None:
    rows, measured = problem(5, 32, 4)
    products = damped(measured.moments()[0], 0.01)
    errors = []
    for refit in (0, 3):
        found = learned_words(create("roundings", {rounding: {"refit": refit}}), rows, measured, ONE)
        errors.append(error_of(found.values, rows.exact, products).sum())
        assert is_made_of(found.values, found.words)
    assert errors[1] < errors[0]


def test_rows_without_codewords_are_refused() -> None:
    rows, measured = problem(6, 8, 2)
    bare = Rows(**_fields(rows))
    with pytest.raises(ValueError, match="no codewords"):
        compensate_vectors(bare, measured.moments()[0])
