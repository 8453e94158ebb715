"""`histogram`: every value counted once, in its bin, in any order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qcli.errors import InputError
from qcli.stats import _bins
from qcli.stats.histogram import Histogram
from qcli.types import FloatArray

FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
VALUES = hnp.arrays(np.float32, st.tuples(st.just(2), st.integers(0, 9)), elements=FINITE)
BATCHES = st.lists(VALUES, min_size=1, max_size=4)


def of(*batches: FloatArray) -> Histogram:
    statistic = Histogram.empty()
    for batch in batches:
        statistic.update(batch)
    return statistic


def state(statistic: Histogram) -> dict[str, tuple[object, ...]]:
    return {name: (a.dtype, a.shape, a.tobytes()) for name, a in statistic.arrays().items()}


@given(BATCHES)
def test_counts_every_value_in_the_bin_of_its_top_bits(batches: list[FloatArray]) -> None:
    values = np.concatenate(batches, axis=1)
    statistic = of(*batches)
    for channel, counts in enumerate(statistic.counts):
        bits = [int(np.float32(value).view(np.uint32)) >> 16 for value in values[channel]]
        np.testing.assert_array_equal(counts, np.bincount(bits, minlength=65536))


@given(BATCHES, st.randoms(use_true_random=False))
def test_order_and_grouping_do_not_matter(batches: list[FloatArray], random: object) -> None:
    shuffled = list(batches)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    one_by_one = Histogram.empty()
    for batch in shuffled:
        one_by_one.merge(of(batch))
    assert state(of(*batches)) == state(of(*shuffled)) == state(one_by_one)


@given(VALUES, VALUES, VALUES)
def test_merge_is_associative(first: FloatArray, second: FloatArray, third: FloatArray) -> None:
    left, right, tail = of(first), of(first), of(second)
    left.merge(of(second))
    left.merge(of(third))
    tail.merge(of(third))
    right.merge(tail)
    assert state(left) == state(right)


@given(BATCHES)
@example([np.zeros((2, 0), np.float32)])
def test_empty_is_neutral_and_files_are_exact(batches: list[FloatArray]) -> None:
    statistic, other = of(*batches), Histogram.empty()
    before = state(statistic)
    statistic.merge(Histogram.empty())
    other.merge(statistic)
    assert state(statistic) == state(other) == state(Histogram.from_arrays(statistic.arrays())) == before


def test_restored_histograms_go_on_counting() -> None:
    batch = np.array([[1.0, 2.0], [3.0, 3.0]], np.float32)
    restored = Histogram.from_arrays(of(batch).arrays())
    restored.update(batch)
    assert state(restored) == state(of(batch, batch))


def test_merging_leaves_the_other_alone() -> None:
    first, second = Histogram.empty(), of(np.array([[2.0]], np.float32))
    first.merge(second)
    first.update(np.array([[9.0]], np.float32))
    assert second.counts.sum() == 1


def test_the_file_form_is_small() -> None:
    arrays = of(np.array([[1.0, 1.0, -2.0], [0.0, 0.0, 0.0]], np.float32)).arrays()
    assert arrays["offsets"].tolist() == [0, 2, 3]
    assert arrays["bins"].tolist() == [0x3F80, 0xC000, 0]
    assert arrays["counts"].tolist() == [2, 1, 3]
    assert arrays["lower"].tolist() == [-2.0, 0.0]


def test_nothing_is_allocated_before_the_first_value() -> None:
    assert of(np.zeros((8, 0), np.float32)).counts.size == 0


def test_long_transposed_and_strided_batches() -> None:
    values = np.random.default_rng(0).standard_normal((700_000, 2)).astype(np.float32)
    assert state(of(values.T)) == state(of(np.ascontiguousarray(values.T)))
    assert state(of(values[::2].T)) == state(of(np.ascontiguousarray(values[::2].T)))
    assert of(values.T).counts.sum(axis=1).tolist() == [700_000, 700_000]


def test_other_byte_orders_count_the_same() -> None:
    values = np.array([[1.5, -3.0, 0.0]], np.float32)
    assert state(of(values.astype(">f4"))) == state(of(values.astype("<f4")))


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(InputError, match="the activations hold Inf or NaN"):
        of(np.array([[0.0, bad]], np.float32))


def test_changing_channels_are_refused() -> None:
    with pytest.raises(InputError, match="from 1 to 2"):
        of(np.ones((1, 1), np.float32), np.ones((2, 1), np.float32))
    with pytest.raises(InputError, match="from 1 to 2"):
        of(np.ones((1, 1), np.float32)).merge(of(np.ones((2, 1), np.float32)))


@given(hnp.arrays(np.float32, st.tuples(st.just(1), st.integers(1, 50)), elements=FINITE))
def test_points_are_within_a_bin_of_the_values(values: FloatArray) -> None:
    distribution = of(values).distribution()
    assert distribution.counts.sum() == values.size
    assert distribution.lower == values.min() and distribution.upper == values.max()
    points = np.repeat(distribution.points[0], distribution.counts[0].astype(int))
    tiny = float(np.finfo(np.float32).tiny)
    np.testing.assert_allclose(points, np.sort(values[0]), rtol=2.0**-8, atol=tiny)


def test_channels_share_columns_with_zero_counts() -> None:
    distribution = of(np.array([[1.0, 1.0], [-2.0, 4.0]], np.float32)).distribution()
    assert distribution.counts.tolist() == [[0.0, 2.0, 0.0], [1.0, 0.0, 1.0]]
    assert distribution.points[0].tolist() == [1.0, 1.0, 1.0]


def test_nothing_seen_has_no_distribution() -> None:
    with pytest.raises(InputError, match="no values"):
        Histogram.empty().distribution()


def test_bins_ascend_with_the_values_they_hold() -> None:
    order = _bins.ascending()
    assert sorted(order.tolist()) == list(range(_bins.BINS))
    finite = order[(order & 0x7F80) != 0x7F80]
    assert (np.diff(_bins.middles(finite)) >= 0).all()


def test_denormal_bins_stand_at_zero_and_the_next_ones_do_not() -> None:
    assert _bins.middles(np.array([0, 0x7F, 0x8000, 0x807F])).tolist() == [0, 0, 0, 0]
    assert _bins.middles(np.array([0x80]))[0] > 0
