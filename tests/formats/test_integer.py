"""The integer formats: levels, scales that cover, exact zero, and codes to nearest."""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qcli.errors import UsageError
from qcli.formats._integer import IntegerFormat
from qcli.plugins import create, names
from qcli.types import FloatArray, Grid, Interval, Scale

LARGEST = float(np.finfo(np.float32).max)
WIDTHS = range(2, 17)
FORMATS: dict[str, IntegerFormat] = {
    name: create("formats", name) for name in (f"{sign}int{width}" for width in WIDTHS for sign in ("", "u"))
}
INT8, UINT8 = FORMATS["int8"], FORMATS["uint8"]
FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
HALF_A_STEP = 0.51
"""The quotient of two float32 below 65,536 is right to a hundredth."""
MODERATE = st.floats(-1e4, 1e4, width=32)
WHOLE = st.builds(
    Grid, format=st.sampled_from(sorted(FORMATS)), symmetric=st.booleans(), bits=st.none(), narrow=st.booleans()
)
RESTRICTED = st.builds(
    Grid,
    format=st.sampled_from(["int8", "uint8", "int16", "uint16"]),
    symmetric=st.booleans(),
    bits=st.integers(2, 8),
    narrow=st.booleans(),
)
GRIDS = st.one_of(WHOLE, RESTRICTED)


def interval(lower: float, upper: float) -> Interval:
    return Interval(lower=np.array([lower], np.float64), upper=np.array([upper], np.float64))


def scale_of(grid: Grid, lower: float, upper: float) -> Scale:
    return FORMATS[grid.format].scale(interval(lower, upper), grid)


def reals(scale: Scale) -> FloatArray:
    """The real value of every level."""
    levels = np.arange(scale.lowest, scale.highest + 1)
    return INT8.decode(levels.astype(scale.dtype), scale)


@pytest.mark.parametrize(
    ("name", "bits", "narrow", "levels"),
    [
        ("int2", None, False, (-2, 1)),
        ("int2", None, True, (-1, 1)),
        ("uint4", None, False, (0, 15)),
        ("int4", 3, False, (-4, 3)),
        ("int12", None, True, (-2047, 2047)),
        ("int16", None, False, (-32768, 32767)),
        ("uint16", None, False, (0, 65535)),
        ("int8", None, False, (-128, 127)),
        ("int8", None, True, (-127, 127)),
        ("int8", 7, False, (-64, 63)),
        ("int8", 4, True, (-7, 7)),
        ("uint8", None, False, (0, 255)),
        ("uint8", 7, False, (0, 127)),
        ("uint8", 2, True, (1, 3)),
    ],
)
def test_levels(name: str, bits: int | None, narrow: bool, levels: tuple[int, int]) -> None:
    assert create("formats", name).levels(Grid(format=name, bits=bits, narrow=narrow)) == levels


@pytest.mark.parametrize("bits", [-1, 0, 1, 9])
def test_bits_that_do_not_fit_are_refused(bits: int) -> None:
    with pytest.raises(UsageError, match="bits must be 2 to 8"):
        scale_of(Grid(bits=bits), -1, 1)


@pytest.mark.parametrize(
    ("name", "bits", "zero_point"),
    [("int8", None, 0), ("int8", 7, 0), ("uint8", None, 128), ("uint8", 7, 64), ("int16", None, 0), ("uint2", None, 2)],
)
def test_symmetric_grids_have_their_zero_in_the_middle(name: str, bits: int | None, zero_point: int) -> None:
    assert scale_of(Grid(format=name, symmetric=True, bits=bits), -0.1, 7).zero_point.tolist() == [zero_point]


def test_the_usual_scales() -> None:
    assert scale_of(Grid(format="uint8", symmetric=False), 0, 255).scale.tolist() == [1.0]
    assert scale_of(Grid(format="uint8", symmetric=False), 0, 255).zero_point.tolist() == [0]
    assert scale_of(Grid(format="int8", symmetric=False), -64, 191).zero_point.tolist() == [-64]
    assert scale_of(Grid(format="int8"), -127, 127).scale.tolist() == [1.0]
    assert scale_of(Grid(format="int8"), -128, 127).scale.tolist() == [1.0]
    assert scale_of(Grid(format="int8", narrow=True), -127, 3).scale.tolist() == [1.0]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("sign", ["", "u"])
def test_each_width_is_a_format_of_its_own_in_the_smallest_type_that_holds_it(sign: str, width: int) -> None:
    name = f"{sign}int{width}"
    number_format = create("formats", name)
    lowest, highest = number_format.levels(Grid(format=name))
    assert name in names("formats") and type(number_format).__name__.lower() == name
    assert highest - lowest + 1 == 2**width and number_format.bits(Grid(format=name)) == width
    assert number_format.dtype == f"{sign}int{8 if width <= 8 else 16}"
    assert number_format.min_opset == (10 if width <= 8 else 21)


@given(WHOLE, MODERATE, MODERATE, st.floats(1, 100))
def test_what_lies_outside_goes_to_the_ends(grid: Grid, first: float, second: float, factor: float) -> None:
    scale = scale_of(grid, min(first, second), max(first, second))
    ends = reals(scale)[[0, -1]]
    beyond = np.array([ends[0] * factor - 1, ends[1] * factor + 1], np.float32)
    assert FORMATS[grid.format].encode(beyond, scale).tolist() == [scale.lowest, scale.highest]


@pytest.mark.parametrize("name", ["int1", "int17", "uint3x", "uint0", "int"])
def test_a_width_that_does_not_exist_is_refused_with_a_suggestion(name: str) -> None:
    with pytest.raises(UsageError, match=f"unknown format '{name}'") as caught:
        create("formats", name)
    assert "did you mean" in caught.value.hint


@given(GRIDS, FINITE, FINITE)
def test_zero_is_exact_and_scales_are_usable(grid: Grid, first: float, second: float) -> None:
    scale = scale_of(grid, min(first, second), max(first, second))
    assert scale.scale.dtype == np.float32 and scale.zero_point.dtype == np.int64
    assert np.isfinite(scale.scale).all() and (scale.scale >= np.finfo(np.float32).tiny).all()
    assert np.isfinite(1 / scale.scale).all()
    assert scale.lowest <= scale.zero_point[0] <= scale.highest
    number_format = FORMATS[grid.format]
    zero = number_format.encode(np.zeros(1, np.float32), scale)
    assert zero[0] == scale.zero_point[0]
    assert number_format.decode(zero, scale)[0] == 0
    assert np.isfinite(reals(scale)).all()


@given(GRIDS, MODERATE, MODERATE, st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_values_inside_are_half_a_step_off_at_most(
    grid: Grid, first: float, second: float, places: list[float]
) -> None:
    lower, upper = min(first, second, 0.0), max(first, second, 0.0)
    scale = scale_of(grid, lower, upper)
    values = np.array([lower + place * (upper - lower) for place in places], np.float32)
    number_format = FORMATS[grid.format]
    decoded = number_format.decode(number_format.encode(values, scale), scale).astype(np.float64)
    assert (np.abs(decoded - values) <= scale.scale[0].astype(np.float64) * HALF_A_STEP).all()


@given(GRIDS, MODERATE, MODERATE, hnp.arrays(np.float32, 20, elements=FINITE))
def test_encoding_is_monotone_and_saturates(grid: Grid, first: float, second: float, values: FloatArray) -> None:
    scale = scale_of(grid, min(first, second), max(first, second))
    codes = FORMATS[grid.format].encode(np.sort(values), scale)
    assert codes.dtype == scale.dtype == FORMATS[grid.format].dtype
    assert (np.diff(codes.astype(int)) >= 0).all()
    assert codes.min() >= scale.lowest and codes.max() <= scale.highest


@given(GRIDS, MODERATE, MODERATE)
def test_levels_encode_to_themselves(grid: Grid, first: float, second: float) -> None:
    scale = scale_of(grid, min(first, second), max(first, second))
    expected = np.arange(scale.lowest, scale.highest + 1)
    np.testing.assert_array_equal(FORMATS[grid.format].encode(reals(scale), scale), expected)


def test_ties_go_to_even_codes() -> None:
    scale = Scale(
        scale=np.ones(1, np.float32), zero_point=np.zeros(1, np.int64), lowest=-128, highest=127, dtype="int8"
    )
    values = np.array([-1.5, -0.5, 0.5, 1.5, 2.5, 126.5, 127.5, 300, -300], np.float32)
    assert INT8.encode(values, scale).tolist() == [-2, 0, 0, 2, 2, 126, 127, 127, -128]


def test_infinite_quotients_saturate_without_a_warning() -> None:
    scale = scale_of(Grid(), -1e-38, 1e-38)
    values = np.array([LARGEST, -LARGEST], np.float32)
    assert INT8.encode(values, scale).tolist() == [127, -128]


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_each_channel_has_its_own_scale(axis: int) -> None:
    values = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    slices = np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)
    bounds = Interval(lower=slices.min(axis=1).astype(np.float64), upper=slices.max(axis=1).astype(np.float64))
    grid = Grid(format="uint8", symmetric=False, granularity="channel", axis=axis)
    scale = UINT8.scale(bounds, grid)
    assert scale.axis == axis and scale.scale.shape == (values.shape[axis],)
    codes = UINT8.encode(values, scale)
    decoded = UINT8.decode(codes, scale)
    for channel in range(values.shape[axis]):
        alone = scale_of(Grid(format="uint8", symmetric=False), slices[channel].min(), slices[channel].max())
        expected = UINT8.encode(slices[channel], alone)
        np.testing.assert_array_equal(np.take(codes, channel, axis).ravel(), expected)
        np.testing.assert_array_equal(np.take(decoded, channel, axis).ravel(), UINT8.decode(expected, alone))


def test_the_example_in_the_documentation_works() -> None:
    page = (Path(__file__).parent.parent.parent / "docs" / "plugins.md").read_text(encoding="utf-8")
    [code, *_] = re.findall(r"```python\n(.*?)```", page[page.index("## Formats\n") :], flags=re.S)
    module = ModuleType("example")
    exec(compile(code, "docs/plugins.md", "exec"), module.__dict__)
    shift = module.__dict__["Int8Shift"]()
    scale = shift.scale(interval(-100.0, 90.0), Grid())
    assert scale.scale.tolist() == [1.0] and shift.scale(interval(-1, 1), Grid()).scale.tolist() == [2.0**-6]
    assert shift.encode(np.array([-100, 3.4, 90], np.float32), scale).tolist() == [-100, 3, 90]
    assert (shift.dtype, shift.min_opset, shift.bits(Grid())) == ("int8", 10, 8)


def test_a_scalar_encodes_to_a_scalar() -> None:
    scale = scale_of(Grid(), -127, 127)
    codes = INT8.encode(np.array(3.4, np.float32), scale)
    assert codes.shape == () and codes == 3
    assert INT8.decode(codes, scale) == 3.0


def test_the_tensor_granularity_ignores_the_axis() -> None:
    assert scale_of(Grid(granularity="tensor", axis=1), -1, 1).axis is None


@pytest.mark.parametrize("name", sorted(FORMATS))
@pytest.mark.parametrize("symmetric", [True, False])
def test_an_interval_of_nothing_gets_scale_one(name: str, symmetric: bool) -> None:
    scale = scale_of(Grid(format=name, symmetric=symmetric), 0, 0)
    assert scale.scale.tolist() == [1.0]
    assert reals(scale)[int(scale.zero_point[0]) - scale.lowest] == 0


def test_an_interval_that_leaves_zero_out_is_extended_to_it() -> None:
    assert scale_of(Grid(format="uint8", symmetric=False), 10, 255).scale.tolist() == [1.0]
    assert scale_of(Grid(format="uint8", symmetric=False), -255, -10).zero_point.tolist() == [255]


@pytest.mark.parametrize("grid", [Grid(bits=2, narrow=True), Grid(format="uint8", symmetric=False), Grid()])
@pytest.mark.parametrize("lower", [-LARGEST, 0.0])
def test_the_largest_floats_still_have_finite_levels(grid: Grid, lower: float) -> None:
    scale = scale_of(grid, lower, LARGEST)
    assert np.isfinite(reals(scale)).all()
    assert Fraction(float(reals(scale)[-1])) > Fraction(LARGEST) * Fraction(9, 20)
