"""Every model of a zoo with every preset: what became of it, or why nothing did."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
from rich.console import Console

from qcli import QuantizeJob
from qcli.errors import QcliError
from qcli.graph import load_model
from qcli.pipeline import quantize
from qcli.report import Environment, Report, environment
from qcli.types import Noun
from qcli.watch import Watch

PRESETS = ("int8", "int8-dynamic", "int8-weights", "int8-transformer")

_REFUSED = (3, 4, 6)
"""Exit codes that say something about the model, whatever the preset."""

_CALIBRATION = 32
_EVALUATION = 64
_MADE_UP = 8
"""Random inputs for models without samples: they show that a model runs, not how well."""

_ON_PHOTOGRAPHS = ("mobilenetv2", "squeezenet")


class SweepRow(Noun, frozen=True, kw_only=True):
    """One model with one preset. Without a result only `code` and `reason` are known; `samples` says which ones."""

    model: str
    preset: str
    code: int
    samples: str = ""
    size_ratio: float | None = None
    sqnr: float | None = None
    agreement: float | None = None
    speedup: float | None = None
    integer_share: float | None = None
    reason: str = ""


class SweepReport(Noun, frozen=True, kw_only=True):
    """All rows, and where they were measured."""

    schema: int = 1
    benchmark: str = "sweep"
    environment: Environment
    rows: tuple[SweepRow, ...]


def sweep(zoo: Path, names: list[str] | None, console: Console) -> SweepReport:
    """Quantizes every model in `zoo`, those in its folder `odd` too, with the presets that suit it."""
    rows: list[SweepRow] = []
    for model in _models(zoo):
        name = _name(zoo, model)
        if names is None or any(wanted in name for wanted in names):
            for preset in _presets(model):
                rows.append(_row(zoo, model, preset))
                console.print(f"{name} {preset}: exit code {rows[-1].code}")
                if rows[-1].code in _REFUSED:
                    break
    return SweepReport(environment=environment(), rows=tuple(rows))


def sweep_markdown(report: SweepReport) -> str:
    """The page docs/sweep.md."""
    where = report.environment
    lines = [
        "# Every model of the zoo with every preset",
        "",
        f"Made by `make sweep` with onnxruntime {where.onnxruntime} on {where.cpu} ({where.isa}), one thread, "
        f"{_CALIBRATION} samples to calibrate with, up to {_EVALUATION} others to judge by. Exit codes are in "
        "[exit-codes.md](exit-codes.md); without a result the last column says why. SQNR is that of the worst output, "
        "agreement the share of samples with the float model's top-1, integers the share of multiply-accumulates on "
        "integer kernels. `int8-weights` computes in float and is for size alone. Rows marked * ran on random inputs, "
        "which say little about accuracy.",
        "",
        "| model | preset | exit code | size | SQNR, dB | agreement | speedup | integers | reason |",
        "|--|--|--|--|--|--|--|--|--|",
    ]
    return "\n".join([*lines, *(_line(row) for row in report.rows)]) + "\n"


def _models(zoo: Path) -> Iterator[Path]:
    yield from sorted(zoo.glob("*/model.onnx"))
    yield from sorted((zoo / "odd").rglob("*.onnx"))


def _name(zoo: Path, model: Path) -> str:
    return str((model.parent if model.name == "model.onnx" else model).relative_to(zoo))


def _presets(model: Path) -> tuple[str, ...]:
    """All of them for a transformer, for others all but the one for transformers."""
    try:
        operators = Counter(node.op_type for node in load_model(model).nodes())
    except QcliError:
        return PRESETS
    attends = operators["Softmax"] > 1 and operators["MatMul"] > operators["Softmax"]
    return PRESETS if attends or operators["Attention"] else PRESETS[:-1]


def _row(zoo: Path, model: Path, preset: str) -> SweepRow:
    name = _name(zoo, model)
    with TemporaryDirectory(prefix="qcli-") as folder:
        job = _job(zoo, model, preset)
        made_up = "random" if job.random_samples else ""
        try:
            report = quantize(msgspec.structs.replace(job, output=Path(folder) / "out.onnx"), Watch())
        except QcliError as error:
            reason = error.message + (f" ({error.hint})" if error.exit_code == 5 else "")
            reason = reason.replace(f"{zoo}/", "").replace("|", "\\|")
            return SweepRow(model=name, preset=preset, code=error.exit_code, reason=reason, samples=made_up)
    return _measured(name, preset, report, made_up)


def _measured(name: str, preset: str, report: Report, samples: str) -> SweepRow:
    return SweepRow(
        model=name,
        preset=preset,
        code=0 if report.status == "passed" else 1,
        samples=samples,
        size_ratio=report.size.ratio if report.size else None,
        sqnr=report.accuracy.sqnr if report.accuracy else None,
        agreement=report.accuracy.agreement if report.accuracy else None,
        speedup=report.latency.speedup if report.latency else None,
        integer_share=report.kernels.integer_share if report.kernels else None,
    )


def _job(zoo: Path, model: Path, preset: str) -> QuantizeJob:
    job = QuantizeJob(model=model, recipe=preset, threads=1, samples=_CALIBRATION, cache=False)
    folder = model.parent
    settings = [f"samples.validation.limit={_EVALUATION}"]
    if any(name in str(model.relative_to(zoo)) for name in _ON_PHOTOGRAPHS):
        folder = zoo / "imagenet"
        settings.append("samples.calibration.preprocess=imagenet")
    if not (folder / "calib").is_dir():
        return msgspec.structs.replace(job, random_samples=_MADE_UP, samples=None)
    return msgspec.structs.replace(
        job, calibration=folder / "calib", evaluation=folder / "eval", settings=tuple(settings)
    )


def _line(row: SweepRow) -> str:
    cells = [
        f"{row.model}{'*' if row.samples else ''}",
        row.preset,
        str(row.code),
        _shown(row.size_ratio, ".2f"),
        _shown(row.sqnr, ".1f"),
        _shown(row.agreement, ".1%"),
        _shown(row.speedup, ".2f"),
        _shown(row.integer_share, ".0%"),
        row.reason,
    ]
    return f"| {' | '.join(cells)} |"


def _shown(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
