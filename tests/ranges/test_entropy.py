"""`entropy`: clips rare outliers, keeps what has a shape up to its ends, and does not collapse to minmax."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from qcli.distribution import Distribution
from qcli.errors import UsageError
from qcli.plugins import create
from qcli.ranges.entropy import Entropy, _divergences, _levels, _Shape
from qcli.types import Grid

Observe = Callable[..., Distribution]
INT8, UINT8 = Grid(), Grid(format="uint8", symmetric=False)


@pytest.mark.parametrize("grid", [INT8, UINT8])
@pytest.mark.parametrize("far", [30.0, 1000.0, 1e6])
def test_rare_outliers_are_clipped(
    grid: Grid, far: float, histogram: Observe, rng: np.random.Generator
) -> None:
    values = np.concatenate([rng.standard_normal(200_000), [far, -far / 2, far / 3]])
    found = Entropy().interval(histogram(values), grid)
    assert 2.5 < found.upper[0] < 8
    assert -8 < found.lower[0] < -2.5


@pytest.mark.parametrize("grid", [INT8, UINT8])
@pytest.mark.parametrize(("low", "high"), [(-1, 1), (0, 1), (-3, 0)])
def test_uniform_data_keeps_its_range(
    grid: Grid, low: float, high: float, histogram: Observe, rng: np.random.Generator
) -> None:
    found = Entropy().interval(histogram(rng.uniform(low, high, 200_000)), grid)
    np.testing.assert_allclose([found.lower[0], found.upper[0]], [low, high], atol=0.02)


def test_an_outlier_on_one_side_leaves_the_other_alone(histogram: Observe, rng: np.random.Generator) -> None:
    values = np.concatenate([rng.uniform(-2, 1, 200_000), [500.0]])
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


def test_the_divergence_by_hand(exact: Observe) -> None:
    """Two levels of two bins over 0 to 4: P is what was seen, Q each level's mean over the bins that P fills."""
    values = np.repeat([0.5, 1.5, 2.5, 3.5, 9.0], [6, 2, 4, 0, 4])
    shape = _Shape.of(exact(values), 0, folded=False)
    found = _divergences(shape, 2, 4, np.zeros(1), np.array([4.0]))
    reference = np.array([6, 2, 4, 4]) / 16
    quantized = np.array([4, 4, 2, 2]) / 12
    assert found[0] == pytest.approx(np.sum(reference * np.log(reference / quantized)), abs=1e-4)


def test_folding_joins_the_magnitudes(exact: Observe, rng: np.random.Generator) -> None:
    values = rng.standard_normal(500)
    folded = _Shape.of(exact(values), 0, folded=True)
    plain = _Shape.of(exact(np.abs(values)), 0, folded=False)
    where = np.linspace(0, 4, 100)
    np.testing.assert_allclose(folded.below(where), plain.below(where), atol=1e-3)


@pytest.mark.parametrize("options", [{"bins": 0}, {"bins": 1.5}, {"bins": 10**9}, {"bin": 2048}])
def test_wrong_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="entropy"):
        create("ranges", {"entropy": options})


@pytest.mark.parametrize("bins", [128, 1000, 8192])
def test_the_number_of_bins_hardly_matters(bins: int, histogram: Observe, rng: np.random.Generator) -> None:
    distribution = histogram(np.concatenate([rng.standard_normal(200_000), [80.0]]))
    found = create("ranges", {"entropy": {"bins": bins}}).interval(distribution, INT8)
    assert 3 < found.upper[0] < 6
