"""What a sample must look like to be fed to the model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcli.contracts import InputSpec, Record
from qcli.errors import InputError
from qcli.samples._check import check_sample, fits, shown
from qcli.types import Array


def inputs(shape: tuple[int | None, ...] | None, dtype: str = "float32") -> tuple[InputSpec, ...]:
    return (InputSpec(name="x", dtype=dtype, shape=shape),)


def check(array: Any, specs: tuple[InputSpec, ...], name: str = "x") -> Array:
    return check_sample(Record(file="dir/a.npz", arrays={name: np.asarray(array)}), specs)[specs[0].name]


def refused(arrays: dict[str, Array], specs: tuple[InputSpec, ...]) -> InputError:
    with pytest.raises(InputError) as caught:
        check_sample(Record(file="dir/a.npz", arrays=arrays), specs)
    assert caught.value.exit_code == 3
    assert caught.value.message.startswith("dir/a.npz: ")
    return caught.value


def zeros(*shape: int, dtype: str = "float32") -> Array:
    return np.zeros(shape, dtype)


TWO = (
    InputSpec(name="image", dtype="float32", shape=(None, 3)),
    InputSpec(name="rate", dtype="int64", shape=()),
)


def test_feeds_come_in_the_models_order() -> None:
    record = Record(file="a", arrays={"rate": np.array(1), "image": zeros(1, 3)})
    assert list(check_sample(record, TWO)) == ["image", "rate"]


def test_unnamed_array_belongs_to_the_only_input() -> None:
    assert check(zeros(1, 3), inputs((1, 3)), name="").shape == (1, 3)


def test_unnamed_array_and_several_inputs() -> None:
    error = refused({"": zeros(1, 3)}, TWO)
    assert "one unnamed array, the model has 2 inputs" in error.message
    assert "image, rate" in error.hint


def test_unknown_name() -> None:
    error = refused({"imag": zeros(1, 3), "rate": np.array(1)}, TWO)
    assert "no input 'imag'" in error.message
    assert error.hint == "did you mean 'image'?"


def test_missing_names() -> None:
    error = refused({"rate": np.array(1)}, TWO)
    assert "input 'image' is missing" in error.message
    assert error.hint == "found: rate"
    assert "'image', 'rate'" in refused({}, TWO).message


@pytest.mark.parametrize(
    ("shape", "wanted", "result"),
    [
        ((3, 4), (None, 3, 4), (1, 3, 4)),
        ((3, 4), (1, 3, 4), (1, 3, 4)),
        ((), (1,), (1,)),
        ((), (None,), (1,)),
        ((5, 3, 4), (None, 3, 4), (5, 3, 4)),
        ((2, 7), (None, None), (2, 7)),
        ((2, 7), None, (2, 7)),
        ((), (), ()),
        ((1, 0), (1, None), (1, 0)),
    ],
)
def test_shapes_that_fit(
    shape: tuple[int, ...], wanted: tuple[int | None, ...] | None, result: tuple[int, ...]
) -> None:
    assert check(zeros(*shape), inputs(wanted)).shape == result


@pytest.mark.parametrize(
    ("shape", "wanted", "told"),
    [
        ((3, 4), (8, 3, 4), "shape [3, 4], the model takes [8, 3, 4]"),
        ((4,), (None, 3, 4), "shape [4], the model takes [?, 3, 4]"),
        ((1, 1, 3, 4), (None, 3, 4), "shape [1, 1, 3, 4], the model takes [?, 3, 4]"),
        ((3, 5), (1, 3, 4), "shape [3, 5], the model takes [1, 3, 4]"),
        ((1,), (), "shape [1], the model takes []"),
    ],
)
def test_shapes_that_do_not(shape: tuple[int, ...], wanted: tuple[int | None, ...], told: str) -> None:
    assert f"input 'x' has {told}" in refused({"x": zeros(*shape)}, inputs(wanted)).message


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=4))
def test_a_shape_fits_itself_with_any_dimension_freed(sizes: list[tuple[int, bool]]) -> None:
    shape = tuple(size for size, _ in sizes)
    wanted = tuple(None if free else size for size, free in sizes)
    assert fits(shape, wanted)
    assert not fits((*shape, 1), wanted)
    assert check(zeros(*shape), inputs(wanted)).shape == shape


@pytest.mark.parametrize("dtype", ["int64", "int32", "uint8", "bool", "int8", "float16", "float64"])
def test_dtypes_are_kept(dtype: str) -> None:
    assert check(zeros(1, 3, dtype=dtype), inputs((1, 3), dtype)).dtype == dtype


@pytest.mark.parametrize(
    ("have", "want"),
    [("float64", "float32"), ("float32", "float16"), ("int32", "int64"), ("uint8", "float32")],
)
def test_dtypes_are_never_converted(have: str, want: str) -> None:
    error = refused({"x": zeros(1, 3, dtype=have)}, inputs((1, 3), want))
    assert f"input 'x' is {have}, the model takes {want}" in error.message
    assert f"array.astype('{want}')" in error.hint


@pytest.mark.parametrize("array", [np.array(["a", "b"]), np.array([b"a"]), np.array(["a"], dtype=object)])
def test_strings(array: Array) -> None:
    assert check(array, inputs((None,), "string")) is array
    assert "is string" in refused({"x": array}, inputs((None,))).message


@given(
    st.sampled_from([np.nan, np.inf, -np.inf]),
    st.sampled_from(["float16", "float32", "float64"]),
    st.integers(0, 23),
    st.integers(0, 23),
)
def test_first_value_that_is_not_finite(value: float, dtype: str, first: int, later: int) -> None:
    array = zeros(2, 3, 4, dtype=dtype)
    array.flat[max(first, later)] = np.nan
    array.flat[min(first, later)] = value
    index = shown([int(i) for i in np.unravel_index(min(first, later), array.shape)])
    message = refused({"x": array}, inputs((None, 3, 4), dtype)).message
    assert message == f"dir/a.npz: input 'x' holds {'NaN' if np.isnan(value) else 'Inf'} at {index}"


def test_nan_scalar() -> None:
    assert "holds NaN at []" in refused({"x": np.array(np.nan, np.float32)}, inputs(())).message


def test_bfloat16_is_checked_too() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    array = np.array([1, np.nan], ml_dtypes.bfloat16)
    assert "holds NaN at [1]" in refused({"x": array}, inputs((2,), "bfloat16")).message
