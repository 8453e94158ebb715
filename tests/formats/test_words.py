"""Codewords by k-means: how near they come to what can be, what they keep, and that they are always the same."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qcli.errors import UsageError
from qcli.formats._words import best_words
from qcli.plugins import create
from qcli.tables import fitted_scale
from qcli.types import Array, Grid, Spec
from qcli.vectors import nearest_words

GAUSSIAN = np.random.default_rng(0).standard_normal(1 << 17).astype(np.float32)
SCALAR = {4: 0.1175, 16: 0.009497}
"""The least error of a table of so many levels for normal numbers (Max 1960)."""


def product(dimensions: int) -> Spec:
    return {"product": {"dimensions": dimensions}}


def error_of(words: Array, points: Array, counts: Array | None = None) -> float:
    squares = np.square(points.astype(np.float64) - words[nearest_words(points, words, counts)])
    return float((squares if counts is None else squares * counts).sum() / points.size)


@pytest.mark.parametrize(("dimensions", "levels", "gain"), [(2, 16, 0.86), (4, 4, 0.86), (2, 4, 1.0)])
def test_vectors_beat_the_best_table_of_levels_at_the_same_bits(dimensions: int, levels: int, gain: float) -> None:
    """At levels**D codewords: 1.5 dB less at 4 bits a weight in two dimensions, and 0.8 at 2 bits in four."""
    points = GAUSSIAN.reshape(-1, dimensions)
    words = best_words(points[: 1 << 15], None, levels**dimensions)
    error = error_of(words, points)
    assert SCALAR[levels] * 0.75 < error < SCALAR[levels] * gain
    assert error > 2.0 ** (-2 * np.log2(levels)), "nothing beats the rate-distortion bound"


def test_more_dimensions_at_the_same_bits_err_less() -> None:
    """One bit a weight: 4, 16 and 256 codewords in 2, 4 and 8 dimensions."""
    errors = [
        error_of(best_words(GAUSSIAN.reshape(-1, size), None, 1 << size), GAUSSIAN.reshape(-1, size))
        for size in (2, 4, 8)
    ]
    assert errors[0] > errors[1] > errors[2] > 0.25


@settings(max_examples=30, deadline=None)
@given(
    points=hnp.arrays(np.float32, (60, 3), elements=st.floats(-4, 4, width=16)),
    counts=st.none() | hnp.arrays(np.float32, (60, 3), elements=st.integers(0, 3).map(float)),
    entries=st.sampled_from([2, 4, 16]),
)
def test_no_round_makes_codewords_worse(points: Array, counts: Array | None, entries: int) -> None:
    words = best_words(points, counts, entries)
    assert words.shape == (entries, 3) and np.isfinite(words).all()
    again = best_words(points, counts, entries, words)
    assert error_of(again, points, counts) <= error_of(words, points, counts) + 1e-5


@settings(max_examples=30, deadline=None)
@given(known=hnp.arrays(np.float32, (8, 2), elements=st.floats(-4, 4, width=16)), seed=st.integers(0, 99))
def test_points_that_are_few_are_all_kept(known: Array, seed: int) -> None:
    points = known[np.random.default_rng(seed).integers(0, 8, 200)]
    assert error_of(best_words(points, None, 16), points) <= 1e-6


def test_one_point_and_none_that_counts() -> None:
    words = best_words(np.full((5, 2), 3, np.float32), None, 4)
    assert error_of(words, np.full((5, 2), 3, np.float32)) == 0
    assert np.isfinite(best_words(GAUSSIAN[:40].reshape(-1, 2), np.zeros((20, 2), np.float32), 4)).all()


def test_what_counts_more_errs_less() -> None:
    points = GAUSSIAN[:8192].reshape(-1, 4)
    counts = np.where(np.arange(4) < 2, 50.0, 1.0).astype(np.float32) * np.ones_like(points)
    alike, weighed = best_words(points, None, 64), best_words(points, counts, 64)
    assert error_of(weighed, points, counts) < 0.8 * error_of(alike, points, counts)


def test_the_same_points_give_the_same_codewords() -> None:
    points = GAUSSIAN[: 1 << 14].reshape(-1, 4)
    assert np.array_equal(best_words(points, None, 256), best_words(points.copy(), None, 256))


def test_codewords_are_numbers_of_float16() -> None:
    number_format = create("formats", product(2))
    words = number_format.words(GAUSSIAN[:4096].reshape(-1, 2) * 1e6, None, Grid(format=product(2)))
    assert np.array_equal(words.astype(np.float16).astype(np.float32), words) and np.isfinite(words).all()


def test_bits_are_those_of_a_vector() -> None:
    number_format = create("formats", "product")
    assert (number_format.dimensions, number_format.weights_per_code) == (4, 4)
    assert (
        number_format.bits(Grid(format="product")) == 8 and number_format.entries(Grid(format="product", bits=1)) == 2
    )
    assert number_format.side_bits(Grid(format="product", granularity="channel"), 10) == 256 * 4 * 16 + 320


@pytest.mark.parametrize("dimensions", [0, 1, 9, 2.5, "four"])
def test_dimensions_are_two_to_eight(dimensions: object) -> None:
    with pytest.raises(UsageError, match="format 'product': dimensions") as caught:
        create("formats", {"product": {"dimensions": dimensions}})
    assert caught.value.hint


@pytest.mark.parametrize(
    ("grid", "problem"),
    [
        (Grid(format="product", bits=9), "bits must be 1 to 8, is 9"),
        (Grid(format="product", granularity="block", block=32, axis=1), "no scales for blocks"),
        (Grid(format="product", symmetric=False), "no 'symmetric: false'"),
        (Grid(format="product", narrow=True), "no 'narrow: true'"),
    ],
)
def test_grids_that_vectors_have_not_are_refused(grid: Grid, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        create("formats", grid.format).bits(grid)


def test_codewords_come_from_vectors_alone() -> None:
    with pytest.raises(UsageError, match="fitted to vectors"):
        create("formats", "product").fit(np.ones((1, 4), np.float32), np.ones((1, 4)), Grid(format="product"))


@settings(max_examples=20, deadline=None)
@given(
    weight=hnp.arrays(np.float32, (6, 20), elements=st.floats(-4, 4, width=16)),
    dimensions=st.integers(2, 8),
    granularity=st.sampled_from(["tensor", "channel"]),
)
def test_any_weight_has_codes(weight: Array, dimensions: int, granularity: str) -> None:
    """What is decoded errs no more than if all were zero; rows of zeros stay zero."""
    axis = 0 if granularity == "channel" else None
    grid = Grid(format=product(dimensions), bits=4, granularity=granularity, axis=axis)
    number_format = create("formats", grid.format)
    scale = fitted_scale(weight, grid, number_format)
    real = number_format.decode(number_format.encode(weight, scale), scale)
    assert np.square(real - weight).sum() <= np.square(weight).sum() * 1.001 + 1e-6
    if axis == 0:
        assert not real[~weight.any(axis=1)].any()
