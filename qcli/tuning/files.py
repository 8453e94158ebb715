"""A search as a file: JSON and CSV hold all that was tried, Markdown the fronts as tables and pictures."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from qcli.errors import UsageError
from qcli.files import replace_file
from qcli.job import named_inputs
from qcli.plan import plan_text
from qcli.render import cell
from qcli.report import encode_report
from qcli.tuning.limits import is_kept, quality
from qcli.tuning.nouns import Outcome, TuneJob, TuneReport
from qcli.tuning.picture import View, draw, views
from qcli.types import Plan
from qcli.watch import Standing

COLUMNS = ("plan", "SQNR", "drop", "speed", "ms", "size")
"""What each outcome shows, with the metric after the plan where the search went by another than sqnr."""

_PICTURE_WIDTH = 72


def write_tuning(report: TuneReport, path: Path) -> None:
    """Writes the format that the suffix names: .json, .csv or .md.

    Raises UsageError for another suffix and for a place that cannot be written.
    """
    replace_file(path, tune_writer(path)(report))


def tune_writer(path: Path) -> Callable[[TuneReport], bytes]:
    """The format for a path, to be asked before the work. Raises UsageError for an unknown suffix."""
    writer = _WRITERS.get(path.suffix.lower())
    if writer is None:
        known = " ".join(_WRITERS)
        raise UsageError(f"report '{path}': unknown format '{path.suffix}'", f"the suffix is one of {known}")
    return writer


def files_read(job: TuneJob) -> tuple[Path, ...]:
    """The files and folders that a search reads."""
    more = (*job.recipes, *((job.metric,) if job.metric is not None else ()))
    table = () if job.cost_table is None else (job.cost_table,)
    return (*named_inputs(job), *map(Path, more), *table)


def plan_path(output: Path) -> Path:
    """Where the plan of a model lies, beside it."""
    return output.with_suffix(".plan.yaml")


def write_plan(plan: Plan, output: Path) -> None:
    """The plan beside the model that was made by it, to be edited and given to `qcli quantize --plan`."""
    replace_file(plan_path(output), plan_text(plan).encode())


def columns(report: TuneReport) -> tuple[str, ...]:
    """The headings of a search's outcomes."""
    own = () if report.tried[0].metric is None else (report.metric,)
    return (COLUMNS[0], *own, *COLUMNS[1:])


def cells(outcome: Outcome) -> tuple[str, ...]:
    """An outcome as it is shown, in the order of `columns`."""
    own = () if outcome.metric is None else (f"{outcome.metric:.6g}",)
    drop = "" if outcome.drop is None else f"{outcome.drop:.4f}"
    unsteady = "" if outcome.steady else " ?"
    return (
        title(outcome),
        *own,
        f"{outcome.sqnr:.1f} dB",
        drop,
        f"{outcome.speedup:.2f}x{unsteady}",
        f"{outcome.ms:.2f}",
        f"{outcome.size:.3f}",
    )


def title(outcome: Outcome) -> str:
    return f"{outcome.candidate.recipe}, {outcome.candidate.why}"


def standing(tried: Sequence[Outcome], best: int, ends: float) -> Standing:
    """How far a search is that ends at a time by `perf_counter`."""
    one = tried[best]
    figures = f"{one.speedup:.2f}x, {one.sqnr:.1f} dB, size {one.size:.3f}"
    return Standing(f"{title(one)}: {figures}", len(tried), ends)


def verdict(report: TuneReport) -> str:
    """What the evaluation samples say of the result; empty if it is the float model."""
    result = report.result
    if result is None or result.accuracy is None or result.size is None:
        return ""
    sqnr = "" if result.accuracy.sqnr is None else f"{result.accuracy.sqnr:.1f} dB, "
    path = result.output.path if result.output is not None else ""
    own = "" if report.result_metric is None else f"{report.metric} {report.result_metric:.6g}, "
    speed = "" if result.latency is None else f"{result.latency.speedup:.2f}x, "
    return f"{path}: {own}{sqnr}{speed}size {result.size.ratio:.3f}"


def shown(report: TuneReport) -> Iterator[tuple[str, Outcome]]:
    """The outcomes worth showing, from the most accurate on, each with a mark: `*` is the best."""
    numbers = dict.fromkeys((*report.front_latency, *report.front_size, report.best))
    for number in sorted(numbers, key=lambda number: quality(report.tried[number]), reverse=True):
        yield ("*" if number == report.best else ""), report.tried[number]


def _to_csv(report: TuneReport) -> bytes:
    """All that was tried, figures unrounded, in the order in which it was."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    own = () if report.tried[0].metric is None else ("metric",)
    keys = ("sqnr", "drop", "size", "ms", "speedup", "error_db", "steady", "seconds", "found", *own)
    writer.writerow(("recipe", "why", "foretold", *keys, "kept", "best", "front_latency", "front_size"))
    for number, outcome in enumerate(report.tried):
        figures = [getattr(outcome, key) for key in keys]
        kept, best = is_kept(outcome, report.limits), number == report.best
        marks = (kept, best, number in report.front_latency, number in report.front_size)
        candidate = outcome.candidate
        writer.writerow((candidate.recipe, candidate.why, candidate.foretold, *figures, *marks))
    return stream.getvalue().encode()


def _to_markdown(report: TuneReport) -> bytes:
    lines = [f"# {cell(report.model.path)}", ""]
    lines += [f"{cell(report.reason)}.", ""] if report.reason else []
    lines += [f"{len(report.tried)} plans tried on {report.samples} samples, the best is marked with \\*.", ""]
    lines += [f"{cell(verdict(report))}", ""] if verdict(report) else []
    faster, smaller = views(report)
    lines += ["## Accuracy and speed", "", *_front(faster, columns(report))]
    lines += ["## Accuracy and size", "", *_front(smaller, columns(report))]
    lines += ["## Warnings", "", *(f"* {cell(text)}" for text in report.warnings), ""] if report.warnings else []
    return "\n".join(lines).encode()


def _front(view: View, heads: tuple[str, ...]) -> Iterator[str]:
    """The front and the best as a table, from the most accurate on, and the picture of all."""
    numbers = sorted({*view.front, view.best}, key=lambda number: quality(view.tried[number]), reverse=True)
    yield f"| | {' | '.join(cell(head) for head in heads)} |"
    yield "|--" * (len(heads) + 1) + "|"
    for number in numbers:
        mark = "\\*" if number == view.best else ""
        yield f"| {mark} | {' | '.join(cell(text) for text in cells(view.tried[number]))} |"
    yield from ("", "```text", *draw(view, _PICTURE_WIDTH), "```", "")


_WRITERS: dict[str, Callable[[TuneReport], bytes]] = {".json": encode_report, ".csv": _to_csv, ".md": _to_markdown}
