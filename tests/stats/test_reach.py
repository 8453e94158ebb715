"""`reach`: the largest finite magnitude and the count of what is not finite, in any order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qcli.errors import InputError
from qcli.stats.reach import Reach
from qcli.types import Array, FloatArray

BATCHES = st.lists(
    hnp.arrays(np.float32, st.tuples(st.just(2), st.integers(0, 6)), elements=st.floats(width=32)),
    min_size=1,
    max_size=5,
)


def of(*batches: FloatArray) -> Reach:
    statistic = Reach.empty()
    for batch in batches:
        statistic.update(batch)
    return statistic


def state(statistic: Reach) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in statistic.arrays().items()}


@settings(deadline=None)
@given(BATCHES, st.randoms(use_true_random=False), st.integers(0, 5))
def test_order_and_grouping_do_not_matter(batches: list[FloatArray], random: object, cut: int) -> None:
    shuffled = list(batches)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    left = of(*shuffled[:cut])
    left.merge(of(*shuffled[cut:]))
    restored = Reach.from_arrays(left.arrays())
    assert state(of(*batches)) == state(of(*shuffled)) == state(left) == state(restored)


@settings(deadline=None)
@given(BATCHES)
def test_it_is_the_largest_finite_magnitude(batches: list[FloatArray]) -> None:
    whole = np.concatenate(batches, axis=1)
    found = of(*batches)
    if not whole.size:
        with pytest.raises(InputError, match="no values"):
            found.distribution()
        return
    for channel, row in enumerate(whole):
        finite = row[np.isfinite(row)]
        assert found.largest[channel] == np.abs(finite).max(initial=0.0)
        assert found.infinite[channel] == row.size - finite.size
    known = found.distribution()
    np.testing.assert_array_equal(known.upper, found.largest)
    np.testing.assert_array_equal(known.lower, -known.upper)


def test_channels_do_not_change() -> None:
    with pytest.raises(InputError, match="from 2 to 1"):
        of(np.zeros((2, 1), np.float32), np.zeros((1, 1), np.float32))


@pytest.mark.parametrize(
    "arrays",
    [
        {"largest": np.zeros(2), "infinite": np.zeros(1)},
        {"largest": np.array([-1.0]), "infinite": np.zeros(1)},
        {"largest": np.array([np.inf]), "infinite": np.zeros(1)},
        {"largest": np.ones(1), "infinite": np.array([-1])},
    ],
)
def test_damaged_files_are_refused(arrays: dict[str, Array]) -> None:
    with pytest.raises(ValueError, match="the magnitudes"):
        Reach.from_arrays(arrays)
