"""How much of a ratio is due to the choice of samples, beside what drawing them anew says."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, log, nan

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcli.metrics.sqnr import Sqnr
from qcli.tuning.spread import Spread

Pairs = Sequence[tuple[float, float]]


def error(**outputs: Pairs) -> float:
    """The error of outputs, each with the signal and the noise of every sample."""
    spread = Spread()
    for row in range(max(map(len, outputs.values()), default=0)):
        spread.update({name: Sqnr(*pairs[row]) for name, pairs in outputs.items()})
    return spread.error_db()


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1 << 32), st.floats(0.05, 0.5), st.floats(0.0, 0.5))
def test_as_wide_as_samples_drawn_anew_make_it(seed: int, noisy: float, loud: float) -> None:
    """Many searches, each on samples of its own: their ratios scatter by what each of them says of itself."""
    random = np.random.default_rng(seed)
    signal = np.exp(loud * random.standard_normal((1500, 50)))
    noise = 1e-3 * signal * np.exp(noisy * random.standard_normal(signal.shape))
    ratios = 10 * np.log10(signal.sum(axis=1) / noise.sum(axis=1))
    said = [
        error(y=list(zip(a.tolist(), b.tolist(), strict=True))) for a, b in zip(signal[:60], noise[:60], strict=True)
    ]
    assert np.median(said) == pytest.approx(ratios.std(), rel=0.15)


@given(st.lists(st.floats(0.1, 10), min_size=2, max_size=30), st.floats(1e-6, 1e3))
def test_the_same_ratio_in_every_sample_is_sure(signals: list[float], ratio: float) -> None:
    assert error(y=[(one, ratio * one) for one in signals]) == pytest.approx(0.0, abs=1e-6)


@given(
    st.lists(st.tuples(st.floats(0.1, 10), st.floats(0.01, 1)), min_size=2, max_size=30),
    st.floats(1e-3, 1e3),
    st.floats(1e-3, 1e3),
)
def test_units_do_not_matter(pairs: list[tuple[float, float]], of_signal: float, of_noise: float) -> None:
    scaled = [(of_signal * signal, of_noise * noise) for signal, noise in pairs]
    assert error(y=scaled) == pytest.approx(error(y=pairs), rel=1e-6, abs=1e-9)


@given(st.lists(st.tuples(st.floats(0.1, 10), st.floats(0.01, 1)), min_size=2, max_size=20))
def test_four_times_the_samples_halve_it(pairs: list[tuple[float, float]]) -> None:
    count, more = len(pairs), 4 * len(pairs)
    expected = error(y=pairs) * ((count - 1) / (more - 1)) ** 0.5
    assert error(y=pairs * 4) == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_two_samples_by_hand() -> None:
    """Signals 1 and 1, noise 1 and 3: the ratio of sums is 2, the errors are -1 and 1, 2 / 1 * 2 is under the root."""
    assert error(y=[(1.0, 1.0), (1.0, 3.0)]) == pytest.approx(10 / log(10) * 2 / 4)


def test_the_worst_output_counts() -> None:
    steady, shaky = [(1.0, 0.5), (1.0, 0.5)], [(1.0, 0.1), (1.0, 0.3)]
    assert error(steady=steady, shaky=shaky) == pytest.approx(0.0)
    assert error(steady=[(1.0, 0.01)] * 2, shaky=shaky) == pytest.approx(error(shaky=shaky))
    assert error(shaky=shaky) > 0.1


@pytest.mark.parametrize(
    "pairs",
    [
        [],
        [(1.0, 0.5)],
        [(1.0, 0.0), (2.0, 0.0)],
        [(0.0, 0.5), (0.0, 0.1)],
        [(0.0, 0.0), (0.0, 0.0)],
        [(1.0, inf), (1.0, 0.1)],
        [(1.0, nan), (1.0, 0.1)],
        [(1e308, 1e308), (1e308, 1e308)],
        [(1.0, 1e200), (1.0, 1.0)],
        [(1e-300, 1e-310), (1e-300, 1e300)],
    ],
)
def test_nothing_to_tell(pairs: Pairs) -> None:
    """One sample, no noise, no signal, results that are no numbers: 0, never a figure that JSON cannot hold."""
    found = error(y=pairs)
    assert np.isfinite(found) and found >= 0


def test_no_outputs() -> None:
    assert Spread().error_db() == 0.0
    assert error(y=[]) == 0.0
