"""How time is measured; never how much."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import dataset, model_path

from qcli.contracts import InputSpec
from qcli.errors import InputError, UsageError
from qcli.latency import Effort, Latency, Timing, bench, made_up_feeds, measure
from qcli.report import encode_report
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


def test_bench_of_files(quantized_mlp: Path) -> None:
    report = bench([model_path("mlp"), quantized_mlp], [dict(next(iter(dataset("mlp"))).feeds)], effort=SHORT)
    first, second = report.models
    assert (first.path, second.path) == (str(model_path("mlp")), str(quantized_mlp))
    assert (first.bytes, first.speedup) == (model_path("mlp").stat().st_size, 1.0)
    assert second.speedup == pytest.approx(first.ms / second.ms)
    assert report.invented_samples is False
    assert b'"schema": 1' in encode_report(report)


@pytest.mark.parametrize("name", ["cnn", "transformer", "gru", "mlp"])
def test_bench_without_samples_says_that_it_made_them_up(name: str) -> None:
    assert bench([model_path(name)], effort=SHORT).invented_samples is True


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


def test_bench_of_nothing_and_of_no_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no model"):
        bench([])
    with pytest.raises(InputError, match="not found"):
        bench([model_path("mlp"), tmp_path / "none.onnx"])
