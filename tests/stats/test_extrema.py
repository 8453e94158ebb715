"""`extrema`: exact, in any order, whatever the batches."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qcli.errors import InputError
from qcli.stats.extrema import Extrema
from qcli.types import FloatArray

FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
BATCHES = st.lists(
    hnp.arrays(np.float32, st.tuples(st.just(2), st.integers(0, 9)), elements=FINITE), min_size=1, max_size=5
)


def of(*batches: FloatArray) -> Extrema:
    statistic = Extrema.empty()
    for batch in batches:
        statistic.update(batch)
    return statistic


def state(statistic: Extrema) -> dict[str, tuple[object, ...]]:
    return {name: (a.dtype, a.shape, a.tobytes()) for name, a in statistic.arrays().items()}


@given(BATCHES)
def test_equals_numpy(batches: list[FloatArray]) -> None:
    values = np.concatenate(batches, axis=1)
    statistic = of(*batches)
    if values.size:
        np.testing.assert_array_equal(statistic.lower, values.min(axis=1))
        np.testing.assert_array_equal(statistic.upper, values.max(axis=1))
    else:
        assert statistic.lower.shape == (0,)


@given(BATCHES, st.randoms(use_true_random=False))
def test_order_and_grouping_do_not_matter(batches: list[FloatArray], random: object) -> None:
    shuffled = list(batches)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    one_by_one = Extrema.empty()
    for batch in shuffled:
        one_by_one.merge(of(batch))
    assert state(of(*batches)) == state(of(*shuffled)) == state(one_by_one)


@given(BATCHES)
def test_empty_is_neutral_and_files_are_exact(batches: list[FloatArray]) -> None:
    statistic, other = of(*batches), Extrema.empty()
    before = state(statistic)
    statistic.merge(Extrema.empty())
    other.merge(statistic)
    assert state(statistic) == state(other) == state(Extrema.from_arrays(statistic.arrays())) == before


def test_which_zero_comes_first_does_not_show() -> None:
    zeros = np.array([[0.0]], np.float32)
    assert state(of(zeros, -zeros)) == state(of(-zeros, zeros)) == state(of(zeros))


def test_merging_leaves_the_other_alone() -> None:
    first, second = of(np.array([[1.0]], np.float32)), of(np.array([[2.0]], np.float32))
    first.merge(second)
    first.update(np.array([[9.0]], np.float32))
    assert second.upper.tolist() == [2.0]


def test_long_and_transposed_batches() -> None:
    values = np.random.default_rng(0).standard_normal((600_000, 2)).astype(np.float32).T
    statistic = of(values)
    np.testing.assert_array_equal(statistic.lower, values.min(axis=1))
    np.testing.assert_array_equal(statistic.upper, values.max(axis=1))


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(InputError, match="the activations hold Inf or NaN"):
        of(np.array([[0.0, 1.0], [bad, 1.0]], np.float32))


def test_changing_channels_are_refused() -> None:
    with pytest.raises(InputError, match="from 1 to 2"):
        of(np.ones((1, 1), np.float32), np.ones((2, 1), np.float32))
    with pytest.raises(InputError, match="from 1 to 2"):
        of(np.ones((1, 1), np.float32)).merge(of(np.ones((2, 1), np.float32)))


def test_distribution_is_the_two_ends() -> None:
    distribution = of(np.array([[3.0, -1.0, 2.0], [4.0, 4.0, 4.0]], np.float32)).distribution()
    assert distribution.points.tolist() == [[-1.0, 3.0], [4.0, 4.0]]
    assert distribution.lower.tolist() == [-1.0, 4.0] and distribution.upper.tolist() == [3.0, 4.0]


def test_nothing_seen_has_no_distribution() -> None:
    with pytest.raises(InputError, match="no values"):
        of(np.zeros((1, 0), np.float32)).distribution()
