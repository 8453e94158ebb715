"""The reports for people: tables on a terminal, Markdown for a note."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.table import Table as Shown

from benchmarks.calibration import CalibrationReport, Cost, CostRow
from benchmarks.compare import Row, Table
from benchmarks.large import LargeReport
from benchmarks.outcome import AcceptanceReport, Check

_NOTHING = "-"

_COMPARED = (
    "contender", "wall s", "peak MB", "size", "SQNR dB", "agreement", "integer; float", "ms", "speedup",
    "wall ratio", "ms ratio", "dB gained",
)  # fmt: skip


def comparison_table(table: Table, *, reduce_range: bool) -> Shown:
    """One model: a line for the float model, then one a contender. Ratios are against onnxruntime min-max."""
    samples = f"{table.calibration_samples} calibration, {table.evaluation_samples} evaluation samples"
    narrow = "; onnxruntime with 7-bit weights, as it asks for on this CPU" if reduce_range else ""
    shown = _table(f"{table.model} ({samples}{narrow})", _COMPARED)
    shown.add_row("float", *[_NOTHING] * 2, "1.000", *[_NOTHING] * 3, _number(table.float_ms, 3), "1.00")
    for row in table.contenders:
        shown.add_row(row.name, *_compared(row))
    return shown


def calibration_table(report: CalibrationReport) -> Shown:
    counts = [cost.samples for cost in report.contenders[0].costs]
    columns = [f"{count}: {what}" for count in counts for what in ("wall s", "ratio", "peak MB")]
    title = (
        f"{report.model}, medians of {report.repeats}; "
        f"targets: peak <= {report.peak_target_mb:.0f} MB, growth <= {report.growth_target:.0%}"
    )
    shown = _table(title, ("contender", *columns, "growth", "ratio target", "met"))
    for row in report.contenders:
        shown.add_row(*_calibrated(row))
    return shown


def large_table(report: LargeReport) -> Shown:
    title = (
        f"{report.float_bytes / 1e9:.1f} GB of weights in {report.layers} matrices to int8; peaks above the "
        f"{_number(report.libraries_mb, 0)} MB of the libraries; target: <= {report.peak_target_mb:.0f} MB"
    )
    shown = _table(title, ("--max-memory", "wall s", "peak MB", "above", "output MB", "met"))
    for run in report.runs:
        peaks = (_number(run.peak_mb, 0), _number(run.above_mb, 0))
        met = _NOTHING if run.met is None else ("yes" if run.met else "no")
        shown.add_row(
            run.max_memory or "what is free", f"{run.wall_s:.0f}", *peaks, f"{run.output_bytes / 1e6:.0f}", met
        )
    return shown


def acceptance_markdown(report: AcceptanceReport) -> str:
    """The acceptance list as a Markdown table."""
    machine = report.environment
    met = sum(check.met for check in report.checks)
    lines = [
        f"{met} of {len(report.checks)} met; {machine.cpu} ({machine.isa}), onnxruntime {machine.onnxruntime}, "
        f"Python {machine.python}",
        "",
        "| model | what | measured | target | met | onnxruntime min-max | note |",
        "|--|--|--:|--:|--|--:|--|",
        *(_markdown_row(check) for check in report.checks),
    ]
    return "\n".join(lines) + "\n"


def _compared(row: Row) -> Iterator[str]:
    yield _number(row.wall_s, 2)
    yield _number(row.peak_mb, 0)
    if row.status != "ok":
        yield row.status
        return
    yield _number(row.size_ratio, 3)
    yield _number(row.sqnr, 1)
    yield _number(row.agreement, 3)
    yield f"{row.integer_nodes}; {row.float_nodes}"
    yield _number(row.ms, 3)
    yield _number(row.speedup, 2)
    ratios = row.against_onnxruntime
    if ratios is not None:
        yield _number(ratios.wall, 2)
        yield _number(ratios.ms, 2)
        yield _number(ratios.sqnr_gain, 1)


def _calibrated(row: CostRow) -> Iterator[str]:
    yield row.name
    for cost in row.costs:
        yield from _cost(cost)
    yield _NOTHING if row.growth is None else f"{row.growth:+.1%}"
    yield _NOTHING if row.wall_target is None else f"<= {row.wall_target}"
    yield _NOTHING if row.met is None else ("yes" if row.met else "no")


def _cost(cost: Cost) -> tuple[str, str, str]:
    seconds = "failed" if cost.message else _number(cost.wall_s, 2)
    return seconds, _number(cost.wall_ratio, 2), _number(cost.peak_mb, 0)


def _markdown_row(check: Check) -> str:
    measured, peer = _number(check.measured, 3), _number(check.onnxruntime, 3)
    cells = (check.subject, check.what, measured, check.target, _yes(check.met), peer, check.note)
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _table(title: str, columns: Sequence[str]) -> Shown:
    shown = Shown(title=title, title_justify="left")
    for place, column in enumerate(columns):
        shown.add_column(column, justify="right" if place else "left", no_wrap=not place)
    return shown


def _number(value: float | None, digits: int) -> str:
    return _NOTHING if value is None else f"{value:.{digits}f}"


def _yes(met: bool) -> str:
    return "yes" if met else "**no**"
