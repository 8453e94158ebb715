"""The page docs/sweep.md: what presets do over all models, then a table for each model, then what has no result."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from statistics import median

from benchmarks.sweep_rows import CALIBRATION, EVALUATION, LARGE, LEARNING, MADE_UP, SweepReport, SweepRow, learns

_COLUMNS: tuple[tuple[str, str, Callable[[SweepRow], float | None]], ...] = (
    ("size", ".2f", lambda row: row.size_ratio),
    ("SQNR, dB", ".1f", lambda row: row.sqnr),
    ("agreement", ".1%", lambda row: row.agreement),
    ("speedup", ".2f", lambda row: row.speedup),
    ("integers", ".0%", lambda row: row.integer_share),
)


def sweep_page(report: SweepReport) -> str:
    """Markdown. Rows are in the report's order, by model and then by preset."""
    by_model = {name: tuple(rows) for name, rows in groupby(report.rows, key=lambda row: row.model)}
    answered = {name: rows for name, rows in by_model.items() if any(row.code == 0 for row in rows)}
    silent = {name: rows for name, rows in by_model.items() if name not in answered}
    lines = ["# Every model of the zoo with every preset", "", *_introduction(report), "", "## Presets", ""]
    lines += _presets(report.rows)
    for name, rows in answered.items():
        lines += ["", f"## {name}", "", *_model(rows)]
    if silent:
        lines += ["", "## Models without a result", ""]
        lines += [f"* {name}: {line}" for name, rows in silent.items() for line in _reasons(rows)]
    return "\n".join(lines) + "\n"


def _introduction(report: SweepReport) -> Iterator[str]:
    where = report.environment
    presets = dict.fromkeys(row.preset for row in report.rows)
    learners = ", ".join(f"`{name}`" for name in presets if learns(name))
    few = f" ({LEARNING} for {learners} on models of more than {LARGE // 10**6} MB)" if learners else ""
    yield (
        f"Made by `make sweep` with onnxruntime {where.onnxruntime} on {where.cpu} ({where.isa}), one thread, "
        f"{CALIBRATION} samples to calibrate with{few}, "
        f"up to {EVALUATION} others to judge by. Each result is checked by onnx's checker, loaded again and run: its "
        "outputs are finite and have the float model's types and shapes. `tensorrt-fp8` is loaded with "
        "`session.disable_quant_qdq` where onnxruntime would make a kernel that it lacks."
    )
    yield ""
    yield (
        "SQNR is that of the worst output, agreement the share of samples with the float model's top-1, integers the "
        "share of multiply-accumulates on integer kernels. Speedup, over float, is for presets that compute in "
        "integers here; those that store weights run at float's speed, those for other runtimes say nothing of it. "
        f"Models marked * have no samples and ran on {MADE_UP} random inputs, which say little about accuracy. "
        "[Exit codes](exit-codes.md) stand in front of reasons."
    )


def _presets(rows: Sequence[SweepRow]) -> Iterator[str]:
    """Medians, and what is worst, over the models with samples of their own."""
    yield from _header(["preset", "results", "refused", "size", "SQNR, dB", "least SQNR", "speedup", "least speedup"])
    for preset in dict.fromkeys(row.preset for row in rows):
        own = [row for row in rows if row.preset == preset]
        judged = [row for row in own if row.code == 0 and not row.samples]
        ratios = [row.sqnr for row in judged if row.sqnr is not None]
        speeds = [row.speedup for row in judged if row.speedup is not None]
        results = sum(row.code == 0 for row in own)
        yield _line(
            f"`{preset}`",
            str(results),
            str(len(own) - results),
            _shown(_median(row.size_ratio for row in judged), ".2f"),
            _shown(_median(ratios), ".1f"),
            _shown(min(ratios, default=None), ".1f"),
            _shown(_median(speeds), ".2f"),
            _shown(min(speeds, default=None), ".2f"),
        )


def _model(rows: Sequence[SweepRow]) -> Iterator[str]:
    """A table of the results, without columns that stay empty, and the reasons of what has none."""
    done = [row for row in rows if row.code == 0]
    columns = [column for column in _COLUMNS if any(column[2](row) is not None for row in done)]
    yield from _header([f"preset{'*' if done[0].samples else ''}", *(title for title, _, _ in columns)])
    for row in done:
        yield _line(f"`{row.preset}`", *(_shown(value(row), form) for _, form, value in columns))
    reasons = [*_reasons(rows), *_faults(done)]
    yield from ["", *(f"* {reason}" for reason in reasons)] if reasons else []


def _reasons(rows: Sequence[SweepRow]) -> Iterator[str]:
    """What has no result, presets with the same reason together."""
    refused = [row for row in rows if row.code]
    for code, reason in dict.fromkeys((row.code, row.reason or row.fault) for row in refused):
        same = [row.preset for row in refused if (row.code, row.reason or row.fault) == (code, reason)]
        named = "every preset" if len(same) == len(rows) > 1 else ", ".join(f"`{name}`" for name in same)
        yield f"{named}: {code}, {reason}"


def _faults(done: Sequence[SweepRow]) -> Iterator[str]:
    yield from (f"`{row.preset}`: at fault, {row.fault}" for row in done if row.fault)


def _header(titles: Sequence[str]) -> Iterator[str]:
    yield _line(*titles)
    yield f"|{'--|' * len(titles)}"


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def _shown(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
