"""What holds for every range that reads a distribution."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qcli.contracts import Range
from qcli.distribution import Distribution, from_weights, union
from qcli.plugins import create, load
from qcli.stats.histogram import Histogram
from qcli.types import FloatArray, Grid, Interval

NAMES = ("minmax", "percentile", "mse", "octav", "entropy", "auto")
GRIDS = (Grid(), Grid(format="uint8", symmetric=False), Grid(format="uint8", symmetric=False, bits=4))
FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
VALUES = hnp.arrays(np.float32, st.tuples(st.integers(1, 3), st.integers(1, 12)), elements=FINITE)
Observe = Callable[..., Distribution]

pytestmark = [pytest.mark.parametrize("name", NAMES), pytest.mark.parametrize("grid", GRIDS)]


def binned(values: FloatArray) -> Distribution:
    statistic = Histogram.empty()
    statistic.update(values)
    return statistic.distribution()


def span(name: str, distribution: Distribution, grid: Grid) -> Interval:
    estimator: Range = create("ranges", name)
    return estimator.interval(distribution, grid)


@given(values=VALUES)
def test_contains_zero_and_stays_within_the_extrema(name: str, grid: Grid, values: FloatArray) -> None:
    for distribution in (binned(values), from_weights(values, 0)):
        found = span(name, distribution, grid)
        assert found.lower.dtype == found.upper.dtype == np.float64
        assert found.lower.shape == found.upper.shape == (len(values),)
        assert (found.lower <= 0).all() and (found.upper >= 0).all()
        assert (found.lower >= np.minimum(distribution.lower, 0)).all()
        assert (found.upper <= np.maximum(distribution.upper, 0)).all()


@given(values=VALUES)
def test_something_is_left_unless_all_is_zero(name: str, grid: Grid, values: FloatArray) -> None:
    found = span(name, binned(values), grid)
    assert ((found.upper > found.lower) == values.any(axis=1)).all()


@pytest.mark.parametrize("sign", [1, -1])
def test_one_sided_data_keeps_its_zero(
    name: str, grid: Grid, sign: int, histogram: Observe, rng: np.random.Generator
) -> None:
    values = sign * np.maximum(rng.standard_normal(20_000), 0)
    found = span(name, histogram(values), grid)
    assert (found.lower if sign > 0 else found.upper).tolist() == [0.0]


@pytest.mark.parametrize("value", [5.0, -0.3, 1e-30, -3e38])
def test_constants_span_from_zero(name: str, grid: Grid, value: float, histogram: Observe) -> None:
    found = span(name, histogram(np.full(100, value)), grid)
    exact = float(np.float32(value))
    if name not in ("mse", "auto"):  # which may clip: one level more or less is the same error
        assert (found.lower[0], found.upper[0]) == (min(exact, 0.0), max(exact, 0.0))
    scale = create("formats", grid.format).scale(found, grid)
    number_format = create("formats", grid.format)
    constant = np.full(1, value, np.float32)
    decoded = number_format.decode(number_format.encode(constant, scale), scale)
    np.testing.assert_allclose(decoded, constant, rtol=0.01)


def test_all_zeros(name: str, grid: Grid, histogram: Observe, exact: Observe) -> None:
    for observe in (histogram, exact):
        found = span(name, observe(np.zeros(10)), grid)
        assert found.lower.tolist() == found.upper.tolist() == [0.0]


def test_nothing_at_all(name: str, grid: Grid) -> None:
    for shape, channels in (((3, 0), 3), ((0, 3), 0)):
        found = span(name, from_weights(np.zeros(shape, np.float32), 0), grid)
        assert found.lower.tolist() == found.upper.tolist() == [0.0] * channels


def test_channels_do_not_influence_each_other(name: str, grid: Grid, exact: Observe, rng: np.random.Generator) -> None:
    rows = [
        rng.standard_normal(2000),
        rng.laplace(size=2000) * 50,
        np.abs(rng.standard_normal(2000)),
        np.ones(2000),
    ]
    together = span(name, exact(*rows), grid)
    for channel, row in enumerate(rows):
        if name in ("mse", "auto") and channel >= 2:  # alone, a one-sided channel is searched more finely
            continue
        alone = span(name, exact(row), grid)
        np.testing.assert_allclose(together.lower[channel], alone.lower[0], rtol=1e-12)
        np.testing.assert_allclose(together.upper[channel], alone.upper[0], rtol=1e-12)


def test_scaling_the_data_scales_the_range(name: str, grid: Grid, histogram: Observe, rng: np.random.Generator) -> None:
    values = rng.standard_normal(20_000)
    small, large = span(name, histogram(values), grid), span(name, histogram(values * 1024), grid)
    np.testing.assert_allclose(small.lower * 1024, large.lower, rtol=1e-4)
    np.testing.assert_allclose(small.upper * 1024, large.upper, rtol=1e-4)


def test_unions_work_like_the_joined_data(name: str, grid: Grid, histogram: Observe, rng: np.random.Generator) -> None:
    first, second = rng.standard_normal(20_000), rng.standard_normal(20_000) * 3
    joint = span(name, union([histogram(first), histogram(second)]), grid)
    whole = span(name, histogram(np.concatenate([first, second])), grid)
    tolerance = 0.2 if name == "entropy" else 0.05  # its optimum is flat
    np.testing.assert_allclose(joint.upper, whole.upper, rtol=tolerance)
    np.testing.assert_allclose(joint.lower, whole.lower, rtol=tolerance)


def test_the_statistic_it_names_exists(name: str, grid: Grid) -> None:
    statistic = load("stats", load("ranges", name).statistic).empty()
    statistic.update(np.array([[-1.0, 0.5, 2.0]], np.float32))
    assert span(name, statistic.distribution(), grid).upper[0] > 0
