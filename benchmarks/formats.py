"""Stored weights in every format: what a model weighs, and how close it stays to the float model.

Every row is kept in a JSON file as soon as it is there; a run that was interrupted goes on behind the last one. A
format is added by a line in `CASES`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import msgspec

from benchmarks.children import ROOT, progress
from benchmarks.subjects import Subject
from qcli import QuantizeJob
from qcli.errors import QcliError, UsageError
from qcli.pipeline import quantize
from qcli.report import Environment, Report, environment
from qcli.types import Noun
from qcli.watch import Watch

KEPT = ROOT / "out" / "formats.json"

MODELS = "minilm,mobilenetv2_imagenet,aidreams_llama_lm"


class Case(Noun, frozen=True, kw_only=True):
    """A row: a recipe with settings on top. One that `learns` needs samples."""

    name: str
    preset: str
    settings: tuple[str, ...] = ()
    learns: bool = False


class Limits(Noun, frozen=True, kw_only=True):
    """How many samples to learn from and to judge by, spread evenly."""

    calibration: int = 32
    evaluation: int = 64


class FormatRow(Noun, frozen=True, kw_only=True):
    """One model in one format. `nll` is the increase over the float model's, relative; `error` is empty if it ran."""

    model: str
    case: Case
    made_by: str
    size_ratio: float | None = None
    bits_per_weight: float | None = None
    sqnr: float | None = None
    agreement: float | None = None
    nll: float | None = None
    seconds: float = 0.0
    error: str = ""


class FormatReport(Noun, frozen=True, kw_only=True):
    """All rows so far, those of other models and of earlier runs too."""

    schema: int = 1
    benchmark: str = "formats"
    environment: Environment
    rows: tuple[FormatRow, ...] = ()

    def row(self, model: str, case: Case) -> FormatRow | None:
        return next((row for row in self.rows if (row.model, row.case) == (model, case)), None)


def _weights(name: str, preset: str, grid: str, more: str = "", *, learns: bool = False) -> Case:
    """A preset whose weights get another grid, but for the smallest: they have int8, as in codebook4."""
    rules = f"rules=[{{match: {{role: weight}}, grid: {{{grid}}}{more}}}, {_SMALLEST}]"
    return Case(name=name, preset=preset, settings=(rules,), learns=learns)


_SMALLEST = (
    "{match: {role: weight, smallest: 0.05}, range: mse, rounding: nearest, "
    "grid: {format: int8, symmetric: true, granularity: channel, narrow: true}, encoding: weight_only}"
)


_BLOCKS = "symmetric: false, granularity: block, scales: float16"
_NEAREST = ", range: mse, rounding: nearest"

CASES = (
    Case(name="`fp16`", preset="fp16"),
    Case(name="`bf16`", preset="bf16"),
    Case(name="`int8-weights`", preset="int8-weights"),
    _weights("int8, blocks of 32", "int8-weights", "format: int8, granularity: block, block: 32, scales: float16"),
    _weights("int6, channels, stored in 8", "int8-weights", "format: int6, granularity: channel"),
    Case(name="`int4-weights`", preset="int4-weights"),
    _weights("uint4, blocks of 16", "int8-weights", f"format: uint4, block: 16, {_BLOCKS}", _NEAREST),
    _weights("uint4, blocks of 64", "int8-weights", f"format: uint4, block: 64, {_BLOCKS}", _NEAREST),
    _weights("int4, channels", "int8-weights", "format: int4, granularity: channel", _NEAREST),
    Case(name="`int4-accurate`", preset="int4-accurate", learns=True),
    Case(name="`int2-weights`", preset="int2-weights", learns=True),
    Case(name="`product2`", preset="product2", learns=True),
    _weights(
        "product, 2 dimensions, 8 bits",
        "product2",
        "format: {product: {dimensions: 2}}, bits: 8, granularity: channel",
        ", range: {mse: {weighted: true}}, rounding: {coordinate: {refit: 3}}",
        learns=True,
    ),
    Case(name="`codebook8`", preset="codebook8"),
    Case(name="`codebook4`", preset="codebook4", learns=True),
    _weights("codebook of 4 bits, channels", "codebook8", "format: codebook, bits: 4, granularity: channel"),
    _weights(
        "codebook of 4 bits, blocks of 32", "codebook8", "format: codebook, bits: 4, granularity: block, block: 32"
    ),
    _weights(
        "NF4, blocks of 32",
        "codebook8",
        "format: normal_float, bits: 4, granularity: block, block: 32",
        ", range: minmax",
    ),
    _weights(
        "MXFP4",
        "codebook8",
        "format: {float4_e2m1: {scales: power_of_two}}, granularity: block, block: 32",
        ", range: mse",
    ),
    Case(name="`fp8`", preset="fp8"),
    Case(name="`power-of-two`", preset="power-of-two"),
    Case(name="`ternary`", preset="ternary"),
    Case(name="`binary`", preset="binary"),
)
"""All rows, in the order of the table. Names in backticks are presets."""


def measure_formats(
    models: Sequence[Subject],
    limits: Limits,
    kept: Path,
    save: Callable[[FormatReport], None],
    cases: Sequence[Case] = CASES,
) -> FormatReport:
    """Measures what `kept` does not hold yet, calling `save` after each row.

    Rows of these models that failed, or that other code or other samples made, are forgotten first.
    """
    where = environment()
    code = _digest((*sorted((ROOT / "qcli").rglob("*.py")), *sorted((ROOT / "recipes").glob("*.yaml"))))
    made_by = {each.name: f"{code} {_digest([each.model])} {limits} {where}" for each in models}
    made_by = {name: sha256(text.encode()).hexdigest()[:16] for name, text in made_by.items()}
    known = (row for row in _kept(kept) if row.made_by == made_by.get(row.model, row.made_by) and not row.error)
    report = FormatReport(environment=where, rows=tuple(known))
    for model in models:
        for case in cases:
            if report.row(model.name, case) is None:
                row = _measured(model, case, limits, made_by[model.name])
                progress(f"{model.name}: {case.name}: {row.error or f'{row.sqnr} dB at {row.size_ratio}'}")
                report = msgspec.structs.replace(report, rows=(*report.rows, row))
                save(report)
    save(report)
    return report


def front_of(rows: Sequence[FormatRow]) -> tuple[FormatRow, ...]:
    """Those of one model's rows that no other one beats: none is at most as large and closer to the float model.

    Of equal ones the first counts.
    """
    found: list[FormatRow] = []
    sized = [row for row in rows if row.size_ratio is not None and row.sqnr is not None]
    for row in sorted(sized, key=lambda row: (row.size_ratio or 0.0, -(row.sqnr or 0.0))):
        if not found or (row.sqnr or 0.0) > (found[-1].sqnr or 0.0):
            found.append(row)
    return tuple(found)


def formats_markdown(report: FormatReport, models: Sequence[str], limits: Limits) -> str:
    """A page with a table for each model, the smallest file first."""
    return "\n".join(_page(report, models, limits)).rstrip() + "\n"


def _page(report: FormatReport, models: Sequence[str], limits: Limits) -> Iterator[str]:
    where = report.environment
    yield "# What each format of stored weights comes to"
    yield ""
    yield (
        f"Made by `python -m benchmarks formats` with onnxruntime {where.onnxruntime} on {where.cpu} ({where.isa}), one"
        f" thread, up to {limits.calibration} samples to learn from and {limits.evaluation} others to judge by. Seconds"
        " are those of the whole of `qcli quantize --no-latency` and depend on what else the machine does. Nothing"
        " that is as small as a format on the front, or smaller, has a higher SQNR. Names in backticks are presets."
    )
    yield ""
    for model in models:
        rows = [row for row in report.rows if row.model == model]
        best = front_of(rows)
        yield f"## {model}"
        yield ""
        yield "| format | learns | size | bits a weight | SQNR dB | agreement | log-likelihood | seconds | front |"
        yield "|--|--|--|--|--|--|--|--|--|"
        for row in sorted(rows, key=lambda row: (row.size_ratio is None, row.size_ratio)):
            yield _line(row, on_front=row in best)
        yield ""


def _line(row: FormatRow, *, on_front: bool) -> str:
    cells = (
        row.case.name,
        "yes" if row.case.learns else "",
        _shown(row.size_ratio, ".3f"),
        _shown(row.bits_per_weight, ".2f"),
        _shown(row.sqnr, ".1f"),
        _shown(row.agreement, ".1%"),
        _shown(row.nll, "+.1%"),
        f"{row.seconds:.0f}",
        "yes" if on_front else row.error.replace("|", "/"),
    )
    return f"| {' | '.join(cells)} |"


def _shown(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _measured(model: Subject, case: Case, limits: Limits, made_by: str) -> FormatRow:
    """A format that is refused for a model is a row with the reason."""
    begin = perf_counter()
    try:
        report = _quantized(model, case, limits)
    except QcliError as failure:
        seconds = round(perf_counter() - begin, 3)
        return FormatRow(model=model.name, case=case, made_by=made_by, seconds=seconds, error=failure.message)
    accuracy, size = report.accuracy, report.size
    nll = accuracy.nll if accuracy is not None else None
    return FormatRow(
        model=model.name,
        case=case,
        made_by=made_by,
        size_ratio=size.ratio if size is not None else None,
        bits_per_weight=size.bits_per_weight if size is not None else None,
        sqnr=accuracy.sqnr if accuracy is not None else None,
        agreement=accuracy.agreement if accuracy is not None else None,
        nll=nll.increase / nll.float_ if nll is not None and nll.float_ else None,
        seconds=round(perf_counter() - begin, 3),
    )


def _quantized(model: Subject, case: Case, limits: Limits) -> Report:
    settings = (*model.settings()[1:], f"samples.validation.limit={limits.evaluation}", *case.settings)
    with TemporaryDirectory(prefix="qcli-formats-") as folder:
        job = QuantizeJob(
            model=model.model,
            recipe=case.preset,
            settings=settings,
            calibration=model.calibration,
            evaluation=model.evaluation,
            output=Path(folder) / "out.onnx",
            samples=limits.calibration,
            threads=1,
            latency=False,
            cache=False,
        )
        return quantize(job, Watch())


def _kept(file: Path) -> tuple[FormatRow, ...]:
    if not file.is_file():
        return ()
    try:
        return msgspec.json.decode(file.read_bytes(), type=FormatReport).rows
    except msgspec.MsgspecError as error:
        raise UsageError(f"'{file}' holds no formats: {error}", "delete it to begin anew") from error


def _digest(files: Sequence[Path]) -> str:
    whole = sha256()
    for file in files:
        whole.update(f"{file.name} {file.stat().st_size} ".encode())
        whole.update(file.read_bytes())
    return whole.hexdigest()
