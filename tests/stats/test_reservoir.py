"""`reservoir`: the same rows in any order, all of them while there is room, each with how often it was seen."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qcli.errors import InputError
from qcli.stats.reservoir import Reservoir
from qcli.types import FloatArray

FEW = st.sampled_from([-1.5, -0.0, 0.0, 2.0, 3.0e30])
"""Few values, so that rows repeat."""
BATCHES = st.lists(
    hnp.arrays(np.float32, st.tuples(st.just(2), st.integers(0, 40)), elements=FEW), min_size=1, max_size=5
)


def of(*batches: FloatArray) -> Reservoir:
    statistic = Reservoir.empty()
    for batch in batches:
        statistic.update(batch)
    return statistic


def state(statistic: Reservoir) -> dict[str, tuple[object, ...]]:
    return {name: (a.dtype, a.shape, a.tobytes()) for name, a in statistic.arrays().items()}


def rows(statistic: Reservoir) -> FloatArray:
    """Those of both halves."""
    held = [half.rows for half in statistic.halves if len(half.rows)]
    return np.concatenate(held) if held else np.zeros((0, 0), np.float32)


def counts(statistic: Reservoir) -> list[int]:
    return [int(count) for half in statistic.halves for count in half.counts]


def large(seed: int, count: int, channels: int = 3) -> FloatArray:
    return np.random.default_rng(seed).standard_normal((channels, count)).astype(np.float32)


@given(BATCHES)
def test_while_there_is_room_it_holds_every_row_and_its_count(batches: list[FloatArray]) -> None:
    statistic = of(*batches)
    expected = Counter(tuple(row) for batch in batches for row in (batch + 0).T.tolist())
    found: Counter[tuple[float, ...]] = Counter()
    for row, count in zip(rows(statistic).tolist(), counts(statistic), strict=True):
        found[tuple(row)] += count
    assert found == expected


@given(BATCHES, st.randoms(use_true_random=False))
def test_order_and_grouping_do_not_matter(batches: list[FloatArray], random: object) -> None:
    shuffled = list(batches)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    one_by_one = Reservoir.empty()
    for batch in shuffled:
        one_by_one.merge(of(batch))
    assert state(of(*batches)) == state(of(*shuffled)) == state(one_by_one)


@given(st.lists(st.integers(0, 700), min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_order_does_not_matter_when_it_overflows(sizes: list[int], random: object) -> None:
    batches = [large(seed, size) for seed, size in enumerate(sizes)]
    batches.append(batches[0])
    shuffled = list(batches)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    merged = Reservoir.empty()
    for batch in shuffled:
        merged.merge(of(batch))
    assert state(of(*batches)) == state(of(*shuffled)) == state(merged)
    assert len(rows(merged)) <= min(256, sum(sizes)), "the repeated batch brings no new rows"


@given(BATCHES)
def test_empty_is_neutral_and_files_are_exact(batches: list[FloatArray]) -> None:
    statistic, other = of(*batches), Reservoir.empty()
    before = state(statistic)
    statistic.merge(Reservoir.empty())
    other.merge(statistic)
    assert state(statistic) == state(other) == state(Reservoir.from_arrays(statistic.arrays())) == before


def test_the_rows_are_a_fair_sample_and_the_extrema_are_of_everything() -> None:
    batches = [large(seed, 30_000) for seed in range(10)]
    statistic, values = of(*batches), np.concatenate(batches, axis=1)
    assert rows(statistic).shape == (256, 3) and set(counts(statistic)) == {1}
    np.testing.assert_allclose(rows(statistic).std(axis=0), 1, atol=0.2)
    np.testing.assert_allclose(rows(statistic).mean(axis=0), 0, atol=0.2)
    known = statistic.distribution()
    np.testing.assert_array_equal(known.upper, values.max(axis=1))
    held = {tuple(row) for row in values.T.tolist()}
    assert all(tuple(row) in held for row in rows(statistic).tolist())


def test_a_batch_belongs_to_one_half_and_both_halves_get_some() -> None:
    batches = [large(seed, 5) for seed in range(16)]
    statistic = of(*batches)
    seen = [int(half.counts.sum()) / 5 for half in statistic.halves]
    assert sum(seen) == 16 and min(seen) >= 3


def test_what_is_seen_all_the_time_takes_one_place() -> None:
    batch = np.concatenate([np.zeros((3, 100_000), np.float32), large(1, 100)], axis=1)
    statistic = of(batch)
    assert len(rows(statistic)) == 101 and max(counts(statistic)) == 100_000


@pytest.mark.parametrize(("channels", "most"), [(8, 128), (2048, 64), (40_000, 8)])
def test_memory_is_bounded(channels: int, most: int) -> None:
    assert rows(of(large(0, 300, channels))).shape == (most, channels)


def test_values_that_are_not_finite_and_changing_channels_are_refused() -> None:
    with pytest.raises(InputError, match="Inf or NaN"):
        of(np.array([[np.nan]], np.float32))
    with pytest.raises(InputError, match="from 1 to 2"):
        of(np.ones((1, 1), np.float32), np.ones((2, 1), np.float32))


def test_the_distribution_holds_the_rows_and_the_exact_ends() -> None:
    known = of(np.array([[3.0, -1.0, 3.0], [1.0, 0.0, 1.0]], np.float32)).distribution()
    assert known.points.tolist() == [[-1.0, 3.0], [0.0, 1.0]] and known.counts.tolist() == [[1, 2], [1, 2]]
    assert known.lower.tolist() == [-1.0, 0.0] and known.upper.tolist() == [3.0, 1.0]
    with pytest.raises(InputError, match="no values"):
        Reservoir.empty().distribution()


def test_damaged_files_are_refused() -> None:
    good = of(large(0, 5)).arrays()
    full = 0 if len(good["rows0"]) else 1
    held, seen = good[f"rows{full}"], good[f"counts{full}"]
    for change in ({f"rows{full}": held[:3]}, {f"rows{full}": held * np.nan}, {f"counts{full}": seen * 0}):
        with pytest.raises(ValueError, match="row"):
            Reservoir.from_arrays({**good, **change})
