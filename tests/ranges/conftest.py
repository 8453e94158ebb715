"""What the tests of all ranges share: distributions of samples, and the error that a range really makes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from qcli.distribution import Distribution, from_weights
from qcli.plugins import create
from qcli.stats.histogram import Histogram
from qcli.types import FloatArray, Grid, Interval

Measure = Callable[[FloatArray, Interval, Grid], float]
Observe = Callable[..., Distribution]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.fixture
def histogram() -> Observe:
    """The distribution of rows of values as a histogram knows it: one row is one channel."""

    def observe(*rows: FloatArray) -> Distribution:
        statistic = Histogram.empty()
        statistic.update(np.stack(rows).astype(np.float32))
        return statistic.distribution()

    return observe


@pytest.fixture
def exact() -> Observe:
    """The distribution of rows of values, exactly."""
    return lambda *rows: from_weights(np.stack(rows).astype(np.float32), 0)


@pytest.fixture
def true_mse() -> Measure:
    """The mean squared error of encoding and decoding `values` with the grid that spans an interval [1]."""

    def measure(values: FloatArray, interval: Interval, grid: Grid) -> float:
        number_format = create("formats", grid.format)
        scale = number_format.scale(interval, grid)
        values = values.astype(np.float32)
        decoded = number_format.decode(number_format.encode(values, scale), scale)
        return float(np.mean((decoded.astype(np.float64) - values) ** 2))

    return measure
