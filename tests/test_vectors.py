"""Weights in vectors that share a code: cut and joined again, and next to which codeword each of them lies."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qcli.levels import nearest_codes, real_values
from qcli.types import Array, Scale, Vectors
from qcli.vectors import cut, joined, nearest_words

SHAPES = hnp.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=6)
NUMBERS = st.floats(-8, 8, width=16)


def normal(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def scale_of(words: Array, shape: tuple[int, ...], rows: int = 0, axis: int | None = None) -> Scale:
    steps = np.ones(1 if axis is None else shape[axis], np.float32)
    return Scale(
        scale=steps,
        zero_point=np.zeros(steps.shape, np.int64),
        axis=axis,
        lowest=0,
        highest=len(words) - 1,
        dtype="uint8",
        vectors=Vectors(words=words, rows=rows, shape=shape),
    )


@settings(max_examples=100, deadline=None)
@given(shape=SHAPES, rows=st.integers(0, 3), dimensions=st.integers(1, 8))
def test_what_is_cut_is_joined_again(shape: tuple[int, ...], rows: int, dimensions: int) -> None:
    array, axis = normal(0, *shape), rows % len(shape)
    vectors = cut(array, axis, dimensions)
    known = Vectors(words=np.zeros((2, dimensions), np.float32), rows=axis, shape=shape)
    assert vectors.shape == (*known.codes_shape, dimensions) and known.row_size * shape[axis] == array.size
    assert np.array_equal(joined(vectors, axis, shape), array)
    assert np.abs(vectors, dtype=np.float64).sum() == pytest.approx(np.abs(array, dtype=np.float64).sum())


@settings(max_examples=100, deadline=None)
@given(
    points=hnp.arrays(np.float32, (20, 3), elements=NUMBERS),
    words=hnp.arrays(np.float32, (6, 3), elements=NUMBERS),
    counts=st.none() | hnp.arrays(np.float32, (20, 3), elements=st.integers(0, 4).map(float)),
)
def test_codes_are_of_the_nearest_codeword(points: Array, words: Array, counts: Array | None) -> None:
    """Against all distances."""
    squares = np.square(points[:, None].astype(np.float64) - words)
    distances = (squares if counts is None else squares * counts[:, None]).sum(axis=2)
    codes = nearest_words(points, words, counts)
    assert distances[np.arange(20), codes] == pytest.approx(distances.min(axis=1), abs=1e-3)


def test_many_points_are_looked_at_some_at_a_time() -> None:
    points, words = normal(1, 3000, 2), normal(2, 256, 2)
    whole = nearest_words(points, words)
    assert np.array_equal(whole, np.concatenate([nearest_words(some, words) for some in np.split(points, 30)]))


@pytest.mark.parametrize("rows", [0, 1, 2])
@pytest.mark.parametrize("axis", [None, 0, 1, 2])
def test_codes_and_weights_of_any_layout(rows: int, axis: int | None) -> None:
    """A weight made of codewords has just these codes, whichever axis its rows and its scales have."""
    shape, words = (4, 6, 5), normal(3, 16, 4)
    scale = scale_of(words, shape, rows, axis)
    assert scale.vectors is not None
    codes = np.random.default_rng(4).integers(0, 16, scale.vectors.codes_shape).astype(np.uint8)
    weight = real_values(codes, scale)
    assert weight.shape == shape and weight.dtype == np.float32
    assert np.array_equal(real_values(nearest_codes(weight, scale), scale), weight)


def test_what_fills_up_a_row_has_no_say() -> None:
    """A row of 3 in vectors of 2: the second element of the last codeword is never read."""
    words = np.array([[0, 0], [1, 9], [2, -9]], np.float32)
    weight = np.array([[1, 9, 1], [2, -9, 2], [0, 0, 1.2]], np.float32)
    scale = scale_of(words, (3, 3))
    assert np.array_equal(nearest_codes(weight, scale), [[1, 1], [2, 2], [0, 1]])


def test_steps_that_differ_within_a_vector_count() -> None:
    """Scales along the columns: the real weight is near, not the one in units of the steps."""
    words = np.array([[0, 1], [1, 0]], np.float32)
    scale = scale_of(words, (1, 2), 0, 1)
    far = Scale(**{name: getattr(scale, name) for name in scale.__struct_fields__} | {"scale": np.array([100, 1], "f")})
    weight = np.array([[40, 1.2]], np.float32)
    assert nearest_codes(weight, far)[0, 0] == 0
    assert nearest_codes(np.array([[60, 1.2]], np.float32), far)[0, 0] == 1
