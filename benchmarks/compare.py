"""qcli's presets beside onnxruntime's quantizer: cost, accuracy, size and speed, in one run on the same samples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from benchmarks.children import Child, interleaved, median_peak, median_seconds, progress
from benchmarks.contenders import REFERENCE, Contender, contenders, reduces_range
from benchmarks.judge import Judgement, Verdict, judge
from benchmarks.subjects import Subject
from qcli.latency import Effort
from qcli.report import Environment, environment
from qcli.types import Noun


class Options(Noun, frozen=True, kw_only=True):
    """How much to do: `samples` to calibrate with, `evaluation` samples to judge by (None: all), `repeats`."""

    samples: int = 32
    evaluation: int | None = None
    repeats: int = 3
    effort: Effort = Effort(least=2.0, most=8.0)


QUICK = Options(samples=8, evaluation=16, repeats=1, effort=Effort(least=0.1, most=0.5))


class Ratios(Noun, frozen=True, kw_only=True):
    """Against onnxruntime min-max, which is the divisor: below 1 is less. `sqnr_gain` is a difference in dB."""

    wall: float
    peak: float | None
    bytes: float
    ms: float
    sqnr_gain: float | None


class Row(Noun, frozen=True, kw_only=True):
    """One contender on one model. What could not be measured is null; `message` then says why."""

    name: str
    status: str
    message: str = ""
    wall_s: float
    wall_runs_s: tuple[float, ...]
    peak_mb: float | None
    bytes: int | None = None
    size_ratio: float | None = None
    sqnr: float | None = None
    agreement: float | None = None
    top1_drop: float | None = None
    integer_nodes: int | None = None
    float_nodes: int | None = None
    integer_share: float | None = None
    ms: float | None = None
    speedup: float | None = None
    against_onnxruntime: Ratios | None = None


class Table(Noun, frozen=True, kw_only=True):
    """All contenders on one model."""

    model: str
    float_bytes: int
    float_ms: float
    calibration_samples: int | None
    evaluation_samples: int
    contenders: tuple[Row, ...]


class CompareReport(Noun, frozen=True, kw_only=True):
    """What `--json` holds; see README.md."""

    schema: int = 1
    benchmark: str = "compare"
    options: Options
    reduce_range: bool
    environment: Environment
    models: tuple[Table, ...]


def compare(subjects: Sequence[Subject], options: Options) -> CompareReport:
    """Measures all contenders on all subjects. One that fails is a row that says so."""
    tables = tuple(compare_one(subject, options) for subject in subjects)
    return CompareReport(options=options, reduce_range=reduces_range(), environment=environment(), models=tables)


def compare_one(subject: Subject, options: Options) -> Table:
    with TemporaryDirectory(prefix="qcli-bench-") as folder:
        competing = contenders()
        outputs = {each: Path(folder) / f"{each.tool}-{each.mode}.onnx" for each in competing}
        progress(f"{subject.name}: {len(competing)} contenders, {options.repeats} run(s) each")
        commands = [contender.prepared(subject, output, options.samples) for contender, output in outputs.items()]
        runs = dict(zip(competing, interleaved(commands, options.repeats), strict=True))
        made = [output for contender, output in outputs.items() if _works(runs[contender]) and output.exists()]
        progress(f"{subject.name}: judging {len(made)} models")
        judgement = judge(subject.model, made, subject.evaluation_set(options.evaluation), options.effort)
        rows = [_row(subject, outputs[contender], runs[contender], judgement, contender) for contender in competing]
    return Table(
        model=subject.name,
        float_bytes=subject.model.stat().st_size,
        float_ms=judgement.float_ms,
        calibration_samples=options.samples,
        evaluation_samples=judgement.samples,
        contenders=_with_ratios(rows),
    )


def _works(runs: Sequence[Child]) -> bool:
    return all(run.exit_code == 0 for run in runs)


def _row(subject: Subject, output: Path, runs: Sequence[Child], judgement: Judgement, contender: Contender) -> Row:
    message = next((run.complaint for run in runs if run.exit_code), "") or judgement.refused.get(str(output), "")
    verdict = judgement.verdicts.get(str(output))
    status = "does not load" if str(output) in judgement.refused else "failed"
    row = Row(
        name=contender.name,
        status="ok" if verdict is not None else status,
        message=message,
        wall_s=median_seconds(runs),
        wall_runs_s=tuple(run.seconds for run in runs),
        peak_mb=median_peak(runs),
    )
    return row if verdict is None else _judged(row, verdict, output.stat().st_size, subject.model.stat().st_size)


def _judged(row: Row, verdict: Verdict, size: int, float_size: int) -> Row:
    top1 = verdict.accuracy.top1
    return msgspec.structs.replace(
        row,
        bytes=size,
        size_ratio=size / float_size,
        sqnr=verdict.accuracy.sqnr,
        agreement=verdict.accuracy.agreement,
        top1_drop=top1.drop if top1 is not None else None,
        integer_nodes=verdict.integer_nodes,
        float_nodes=verdict.float_nodes,
        integer_share=verdict.integer_share,
        ms=verdict.ms,
        speedup=verdict.speedup,
    )


def _with_ratios(rows: Sequence[Row]) -> tuple[Row, ...]:
    reference = next(row for row in rows if row.name == REFERENCE.name)
    return tuple(msgspec.structs.replace(row, against_onnxruntime=ratios(row, reference)) for row in rows)


def ratios(row: Row, reference: Row) -> Ratios | None:
    """One row against another; None unless both gave a model."""
    if row.bytes is None or row.ms is None or reference.bytes is None or reference.ms is None:
        return None
    return Ratios(
        wall=row.wall_s / reference.wall_s,
        peak=row.peak_mb / reference.peak_mb if row.peak_mb and reference.peak_mb else None,
        bytes=row.bytes / reference.bytes,
        ms=row.ms / reference.ms,
        sqnr_gain=row.sqnr - reference.sqnr if row.sqnr is not None and reference.sqnr is not None else None,
    )
