"""Exact sums: the same bytes in any order, accurate to a fixed part of the largest addend."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qcli.errors import InputError
from qcli.stats._exact import ExactSum
from qcli.types import Array

Float64Array = npt.NDArray[np.float64]

MAGNITUDES = st.sampled_from([1e-300, 1e-40, 1e-9, 1.0, 1e9, 1e40, 1e290])
ADDENDS = st.tuples(hnp.arrays(np.float64, 3, elements=st.floats(-2, 2, width=32)), MAGNITUDES).map(
    lambda pair: np.asarray(pair[0] * pair[1])
)
MANY = st.lists(ADDENDS, min_size=1, max_size=8)


def of(*addends: Float64Array) -> ExactSum:
    total = ExactSum.empty()
    for addend in addends:
        total.add(addend)
    return total


def state(total: ExactSum) -> dict[str, tuple[object, ...]]:
    return {name: (array.dtype, array.shape, array.tobytes()) for name, array in total.arrays().items()}


@settings(deadline=None)
@given(MANY, st.randoms(use_true_random=False), st.integers(0, 8))
def test_any_order_and_grouping_gives_the_same_bytes(addends: list[Float64Array], random: object, cut: int) -> None:
    shuffled = list(addends)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    left, right, one_by_one = of(*shuffled[:cut]), of(*shuffled[cut:]), ExactSum.empty()
    left.merge(right)
    for addend in shuffled:
        one_by_one.merge(of(addend))
    assert state(of(*addends)) == state(of(*shuffled)) == state(left) == state(one_by_one)


@settings(deadline=None)
@given(MANY)
def test_accurate_to_a_part_of_the_largest_addend(addends: list[Float64Array]) -> None:
    value, largest = of(*addends).value(), max(float(np.abs(addend).max()) for addend in addends)
    for index, found in enumerate(value):
        exact = math.fsum(float(addend[index]) for addend in addends)
        assert abs(found - exact) <= len(addends) * max(largest * 2.0**-32, 2.0**-990)


def test_large_cancelling_addends_leave_the_small_ones() -> None:
    total = of(np.array([1e8]), np.array([0.25]), np.array([-1e8]), np.array([0.5]))
    assert total.value() == [0.75]


def test_many_addends_are_summed_without_an_error() -> None:
    generator = np.random.default_rng(0)
    addends = generator.standard_normal((4000, 2)).astype(np.float32).astype(np.float64)
    exact = [math.fsum(column) for column in addends.T]
    np.testing.assert_allclose(of(*addends).value(), exact, rtol=0, atol=4000 * 2.0**-32)


@pytest.mark.parametrize("exponent", [-1000, -961, -960, -33, -32, -1, 0, 31, 32, 33, 64, 127, 991, 992, 1022])
def test_levels_rise_with_the_addends(exponent: int) -> None:
    one, other = np.array([2.0**exponent]), np.array([2.0 ** (exponent - 20)])
    up, down = of(other, one), of(one, other)
    assert state(up) == state(down)
    if exponent > -900:
        assert up.value() == one + other


@settings(deadline=None)
@given(MANY)
def test_empty_is_neutral_and_files_are_exact(addends: list[Float64Array]) -> None:
    total, other = of(*addends), ExactSum.empty()
    before = state(total)
    total.merge(ExactSum.empty())
    other.merge(total)
    restored = ExactSum.from_arrays(total.arrays())
    assert state(total) == state(other) == state(restored) == before
    restored.add(addends[0])
    assert state(restored) == state(of(*addends, addends[0]))
    assert state(total) == before, "a restored sum has arrays of its own"


def test_the_largest_numbers_make_a_file_too() -> None:
    total = of(np.array([1e300, -1e308]))
    assert state(ExactSum.from_arrays(total.arrays())) == state(total)


def test_sums_longer_than_a_chunk_and_strided_addends() -> None:
    values = np.random.default_rng(0).standard_normal((300, 200))
    assert state(of(values, values.T[:200].T)) == state(of(np.ascontiguousarray(values), values.copy()))
    np.testing.assert_allclose(of(values, values).value(), 2 * values, rtol=0, atol=2.0**-31)


def test_files_with_columns_first_go_on_summing() -> None:
    values = np.random.default_rng(0).standard_normal((3, 5))
    arrays = {name: np.array(array, order="F") for name, array in of(values).arrays().items()}
    restored = ExactSum.from_arrays(arrays)
    restored.add(values)
    assert state(restored) == state(of(values, values))


def test_merging_leaves_the_other_alone() -> None:
    first, second = of(np.array([1.0])), of(np.array([1e30]))
    before = state(second)
    first.merge(second)
    first.add(np.array([1e30]))
    assert state(second) == before


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_what_is_not_finite_is_refused_and_changes_nothing(bad: float) -> None:
    total = of(np.array([1.0, 2.0]))
    before = state(total)
    with pytest.raises(InputError, match="Inf or NaN"):
        total.add(np.array([1.0, bad]))
    assert state(total) == before


def test_another_shape_is_refused_and_changes_nothing() -> None:
    total = of(np.ones(2))
    before = state(total)
    with pytest.raises(InputError, match=r"from \(2,\) to \(3,\)"):
        total.add(np.ones(3))
    with pytest.raises(InputError, match=r"from \(2,\) to \(3,\)"):
        total.merge(of(np.ones(3) * 1e30))
    assert state(total) == before


GOOD = {"level": np.array(0, np.int64), "high": np.ones(2), "low": np.zeros(2)}


@pytest.mark.parametrize(
    "damage",
    [
        {"level": np.array(32, np.int64)},
        {"level": np.array(-31, np.int64)},
        {"level": np.array(0.0)},
        {"level": np.array([0], np.int64)},
        {"high": np.ones(3)},
        {"high": np.ones((2, 1))},
        {"high": np.ones(2, np.float32)},
        {"low": np.zeros(2, np.complex128)},
        {"low": np.array(["a", "b"])},
        {"high": np.array([np.inf, 0])},
        {"low": np.array([np.nan, 0])},
    ],
    ids=str,
)
def test_damaged_files_are_refused(damage: dict[str, Array]) -> None:
    ExactSum.from_arrays(GOOD)
    with pytest.raises(ValueError, match=r"the sum|the parts"):
        ExactSum.from_arrays({**GOOD, **damage})


@pytest.mark.parametrize("name", GOOD)
def test_files_that_lack_something_are_refused(name: str) -> None:
    with pytest.raises(KeyError):
        ExactSum.from_arrays({key: array for key, array in GOOD.items() if key != name})
