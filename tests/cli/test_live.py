"""The line below the bar that says how far a search is."""

from __future__ import annotations

import io
from time import perf_counter

import pytest
from rich.console import Console

from qcli.cli._live import live_progress
from qcli.cli._screen import Screen, _follow
from qcli.watch import Standing, Watch


def shown(standing: Standing | None, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    live = live_progress(console)
    live.add_task("search", total=None)
    live.stand(standing)
    with console.capture() as captured:
        console.print(live.get_renderable())
    return captured.get()


def test_the_standing_is_below_the_bar() -> None:
    bar, line = shown(Standing("int8, as it is: 1.84x", 12, perf_counter() + 1e6)).splitlines()
    assert "search" in bar
    assert line.startswith("best int8, as it is: 1.84x; 12 tried, ") and line.endswith(" s left")


def test_what_is_too_long_is_cut() -> None:
    lines = shown(Standing("int8 " * 50, 12, 0.0), width=40).splitlines()
    assert all(len(line) <= 40 for line in lines) and lines[-1].endswith("…")


def test_without_a_search_there_is_the_bar_alone() -> None:
    assert len(shown(None).splitlines()) == 1


def test_time_that_is_over_is_none() -> None:
    assert f"{Standing('int8', 3, 0.0)}" == "best int8; 3 tried, 0 s left"


def test_without_a_terminal_a_line_for_each_new_best(capsys: pytest.CaptureFixture[str]) -> None:
    with Screen().watching() as watch:
        for best, tried in (("a", 1), ("a", 2), ("b", 3), ("a", 4)):
            watch.on_standing(Standing(best, tried, 0.0))
        watch.on_standing(None)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "best a; 1 tried, 0 s left",
        "best b; 3 tried, 0 s left",
        "best a; 4 tried, 0 s left",
    ]


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Screen(quiet=True).watching() as watch:
        watch.on_standing(Standing("a", 1, 0.0))
    assert capsys.readouterr() == ("", "")


def test_a_phase_does_not_inherit_the_total_of_the_one_before() -> None:
    live, watch = live_progress(Console(file=io.StringIO())), Watch()
    _follow(watch, live, verbose=False)
    watch.phase("calibrate")
    watch.progress(50, 50)
    watch.phase("search")
    (task,) = live.tasks
    assert (task.description, task.total, task.completed) == ("search", None, 0)
