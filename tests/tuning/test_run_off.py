"""The race of the fastest plans: who is in it, and what it changes."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import SAMPLE_MODELS

import qcli.tuning.work
from qcli import TuneJob, tune
from qcli.latency import Latency, Timing
from qcli.tuning.nouns import FLOAT, Candidate, Limits, Objective, Outcome
from qcli.tuning.run_off import finalists, keep_race, known_race, timed
from qcli.tuning.trying import Trying


def outcome(speedup: float, sqnr: float = 40.0, recipe: str = "int8") -> Outcome:
    return Outcome(
        candidate=Candidate(recipe=recipe, why=f"{speedup}"),
        sqnr=sqnr,
        drop=None,
        size=0.3,
        ms=1 / speedup,
        speedup=speedup,
        steady=True,
        seconds=0.0,
    )


def job(objective: Objective = "latency", table: Path | None = None, *, cache: bool = True) -> TuneJob:
    limits = Limits(min_sqnr=30.0)
    return TuneJob(
        model=Path("m.onnx"), recipe="int8", limits=limits, objective=objective, cost_table=table, cache=cache
    )


def latency(*ms: float, spread: float = 0.0) -> Latency:
    timings = tuple(Timing(median_ms=one, spread_ms=spread) for one in ms)
    return Latency(timings=timings, ratios=tuple(ms[0] / one for one in ms), rounds=9, threads=1)


def test_finalists_are_as_fast_as_the_best_and_keep_the_limits() -> None:
    tried = [
        outcome(1.0, 200.0, FLOAT),
        outcome(1.95),
        outcome(2.0),
        outcome(2.5, 20.0),
        outcome(1.2),
        outcome(1.97),
        outcome(1.96),
    ]
    assert finalists(tried, job()) == (2, 5, 6)


@pytest.mark.parametrize(
    ("speeds", "given"),
    [
        ((1.0, 2.0, 1.5), job()),
        ((1.0, 2.0, 2.0), job("size")),
        ((1.0, 2.0, 2.0), job("accuracy")),
        ((1.0, 2.0, 2.0), job(table=Path("table.json"))),
    ],
    ids=["one alone", "size", "accuracy", "nothing is timed"],
)
def test_no_race_without_two_that_are_to_be_fast(speeds: tuple[float, ...], given: TuneJob) -> None:
    first, *others = speeds
    assert finalists([outcome(first, 200.0, FLOAT), *map(outcome, others)], given) == ()


def test_no_race_where_nothing_keeps_the_limits() -> None:
    tried = [outcome(1.0, 29.0, FLOAT), outcome(2.0, 20.0), outcome(2.0, 20.0)]
    assert finalists(tried, job()) == ()


def test_a_race_gives_new_speeds() -> None:
    first, second = timed([outcome(2.0), outcome(1.96)], latency(10.0, 5.0, 4.0, spread=6.0))
    assert (first.ms, first.speedup, second.ms, second.speedup) == (5.0, 2.0, 4.0, 2.5)
    assert not first.steady and first.sqnr == 40.0


def test_races_are_kept_unless_the_machine_was_busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QCLI_CACHE_DIR", str(tmp_path))
    keep_race("a", job(), latency(2.0, 1.0))
    keep_race("b", job(), latency(2.0, 1.0, spread=3.0))
    keep_race("c", job(cache=False), latency(2.0, 1.0))
    assert known_race("a", job()) == latency(2.0, 1.0)
    assert known_race("b", job()) is known_race("c", job()) is known_race("a", job(cache=False)) is None


def test_who_wins_the_race_is_the_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QCLI_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(qcli.tuning.work, "finalists", lambda *_: (1, 2))

    def last_wins(self: Trying, candidates: list[object]) -> Latency:
        assert len(candidates) == 2
        return latency(1000.0, 2.0, 1.0)

    monkeypatch.setattr(Trying, "race", last_wins)
    home = SAMPLE_MODELS / "mlp"
    found = tune(
        TuneJob(
            model=home / "model.onnx",
            calibration=home / "calib",
            recipe="int8",
            samples=24,
            output=tmp_path / "out.onnx",
            limits=Limits(min_sqnr=20.0),
            threads=1,
            recipes=("int8-weights",),
            time_limit=30.0,
        )
    )
    assert found.best == 2
    assert (found.tried[1].speedup, found.tried[2].speedup) == (500.0, 1000.0)
    assert found.tried[2].candidate.recipe == "int8-weights"
    assert (tmp_path / "out.onnx").is_file() and (tmp_path / "out.plan.yaml").is_file()
