"""A front as a picture in characters: each plan at its accuracy and its speed or size. Up and right is better."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from typing import Literal

from qcli.tuning.canvas import ASCII, UNICODE, Canvas, Cell, Script
from qcli.tuning.limits import is_kept
from qcli.tuning.nouns import FLOAT, Limits, Outcome, TuneReport

Axis = Literal["speed", "size"]

LEAST_WIDTH = 24
"""Below so many columns there is no picture."""

_GUTTER = 7
_ROWS = 10
_EXACT_DB = 100.0
"""Beyond it models differ by the rounding of float32: these share the row on top, so that the others have room."""

_LARGEST = 999.0
"""Speeds and sizes beyond it count as this."""


@dataclass(frozen=True)
class View:
    """What a picture shows: outcomes, the numbers of those on the front and of the best, and what runs to the right."""

    tried: Sequence[Outcome]
    front: Sequence[int]
    best: int
    limits: Limits
    axis: Axis


def views(report: TuneReport) -> tuple[View, View]:
    """That of latency and that of size."""
    tried, best, limits = report.tried, report.best, report.limits
    faster = View(tried, report.front_latency, best, limits, "speed")
    return faster, View(tried, report.front_size, best, limits, "size")


def draw(view: View, width: int, *, plain: bool = False) -> list[str]:
    """The lines of a picture, none longer than `width` columns; `plain` is ASCII alone.

    Nothing if there is nothing to show, or less than `LEAST_WIDTH` columns to show it in. Outcomes without a number
    for accuracy, speed or size are left out.
    """
    points = {number: point for number, one in enumerate(view.tried) if (point := _point(one, view.axis)) is not None}
    if not points or width < LEAST_WIDTH:
        return []
    script = ASCII if plain else UNICODE
    frame = _frame(view, points, width - _GUTTER)
    canvas = Canvas(script)
    legend = list(_drawn_points(canvas, view, points, frame))
    canvas.steps(sorted(frame.cell(points[number]) for number in view.front if number in points))
    legend += _drawn_limits(canvas, view, frame)
    lines = [f"{label:>5} {script.upright}{canvas.row(row)}" for row, label in enumerate(frame.labels(script))]
    lines += [f"{'dB':>5} {script.corners[0]}{script.level * frame.columns}", f"{'':7}{frame.scale(view.axis)}"]
    return [line.rstrip() for line in (*lines, "", *_wrapped(legend, width))]


@dataclass(frozen=True)
class _Point:
    """A plan: speed or size, and dB."""

    x: float
    y: float

    @property
    def exact(self) -> bool:
        return self.y >= _EXACT_DB


@dataclass(frozen=True)
class _Span:
    """The values at the two ends of an axis, of which either can be the larger."""

    first: float
    last: float

    def at(self, value: float, places: int) -> int:
        """Which of the places is nearest to a value; the middle one if the axis has no length."""
        if self.first == self.last:
            return (places - 1) // 2
        share = (value - self.first) / (self.last - self.first)
        return round(min(max(share, 0.0), 1.0) * (places - 1))

    def holds(self, value: float | None) -> bool:
        return value is not None and min(self.first, self.last) <= value <= max(self.first, self.last)


@dataclass(frozen=True)
class _Frame:
    """Where things lie. `y` is None if all is exact. The exact ones have a row on top, with an empty one below it."""

    x: _Span
    y: _Span | None
    exact: bool
    columns: int

    @property
    def top(self) -> int:
        """The first row of those that have a scale."""
        return 2 if self.exact else 0

    def dot(self, point: _Point) -> tuple[int, int]:
        """The place among two in each column and four in each row."""
        column = self.x.at(point.x, 2 * self.columns)
        if point.exact or self.y is None:
            return column, 1
        return column, 4 * (self.top + _ROWS) - 1 - self.y.at(point.y, 4 * _ROWS)

    def cell(self, point: _Point) -> Cell:
        column, row = self.dot(point)
        return column // 2, row // 4

    def labels(self, script: Script) -> Iterator[str]:
        """What stands before each row."""
        if self.exact:
            yield script.exact
        if self.y is None:
            return
        if self.exact:
            yield ""
        scale = {self.cell(_Point(0.0, value))[1]: f"{value:.1f}" for value in _ticks(self.y)}
        yield from (scale.get(row, "") for row in range(self.top, self.top + _ROWS))

    def scale(self, axis: Axis) -> str:
        """What stands below the axis: its ends, and its name if there is room."""
        left, right = _written(self.x.first, axis), _written(self.x.last, axis)
        if left == right:
            return f"{axis} {left}".center(self.columns)
        room = self.columns - len(left) - len(right)
        return f"{left}{axis.center(room) if len(axis) + 2 <= room else ' ' * room}{right}"


def _ticks(span: _Span) -> tuple[float, ...]:
    return (span.first, (span.first + span.last) / 2, span.last)


def _written(value: float, axis: Axis) -> str:
    return f"{value:.2f}x" if axis == "speed" else f"{value:.3f}"


def _point(outcome: Outcome, axis: Axis) -> _Point | None:
    if isnan(outcome.sqnr) or not (outcome.speedup > 0 and outcome.size > 0):
        return None
    x = outcome.speedup if axis == "speed" else outcome.size
    return _Point(min(x, _LARGEST), max(outcome.sqnr, 0.0))


def _frame(view: View, points: Mapping[int, _Point], columns: int) -> _Frame:
    across, least = _limits(view)
    scaled = [point.y for point in points.values() if not point.exact]
    x = _span([point.x for point in points.values()], across)
    return _Frame(
        x=_Span(x.last, x.first) if view.axis == "size" else x,
        y=_span(scaled, least) if scaled else None,
        exact=any(point.exact for point in points.values()),
        columns=columns,
    )


def _limits(view: View) -> tuple[float | None, float | None]:
    """The limits along both axes: speed or size, and dB."""
    limits = view.limits
    across = limits.max_size
    if view.axis == "speed":
        across = None if limits.max_latency is None else 1 / limits.max_latency
    return across, limits.min_sqnr


def _span(values: Sequence[float], limit: float | None) -> _Span:
    """From the least to the largest value, and to a limit unless it lies so far off that the rest would shrink."""
    low, high = min(values), max(values)
    room = max(high - low, high / 2)
    if limit is not None and low - room <= limit <= high + room:
        return _Span(min(low, limit), max(high, limit))
    return _Span(low, high)


def _drawn_points(canvas: Canvas, view: View, points: Mapping[int, _Point], frame: _Frame) -> Iterator[str]:
    """Draws the plans, what counts most first, and gives what the legend says of them."""
    script = canvas.script
    of_float = next((number for number, one in enumerate(view.tried) if one.candidate.recipe == FLOAT), -1)
    named = {view.best: (script.best, "best"), of_float: (script.float_, "float")}
    if view.best == of_float:
        named = {view.best: (script.best, "best: float")}
    for number, (mark, name) in named.items():
        if number in points and canvas.put(frame.cell(points[number]), mark):
            yield f"{mark} {name}"
    said: dict[str, str] = {}
    for number in (number for number in view.front if number in points):
        kept = is_kept(view.tried[number], view.limits)
        mark, name = (script.kept, "front") if kept else (script.missed, "front, not within the limits")
        if canvas.put(frame.cell(points[number]), mark):
            said[mark] = name
    yield from (f"{mark} {said[mark]}" for mark in (script.kept, script.missed) if mark in said)
    others = [point for number, point in points.items() if number not in (*named, *view.front)]
    if [point for point in others if canvas.dot(frame.dot(point))]:
        yield f"{script.tried} tried"


def _drawn_limits(canvas: Canvas, view: View, frame: _Frame) -> Iterator[str]:
    """Draws the limits that lie within the picture, and gives what the legend says of them."""
    across, least = _limits(view)
    level, upright = canvas.script.limits
    if across is not None:
        seen = frame.x.holds(across)
        if seen:
            height = len(list(frame.labels(canvas.script)))
            canvas.line(upright, [(frame.x.at(across, 2 * frame.columns) // 2, row) for row in range(height)])
        yield _limit(upright, _written(across, view.axis), seen=seen)
    if least is not None:
        seen = frame.y is not None and frame.y.holds(least)
        if seen:
            row = frame.cell(_Point(0.0, least))[1]
            canvas.line(level, [(column, row) for column in range(frame.columns)])
        yield _limit(level, f"{least:g} dB", seen=seen)


def _limit(mark: str, value: str, *, seen: bool) -> str:
    return f"{mark} limit {value}" if seen else f"limit {value}: outside"


def _wrapped(items: Sequence[str], width: int) -> Iterator[str]:
    line = ""
    for item in items:
        if line and len(line) + 3 + len(item) > width:
            yield line
            line = ""
        line = f"{line}   {item}" if line else item[:width]
    if line:
        yield line
