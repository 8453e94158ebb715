"""`patches`: the same patches are kept in whatever order they come."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qcli.errors import InputError
from qcli.statistics import Statistics, load_statistics
from qcli.stats import _sample
from qcli.stats._sample import Sample
from qcli.stats.gram import Gram
from qcli.stats.patches import Patches
from qcli.types import Array, FloatArray, Request, Window

NUMBERS = st.sampled_from([-2.0, -0.0, 0.0, 0.5, 1.0])
"""So few that patches repeat."""

BATCHES = st.lists(
    hnp.arrays(np.float32, st.tuples(st.just(2), st.just(2), st.integers(0, 6)), elements=NUMBERS),
    min_size=1,
    max_size=5,
)


def of(*batches: FloatArray) -> Patches:
    statistic = Patches.empty()
    for batch in batches:
        statistic.update(batch)
    return statistic


def state(statistic: Patches) -> dict[str, tuple[object, ...]]:
    return {name: (array.dtype, array.shape, array.tobytes()) for name, array in statistic.arrays().items()}


@settings(deadline=None)
@given(BATCHES, st.randoms(use_true_random=False), st.integers(0, 5), st.integers(1, 12))
def test_order_and_grouping_do_not_matter(batches: list[FloatArray], random: object, cut: int, room: int) -> None:
    shuffled = list(batches)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_sample, "_MOST", room)
        left = of(*shuffled[:cut])
        left.merge(of(*shuffled[cut:]))
        assert state(of(*batches)) == state(of(*shuffled)) == state(left)
        assert len(left.sample.counts) <= room


@settings(deadline=None)
@given(BATCHES)
def test_patches_that_repeat_are_kept_once_and_counted(batches: list[FloatArray]) -> None:
    whole = np.concatenate(batches, axis=2) + np.float32(0)
    expected: dict[bytes, int] = {}
    for place in range(whole.shape[2]):
        key = np.ascontiguousarray(whole[..., place]).tobytes()
        expected[key] = expected.get(key, 0) + 1
    sample = of(*batches).sample
    found = {
        np.ascontiguousarray(sample.patches[..., place]).tobytes(): int(count)
        for place, count in enumerate(sample.counts)
    }
    assert found == expected


@settings(deadline=None)
@given(BATCHES)
def test_empty_is_neutral_and_files_are_exact(batches: list[FloatArray]) -> None:
    statistic, other = of(*batches), Patches.empty()
    before = state(statistic)
    statistic.merge(Patches.empty())
    other.merge(statistic)
    restored = Patches.from_arrays(statistic.arrays())
    assert state(statistic) == state(other) == state(restored) == before
    restored.update(batches[0])
    assert state(restored) == state(of(*batches, batches[0]))


def test_products_are_those_of_gram() -> None:
    batches = [np.random.default_rng(seed).standard_normal((2, 3, 40)).astype(np.float32) for seed in range(3)]
    gram, patches = Gram.empty(), of(*batches)
    for batch in batches:
        gram.update(batch)
    for one, other in zip(gram.moments(), patches.moments(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(("size", "kept"), [(3, 1024), (1 << 11, 512), (1 << 16, 64)])
def test_the_sample_is_bounded(size: int, kept: int) -> None:
    sample = Sample()
    generator = np.random.default_rng(0)
    for _ in range(2):
        sample.update(generator.standard_normal((1, size, max(600, min(1024, kept)))).astype(np.float32))
    assert sample.patches.shape == (1, size, kept) and len(np.unique(sample.hashes)) == kept


def test_every_patch_has_the_same_chance() -> None:
    """The mean of the sample is that of all."""
    generator = np.random.default_rng(0)
    values = generator.standard_normal((1, 4, 40_000)).astype(np.float32)
    sample = Sample()
    for begin in range(0, 40_000, 1000):
        sample.update(values[..., begin : begin + 1000])
    assert np.abs(sample.patches.mean(axis=2)).max() < 4 / np.sqrt(1024)
    assert 0.8 < sample.patches.std() < 1.2


def test_a_file_goes_round(tmp_path: Path) -> None:
    request = Request(value="x", statistic="patches", window=Window())
    batch = np.random.default_rng(0).standard_normal((1, 5, 30)).astype(np.float32)
    statistics = Statistics.empty([request])
    statistics.get(request).update(batch)
    statistics.save(tmp_path / "s.npz")
    restored = load_statistics(tmp_path / "s.npz").get(request)
    assert {name: array.tobytes() for name, array in restored.arrays().items()} == {
        name: array.tobytes() for name, array in of(batch).arrays().items()
    }


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    statistic = of(np.ones((1, 2, 3), np.float32))
    before = state(statistic)
    with pytest.raises(InputError, match="Inf or NaN"):
        statistic.update(np.full((1, 2, 3), bad, np.float32))
    assert state(statistic) == before


def test_which_values_occur_is_not_known() -> None:
    with pytest.raises(InputError, match="which values"):
        of(np.ones((1, 2, 3), np.float32)).distribution()
    with pytest.raises(InputError, match="no values"):
        Patches.empty().moments()


GOOD = of(np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)).arrays()


@pytest.mark.parametrize(
    "damage",
    [
        {"patches": np.zeros((2, 3, 4))},
        {"patches": np.zeros((2, 4), np.float32)},
        {"patches": np.full((2, 3, 4), np.nan, np.float32)},
        {"patches": np.ones((1, 3, 4), np.float32)},
        {"counts": np.ones(3, np.int64)},
        {"counts": np.zeros(4, np.int64)},
        {"counts": np.ones(4)},
    ],
    ids=lambda damage: "-".join(f"{name} {array.dtype} {array.shape}" for name, array in damage.items()),
)
def test_damaged_files_are_refused(damage: dict[str, Array]) -> None:
    Patches.from_arrays(GOOD)
    with pytest.raises(ValueError, match="patches"):
        Patches.from_arrays({**GOOD, **damage})
