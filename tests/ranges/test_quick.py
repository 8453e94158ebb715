"""The ranges of many short blocks at once, as large models get them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from qcli import blocks
from qcli.errors import InputError
from qcli.plugins import create
from qcli.types import Array, Grid, Interval

GRIDS = [
    Grid(format="int4", granularity="block", block=32, axis=0),
    Grid(format="uint4", symmetric=False, granularity="block", block=32, axis=0),
    Grid(format="int2", granularity="block", block=16, axis=1),
    Grid(format="int8", granularity="block", block=32, axis=1),
]


def weight_of(shape: tuple[int, ...] = (96, 128)) -> Array:
    return np.random.default_rng(0).standard_t(5, shape).astype(np.float32)


def both(name: str, weight: Array, grid: Grid) -> tuple[tuple[Interval, Array], tuple[Interval, Array]]:
    """The intervals as found usually, and quickly."""
    plugin = create("ranges", name)

    def quick(values: Array) -> Interval:
        return plugin.quick(values, grid)  # type: ignore[no-any-return]

    def find(distribution: object) -> Interval:
        return plugin.interval(distribution, grid)  # type: ignore[no-any-return]

    return blocks.interval_of(weight, grid, find), blocks.interval_of(weight, grid, find, quick=quick)


def error(weight: Array, interval: Interval, grid: Grid) -> float:
    number = create("formats", grid.format)
    scale = number.scale(interval, grid)
    return float(np.square(number.decode(number.encode(weight, scale), scale) - weight, dtype=np.float64).sum())


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("shape", [(96, 128), (100, 130), (40, 50, 3)])
def test_extrema_are_exact(grid: Grid, shape: tuple[int, ...]) -> None:
    usual, quick = both("minmax", weight_of(shape), grid)
    np.testing.assert_array_equal(usual[0].lower, quick[0].lower)
    np.testing.assert_array_equal(usual[0].upper, quick[0].upper)
    np.testing.assert_array_equal(usual[1], quick[1])


@pytest.mark.parametrize("grid", GRIDS)
def test_the_quick_search_loses_little_and_gains_on_the_extrema(grid: Grid) -> None:
    weight = weight_of()
    usual, quick = both("mse", weight, grid)
    extrema = both("minmax", weight, grid)[1]
    best, found, plain = (error(weight, interval, grid) for interval in (usual[0], quick[0], extrema[0]))
    assert found <= plain * (1 + 1e-6)
    assert found <= 1.06 * best


@settings(deadline=None)
@given(
    weight=arrays(
        np.float32, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=40), elements=st.floats(-9, 9, width=32)
    ),
    size=st.integers(1, 8),
)
def test_pieces_change_nothing(weight: Array, size: int) -> None:
    grid = Grid(format="int4", granularity="block", block=size, axis=0)
    with pytest.MonkeyPatch.context() as patch:
        whole = both("mse", weight, grid)[1]
        patch.setattr(blocks, "_RUN", 3)
        patch.setattr(blocks, "_BLOCK_BYTES", 64)
        parts = both("mse", weight, grid)[1]
    np.testing.assert_array_equal(whole[0].upper, parts[0].upper)
    np.testing.assert_array_equal(whole[1], parts[1])


def test_blocks_of_zeros_are_known() -> None:
    weight = weight_of((64, 8))
    weight[:32, 3] = 0
    _, (interval, dead) = both("mse", weight, GRIDS[0])
    assert dead.sum() == 1 and dead[0, 3] and interval.upper[0, 3] == 0


def test_weights_that_are_not_finite_are_refused() -> None:
    weight = weight_of((64, 8))
    weight[5, 5] = np.nan
    with pytest.raises(InputError, match="Inf or NaN"):
        both("mse", weight, GRIDS[0])
