"""`rows`: rows of logits, the same ones in any order, with exact extrema."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qcli.errors import InputError
from qcli.stats.rows import Rows
from qcli.types import Array, FloatArray

LOGITS = hnp.arrays(np.float32, st.tuples(st.just(3), st.integers(0, 5)), elements=st.floats(-100, 100, width=32))
BATCHES = st.lists(LOGITS, min_size=1, max_size=5)


def of(*batches: FloatArray) -> Rows:
    statistic = Rows.empty()
    for batch in batches:
        statistic.update(batch)
    return statistic


def state(statistic: Rows) -> dict[str, tuple[object, ...]]:
    return {name: (array.dtype, array.shape, array.tobytes()) for name, array in statistic.arrays().items()}


@settings(deadline=None)
@given(BATCHES, st.randoms(use_true_random=False), st.integers(0, 5))
def test_order_and_grouping_do_not_matter(batches: list[FloatArray], random: object, cut: int) -> None:
    shuffled = list(batches)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    left = of(*shuffled[:cut])
    left.merge(of(*shuffled[cut:]))
    restored = Rows.from_arrays(left.arrays())
    assert state(of(*batches)) == state(of(*shuffled)) == state(left) == state(restored)


def test_few_rows_are_all_kept_with_how_often_they_were_seen() -> None:
    first = np.array([[1, 4], [2, 5], [3, -6]], np.float32)
    found = of(first, first[:, :1]).distribution()
    assert found.rows is not None
    kept = sorted(zip(found.rows.values.tolist(), found.rows.counts.tolist(), strict=True))
    assert kept == [([1.0, 2.0, 3.0], 2.0), ([4.0, 5.0, -6.0], 1.0)]
    assert (found.lower.tolist(), found.upper.tolist()) == ([-6.0], [5.0])
    assert found.points.tolist() == [[-6, 1, 2, 3, 4, 5]] and found.counts.tolist() == [[1, 2, 2, 2, 1, 1]]


@pytest.mark.parametrize(("classes", "most"), [(10, 1024), (4096, 256), (1 << 16, 64)])
def test_memory_is_bounded(classes: int, most: int) -> None:
    rng = np.random.default_rng(0)
    statistic = Rows.empty()
    for _ in range(4):
        statistic.update(rng.standard_normal((classes, most // 2)).astype(np.float32))
    found = statistic.distribution()
    assert found.rows is not None and found.rows.values.shape == (most, classes)


def test_nothing_seen() -> None:
    with pytest.raises(InputError, match="no values"):
        of(np.zeros((3, 0), np.float32)).distribution()


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(InputError, match="Inf or NaN"):
        of(np.full((3, 2), bad, np.float32))


def test_other_classes_are_refused() -> None:
    with pytest.raises(InputError, match="from 3 to 4"):
        of(np.ones((3, 1), np.float32), np.ones((4, 1), np.float32))
    with pytest.raises(InputError, match="from 3 to 4"):
        of(np.ones((3, 1), np.float32)).merge(of(np.ones((4, 1), np.float32)))


@pytest.mark.parametrize("change", ["ends", "no ends", "groups"])
def test_damaged_files_are_refused(change: str) -> None:
    arrays: dict[str, Array] = dict(of(np.ones((2, 3), np.float32)).arrays())
    if change == "ends":
        arrays["lower"] = np.array([2.0], np.float32)
    if change == "no ends":
        arrays.update(lower=np.zeros(0, np.float32), upper=np.zeros(0, np.float32))
    if change == "groups":
        arrays["patches"] = np.concatenate([arrays["patches"], arrays["patches"]])
    with pytest.raises(ValueError, match="extrema"):
        Rows.from_arrays(arrays)
