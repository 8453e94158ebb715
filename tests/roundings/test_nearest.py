"""`nearest`: the format's own rounding, by the scale's dtype."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qcli.distribution import from_weights
from qcli.errors import UsageError
from qcli.plugins import create, load
from qcli.roundings.nearest import Nearest
from qcli.types import FloatArray, Grid, Interval, Scale


def scale_for(weight: FloatArray, grid: Grid) -> Scale:
    known = from_weights(weight, grid.axis)
    bounds = Interval(lower=known.lower, upper=known.upper)
    scale: Scale = create("formats", grid.format).scale(bounds, grid)
    return scale


WEIGHTS = hnp.arrays(np.float32, (3, 4), elements=st.floats(-100, 100, width=32))
GRIDS = st.builds(
    Grid, format=st.sampled_from(["int8", "uint8"]), granularity=st.just("channel"), axis=st.integers(0, 1)
)


@given(WEIGHTS, GRIDS)
def test_no_level_is_nearer(weight: FloatArray, grid: Grid) -> None:
    scale = scale_for(weight, grid)
    codes = Nearest().round(weight, scale)
    number_format = create("formats", grid.format)
    error = np.abs(number_format.decode(codes, scale) - weight)
    for step in (-1, 1):
        moved = np.clip(codes.astype(int) + step, scale.lowest, scale.highest).astype(codes.dtype)
        assert (error <= np.abs(number_format.decode(moved, scale) - weight) + 1e-4 * error).all()


@pytest.mark.parametrize("name", ["int8", "uint8"])
def test_codes_have_the_dtype_and_the_shape(name: str) -> None:
    weight = np.linspace(-1, 1, 24, dtype=np.float32).reshape(2, 3, 4)
    codes = create("roundings", "nearest").round(weight, scale_for(weight, Grid(format=name)))
    assert codes.dtype == np.dtype(name) and codes.shape == weight.shape


def test_an_unknown_dtype_is_named() -> None:
    scale = Scale(scale=np.ones(1, np.float32), zero_point=np.zeros(1, np.int64), lowest=0, highest=1, dtype="int17")
    with pytest.raises(UsageError, match="int17"):
        Nearest().round(np.zeros(1, np.float32), scale)


def test_it_is_found_by_name() -> None:
    assert load("roundings", "nearest") is Nearest
