"""`entropy`: clips rare outliers, keeps what has a shape up to its ends, and does not collapse to minmax."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from qcli.distribution import Distribution
from qcli.errors import UsageError
from qcli.plugins import create
from qcli.ranges._divergence import Shape, divergences, partition
from qcli.ranges.entropy import Entropy, _levels
from qcli.types import Grid

Observe = Callable[..., Distribution]
INT8, UINT8 = Grid(), Grid(format="uint8", symmetric=False)


@pytest.mark.parametrize("grid", [INT8, UINT8])
@pytest.mark.parametrize("far", [30.0, 1000.0, 1e6])
def test_rare_outliers_are_clipped(grid: Grid, far: float, histogram: Observe, rng: np.random.Generator) -> None:
    values = np.concatenate([rng.standard_normal(200_000), [far, -far / 2, far / 3]])
    found = Entropy().interval(histogram(values), grid)
    assert 2.5 < found.upper[0] < 12
    assert -12 < found.lower[0] < -2.5


@pytest.mark.parametrize("grid", [INT8, UINT8])
@pytest.mark.parametrize(("low", "high"), [(-1, 1), (0, 1), (-3, 0)])
def test_uniform_data_keeps_its_range(
    grid: Grid, low: float, high: float, histogram: Observe, rng: np.random.Generator
) -> None:
    found = Entropy().interval(histogram(rng.uniform(low, high, 200_000)), grid)
    np.testing.assert_allclose([found.lower[0], found.upper[0]], [low, high], atol=0.02)


def test_an_outlier_on_one_side_leaves_the_other_alone(histogram: Observe, rng: np.random.Generator) -> None:
    values = np.concatenate([rng.triangular(-2, 0, 1, 200_000), [500.0]])
    found = Entropy().interval(histogram(values), UINT8)
    assert found.lower[0] == pytest.approx(-2, abs=0.1)
    assert 0.9 < found.upper[0] < 3


def test_zeros_of_a_relu_do_not_count(histogram: Observe, rng: np.random.Generator) -> None:
    positive = np.abs(rng.standard_normal(50_000))
    alone = Entropy().interval(histogram(positive), UINT8)
    sparse = Entropy().interval(histogram(np.concatenate([positive, np.zeros(950_000)])), UINT8)
    np.testing.assert_allclose(alone.upper, sparse.upper)


def test_a_normal_distribution_is_clipped_in_its_tail(histogram: Observe, rng: np.random.Generator) -> None:
    found = Entropy().interval(histogram(rng.standard_normal(1_000_000)), INT8)
    assert 3.5 < found.upper[0] < 5.2


def test_fewer_levels_clip_more(histogram: Observe, rng: np.random.Generator) -> None:
    distribution = histogram(rng.laplace(size=500_000))
    bounds = [Entropy().interval(distribution, Grid(bits=bits)).upper[0] for bits in (3, 4, 6, 8)]
    assert bounds == sorted(bounds)
    assert bounds[0] < 0.7 * bounds[-1]


def test_a_few_weights_keep_their_range(exact: Observe, rng: np.random.Generator) -> None:
    weights = rng.standard_normal(9)
    found = Entropy().interval(exact(weights), INT8)
    np.testing.assert_allclose(max(-found.lower[0], found.upper[0]), np.abs(weights).max(), rtol=1e-6)


def test_channels_of_all_kinds(histogram: Observe, rng: np.random.Generator) -> None:
    rows = [np.zeros(5000), np.full(5000, -2.0), rng.standard_normal(5000), np.full(5000, 1e-40)]
    found = Entropy().interval(histogram(*rows), UINT8)
    assert found.lower[:2].tolist() == [0.0, -2.0] and found.upper[:2].tolist() == [0.0, 0.0]
    assert found.upper[2] > 2 and found.upper[3] > 0


@pytest.mark.parametrize(
    ("grid", "levels"),
    [(INT8, 128), (UINT8, 256), (Grid(format="uint8"), 128), (Grid(bits=7, symmetric=False), 128)],
)
def test_levels_that_divide_a_range(grid: Grid, levels: int) -> None:
    assert _levels(grid) == levels


@pytest.mark.parametrize("folded", [True, False])
@pytest.mark.parametrize("bound", [0.5, 2.0, 3.9])
def test_the_divergence_is_the_sum_over_cells(
    folded: bool, bound: float, histogram: Observe, rng: np.random.Generator
) -> None:
    """P and Q cell by cell, on a partition that the levels divide; outliers added cell by cell, too."""
    levels, cells = 8, 16
    shape = shape_of(histogram(rng.standard_normal(5000) * 2), bound, levels * cells, folded)
    found = divergences(shape, levels, levels * cells, np.array([bound]), np.array([bound]))[0]
    first = 0.0 if folded else -bound
    inside = (shape.edges[:-1] >= first - 1e-9) & (shape.edges[1:] <= bound + 1e-9)
    kept = np.diff(shape.mass)[inside]
    quantized = np.repeat(kept.reshape(levels, cells).mean(axis=1), cells) / kept.sum()
    reference = kept.copy()
    reference[-1] += 1 - shape.mass[shape.edges <= bound + 1e-9][-1]
    reference[0] += shape.mass[shape.edges >= first - 1e-9][0]
    expected = np.sum(reference * np.log(reference / quantized)) + levels / (2 * shape.values)
    assert found == pytest.approx(expected, rel=0.05)


def shape_of(distribution: Distribution, bound: float, bins: int, folded: bool) -> Shape:
    """The shape on equal cells, `bins` of them inside the bound, as many beyond as the data needs."""
    width = bound / bins if folded else 2 * bound / bins
    beyond = int(np.ceil(10 / width))
    start, stop = (0, bins + beyond) if folded else (-bins // 2 - beyond, bins // 2 + beyond)
    return Shape.of(distribution, (np.arange(start, stop + 1) * width).astype(np.float64), folded=folded)


def test_folding_joins_the_magnitudes(exact: Observe, rng: np.random.Generator) -> None:
    values, edges = rng.standard_normal(500), np.linspace(0, 5, 1000)
    folded = Shape.of(exact(values), edges, folded=True)
    plain = Shape.of(exact(np.abs(values)), edges, folded=False)
    np.testing.assert_allclose(folded.mass, plain.mass, atol=1e-3)


@pytest.mark.parametrize("folded", [True, False])
def test_thepartition_covers_the_data_in_order(folded: bool) -> None:
    edges = partition(np.array([0.5]), np.array([3.0]), np.array([1e6]), 2048, folded)
    assert (edges[0], edges[-1]) == (0.0 if folded else -3.0, 1e6)
    assert (np.diff(edges) > 0).all()
    at_zero = np.searchsorted(edges, 0.01)
    assert np.diff(edges)[at_zero] < 0.5 / 64


@pytest.mark.parametrize("options", [{"bins": 0}, {"bins": 1.5}, {"bins": 10**9}, {"bin": 2048}])
def test_wrong_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="entropy"):
        create("ranges", {"entropy": options})


@pytest.mark.parametrize("bins", [128, 1000, 8192])
def test_the_number_of_bins_hardly_matters(bins: int, histogram: Observe, rng: np.random.Generator) -> None:
    distribution = histogram(np.concatenate([rng.standard_normal(200_000), [80.0]]))
    found = create("ranges", {"entropy": {"bins": bins}}).interval(distribution, INT8)
    assert 3 < found.upper[0] < 6
