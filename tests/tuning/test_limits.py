"""Which outcome wins, and which are on the fronts."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcli.errors import UsageError
from qcli.tuning.limits import best_of, front, is_accurate, is_better, is_kept, missed, quality, reason_of
from qcli.tuning.nouns import MARGIN_DB, Candidate, Limits, Outcome, TuneJob, objective_of


def outcome(
    sqnr: float = 30.0,
    speedup: float = 1.5,
    size: float = 0.3,
    drop: float | None = 0.0,
    *,
    metric: float | None = None,
) -> Outcome:
    candidate = Candidate(recipe="int8", why="as it is")
    return Outcome(
        candidate=candidate,
        sqnr=sqnr,
        drop=drop,
        size=size,
        ms=10 / speedup,
        speedup=speedup,
        steady=True,
        seconds=1.0,
        metric=metric,
    )


FLOAT = outcome(sqnr=200.0, speedup=1.0, size=1.0)

OUTCOMES = st.builds(
    outcome,
    sqnr=st.floats(1, 60),
    speedup=st.floats(0.2, 4),
    size=st.floats(0.1, 1.2),
    drop=st.one_of(st.none(), st.floats(-0.1, 0.5)),
)
LIMITS = st.builds(
    Limits,
    min_sqnr=st.one_of(st.none(), st.floats(1, 50)),
    max_drop=st.one_of(st.none(), st.floats(0, 0.3)),
    max_size=st.one_of(st.none(), st.floats(0.1, 1)),
    max_latency=st.one_of(st.none(), st.floats(0.2, 2)),
)


@given(st.lists(OUTCOMES, max_size=12), LIMITS, st.sampled_from(["latency", "size", "accuracy"]))
def test_the_best_keeps_the_limits_if_any_does(tried: list[Outcome], limits: Limits, aim: str) -> None:
    every = [FLOAT, *tried]
    best, met = best_of(every, limits, objective_of(aim))
    kept = [one for one in every if is_kept(one, limits)]
    assert met == bool(kept)
    if met:
        assert is_kept(every[best], limits)
        fast = [one for one in kept if one.speedup >= 0.98] or kept
        assert not any(is_better(one, every[best], objective_of(aim)) for one in fast)
    else:
        accurate = [one for one in every if is_accurate(one, limits)]
        assert is_accurate(every[best], limits) or not accurate


@given(st.lists(OUTCOMES, min_size=1, max_size=15), st.sampled_from(["ms", "size"]))
def test_nothing_surpasses_what_is_on_the_front(tried: list[Outcome], cost: str) -> None:
    found = front(tried, cost)
    for number in found:
        one = tried[number]
        assert not any(
            other.sqnr > one.sqnr and getattr(other, cost) < getattr(one, cost) for other in tried if other is not one
        )
    least = min(getattr(one, cost) for one in tried)
    assert getattr(tried[found[-1]], cost) == least
    assert tried[found[0]].sqnr == max(one.sqnr for one in tried)


def test_never_slower_than_float() -> None:
    slow = outcome(speedup=0.7, size=0.25)
    stored = outcome(sqnr=40, speedup=0.99, size=0.28)
    assert best_of([FLOAT, slow], Limits(min_sqnr=20), "latency") == (0, True)
    assert best_of([FLOAT, slow, stored], Limits(min_sqnr=20), "latency") == (2, True)
    assert best_of([FLOAT, slow, stored], Limits(min_sqnr=20), "size") == (2, True)
    assert best_of([FLOAT, slow, stored], Limits(min_sqnr=20, max_size=0.26), "latency") == (1, True)


def test_the_smallest_accurate_model_where_nothing_keeps_the_limits() -> None:
    coarse, fine = outcome(sqnr=12, size=0.2, speedup=3), outcome(sqnr=33, size=0.5, speedup=1.2)
    assert best_of([FLOAT, coarse, fine], Limits(min_sqnr=30, max_size=0.3), "latency") == (2, False)
    assert best_of([FLOAT, coarse, fine], Limits(min_sqnr=40, max_latency=0.5), "latency") == (0, False)


def test_what_is_missed_is_said() -> None:
    limits = Limits(min_sqnr=30, max_drop=0.01, max_size=0.2, max_latency=0.5)
    said = list(missed(outcome(sqnr=30.2, drop=None), limits))
    assert [text.split(",")[0] for text in said] == [
        "30.2 dB",
        "an unknown drop",
        "0.30 of the size",
        "0.67 of the time",
    ]
    assert not list(missed(outcome(sqnr=30 + MARGIN_DB, drop=0.01, size=0.2, speedup=2), limits))


@pytest.mark.parametrize(
    "given_limits",
    [
        {"min_sqnr": 0.0},
        {"min_sqnr": -3.0},
        {"min_sqnr": 201.0},
        {"max_drop": -0.1},
        {"max_drop": 1.5},
        {"max_size": 0.0},
        {"max_size": -1.0},
        {"max_latency": 0.0},
        {"max_latency": float("nan")},
        {"min_metric": float("inf")},
    ],
)
def test_limits_that_cannot_be(given_limits: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(given_limits)).replace("_", "-")):
        Limits(**given_limits)


def test_a_time_and_an_objective_that_cannot_be() -> None:
    with pytest.raises(UsageError, match="time-limit"):
        TuneJob(model=Path("a.onnx"), time_limit=0)
    with pytest.raises(UsageError, match="'speed' is no objective"):
        objective_of("speed")


MEASURED = st.builds(
    outcome,
    sqnr=st.floats(1, 60),
    speedup=st.floats(0.2, 4),
    size=st.floats(0.1, 1.2),
    metric=st.sampled_from([-2.0, 0.0, 0.5, 0.75, 1.0]),
)


@given(st.lists(MEASURED, min_size=1, max_size=12), st.sampled_from(["ms", "size"]))
def test_the_front_goes_by_the_metric_then_by_the_ratio(tried: list[Outcome], cost: str) -> None:
    found = [tried[number] for number in front(tried, cost)]
    assert [quality(one) for one in found] == sorted(map(quality, found), reverse=True)
    assert quality(found[0]) == max(map(quality, tried))
    for one in found:
        assert not any(quality(other) > quality(one) and getattr(other, cost) < getattr(one, cost) for other in tried)


@given(st.lists(MEASURED, min_size=1, max_size=12))
def test_the_objective_accuracy_is_the_metric(tried: list[Outcome]) -> None:
    fast = [one for one in tried if one.speedup >= 0.98] or tried
    best, met = best_of(tried, Limits(), "accuracy")
    assert met and quality(tried[best]) == max(map(quality, fast))


def test_a_limit_of_the_metric() -> None:
    good, bad = outcome(metric=0.9, sqnr=10), outcome(metric=0.8, sqnr=50)
    limits = Limits(min_metric=0.9)
    assert is_kept(good, limits) and is_accurate(good, limits) and not is_accurate(bad, limits)
    assert is_better(good, bad, "accuracy")
    assert list(missed(bad, limits, "top1")) == ["top1 0.8, 0.9 at least was asked for"]
    assert list(missed(outcome(sqnr=30.2), Limits(min_metric=30.0))) == [
        "30.2 dB, 30 and 0.5 to spare were asked for"
    ], "without another metric it is the ratio"


def test_the_float_model_keeps_every_limit_of_the_ratio() -> None:
    assert is_kept(FLOAT, Limits(min_sqnr=200.0))


def reason(outcomes: list[Outcome], limits: Limits, metric: str = "sqnr") -> str:
    best, met = best_of(outcomes, limits, "latency")
    assert not met
    return reason_of(outcomes, best, limits, metric)


def test_two_limits_that_exclude_each_other_are_named() -> None:
    coarse, fine = outcome(sqnr=24.1, size=0.25, speedup=3), outcome(sqnr=41.0, size=0.52, speedup=1.2)
    said = reason([FLOAT, coarse, fine], Limits(min_sqnr=30, max_size=0.3))
    assert said.startswith("nothing that was tried keeps the limits: the result is the smallest accurate model, 0.52")
    assert (
        "--min-sqnr 30 and --max-size 0.3 exclude each other in what was tried: "
        "of what keeps --min-sqnr the smallest has 0.520 of the size, "
        "of what keeps --max-size the most accurate has 24.1 dB"
    ) in said
    assert (
        "--min-sqnr 30 and --max-latency 0.5 exclude each other in what was tried: "
        "of what keeps --min-sqnr the fastest has 0.833 of the time, "
        "of what keeps --max-latency the most accurate has 24.1 dB"
    ) in reason([FLOAT, coarse, fine], Limits(min_sqnr=30, max_latency=0.5))


def test_size_and_time_can_exclude_each_other_too() -> None:
    small, fast = outcome(size=0.2, speedup=1.1), outcome(size=0.6, speedup=2)
    said = reason([FLOAT, small, fast], Limits(max_size=0.3, max_latency=0.6))
    assert "of what keeps --max-size the fastest has 0.909 of the time" in said
    assert "of what keeps --max-latency the smallest has 0.600 of the size" in said


def test_drops_and_metrics_in_what_excludes_each_other() -> None:
    exact = outcome(sqnr=200.0, speedup=1.0, size=1.0, metric=0.95)
    coarse = outcome(size=0.25, drop=0.1, metric=0.7)
    assert "the most accurate has a drop of 0.1000" in reason([exact, coarse], Limits(max_drop=0.01, max_size=0.3))
    said = reason([exact, coarse], Limits(min_metric=0.9, max_size=0.3), "f1.py")
    assert said.count("the result is the float model") == 1
    assert "of what keeps --max-size the most accurate has f1.py 0.7" in said


def test_a_limit_that_no_plan_keeps_is_named_and_the_others_are_still_looked_at() -> None:
    coarse = outcome(sqnr=24.1, size=0.25, speedup=3)
    said = reason([FLOAT, coarse], Limits(min_sqnr=30, max_size=0.3, max_latency=0.1))
    assert "No plan that was tried keeps --max-latency 0.1: the fastest has 0.333 of the time" in said
    assert "--min-sqnr 30 and --max-size 0.3 exclude each other" in said


def test_three_limits_of_which_any_two_are_kept() -> None:
    tried = [outcome(sqnr=40, size=0.2, speedup=0.9), outcome(sqnr=40, size=0.9, speedup=3), outcome(20, 3, 0.2)]
    said = reason([FLOAT, *tried], Limits(min_sqnr=30, max_size=0.3, max_latency=0.5))
    assert "Any two of --min-sqnr 30, --max-size 0.3, --max-latency 0.5 are kept by some plan" in said


def test_the_most_accurate_where_nothing_is_accurate() -> None:
    tried = [outcome(metric=0.5, size=1.0), outcome(metric=0.7, size=0.4), outcome(metric=0.6, size=0.3)]
    said = reason(tried, Limits(min_metric=0.9), "mine.py")
    assert "the result is the most accurate model, mine.py 0.7" in said


@given(st.lists(OUTCOMES, max_size=8), LIMITS)
def test_there_is_always_a_reason(tried: list[Outcome], limits: Limits) -> None:
    every = [FLOAT, *tried]
    best, met = best_of(every, limits, "latency")
    if not met:
        said = reason_of(every, best, limits, "sqnr")
        assert "the result is the" in said and "inf" not in said
        assert any(words in said for words in ("No plan", "exclude each other", "Any two")), said
