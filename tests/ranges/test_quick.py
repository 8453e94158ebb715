"""The ranges of many short blocks at once, as large models get them."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from qcli import blocks, pieces, quick_blocks
from qcli.errors import InputError
from qcli.plugins import create
from qcli.ranges._quick import extrema_of
from qcli.types import Array, Grid, Interval

GRIDS = [
    Grid(format="int4", granularity="block", block=32, axis=0),
    Grid(format="uint4", symmetric=False, granularity="block", block=32, axis=0),
    Grid(format="int2", granularity="block", block=16, axis=1),
    Grid(format="int8", granularity="block", block=32, axis=1),
]


def weight_of(shape: tuple[int, ...] = (96, 128)) -> Array:
    return np.random.default_rng(0).standard_t(5, shape).astype(np.float32)


def both(name: str, weight: Array, grid: Grid) -> tuple[Interval, Interval]:
    """The intervals as found usually, and quickly."""
    plugin = create("ranges", name)

    def quick(values: Array) -> Interval:
        return plugin.quick(values, grid)  # type: ignore[no-any-return]

    def find(distribution: object) -> Interval:
        return plugin.interval(distribution, grid)  # type: ignore[no-any-return]

    return blocks.interval_of(weight, grid, find)[0], quick_blocks.quick_intervals(weight, grid, quick)


def error(weight: Array, interval: Interval, grid: Grid) -> float:
    number = create("formats", grid.format)
    scale = number.scale(interval, grid)
    return float(np.square(number.decode(number.encode(weight, scale), scale) - weight, dtype=np.float64).sum())


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("shape", [(96, 128), (100, 130), (40, 50, 3)])
def test_extrema_are_exact(grid: Grid, shape: tuple[int, ...]) -> None:
    usual, quick = both("minmax", weight_of(shape), grid)
    np.testing.assert_array_equal(usual.lower, quick.lower)
    np.testing.assert_array_equal(usual.upper, quick.upper)


@pytest.mark.parametrize("grid", GRIDS)
def test_the_quick_search_loses_little_and_gains_on_the_extrema(grid: Grid) -> None:
    weight = weight_of()
    usual, quick = both("mse", weight, grid)
    extrema = both("minmax", weight, grid)[1]
    best, found, plain = (error(weight, interval, grid) for interval in (usual, quick, extrema))
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
        patch.setattr(quick_blocks, "_RUN", 3)
        parts = both("mse", weight, grid)[1]
    np.testing.assert_array_equal(whole.upper, parts.upper)
    np.testing.assert_array_equal(whole.lower, parts.lower)


def test_blocks_of_zeros_are_known() -> None:
    weight = weight_of((64, 8))
    weight[:32, 3] = 0
    _, interval = both("mse", weight, GRIDS[0])
    zero = (interval.lower == 0) & (interval.upper == 0)
    assert zero.sum() == 1 and zero[0, 3]


def test_weights_that_are_not_finite_are_refused() -> None:
    weight = weight_of((64, 8))
    weight[5, 5] = np.nan
    with pytest.raises(InputError, match="Inf or NaN"):
        both("mse", weight, GRIDS[0])


@pytest.mark.parametrize("name", ["minmax", "mse"])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("shape", [(96, 128), (100, 130), (40, 50, 3), (33, 32)])
@pytest.mark.parametrize("turned", [False, True])
def test_scales_do_not_depend_on_threads_or_pieces(
    name: str, grid: Grid, shape: tuple[int, ...], turned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor on how the weight lies in memory."""
    weight = weight_of(shape)
    number, quick = create("formats", grid.format), partial(create("ranges", name).quick, grid=grid)
    whole = number.scale(quick_blocks.quick_intervals(weight, grid, quick), grid)
    monkeypatch.setattr(pieces, "_ELEMENTS", 600)
    given_ = np.asfortranarray(weight) if turned else weight
    for threads in (1, 3):
        scale = quick_blocks.quick_scale(given_, grid, quick, threads)
        np.testing.assert_array_equal(scale.scale, whole.scale)
        np.testing.assert_array_equal(scale.zero_point, whole.zero_point)
        assert (scale.axis, scale.block, scale.dtype) == (whole.axis, whole.block, whole.dtype)


def test_equal_zero_points_take_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "_ELEMENTS", 600)
    quick = partial(create("ranges", "minmax").quick, grid=GRIDS[0])
    scale = quick_blocks.quick_scale(weight_of(), GRIDS[0], quick, 1)
    assert scale.zero_point.strides == (0, 0) and scale.zero_point.shape == scale.scale.shape


@settings(deadline=None)
@given(
    weight=arrays(np.float32, array_shapes(min_dims=2, max_dims=4, min_side=1, max_side=9)),
    axes=st.permutations(range(4)),
)
def test_extrema_do_not_depend_on_the_layout(weight: Array, axes: list[int]) -> None:
    values = weight.transpose([axis for axis in axes if axis < weight.ndim])
    with np.errstate(invalid="ignore"):
        interval = extrema_of(values)
        np.testing.assert_array_equal(interval.upper, np.maximum(values.max(axis=0), 0))
        np.testing.assert_array_equal(interval.lower, np.minimum(values.min(axis=0), 0))
