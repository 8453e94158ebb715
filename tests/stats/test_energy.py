"""`energy`: the diagonal of `gram`, in any order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qcli.errors import InputError
from qcli.stats.energy import Energy
from qcli.stats.gram import Gram
from qcli.types import Array, FloatArray

PATCHES = hnp.arrays(
    np.float32, st.tuples(st.just(2), st.just(3), st.integers(0, 5)), elements=st.floats(-100, 100, width=32)
)
BATCHES = st.lists(PATCHES, min_size=1, max_size=5)


def of(*batches: FloatArray) -> Energy:
    statistic = Energy.empty()
    for batch in batches:
        statistic.update(batch)
    return statistic


def state(statistic: Energy) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in statistic.arrays().items()}


@settings(deadline=None)
@given(BATCHES, st.randoms(use_true_random=False), st.integers(0, 5))
def test_order_and_grouping_do_not_matter(batches: list[FloatArray], random: object, cut: int) -> None:
    shuffled = list(batches)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    left = of(*shuffled[:cut])
    left.merge(of(*shuffled[cut:]))
    restored = Energy.from_arrays(left.arrays())
    assert state(of(*batches)) == state(of(*shuffled)) == state(left) == state(restored)


@settings(deadline=None)
@given(BATCHES)
def test_it_is_the_diagonal_of_gram(batches: list[FloatArray]) -> None:
    if not sum(batch.shape[2] for batch in batches):
        with pytest.raises(InputError, match="no values"):
            of(*batches).energies()
        return
    gram = Gram.empty()
    for batch in batches:
        gram.update(batch)
    diagonal = np.einsum("gkk->gk", gram.moments()[0])
    np.testing.assert_allclose(of(*batches).energies(), diagonal, rtol=1e-5, atol=1e-5)


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


@pytest.mark.parametrize("change", ["vector", "negative", "places"])
def test_damaged_files_are_refused(change: str) -> None:
    arrays: dict[str, Array] = dict(of(np.ones((2, 3, 9), np.float32)).arrays())
    if change == "vector":
        arrays.update(squares_high=arrays["squares_high"][0], squares_low=arrays["squares_low"][0])
    if change == "negative":
        arrays["squares_high"] = arrays["squares_high"] - 1e9
    if change == "places":
        arrays["places"] = np.array(-1, np.int64)
    with pytest.raises(ValueError, match=r"no patches|no number"):
        Energy.from_arrays(arrays)
