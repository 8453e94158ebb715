"""How time is measured; never how much."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from qcli.contracts import InputSpec
from qcli.latency import Effort, Latency, Timing, effort_of, made_up_feeds, measure
from qcli.types import Array

SHORT = Effort(least=0.0, most=0.0)


class Recorder:
    """A model that notes in a shared log that it ran."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name = name
        self.log = log

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Any]:
        self.log.append(f"{self.name}{int(feeds['x'][0])}")
        return {}


def feeds(*numbers: int) -> list[dict[str, Array]]:
    return [{"x": np.array([number])} for number in numbers]


def test_runs_alternate_and_neither_model_is_always_the_second() -> None:
    log: list[str] = []
    latency = measure([Recorder("A", log), Recorder("B", log)], feeds(0), 1, SHORT)
    assert log[:6] == ["A0"] * 3 + ["B0"] * 3, "warm-up"
    assert log[6:] == ["A0", "B0", "B0", "A0"]
    assert latency.rounds == 2


def test_all_models_run_on_the_same_samples() -> None:
    log: list[str] = []
    measure([Recorder("A", log), Recorder("B", log)], feeds(0, 1, 2), 1, Effort(least=0.0, most=60.0))
    timed = log[6:]
    assert timed[:12] == ["A0", "B0", "B0", "A0", "A1", "B1", "B1", "A1", "A2", "B2", "B2", "A2"]
    assert len(timed) == 2 * 16, "fifteen rounds, and whole turns"


def test_three_models() -> None:
    log: list[str] = []
    latency = measure([Recorder(name, log) for name in "ABC"], feeds(0), 4, SHORT)
    assert log[9:] == ["A0", "B0", "C0", "C0", "B0", "A0"]
    assert len(latency.timings) == len(latency.ratios) == 3
    assert latency.ratios[0] == 1.0
    assert latency.threads == 4


def test_medians_and_quartiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that gives model A 2 ms a run and model B 1 ms."""
    now = [0.0]

    class Timed(Recorder):
        def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Any]:
            now[0] += {"A": 0.002, "B": 0.001}[self.name]
            return {}

    monkeypatch.setattr("qcli.latency.perf_counter", lambda: now[0])
    latency = measure([Timed("A", []), Timed("B", [])], feeds(0), 1, Effort(least=0.6, most=4.0))
    assert latency.rounds == 200
    assert [timing.median_ms for timing in latency.timings] == pytest.approx([2.0, 1.0])
    assert [timing.spread_ms for timing in latency.timings] == pytest.approx([0.0, 0.0], abs=1e-6)
    assert latency.ratios == pytest.approx((1.0, 2.0))


@pytest.mark.parametrize(("spread", "steady"), [(0.0, True), (2.0, True), (2.1, False)])
def test_a_spread_beyond_the_median_is_not_steady(spread: float, steady: bool) -> None:
    timings = (Timing(median_ms=5.0, spread_ms=0.1), Timing(median_ms=2.0, spread_ms=spread))
    assert Latency(timings=timings, ratios=(1.0, 2.5), rounds=16, threads=1).steady is steady


def test_slow_models_end_at_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    class Slow(Recorder):
        def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Any]:
            now[0] += 0.4
            return {}

    monkeypatch.setattr("qcli.latency.perf_counter", lambda: now[0])
    latency = measure([Slow("A", []), Slow("B", [])], feeds(0), 1, Effort(least=0.6, most=4.0))
    assert latency.rounds == 6
    assert now[0] < 4.0 + 2 * 4 * 0.4


@pytest.mark.parametrize(("share", "said"), [(0.0, False), (0.05, False), (0.06, True)])
def test_single_runs_that_were_disturbed_are_said_to_be(share: float, said: bool) -> None:
    timings = (Timing(median_ms=5.0, spread_ms=0.1), Timing(median_ms=2.0, spread_ms=0.1, outliers=share))
    latency = Latency(timings=timings, ratios=(1.0, 2.5), rounds=16, threads=1)
    assert any("6% of a model's runs" in doubt for doubt in latency.doubts()) is said
    assert len(list(latency.doubts())) == said


def test_outliers_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tenth run takes 4 ms instead of 1."""
    now, runs = [0.0], [0]

    class Disturbed(Recorder):
        def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Any]:
            runs[0] += 1
            now[0] += 0.004 if runs[0] % 10 == 0 else 0.001
            return {}

    monkeypatch.setattr("qcli.latency.perf_counter", lambda: now[0])
    latency = measure([Disturbed("A", [])], feeds(0), 1, Effort(least=0.13, most=4.0, warm_up=0))
    [timing] = latency.timings
    assert timing.outliers == pytest.approx(0.1)
    assert (timing.fastest_ms, timing.slowest_ms) == pytest.approx((1.0, 4.0))


@pytest.mark.parametrize("runs", [0, 1, 7])
def test_warm_up_runs_as_often_as_it_is_told(runs: int) -> None:
    log: list[str] = []
    measure([Recorder("A", log)], feeds(0), 1, Effort(least=0.0, most=0.0, warm_up=runs))
    assert len(log) == runs + 2


def test_the_effort_grows_with_the_least_time() -> None:
    assert effort_of() == Effort()
    assert effort_of(1.0, 5) == Effort(least=1.0, most=4.0, warm_up=5)
    assert effort_of(60.0) == Effort(least=60.0, most=60.0)


def test_made_up_samples_have_the_declared_types_and_shapes() -> None:
    specs = (
        InputSpec(name="pixels", dtype="float32", shape=(None, 3, 2)),
        InputSpec(name="half", dtype="float16", shape=(2,)),
        InputSpec(name="tokens", dtype="int64", shape=(None, None)),
        InputSpec(name="flag", dtype="bool", shape=()),
    )
    made, again = made_up_feeds(specs), made_up_feeds(specs)
    assert {name: (value.dtype.name, value.shape) for name, value in made.items()} == {
        "pixels": ("float32", (1, 3, 2)),
        "half": ("float16", (2,)),
        "tokens": ("int64", (1, 1)),
        "flag": ("bool", ()),
    }
    assert not made["tokens"].any()
    assert all(np.array_equal(made[name], again[name]) for name in made)
