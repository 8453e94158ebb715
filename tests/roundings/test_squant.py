"""`squant`: every weight goes to a neighbouring level, and the errors of kernels and channels cancel."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcli.contracts import along
from qcli.distribution import from_weights
from qcli.plugins import create, load
from qcli.roundings import squant
from qcli.roundings.squant import Squant
from qcli.types import Array, Grid, Interval, Scale


def scale_for(weight: Array, axis: int | None, shrink: float = 1.0, format_: str = "int8") -> Scale:
    known = from_weights(weight, axis)
    grid = Grid(
        format=format_, symmetric=format_ == "int8", granularity="tensor" if axis is None else "channel", axis=axis
    )
    bounds = Interval(lower=known.lower * shrink, upper=known.upper * shrink)
    scale: Scale = create("formats", format_).scale(bounds, grid)
    return scale


def exact(weight: Array, scale: Scale) -> Array:
    steps, zero = along(scale, weight.shape)
    value: Array = (weight / steps + zero).clip(scale.lowest, scale.highest)
    return value


@st.composite
def weights(draw: st.DrawFn) -> Array:
    shape = draw(st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(1, 3), st.integers(1, 4)))
    spread = draw(st.sampled_from(["normal", "one sided", "equal", "zeros in between", "heavy"]))
    values = np.random.default_rng(draw(st.integers(0, 1 << 20))).standard_normal(shape)
    shaped = {
        "normal": values,
        "one sided": np.abs(values),
        "equal": np.full(shape, 0.3),
        "zeros in between": values * (values > 0.5),
        "heavy": values**5,
    }[spread]
    return np.asarray(shaped, np.float32)


CASES = st.tuples(
    weights(), st.sampled_from([None, 0, 1]), st.sampled_from([1.0, 0.6]), st.sampled_from(["int8", "uint8"])
)
SETTINGS = settings(max_examples=120, deadline=None)


@SETTINGS
@given(CASES)
def test_every_code_is_a_neighbour_of_the_exact_value(case: tuple[Array, int | None, float, str]) -> None:
    weight, axis, shrink, format_ = case
    scale = scale_for(weight, axis, shrink, format_)
    codes = Squant().round(weight, scale)
    assert codes.dtype == np.dtype(format_) and codes.shape == weight.shape
    assert np.abs(codes - exact(weight, scale)).max() < 1
    assert codes.min() >= scale.lowest and codes.max() <= scale.highest


@SETTINGS
@given(CASES)
def test_the_errors_of_a_kernel_and_of_a_channel_cancel(case: tuple[Array, int | None, float, str]) -> None:
    weight, axis, shrink, format_ = case
    scale = scale_for(weight, axis, shrink, format_)
    errors = Squant().round(weight, scale) - exact(weight, scale)
    rows = np.moveaxis(errors, axis or 0, 0)
    kernels = rows.reshape(*rows.shape[:2], -1).sum(axis=2)
    assert np.abs(kernels).max() <= 1.0 + 1e-6, "half a step each, and one more turn for the sake of the channel"
    assert np.abs(kernels.sum(axis=1)).max() <= 0.5 + 1e-6


@SETTINGS
@given(weights())
def test_a_kernel_that_its_channel_does_not_need_stays_within_half_a_step(weight: Array) -> None:
    """With one kernel a channel the two demands are one."""
    single = weight[:, :1]
    scale = scale_for(single, 0)
    errors = Squant().round(single, scale) - exact(single, scale)
    assert np.abs(errors.reshape(len(errors), -1).sum(axis=1)).max() <= 0.5 + 1e-6


@SETTINGS
@given(weights())
def test_it_turns_no_more_than_it_must(weight: Array) -> None:
    """The sum of a channel differs from that of rounding to nearest by the number of turns alone."""
    scale = scale_for(weight, 0)
    turned = Squant().round(weight, scale) != create("roundings", "nearest").round(weight, scale)
    error = (np.rint(exact(weight, scale)) - exact(weight, scale)).reshape(*weight.shape[:2], -1).sum(axis=2)
    assert turned.sum() <= np.rint(np.abs(error)).sum() + weight.shape[0] * weight.shape[1]


@SETTINGS
@given(weights(), st.sampled_from([None, 0, 1]))
def test_matrices_are_rounded_to_nearest(weight: Array, axis: int | None) -> None:
    matrix = weight.reshape(weight.shape[0], -1)
    scale = scale_for(matrix, axis)
    nearest = create("roundings", "nearest").round(matrix, scale)
    assert np.array_equal(Squant().round(matrix, scale), nearest)


@settings(max_examples=40, deadline=None)
@given(weights(), st.sampled_from([None, 0, 1]), st.integers(1, 40))
def test_the_size_of_the_blocks_does_not_matter(weight: Array, axis: int | None, chunk: int) -> None:
    scale = scale_for(weight, axis)
    whole = Squant().round(weight, scale)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(squant, "_CHUNK", chunk)
        assert np.array_equal(Squant().round(weight, scale), whole)


@SETTINGS
@given(weights())
def test_a_transposed_convolution_is_a_convolution_with_its_axes_swapped(weight: Array) -> None:
    swapped = np.ascontiguousarray(np.swapaxes(weight, 0, 1))
    codes = Squant().round(weight, scale_for(weight, 0))
    assert np.array_equal(Squant().round(swapped, scale_for(swapped, 1)), np.swapaxes(codes, 0, 1))


def test_the_weight_is_not_changed() -> None:
    weight = np.random.default_rng(0).standard_normal((2, 3, 3, 3)).astype(np.float32)
    before = weight.copy()
    Squant().round(weight, scale_for(weight, 0))
    assert np.array_equal(weight, before)


def test_a_smooth_input_sees_less_error_than_with_nearest() -> None:
    weight = np.random.default_rng(0).standard_normal((64, 32, 3, 3)).astype(np.float32)
    scale = scale_for(weight, 0)
    truth = exact(weight, scale).sum(axis=(1, 2, 3))

    def error(name: str) -> float:
        return float(np.abs(create("roundings", name).round(weight, scale).sum(axis=(1, 2, 3)) - truth).mean())

    assert error("squant") < error("nearest") / 5


def test_it_is_found_by_name() -> None:
    assert load("roundings", "squant") is Squant
