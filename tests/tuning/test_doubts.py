"""Warnings about searches that had too little time or a busy machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from qcli.latency import Latency, Timing
from qcli.tuning.doubts import busy, doubts
from qcli.tuning.nouns import FLOAT, Candidate, Outcome, TuneJob
from qcli.types import Match, Rule

RECIPES = ("int8", "int8-weights", "int8-transformer")
PART = (Rule(match=Match(name="a"), keep="float"),)


def outcome(recipe: str = "int8", found: float = 1.0, *, steady: bool = True, rules: tuple[Rule, ...] = ()) -> Outcome:
    return Outcome(
        candidate=Candidate(recipe=recipe, why="as it is", rules=rules),
        sqnr=30.0,
        drop=0.0,
        size=0.3,
        ms=1.0,
        speedup=1.5,
        steady=steady,
        seconds=1.0,
        found=found,
    )


def job(limit: float, *recipes: str) -> TuneJob:
    first, *more = recipes
    return TuneJob(model=Path("m.onnx"), recipe=first, recipes=tuple(more), time_limit=limit)


FLOAT_MODEL = outcome(FLOAT, 0.0)


def twice(first: float, second: float, spread: float = 0.0) -> Latency:
    timings = tuple(Timing(median_ms=median, spread_ms=spread) for median in (first, second))
    return Latency(timings=timings, ratios=(1.0, 1.0), rounds=15, threads=1)


def test_a_quiet_machine_raises_no_doubt() -> None:
    assert not list(busy(twice(1.0, 1.02)))
    assert not list(busy(twice(1.0, 1.02, spread=0.3)))
    assert not list(busy(twice(0.0, 0.0)))


@pytest.mark.parametrize(("first", "second"), [(1.0, 1.1), (1.1, 1.0)])
def test_a_model_faster_than_itself(first: float, second: float) -> None:
    (said,) = busy(twice(first, second, spread=2.0))
    assert said.startswith("the machine is busy: timed twice, the float model differs from itself by 10%")
    assert "--no-cache" in said


def test_latencies_that_lie_far_apart() -> None:
    (said,) = busy(twice(1.0, 1.0, spread=0.75))
    assert "latencies of the float model differ by 75%" in said and "idle machine" in said


def test_a_search_with_time_enough_raises_no_doubt() -> None:
    assert not list(doubts(job(60, *RECIPES), [FLOAT_MODEL, outcome()], 59.0, divisible=True))
    tried = [FLOAT_MODEL, outcome(), outcome(rules=PART)]
    assert not list(doubts(job(60, "int8"), tried, 61.0, divisible=True))


def test_a_limit_shorter_than_the_first_recipe() -> None:
    (said,) = doubts(job(5, *RECIPES), [FLOAT_MODEL, outcome(found=11.0)], 12.0, divisible=True)
    assert said.startswith("the time limit of 5 s was over before int8-weights and int8-transformer were tried")
    assert "--time-limit 34 would do for all recipes" in said


def test_a_limit_shorter_than_the_last_recipe() -> None:
    tried = [FLOAT_MODEL, outcome(found=20.0), outcome("int8-weights", found=90.0)]
    (said,) = doubts(job(80, *RECIPES), tried, 91.0, divisible=True)
    assert said.startswith("the time limit of 80 s was over before int8-transformer was tried")
    assert "--time-limit 170 " in said, "as long again as the slowest recipe, rounded up"


def test_no_time_for_parts() -> None:
    tried = [FLOAT_MODEL, outcome(found=8.0)]
    (said,) = doubts(job(5, "int8"), tried, 9.0, divisible=True)
    assert said == (
        "the time limit of 5 s was over before any part of a recipe was tried on its own: use --time-limit 18 or more"
    )
    assert not list(doubts(job(5, "int8-weights"), [*tried[:1], outcome("int8-weights")], 9.0, divisible=False))


def test_nothing_but_float() -> None:
    (said,) = doubts(job(5, "int8"), [FLOAT_MODEL], 6.0, divisible=False)
    assert "before int8 was tried: --time-limit 12 would do" in said


def test_plans_timed_while_the_machine_was_busy_are_counted() -> None:
    tried = [FLOAT_MODEL, outcome(steady=False), outcome("int8-weights", steady=False)]
    (said,) = doubts(job(60, "int8", "int8-weights"), tried, 10.0, divisible=True)
    assert said.startswith("the machine was busy while 2 of 3 plans were timed, marked with '?'")
