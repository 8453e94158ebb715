"""Formats whose levels are not evenly spaced: what they are, how near they come to the optimum, what they refuse."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from statistics import NormalDist

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qcli.blocks import interval_of
from qcli.configure import convert
from qcli.errors import UsageError
from qcli.formats._lloyd import best_levels, scales_for
from qcli.formats._table import TableFormat
from qcli.granularity import scales_of
from qcli.levels import Cells, code_bits, middles, nearest_codes, nearest_in, real_values
from qcli.plugins import choice_of, create, names
from qcli.recipe import load_recipe
from qcli.tables import fitted_scale
from qcli.types import Array, Grid, Interval, Scale, Spec
from qcli.yaml_file import parse_yaml

Float64Array = npt.NDArray[np.float64]

TABLES = tuple(name for name in names("formats") if isinstance(create("formats", name), TableFormat))
FIXED = tuple(name for name in TABLES if not create("formats", name).learned)
ML_TYPES = {"float8_e4m3fn": "FLOAT8E4M3FN", "float8_e5m2": "FLOAT8E5M2", "float4_e2m1": "FLOAT4E2M1"}
GAUSSIAN = np.random.default_rng(0).standard_normal(1 << 18).astype(np.float32)


def optimum(entries: int) -> float:
    """The least mean squared error of a normal distribution with so many levels, by integrals over its cells.

    Source: Max 1960, "Quantizing for Minimum Distortion"; each level the mean of its cell, each end a middle.
    """
    normal = NormalDist()
    levels = np.array([normal.inv_cdf((at + 0.5) / entries) for at in range(entries)]) * 1.5
    error = np.inf
    while True:
        ends = np.concatenate([[-np.inf], (levels[1:] + levels[:-1]) / 2, [np.inf]])
        density = np.array([0.0 if np.isinf(end) else normal.pdf(end) for end in ends])
        mass = np.diff([normal.cdf(end) for end in ends])
        levels = -np.diff(density) / mass
        now = float(1 - np.sum(levels**2 * mass))
        if error - now < 1e-11 * now:
            return now
        error = now


def relative_error(grid: Grid, weight: Array, energies: Float64Array | None = None) -> float:
    scale = scale_of(grid, weight, energies)
    wrong = real_values(nearest_codes(weight, scale), scale).astype(np.float64) - weight
    counts = np.ones(weight.shape) if energies is None else energies
    return float((counts * wrong**2).sum() / (counts * weight.astype(np.float64) ** 2).sum())


def scale_of(grid: Grid, weight: Array, energies: Float64Array | None = None) -> Scale:
    number_format = create("formats", grid.format)
    if number_format.learned:
        return fitted_scale(weight, grid, number_format, energies)
    find = partial(create("ranges", "mse").interval, grid=grid)
    scale: Scale = number_format.scale(interval_of(weight, grid, find, energies=energies)[0], grid)
    return scale


@pytest.mark.parametrize("bits", range(2, 7))
def test_a_codebook_comes_as_near_to_a_gaussian_as_can_be(bits: int) -> None:
    assert relative_error(Grid(format="codebook", bits=bits), GAUSSIAN) == pytest.approx(optimum(1 << bits), rel=0.02)


@pytest.mark.parametrize("bits", [7, 8])
def test_so_do_large_codebooks(bits: int) -> None:
    """For many levels the optimum tends to pi sqrt(3) / 2 / K**2 (Panter and Dite 1951), from below."""
    bound = np.pi * np.sqrt(3) / 2 / (1 << bits) ** 2
    assert bound * 0.96 < relative_error(Grid(format="codebook", bits=bits), GAUSSIAN) < bound * 1.02


def test_the_optimum_is_that_of_the_literature() -> None:
    known = {2: 0.3634, 3: 0.1902, 4: 0.1175, 8: 0.03454, 16: 0.009497, 32: 0.002499}
    for entries, error in known.items():
        assert optimum(entries) == pytest.approx(error, rel=3e-3)


@pytest.mark.parametrize(
    ("name", "bits", "entries"), [("binary", None, 2), ("ternary", None, 3), ("residual_binary", 2, 4)]
)
def test_few_levels_are_the_best_there_are_for_a_gaussian(name: str, bits: int | None, entries: int) -> None:
    assert relative_error(Grid(format=name, bits=bits), GAUSSIAN) == pytest.approx(optimum(entries), rel=0.01)


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_each_further_sign_helps(bits: int) -> None:
    """Sums of signs are a lattice of levels: within 26 % of the best table of as many bits, up to four."""
    error = relative_error(Grid(format="residual_binary", bits=bits), GAUSSIAN)
    assert optimum(1 << bits) * 0.99 < error < optimum(1 << bits) * 1.26


@settings(max_examples=50, deadline=None)
@given(
    values=hnp.arrays(np.float32, (3, 8), elements=st.floats(-4, 4, width=16)),
    counts=hnp.arrays(np.float64, (3, 8), elements=st.integers(0, 3).map(float)),
)
def test_ternary_is_never_worse_than_any_threshold(values: Array, counts: Float64Array) -> None:
    """All thresholds, each with its best scale, tried one by one."""
    fitted = create("formats", "ternary").fit(values, counts, Grid(format="ternary"))
    for row, many, scale in zip(values.astype(np.float64), counts, fitted.scale, strict=True):
        weights = many if many.any() else np.ones_like(many)
        tries = [np.where(np.abs(row) >= limit, np.sign(row), 0.0) for limit in (*np.abs(row), np.inf)]
        best = min(_least_error(row, weights, signs) for signs in tries)
        own = (weights * (row - np.clip(np.rint(row / scale), -1, 1) * scale if scale else row) ** 2).sum()
        assert own <= best + 1e-4 * (1 + (weights * row**2).sum())


def _least_error(row: Float64Array, weights: Float64Array, signs: Float64Array) -> float:
    many = (weights * signs**2).sum()
    scale = (weights * signs * row).sum() / many if many else 0.0
    return float((weights * (row - scale * signs) ** 2).sum())


@pytest.mark.parametrize("name", [name for name in TABLES if create("formats", name).learned])
def test_what_counts_more_errs_less(name: str) -> None:
    """Energies of a hundred on half of the weights: their error falls, and the weighted error as a whole."""
    weight = np.random.default_rng(1).laplace(size=(1, 4096)).astype(np.float32)
    weight[:, 2048:] *= 3
    energies = np.where(np.arange(4096) < 2048, 100.0, 1.0)[None]
    grid = Grid(format=name, granularity="channel", axis=0)
    alike, weighed = scale_of(grid, weight), scale_of(grid, weight, energies)
    errors = [
        float((energies * (real_values(nearest_codes(weight, scale), scale) - weight) ** 2).sum())
        for scale in (alike, weighed)
    ]
    assert errors[1] < errors[0]


@pytest.mark.parametrize("spec", ["codebook", {"codebook": {"tables": "own"}}, "ternary", "residual_binary"])
@pytest.mark.parametrize("large", [False, True])
def test_tables_do_not_depend_on_how_a_weight_is_cut(spec: Spec, large: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shapes of scales and tables per channel and in blocks whose last is shorter; the same in small parts."""
    weight = np.random.default_rng(2).standard_normal((6, 10, 3)).astype(np.float32)
    if large:
        monkeypatch.setattr("qcli.blocks._BLOCK_BYTES", 64)
    for grid, shape in (
        (Grid(format=spec, granularity="channel", axis=0), (6,)),
        (Grid(format=spec, granularity="channel", axis=2), (3,)),
        (Grid(format=spec, granularity="block", block=4, axis=1), (6, 3, 3)),
        (Grid(format=spec, granularity="block", block=4, axis=0), (2, 10, 3)),
    ):
        scale = fitted_scale(weight, grid, create("formats", spec))
        assert scale.levels is not None and scale.scale.shape == shape
        assert scale.levels.shape[:-1] in ((), shape)
        real = real_values(nearest_codes(weight, scale), scale)
        assert ((real - weight) ** 2).mean() < 0.3 * (weight**2).mean()


@pytest.mark.parametrize("name", TABLES)
def test_what_is_all_zero_stays_zero(name: str) -> None:
    weight = np.zeros((3, 40), np.float32)
    weight[0] = np.linspace(-1, 1, 40)
    number_format = create("formats", name)
    grid = Grid(format=name, granularity="channel", axis=0)
    ends = np.abs(weight).max(axis=1).astype(np.float64)
    learned = number_format.learned
    scale = fitted_scale(weight, grid, number_format) if learned else number_format.scale(_around(ends), grid)
    real = number_format.decode(number_format.encode(weight, scale), scale)
    assert not real[1:].any() and real[0].any() and np.isfinite(real).all()


def _around(ends: Float64Array) -> Interval:
    return Interval(lower=-ends, upper=ends)


@pytest.mark.parametrize("name", FIXED)
def test_a_fixed_table_reaches_the_ends_and_holds_zero(name: str) -> None:
    number_format = create("formats", name)
    grid = Grid(format=name)
    table = number_format.table(grid)
    assert (np.diff(table) > 0).all() and 0 in table and table.size == number_format.entries(grid) <= 256
    scale = number_format.scale(_around(np.array([3.0])), grid)
    ends = number_format.decode(number_format.encode(np.array([-3.0, 0.0, 3.0], np.float32), scale), scale)
    assert ends == pytest.approx([-3, 0, 3], rel=1e-6)
    assert number_format.decode(number_format.encode(table * scale.scale, scale), scale) == pytest.approx(
        table * scale.scale
    )


@pytest.mark.parametrize("name", ML_TYPES)
def test_small_floats_are_those_of_onnx(name: str) -> None:
    from qcli.graph import native_type

    kind = native_type(ML_TYPES[name])
    codes = np.arange(1 << (kind.bitwidth), dtype=np.uint8).view(kind.numpy()).astype(np.float32)
    assert np.array_equal(create("formats", name).table(Grid(format=name)), np.unique(codes[np.isfinite(codes)] + 0.0))


def test_normal_floats_of_four_bits_are_nf4() -> None:
    """The table in appendix E of the paper."""
    published = [
        -1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0,
        0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0,
    ]  # fmt: skip
    assert create("formats", "normal_float").table(Grid(format="normal_float")) == pytest.approx(published, abs=1e-6)


def test_additive_powers_of_four_bits_are_those_of_the_paper() -> None:
    table = create("formats", "additive_power_of_two").table(Grid(format="additive_power_of_two"))
    assert table[7:] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0])


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float4_e2m1"])
@pytest.mark.parametrize("scales", ["power_of_two", "float8"])
def test_scales_can_be_coarse(name: str, scales: str) -> None:
    """Scales of a byte, from the largest of a weight down to a billionth of it; none is zero."""
    number_format = create("formats", {name: {"scales": scales}})
    ends = np.concatenate([[0.0], np.logspace(-12, 1, 300)])
    steps = number_format.scale(_around(ends), Grid(format=name, granularity="channel", axis=0)).scale
    outermost = number_format.table(Grid(format=name)).max()
    assert (steps > 0).all()
    seen = ends > 1e-3
    ratio = steps[seen] * outermost / ends[seen]
    assert (ratio > 0.49).all() and (ratio < 2.01).all()
    if scales == "power_of_two":
        assert np.array_equal(np.exp2(np.rint(np.log2(steps))), steps)
        assert steps[seen][-1] == 2.0 ** (3 - np.floor(np.log2(outermost)))  # OCP: floor(log2(10)) - emax


@pytest.mark.parametrize(
    ("grid", "problem"),
    [
        (Grid(format="codebook", bits=1), "bits must be 2 to 8, is 1"),
        (Grid(format="codebook", bits=9), "bits must be 2 to 8, is 9"),
        (Grid(format="residual_binary", bits=5), "bits must be 1 to 4, is 5"),
        (Grid(format="ternary", bits=1), "bits must be 2, is 1"),
        (Grid(format="power_of_two", bits=8), "bits must be 2 to 6"),
        (Grid(format="float8_e5m2", bits=4), "bits must be 8"),
        (Grid(format="codebook", symmetric=False), "no 'symmetric: false'"),
        (Grid(format="normal_float", narrow=True), "no 'narrow: true'"),
    ],
)
def test_grids_that_a_table_has_not_are_refused(grid: Grid, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        create("formats", grid.format).bits(grid)


@pytest.mark.parametrize("spec", [{"codebook": {"tables": "many"}}, {"float4_e2m1": {"scales": "int8"}}])
def test_options_are_checked(spec: Spec) -> None:
    with pytest.raises(UsageError):
        create("formats", spec)


def test_a_table_that_is_learned_has_no_scale_for_a_range() -> None:
    with pytest.raises(UsageError, match="fitted to weights"):
        create("formats", "ternary").scale(_around(np.ones(1)), Grid(format="ternary"))


LEVELS = hnp.arrays(np.float32, st.integers(2, 40), elements=st.floats(-8, 8, width=16), unique=True)


@settings(max_examples=100, deadline=None)
@given(levels=LEVELS, values=hnp.arrays(np.float32, 30, elements=st.floats(-9, 9, width=16)))
def test_codes_are_of_the_nearest_level(levels: Array, values: Array) -> None:
    table = np.sort(levels)
    for codes in (nearest_in(table[None], np.zeros(1, int), values), np.searchsorted(middles(table), values)):
        assert np.abs(table[codes] - values) == pytest.approx(np.abs(values[:, None] - table).min(axis=1), abs=1e-6)


@settings(max_examples=50, deadline=None)
@given(
    values=hnp.arrays(np.float32, (4, 12), elements=st.floats(-4, 4, width=16)),
    counts=hnp.arrays(np.float64, (4, 12), elements=st.integers(0, 5).map(float)),
    levels=LEVELS,
)
def test_sums_over_cells_are_those_of_the_values(values: Array, counts: Float64Array, levels: Array) -> None:
    table = np.sort(levels).astype(np.float64)
    cells = Cells.of(values, counts)
    codes = np.searchsorted(middles(table), values)
    expected = (counts * (table[codes] - values.astype(np.float64)) ** 2).sum(axis=1)
    assert cells.errors(np.broadcast_to(table, (4, table.size))) == pytest.approx(expected, abs=1e-6, rel=1e-6)


@settings(max_examples=50, deadline=None)
@given(values=hnp.arrays(np.float64, (2, 40), elements=st.floats(-4, 4, width=32)), entries=st.integers(2, 9))
def test_levels_ascend_and_no_round_makes_them_worse(values: Float64Array, entries: int) -> None:
    cells = Cells.of(values, np.ones(values.shape))
    levels = best_levels(cells, entries)
    assert (np.diff(levels, axis=1) >= 0).all() and np.isfinite(levels).all()
    again = best_levels(cells, entries, levels)
    assert (cells.errors(again) <= cells.errors(levels) + 1e-9 + 1e-9 * cells.seconds[:, -1]).all()


def test_scales_are_the_best_for_their_table() -> None:
    """Against a search over a thousand scales."""
    values = np.random.default_rng(3).standard_normal((5, 200)) * np.logspace(-3, 3, 5)[:, None]
    table = create("formats", "normal_float").table(Grid(format="normal_float")) * 2.5
    cells = Cells.of(values, np.ones(values.shape))
    steps = scales_for(cells, table)
    sizes = np.sqrt((values**2).mean(axis=1))
    tried = [cells.errors(sizes[:, None] * factor * table) for factor in np.linspace(0.3, 2, 1000)]
    assert (cells.errors(steps[:, None] * table) <= np.min(tried, axis=0) * 1.02).all()


def test_the_same_weights_give_the_same_table() -> None:
    grid = Grid(format="codebook", granularity="channel", axis=0)
    weight = GAUSSIAN[: 1 << 14].reshape(64, -1)
    first, second = scale_of(grid, weight), scale_of(grid, weight.copy())
    assert np.array_equal(first.scale, second.scale) and np.array_equal(first.levels, second.levels)


PAGE = (Path(__file__).parent.parent.parent / "docs" / "formats.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `(\{format: .*?\})` \| (.*?) \| (.*?) \| (.*?) \| (.*?) \| (.*?) \|$", PAGE, flags=re.M)


def written_row(grid: Grid) -> tuple[str, ...]:
    """The bits of a code in the file, levels, error on normal numbers, the least for so many levels, and 2**-2b."""
    number_format = create("formats", grid.format)
    weight = GAUSSIAN[: 1 << 16].reshape(256, 256)
    axis = None if grid.granularity == "tensor" else 1 if grid.block else 0
    entries, each = number_format.entries(grid), number_format.weights_per_code
    laid = msgspec.structs.replace(grid, axis=axis)
    bits = code_bits(entries) / each + number_format.side_bits(laid, scales_of(laid, weight.shape)) / weight.size
    levels = round(entries ** (1 / each), 6)
    least = optimum(int(levels)) if levels <= 64 else np.pi * np.sqrt(3) / 2 / levels**2
    shown = (relative_error(laid, weight), least, levels**-2.0)
    return f"{bits:.2f}", str(entries), *(f"{number:.2g}" for number in shown)


def test_the_page_has_a_row_for_every_format() -> None:
    assert {choice_of(parse_yaml(grid, "row")["format"]).name for grid, *_ in ROWS} == set(TABLES)


@pytest.mark.parametrize(("grid", "shown"), [(grid, shown) for grid, *shown in ROWS], ids=[row[0] for row in ROWS])
def test_the_figures_of_the_page_are_right(grid: str, shown: list[str]) -> None:
    found = written_row(convert(parse_yaml(grid, "row"), Grid, where="row"))
    assert [float(item) for item in shown] == pytest.approx([float(item) for item in found], rel=0.03)


EXAMPLES = re.findall(r"^```yaml\n(.*?)^```", PAGE, flags=re.M | re.S)


@pytest.mark.parametrize("text", EXAMPLES, ids=range(len(EXAMPLES)))
def test_the_examples_of_the_page_are_recipes(text: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
    assert load_recipe(str(tmp_path / "recipe.yaml")).rules


@pytest.mark.parametrize(
    ("name", "bits", "levels"),
    [("ternary", None, [-1, 0, 1]), ("binary", None, [-1, 1]), ("codebook", 3, [-2, -0.3, 0, 0.1, 0.5, 3])],
)
def test_weights_that_were_trained_for_a_table_keep_their_values(
    name: str, bits: int | None, levels: list[float]
) -> None:
    generator = np.random.default_rng(4)
    weight = (generator.choice(levels, (8, 200)) * generator.uniform(0.1, 2, (8, 1))).astype(np.float32)
    grid = Grid(format=name, bits=bits, granularity="channel", axis=0)
    spec: Spec = {"codebook": {"tables": "own"}} if name == "codebook" else name
    scale = fitted_scale(weight, msgspec.structs.replace(grid, format=spec), create("formats", spec))
    assert real_values(nearest_codes(weight, scale), scale) == pytest.approx(weight, rel=1e-5, abs=1e-6)
