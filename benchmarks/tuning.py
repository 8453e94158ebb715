"""What `qcli tune` reaches within limits, beside what is wanted; how well it foretold it and how soon it had it.

Every row is kept as soon as it is there. The search sees calibration samples alone, the result is judged on evaluation
samples and timed beside the float model in the same run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import msgspec

from benchmarks.children import progress
from benchmarks.subjects import Subject, subject
from qcli import QuantizeJob, TuneJob, TuneReport, quantize, tune
from qcli.errors import QcliError
from qcli.report import Environment, environment
from qcli.tuning.files import title
from qcli.tuning.limits import is_kept
from qcli.tuning.nouns import FLOAT, Limits
from qcli.types import Noun
from qcli.watch import Watch

RECIPES = ("int8", "int8-weights", "int8-transformer", "int8-accurate")
"""Those that `qcli tune` tries by itself."""


class Wanted(Noun, frozen=True, kw_only=True):
    """A model, the limits of a search, and what it should come to at least; `size` at most."""

    model: str
    limits: Limits
    speedup: float = 1.0
    size: float | None = None
    why: str = ""


WANTED = (
    Wanted(model="mobilenetv2_imagenet", limits=Limits(min_sqnr=24.0), speedup=1.5, why="target"),
    Wanted(model="mobilenetv2_imagenet", limits=Limits(min_sqnr=20.9), speedup=0.5, why="nncf 20.9 dB, 0.50x"),
    Wanted(model="mobilenetv2_imagenet", limits=Limits(min_sqnr=15.8), speedup=2.01, why="onnxruntime 15.8 dB, 2.01x"),
    Wanted(model="squeezenet11_imagenet", limits=Limits(min_sqnr=29.0), speedup=2.5, why="onnxruntime 29.0 dB, 2.5x"),
    Wanted(model="resnet20_cifar10", limits=Limits(min_sqnr=27.5), speedup=2.2, why="onnxruntime 27.5 dB, 2.2x"),
    Wanted(model="vit_mnist", limits=Limits(min_sqnr=35.0), speedup=1.45, why="target"),
    Wanted(model="vit_mnist", limits=Limits(min_sqnr=42.3), speedup=1.34, why="onnxruntime 42.3 dB, 1.34x"),
    Wanted(model="minilm", limits=Limits(min_sqnr=16.9), speedup=2.3, why="onnxruntime 16.9 dB, 2.3x"),
    Wanted(model="minilm", limits=Limits(min_sqnr=25.0), speedup=2.05, why="target"),
    Wanted(model="minilm", limits=Limits(min_sqnr=30.0), speedup=1.5, size=0.35, why="target"),
    Wanted(model="minilm", limits=Limits(min_sqnr=31.4), speedup=1.21, why="MatMulNBits 31.4 dB, 1.21x"),
    Wanted(model="ppocr_cls", limits=Limits(max_drop=0.01), speedup=1.2, why="target"),
    Wanted(model="ultraface_rfb320", limits=Limits(min_sqnr=38.0), speedup=2.6, why="target"),
    Wanted(model="ultraface_rfb320", limits=Limits(min_sqnr=42.7), speedup=2.6, why="onnxruntime 42.7 dB, 2.6x"),
    Wanted(model="super_resolution_x3", limits=Limits(min_sqnr=25.0), speedup=3.5, why="onnxruntime 25.0 dB, 3.5x"),
    Wanted(model="oww_embedding_cnn", limits=Limits(min_sqnr=23.0), speedup=1.9, why="target"),
    Wanted(model="oww_alexa_mlp", limits=Limits(min_sqnr=20.0), why="onnxruntime 0.1 dB, 1.17x"),
    Wanted(model="nsnet2_gru", limits=Limits(min_sqnr=44.8), speedup=1.13, why="onnxruntime 44.8 dB, 1.13x"),
    Wanted(model="silero_vad", limits=Limits(min_sqnr=30.0), why="the others fail"),
    Wanted(model="mnist_cntk", limits=Limits(min_sqnr=30.0), why="never slower"),
    Wanted(model="mnist_mlp_pytorch", limits=Limits(min_sqnr=30.0), why="never slower"),
    Wanted(model="oww_melspectrogram", limits=Limits(min_sqnr=30.0), why="never slower"),
    Wanted(model="dtln_lstm1", limits=Limits(min_sqnr=30.0), why="never slower"),
    Wanted(model="nnsplit_byte_lstm", limits=Limits(min_sqnr=30.0), why="never slower"),
    Wanted(model="aidreams_llama_lm", limits=Limits(min_sqnr=20.0), why="never slower"),
)


class Row(Noun, frozen=True, kw_only=True):
    """What came of one search. `sqnr`, `drop`, `speedup` and `size` are those on evaluation samples.

    `held_out` is the ratio that the search saw, `foretold` and `measured` are times of the plan relative to float's.
    `first` and `near` are seconds: until the first result that keeps the limits, and until the first that is within 3 %
    of the best one's speed. `seconds` is the whole search without the last word on evaluation samples, `quantize` what
    `quantize` takes for the first recipe, validation on calibration samples included, as a search does it.
    """

    wanted: Wanted
    plan: str = ""
    met: bool = False
    sqnr: float | None = None
    drop: float | None = None
    speedup: float = 0.0
    size: float = 0.0
    held_out: float | None = None
    foretold: float | None = None
    measured: float | None = None
    first: float | None = None
    near: float | None = None
    seconds: float = 0.0
    quantize: float | None = None
    tried: int = 0
    error: str = ""


class TuningReport(Noun, frozen=True, kw_only=True):
    """All rows so far."""

    schema: int = 1
    benchmark: str = "tuning"
    environment: Environment
    rows: tuple[Row, ...] = ()


def measure_tuning(
    zoo: Path, models: Sequence[str] | None, time_limit: float, save: Callable[[TuningReport], None]
) -> TuningReport:
    """One search for each wanted row of the models named, or of all that the zoo has."""
    rows: list[Row] = []
    report = TuningReport(environment=environment())
    for wanted in WANTED:
        here = (zoo / wanted.model / "model.onnx").is_file()
        if (models is None and here) or (models is not None and wanted.model in models):
            progress(f"tune {wanted.model} {_asked(wanted.limits)}")
            rows.append(_row(subject(zoo, wanted.model), wanted, time_limit))
            report = msgspec.structs.replace(report, rows=tuple(rows))
            save(report)
    return report


def _row(subject: Subject, wanted: Wanted, time_limit: float) -> Row:
    with TemporaryDirectory() as folder:
        seconds = _quantize_seconds(subject, Path(folder) / "quantized.onnx")
        job = TuneJob(
            model=subject.model,
            recipe=RECIPES[0],
            recipes=RECIPES[1:],
            settings=subject.settings()[1:],
            calibration=subject.calibration,
            evaluation=subject.evaluation,
            output=Path(folder) / "out.onnx",
            limits=wanted.limits,
            time_limit=time_limit,
            threads=1,
        )
        try:
            return msgspec.structs.replace(_told(wanted, tune(job, Watch())), quantize=seconds)
        except QcliError as error:
            return Row(wanted=wanted, error=error.message)


def _quantize_seconds(subject: Subject, output: Path) -> float | None:
    begin = perf_counter()
    job = QuantizeJob(
        model=subject.model,
        recipe=RECIPES[0],
        settings=subject.settings()[1:],
        calibration=subject.calibration,
        evaluation=subject.calibration,
        output=output,
        threads=1,
        cache=False,
    )
    try:
        quantize(job)
    except QcliError:
        return None
    return perf_counter() - begin


def _told(wanted: Wanted, report: TuneReport) -> Row:
    best = report.tried[report.best]
    kept = [one for one in report.tried[1:] if is_kept(one, wanted.limits)]
    near = [one.found for one in kept if one.speedup >= best.speedup * 0.97]
    result = report.result
    speedup = result.latency.speedup if result is not None and result.latency is not None else 1.0
    accuracy = result.accuracy if result is not None else None
    last = max(one.found for one in report.tried)
    return Row(
        wanted=wanted,
        plan=title(best),
        met=report.met,
        sqnr=accuracy.sqnr if accuracy is not None else None,
        drop=accuracy.top1.drop if accuracy is not None and accuracy.top1 is not None else None,
        speedup=speedup,
        size=result.size.ratio if result is not None and result.size is not None else 1.0,
        held_out=best.sqnr,
        foretold=best.candidate.foretold if best.candidate.recipe != FLOAT else None,
        measured=1 / speedup,
        first=min((one.found for one in kept), default=None),
        near=min(near, default=None),
        seconds=last,
        tried=len(report.tried),
    )


def tuning_markdown(report: TuningReport) -> str:
    """The rows as a table."""
    heads = (
        "model, limit",
        "wanted",
        "result",
        "on `eval`",
        "speed",
        "size",
        "foretold",
        "first, near, all; quantize (s)",
    )
    lines = [f"| {' | '.join(heads)} |", "|--" * len(heads) + "|"]
    lines += [f"| {' | '.join(_cells(row))} |" for row in report.rows]
    return "\n".join(lines) + "\n"


def _cells(row: Row) -> tuple[str, ...]:
    wanted = row.wanted
    asked = f"{wanted.speedup:g}x" + (f", size {wanted.size:g}" if wanted.size is not None else "")
    head = (f"{wanted.model}, {_asked(wanted.limits)}", f"{asked} ({wanted.why})")
    if row.error:
        return (*head, row.error, "", "", "", "", "")
    drop = "" if row.drop is None else f", drop {row.drop:.4f}"
    accuracy = "exact" if row.sqnr is None else f"{row.sqnr:.1f} dB{drop}"
    foretold = "" if row.foretold is None or row.measured is None else f"{row.foretold / row.measured - 1:+.0%}"
    times = ", ".join("-" if value is None else f"{value:.0f}" for value in (row.first, row.near, row.seconds))
    times += "; -" if row.quantize is None else f"; {row.quantize:.0f}"
    return (*head, row.plan, accuracy, f"{row.speedup:.2f}x", f"{row.size:.3f}", foretold, times)


def _asked(limits: Limits) -> str:
    given = {"max_drop": "drop", "min_sqnr": "dB", "max_size": "size", "max_latency": "time"}
    return ", ".join(
        f"{getattr(limits, key):g} {word}" for key, word in given.items() if getattr(limits, key) is not None
    )
