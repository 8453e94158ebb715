"""`percentile`: cuts what was asked for, from the right sides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qcli.distribution import Distribution, from_weights
from qcli.errors import UsageError
from qcli.plugins import create
from qcli.ranges.percentile import Percentile
from qcli.types import FloatArray, Grid

Observe = Callable[..., Distribution]
BIN = 2.0**-7


@pytest.mark.parametrize("keep", [50, 90, 99, 99.9, 99.999])
def test_two_sided_agrees_with_numpy(keep: float, histogram: Observe, rng: np.random.Generator) -> None:
    values = rng.standard_normal(50_000)
    found = Percentile(keep=keep).interval(histogram(values), Grid())
    each = (100 - keep) / 2
    for bound, percent in ((found.lower, each), (found.upper, 100 - each)):
        around = [np.percentile(values, percent, method=method) for method in ("lower", "higher")]
        assert min(around) - abs(bound[0]) * BIN <= bound[0] <= max(around) + abs(bound[0]) * BIN


@pytest.mark.parametrize("sign", [1, -1])
def test_one_sided_cuts_the_far_side_only(sign: int, histogram: Observe, rng: np.random.Generator) -> None:
    values = sign * rng.exponential(size=50_000)
    found = Percentile(keep=99).interval(histogram(values), Grid())
    far, near = (found.upper, found.lower) if sign > 0 else (found.lower, found.upper)
    assert near.tolist() == [0.0]
    np.testing.assert_allclose(abs(far), np.percentile(np.abs(values), 99), rtol=BIN)


@given(
    hnp.arrays(np.float32, st.integers(1, 60), elements=st.floats(-1e6, 1e6, width=32)),
    st.floats(1, 100),
)
def test_never_cuts_more_than_asked_for(values: FloatArray, keep: float) -> None:
    found = Percentile(keep=keep).interval(from_weights(values, None), Grid())
    outside = (values < found.lower).sum() + (values > found.upper).sum()
    assert outside <= values.size * (100 - keep) / 100 * (1 + 1e-6)


@given(hnp.arrays(np.float32, st.integers(2, 60), elements=st.floats(0.125, 1e6, width=32), unique=True))
def test_cuts_as_many_as_asked_for(values: FloatArray) -> None:
    keep = 100 * (1 - 1 / values.size)
    found = Percentile(keep=keep).interval(from_weights(values, None), Grid())
    assert found.upper[0] == np.sort(values)[-2]


def test_keeping_everything_is_minmax(histogram: Observe, rng: np.random.Generator) -> None:
    distribution = histogram(rng.standard_normal(1000))
    found = Percentile(keep=100).interval(distribution, Grid())
    assert (found.lower, found.upper) == (distribution.lower, distribution.upper)


def test_fewer_values_than_the_cut_keep_the_exact_extrema(histogram: Observe) -> None:
    found = Percentile().interval(histogram(np.array([-1.003, 0.5, 2.009])), Grid())
    np.testing.assert_array_equal([found.lower[0], found.upper[0]], np.array([-1.003, 2.009], np.float32))


def test_a_tensor_that_is_almost_always_zero_keeps_the_rest(histogram: Observe) -> None:
    values = np.zeros(100_000)
    values[0] = 3.0
    found = Percentile(keep=99).interval(histogram(values), Grid())
    assert found.upper.tolist() == [3.0]


def test_each_channel_is_cut_on_its_own(histogram: Observe, rng: np.random.Generator) -> None:
    rows = [rng.standard_normal(10_000), rng.exponential(size=10_000) + 1, -rng.exponential(size=10_000)]
    found = Percentile(keep=98).interval(histogram(*rows), Grid())
    np.testing.assert_allclose(found.lower, [np.percentile(rows[0], 1), 0, np.percentile(rows[2], 2)], rtol=0.01)
    np.testing.assert_allclose(found.upper, [np.percentile(rows[0], 99), np.percentile(rows[1], 98), 0], rtol=0.01)


@pytest.mark.parametrize("options", [{"keep": 0}, {"keep": -1}, {"keep": 100.5}, {"keep": "99"}, {"kept": 99}])
def test_wrong_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="percentile"):
        create("ranges", {"percentile": options})


def test_options_are_read() -> None:
    assert create("ranges", {"percentile": {"keep": 99}}).keep == 99
