"""`gram`: products of all pairs of inputs, in any order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qcli.errors import InputError
from qcli.statistics import Statistics, load_statistics
from qcli.stats.gram import Gram
from qcli.types import Array, FloatArray, Request, Window

PATCHES = hnp.arrays(
    np.float32, st.tuples(st.just(2), st.just(3), st.integers(0, 5)), elements=st.floats(-100, 100, width=32)
)
BATCHES = st.lists(PATCHES, min_size=1, max_size=5)


def of(*batches: FloatArray) -> Gram:
    statistic = Gram.empty()
    for batch in batches:
        statistic.update(batch)
    return statistic


def state(statistic: Gram) -> dict[str, tuple[object, ...]]:
    return {name: (array.dtype, array.shape, array.tobytes()) for name, array in statistic.arrays().items()}


@settings(deadline=None)
@given(BATCHES, st.randoms(use_true_random=False), st.integers(0, 5))
def test_order_and_grouping_do_not_matter(batches: list[FloatArray], random: object, cut: int) -> None:
    shuffled = list(batches)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    left = of(*shuffled[:cut])
    left.merge(of(*shuffled[cut:]))
    assert state(of(*batches)) == state(of(*shuffled)) == state(left)


@settings(deadline=None)
@given(BATCHES)
def test_moments_are_those_of_all_patches(batches: list[FloatArray]) -> None:
    every = np.concatenate(batches, axis=2).astype(np.float64)
    if not every.shape[2]:
        with pytest.raises(InputError, match="no values"):
            of(*batches).moments()
        return
    products, means = of(*batches).moments()
    largest = max(1.0, np.abs(every).max())
    exact = every @ np.swapaxes(every, 1, 2) / every.shape[2]
    np.testing.assert_allclose(products, exact, rtol=0, atol=1e-5 * largest**2)
    np.testing.assert_allclose(means, every.mean(axis=2), rtol=0, atol=1e-5 * largest)


@settings(deadline=None)
@given(BATCHES)
def test_empty_is_neutral_and_files_are_exact(batches: list[FloatArray]) -> None:
    statistic, other = of(*batches), Gram.empty()
    before = state(statistic)
    statistic.merge(Gram.empty())
    other.merge(statistic)
    restored = Gram.from_arrays(statistic.arrays())
    assert state(statistic) == state(other) == state(restored) == before
    restored.update(batches[0])
    assert state(restored) == state(of(*batches, batches[0]))
    assert state(Gram.from_arrays(Gram.empty().arrays())) == state(Gram.empty())


@pytest.mark.parametrize("size", [1e-30, 1e-12, 1e-3, 1e16, 1e25, 3e38])
def test_values_of_any_size_have_products(size: float) -> None:
    """Products of float32 numbers may be none."""
    batch = (np.random.default_rng(0).uniform(-1, 1, (1, 4, 50)) * size).astype(np.float32)
    products, means = of(batch).moments()
    exact = batch.astype(np.float64) @ np.swapaxes(batch, 1, 2).astype(np.float64) / 50
    np.testing.assert_allclose(products, exact, rtol=1e-4, atol=1e-4 * size**2)
    np.testing.assert_allclose(means, batch.astype(np.float64).mean(axis=2), rtol=1e-4, atol=1e-4 * size)


def test_small_inputs_beside_large_ones_make_a_file_that_is_read_again(tmp_path: Path) -> None:
    batch = np.random.default_rng(0).standard_normal((1, 3, 20)).astype(np.float32)
    batch *= np.array([1e-12, 1, 1e12], np.float32)[:, None]
    request = Request(value="x", statistic="gram", window=Window())
    statistics = Statistics.empty([request])
    statistics.get(request).update(batch)
    statistics.save(tmp_path / "s.npz")
    restored = load_statistics(tmp_path / "s.npz").get(request)
    assert {name: array.tobytes() for name, array in restored.arrays().items()} == {
        name: array.tobytes() for name, array in of(batch).arrays().items()
    }


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(InputError, match="Inf or NaN"):
        of(np.full((1, 2, 3), bad, np.float32))


def test_changing_sizes_are_refused() -> None:
    with pytest.raises(InputError, match="shape"):
        of(np.ones((1, 2, 3), np.float32), np.ones((1, 3, 3), np.float32))


def test_which_values_occur_is_not_known() -> None:
    with pytest.raises(InputError, match="which values"):
        of(np.ones((1, 2, 3), np.float32)).distribution()


def damaged(change: str) -> dict[str, Array]:
    arrays = of(np.random.default_rng(0).standard_normal((2, 3, 9)).astype(np.float32)).arrays()
    high, low = arrays["products_high"].copy(), arrays["products_low"]
    if change == "vectors":
        high, low = high[0, 0], low[0, 0]
    if change == "oblong":
        high, low = high[:, 1:], low[:, 1:]
    if change == "other inputs":
        high, low = high[:, 1:, 1:], low[:, 1:, 1:]
    if change == "negative":
        high[1, 2, 2] = -1e9
    if change == "lopsided":
        high[1, 0, 2] = 1e9
    places: Array = arrays["places"]
    if change == "places":
        places = np.array(-1, np.int64)
    if change == "many places":
        places = np.array([1, 2], np.int64)
    return {**arrays, "products_high": high, "products_low": low, "places": places}


@pytest.mark.parametrize(
    "change", ["vectors", "oblong", "other inputs", "negative", "lopsided", "places", "many places"]
)
def test_damaged_files_are_refused(change: str) -> None:
    with pytest.raises(ValueError, match=r"square|no patches|no number"):
        Gram.from_arrays(damaged(change))
