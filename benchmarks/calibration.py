"""Time and memory of calibration: does the cost stay near onnxruntime's, and the memory flat as samples are added?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.children import Child, interleaved, median_peak, median_seconds, progress
from benchmarks.contenders import REFERENCE, Contender
from benchmarks.subjects import Subject
from qcli.report import Environment, environment
from qcli.types import Noun

COUNTS = (25, 100)
_FLAT = 0.10
_MOST_MEGABYTES = 450.0

_WALL_TARGETS = {"int8-percentile": 1.3, "int8": 2.0, "int8-entropy": 2.0}
"""Wall time at most this many times that of onnxruntime min-max."""


class Cost(Noun, frozen=True, kw_only=True):
    """The medians for one number of samples; `wall_ratio` is against onnxruntime min-max on as many."""

    samples: int
    wall_s: float
    wall_runs_s: tuple[float, ...]
    wall_ratio: float
    peak_mb: float | None
    message: str = ""


class CostRow(Noun, frozen=True, kw_only=True):
    """One contender; `growth` = peak with most samples / with fewest, less 1. `met` is null for onnxruntime."""

    name: str
    costs: tuple[Cost, ...]
    growth: float | None
    wall_target: float | None
    met: bool | None


class CalibrationReport(Noun, frozen=True, kw_only=True):
    """What `--json` holds; see README.md."""

    schema: int = 1
    benchmark: str = "calibration"
    model: str
    repeats: int
    peak_target_mb: float = _MOST_MEGABYTES
    growth_target: float = _FLAT
    environment: Environment
    contenders: tuple[CostRow, ...]


def measure_calibration(subject: Subject, repeats: int, counts: Sequence[int] = COUNTS) -> CalibrationReport:
    """`qcli quantize` as a whole, without evaluation samples and latency, beside onnxruntime min-max."""
    contenders = (REFERENCE, *(Contender(tool="qcli", mode=mode) for mode in _WALL_TARGETS))
    runs = {count: _runs(subject, contenders, count, repeats) for count in counts}
    rows = tuple(_row(contender, runs) for contender in contenders)
    return CalibrationReport(model=subject.name, repeats=repeats, environment=environment(), contenders=rows)


def _runs(subject: Subject, contenders: Sequence[Contender], count: int, repeats: int) -> dict[Contender, list[Child]]:
    progress(f"{subject.name}: {len(contenders)} contenders on {count} samples, {repeats} run(s) each")
    with TemporaryDirectory(prefix="qcli-bench-") as folder:
        output = Path(folder) / "out.onnx"
        commands = [contender.prepared(subject, output, count) for contender in contenders]
        return dict(zip(contenders, interleaved(commands, repeats), strict=True))


def _row(contender: Contender, runs: Mapping[int, Mapping[Contender, Sequence[Child]]]) -> CostRow:
    costs = tuple(_cost(count, each[contender], each[REFERENCE]) for count, each in runs.items())
    first, last = costs[0].peak_mb, costs[-1].peak_mb
    growth = last / first - 1 if first and last else None
    target = _WALL_TARGETS.get(contender.mode) if contender.tool == "qcli" else None
    met = None if target is None else _met(costs, growth, target)
    return CostRow(name=contender.name, costs=costs, growth=growth, wall_target=target, met=met)


def _cost(count: int, runs: Sequence[Child], reference: Sequence[Child]) -> Cost:
    seconds = median_seconds(runs)
    return Cost(
        samples=count,
        wall_s=seconds,
        wall_runs_s=tuple(run.seconds for run in runs),
        wall_ratio=seconds / median_seconds(reference),
        peak_mb=median_peak(runs),
        message=next((run.complaint for run in runs if run.exit_code), ""),
    )


def _met(costs: Sequence[Cost], growth: float | None, wall_target: float) -> bool:
    """False too where the memory is not known or a run failed."""
    flat = growth is not None and growth <= _FLAT
    return flat and all(
        cost.wall_ratio <= wall_target
        and cost.peak_mb is not None
        and cost.peak_mb <= _MOST_MEGABYTES
        and not cost.message
        for cost in costs
    )
