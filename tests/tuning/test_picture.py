"""Fronts drawn in characters: whatever was tried, the picture holds it and fits."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcli.tuning.canvas import ASCII, UNICODE, is_drawable
from qcli.tuning.limits import best_of, front
from qcli.tuning.nouns import FLOAT, Candidate, Limits, Outcome
from qcli.tuning.picture import LEAST_WIDTH, Axis, View, _frame, _point, draw

FIGURES = st.floats(allow_nan=True, allow_infinity=True) | st.floats(0.01, 10) | st.sampled_from([0.0, 1.0])
RATIOS = st.floats(allow_nan=True, allow_infinity=True) | st.floats(0, 60) | st.sampled_from([30.0, 100.0, 200.0])


def outcome(sqnr: float = 30.0, speedup: float = 1.5, size: float = 0.3, recipe: str = "int8") -> Outcome:
    return Outcome(
        candidate=Candidate(recipe=recipe, why="as it is"),
        sqnr=sqnr,
        drop=0.0,
        size=size,
        ms=10 / speedup if speedup else math.inf,
        speedup=speedup,
        steady=True,
        seconds=1.0,
    )


FLOAT_MODEL = outcome(sqnr=200.0, speedup=1.0, size=1.0, recipe=FLOAT)
ANYTHING = st.lists(st.builds(outcome, sqnr=RATIOS, speedup=FIGURES, size=FIGURES), max_size=25)
SENSIBLE = st.lists(
    st.builds(outcome, sqnr=st.floats(1, 200), speedup=st.floats(0.2, 5), size=st.floats(0.1, 1.2)), max_size=25
)
LIMITS = st.builds(
    Limits,
    min_sqnr=st.none() | st.floats(0.1, 200),
    max_size=st.none() | st.floats(0.01, 10),
    max_latency=st.none() | st.floats(0.01, 10),
)
AXES = st.sampled_from(["speed", "size"])


def view(tried: list[Outcome], limits: Limits, axis: Axis) -> View:
    best, _ = best_of(tried, limits, "latency")
    return View(tried, front(tried, "ms" if axis == "speed" else "size"), best, limits, axis)


def plot(lines: list[str]) -> list[str]:
    """The rows of the picture alone, without what stands before, below and under them."""
    bottom = next(number for number, line in enumerate(lines) if line.startswith("   dB"))
    return [line[7:] for line in lines[:bottom]]


@given(ANYTHING, LIMITS, AXES, st.integers(0, 120), st.booleans())
def test_it_never_fails_and_keeps_the_width(
    tried: list[Outcome], limits: Limits, axis: Axis, width: int, plain: bool
) -> None:
    seen = View([FLOAT_MODEL, *tried], range(len(tried) + 1), len(tried), limits, axis)
    lines = draw(seen, width, plain=plain)
    assert lines == draw(seen, width, plain=plain)
    assert bool(lines) == (width >= LEAST_WIDTH)
    assert all(len(line) <= width and line == line.rstrip() and line.isprintable() for line in lines)
    assert not plain or all(line.isascii() for line in lines)
    assert "nan" not in "".join(lines) and "inf" not in "".join(lines)


@given(SENSIBLE, LIMITS, AXES, st.integers(LEAST_WIDTH, 100), st.booleans())
def test_every_plan_of_the_front_is_marked(
    tried: list[Outcome], limits: Limits, axis: Axis, width: int, plain: bool
) -> None:
    seen = view([FLOAT_MODEL, *tried], limits, axis)
    rows = plot(draw(seen, width, plain=plain))
    script = ASCII if plain else UNICODE
    points = {number: point for number, one in enumerate(seen.tried) if (point := _point(one, axis)) is not None}
    frame = _frame(seen, points, width - 7)
    for number in (*seen.front, seen.best, 0):
        column, row = frame.cell(points[number])
        marks = script.best if number == seen.best else (script.best, script.float_, script.kept, script.missed)
        assert rows[row][column] in marks


@given(SENSIBLE, LIMITS, AXES)
def test_what_is_better_is_further_up_and_right(tried: list[Outcome], limits: Limits, axis: Axis) -> None:
    seen = view([FLOAT_MODEL, *tried], limits, axis)
    points = {number: point for number, one in enumerate(seen.tried) if (point := _point(one, axis)) is not None}
    frame = _frame(seen, points, 60)
    for first, one in points.items():
        for second, other in points.items():
            better = seen.tried[first].sqnr >= seen.tried[second].sqnr
            assert not better or frame.dot(one)[1] <= frame.dot(other)[1]
            ahead = one.x >= other.x if axis == "speed" else one.x <= other.x
            assert not ahead or frame.dot(one)[0] >= frame.dot(other)[0]


def test_a_small_one_in_full() -> None:
    tried = [FLOAT_MODEL, outcome(20.0, 2.0, 0.25), outcome(40.0, 1.5, 0.5), outcome(25.0, 1.25, 0.7)]
    assert draw(view(tried, Limits(min_sqnr=30.0, max_latency=0.8), "speed"), 40, plain=True) == [
        "exact |F       :",
        "      ||       :",
        " 40.0 |+---------------*",
        "      |        :       |",
        "      |        :       |",
        "      |        :       |",
        " 30.0 |~~~~~~~~:~~~~~~~|~~~~~~~~~~~~~~~~",
        "      |        :       |",
        "      |        :       |",
        "      |        .       |",
        "      |        :       |",
        " 20.0 |        :       +---------------o",
        "   dB +---------------------------------",
        "       1.00x         speed         2.00x",
        "",
        "* best   F float",
        "o front, not within the limits   . tried",
        ": limit 1.25x   ~ limit 30 dB",
    ]


def test_one_plan_alone() -> None:
    lines = draw(View([FLOAT_MODEL], (0,), 0, Limits(), "size"), 30)
    assert [line.strip() for line in lines if "*" in line] == ["exact │           *", "* best: float"]
    assert "size 1.000" in lines[2]


def test_equal_plans_share_a_place() -> None:
    lines = draw(view([outcome(), outcome(), outcome()], Limits(), "speed"), 60)
    assert sum(line.count("*") for line in plot(lines)) == 1
    assert any(line.startswith(" 30.0 │") for line in lines) and not any(line.startswith("exact") for line in lines)


def test_exact_plans_do_not_squeeze_the_others() -> None:
    lines = draw(view([FLOAT_MODEL, outcome(20, 2), outcome(40, 1.5), outcome(130, 1.2)], Limits(), "speed"), 60)
    assert lines[0].startswith("exact") and lines[0].count("●") == 1 and "F" in lines[0]
    assert lines[2].startswith(" 40.0") and any(line.startswith(" 20.0") for line in lines)


def test_noise_above_the_signal_is_at_the_bottom() -> None:
    lines = draw(view([FLOAT_MODEL, outcome(-300.0, 2), outcome(40, 1.5)], Limits(), "speed"), 60)
    assert any(line.startswith("  0.0") for line in lines)


def test_a_limit_far_off_is_said_and_not_drawn() -> None:
    tried = [FLOAT_MODEL, outcome(30, 2), outcome(40, 1.5)]
    lines = draw(view(tried, Limits(max_latency=0.01, min_sqnr=150.0), "speed"), 70)
    assert lines[-1] == "limit 100.00x: outside   limit 150 dB: outside"
    assert not any("┊" in line or "┈" in line for line in lines)


def test_what_keeps_the_limits_is_told_from_what_does_not() -> None:
    tried = [FLOAT_MODEL, outcome(20, 2.5), outcome(30, 2), outcome(40, 1.5)]
    lines = draw(view(tried, Limits(min_sqnr=25.0), "speed"), 70)
    marks = "".join(plot(lines))
    assert (marks.count("●"), marks.count("○"), marks.count("*")) == (1, 1, 1)
    assert "○ front, not within the limits" in "\n".join(lines)


def test_nothing_to_show() -> None:
    assert draw(View([], (), 0, Limits(), "speed"), 70) == []
    assert draw(View([outcome(sqnr=math.nan)], (0,), 0, Limits(), "speed"), 70) == []
    assert draw(View([FLOAT_MODEL], (0,), 0, Limits(), "speed"), LEAST_WIDTH - 1) == []


@pytest.mark.parametrize(
    ("encoding", "drawable"),
    [("utf-8", True), ("utf-16", True), ("ascii", False), ("cp1252", False), ("cp437", False), ("no-such", False)],
)
def test_which_encodings_can_show_it(encoding: str, drawable: bool) -> None:
    assert is_drawable(encoding) == drawable
