"""float16 and bfloat16: the numbers of the type, to nearest, without a scale."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qcli.errors import UsageError
from qcli.formats._float import FloatFormat
from qcli.plugins import create
from qcli.types import FloatArray, Grid, Interval, Scale

FORMATS: dict[str, FloatFormat] = {name: create("formats", name) for name in ("float16", "bfloat16")}
RELATIVE = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
ABSOLUTE = {"float16": 2.0**-25, "bfloat16": 2.0**-134}
VALUES = hnp.arrays(np.float32, st.integers(0, 20), elements=st.floats(width=32, allow_nan=False, allow_infinity=False))


def scale_of(name: str) -> Scale:
    return FORMATS[name].scale(Interval(lower=np.array([-3.0]), upper=np.array([1.0])), Grid(format=name))


@pytest.mark.parametrize("name", FORMATS)
@given(values=VALUES)
def test_each_number_goes_to_the_nearest_of_the_type(name: str, values: FloatArray) -> None:
    known = FORMATS[name]
    codes = known.encode(values, scale_of(name))
    assert codes.dtype.name == name and codes.shape == values.shape
    real = known.decode(codes, scale_of(name))
    assert real.dtype == np.float32 and np.isfinite(real).all()
    inside = np.abs(values) <= known.largest
    exact = values[inside].astype(np.float64)
    errors = np.abs(real[inside] - exact)
    assert (errors <= np.maximum(RELATIVE[name] * np.abs(exact), ABSOLUTE[name])).all()
    np.testing.assert_array_equal(np.abs(real[~inside]), known.largest)


@pytest.mark.parametrize("name", FORMATS)
@given(values=VALUES)
def test_numbers_of_the_type_stay_what_they_are(name: str, values: FloatArray) -> None:
    known, scale = FORMATS[name], scale_of(name)
    once = known.decode(known.encode(values, scale), scale)
    np.testing.assert_array_equal(known.decode(known.encode(once, scale), scale), once)


def test_the_ends_of_the_types() -> None:
    assert FORMATS["float16"].largest == float(np.finfo(np.float16).max)
    assert FORMATS["float16"].smallest_normal == float(np.finfo(np.float16).smallest_normal)
    upper_half = np.array([0x7F7F0000, 0x00800000], np.uint32).view(np.float32)
    assert [FORMATS["bfloat16"].largest, FORMATS["bfloat16"].smallest_normal] == upper_half.tolist()


@pytest.mark.parametrize("name", FORMATS)
def test_the_scale_is_one(name: str) -> None:
    scale = scale_of(name)
    assert scale.scale.tolist() == [1.0] and scale.zero_point.tolist() == [0] and scale.dtype == name


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"bits": 8}, "takes no 'bits'"),
        ({"narrow": True}, "takes no 'bits' and no 'narrow'"),
        ({"granularity": "channel"}, "has no scale, so none for each channel"),
        ({"granularity": "block", "block": 32}, "has no scale, so none for each block"),
    ],
)
def test_what_belongs_to_a_scale_is_refused(name: str, options: dict[str, object], problem: str) -> None:
    with pytest.raises(UsageError, match=problem) as caught:
        FORMATS[name].bits(Grid(format=name, **options))  # type: ignore[arg-type]
    assert caught.value.hint.startswith("leave")


@pytest.mark.parametrize("name", FORMATS)
def test_a_number_takes_sixteen_bits(name: str) -> None:
    assert FORMATS[name].bits(Grid(format=name)) == 16
