"""Which outcome wins, and which are on the fronts."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcli.errors import UsageError
from qcli.tuning.limits import best_of, front, is_accurate, is_better, is_kept, missed
from qcli.tuning.nouns import MARGIN_DB, Candidate, Limits, Outcome, TuneJob, objective_of


def outcome(sqnr: float = 30.0, speedup: float = 1.5, size: float = 0.3, drop: float | None = 0.0) -> Outcome:
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
