"""Distributions of weights, of histogram bins, and of several tensors together."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qcli.distribution import Distribution, from_bins, from_weights, union
from qcli.errors import InputError
from qcli.types import FloatArray

FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
WEIGHTS = hnp.arrays(np.float32, hnp.array_shapes(min_dims=1, max_dims=4, max_side=5), elements=FINITE)


def check(distribution: Distribution, channels: int) -> None:
    assert distribution.lower.shape == distribution.upper.shape == (channels,)
    assert distribution.points.shape == distribution.counts.shape
    assert (np.diff(distribution.points, axis=1) >= 0).all()
    assert (distribution.points >= distribution.lower[:, None]).all()
    assert (distribution.points <= distribution.upper[:, None]).all()
    assert {array.dtype for array in (distribution.lower, distribution.points)} == {np.dtype(np.float64)}


@given(WEIGHTS, st.data())
def test_weights_by_channel_are_their_sorted_values(weight: FloatArray, data: st.DataObject) -> None:
    axis = data.draw(st.integers(-weight.ndim, weight.ndim - 1))
    distribution = from_weights(weight, axis)
    check(distribution, weight.shape[axis])
    for channel in range(weight.shape[axis]):
        expected = np.sort(np.take(weight, channel, axis), axis=None)
        np.testing.assert_array_equal(distribution.points[channel], expected)
    assert (distribution.counts == 1).all()


@given(WEIGHTS)
def test_weights_as_a_whole(weight: FloatArray) -> None:
    distribution = from_weights(weight, None)
    check(distribution, 1)
    np.testing.assert_array_equal(distribution.points[0], np.sort(weight, axis=None))
    assert distribution.lower == weight.min() and distribution.upper == weight.max()
    assert distribution.resolution == 0


def test_a_scalar_weight_is_one_value() -> None:
    distribution = from_weights(np.float32(3.0), None)  # type: ignore[arg-type]
    assert distribution.points.tolist() == [[3.0]]


def test_a_large_weight_is_counted_in_bins(rng: np.random.Generator) -> None:
    weight = rng.standard_normal((300, 300)).astype(np.float32)
    distribution = from_weights(weight, None)
    check(distribution, 1)
    assert distribution.points.shape[1] < 8192
    assert distribution.counts.sum() == weight.size
    assert distribution.lower == weight.min() and distribution.upper == weight.max()
    assert distribution.resolution == 2.0**-7
    mean = (distribution.points * distribution.counts).sum() / weight.size
    assert mean == pytest.approx(weight.mean(), abs=1e-3)


@pytest.mark.parametrize(("shape", "axis", "channels"), [((3, 0), 0, 3), ((0,), None, 1), ((0, 4), 0, 0)])
def test_an_empty_weight_counts_nothing(shape: tuple[int, ...], axis: int | None, channels: int) -> None:
    distribution = from_weights(np.zeros(shape, np.float32), axis)
    check(distribution, channels)
    assert distribution.counts.sum() == 0


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("axis", [None, 0])
def test_weights_that_are_not_finite_are_refused(bad: float, axis: int | None) -> None:
    with pytest.raises(InputError, match="the weight holds Inf or NaN"):
        from_weights(np.array([[1.0, bad]], np.float32), axis)


def test_bins_become_their_middles_in_ascending_order() -> None:
    counts = np.zeros((1, 65536), np.int64)
    one, minus_two = 0x3F80, 0xC000
    counts[0, [0, one, minus_two]] = [7, 3, 2]
    distribution = from_bins(counts, np.array([-2.01]), np.array([1.5]))
    np.testing.assert_allclose(distribution.points, [[-2 * (1 + 2**-8), 0, 1 + 2**-8]])
    assert distribution.counts.tolist() == [[2, 7, 3]]


def test_middles_are_clamped_into_the_extrema() -> None:
    counts = np.zeros((2, 65536), np.int64)
    counts[:, 0x3F80] = [4, 9]
    distribution = from_bins(counts, np.array([1.0, 1.007]), np.array([1.0, 1.0075]))
    assert distribution.points.tolist() == [[1.0], [1.007]]


def test_zeros_and_denormals_stand_at_zero() -> None:
    counts = np.zeros((1, 65536), np.int64)
    counts[0, [0x0000, 0x007F, 0x8000, 0x807F]] = 1
    distribution = from_bins(counts, np.array([-1.0]), np.array([1.0]))
    assert (distribution.points == 0).all()


def test_edges_surround_points_and_stay_within_the_extrema() -> None:
    counts = np.zeros((1, 65536), np.int64)
    counts[0, [0, 0x3F80, 0x4000]] = 1
    starts, ends = from_bins(counts, np.array([0.0]), np.array([2.01])).edges(2.0**-20)
    assert starts.tolist() == [[0.0, 1.0, 2.0]]
    np.testing.assert_allclose(ends, [[0.0, 1 + 2**-7, 2.01]])


def test_edges_of_exact_values_have_the_least_width() -> None:
    starts, ends = from_weights(np.array([-2, 0, 1, 4], np.float32), None).edges(0.5)
    assert starts.tolist() == [[-2.0, 0.0, 0.75, 3.0]]
    assert ends.tolist() == [[-1.5, 0.0, 1.25, 4.0]]


def test_a_channel_alone() -> None:
    second = from_weights(np.array([[1, 2], [4, 3]], np.float32), 0).channel(1)
    assert (second.lower.tolist(), second.upper.tolist()) == ([3.0], [4.0])
    assert (second.points.tolist(), second.counts.tolist()) == ([[3.0, 4.0]], [[1.0, 1.0]])


@given(st.lists(hnp.arrays(np.float32, st.integers(1, 20), elements=FINITE), min_size=1, max_size=4))
def test_union_is_the_distribution_of_everything(parts: list[FloatArray]) -> None:
    joint = union([from_weights(part, None) for part in parts])
    whole = from_weights(np.concatenate(parts), None)
    np.testing.assert_array_equal(joint.points, whole.points)
    np.testing.assert_array_equal(joint.counts, whole.counts)
    assert joint.lower == whole.lower and joint.upper == whole.upper


def test_union_keeps_counts_with_their_points_and_the_coarser_resolution() -> None:
    counts = np.zeros((1, 65536), np.int64)
    counts[0, 0x3F80] = 5
    binned = from_bins(counts, np.array([1.0]), np.array([1.0]))
    joint = union([from_weights(np.array([2, -1], np.float32), None), binned])
    assert joint.points.tolist() == [[-1.0, 1.0, 2.0]]
    assert joint.counts.tolist() == [[1.0, 5.0, 1.0]]
    assert joint.resolution == binned.resolution


def test_union_refuses_what_it_cannot_join() -> None:
    with pytest.raises(ValueError, match="at least one"):
        union([])
    two = from_weights(np.ones((2, 3), np.float32), 0)
    with pytest.raises(ValueError, match="channels"):
        union([two, from_weights(np.ones(3, np.float32), None)])


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(1)
