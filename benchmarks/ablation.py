"""What each step brings: steps added one by one, and every step alone on top of `int8`, on each model.

Every cell is kept in a JSON file as soon as it is there; a run that was interrupted goes on behind the last one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from qcli.plugins import names
from qcli.recipe import load_recipe, preset_names
from qcli.report import Environment, Report, environment
from qcli.types import Noun
from qcli.watch import Watch

KEPT = ROOT / "out" / "ablation.json"

_PRESETS = ("int8", "int8-accurate", "w4a8")

_NEAREST = "{match: {role: weight}, rounding: nearest}"
_COORDINATE = "{match: {role: weight}, rounding: coordinate}"


class Variant(Noun, frozen=True, kw_only=True):
    """A row: a preset with settings on top. `step` is what is new in it."""

    name: str
    preset: str
    settings: tuple[str, ...] = ()
    step: str = ""


class Limits(Noun, frozen=True, kw_only=True):
    """How many samples to calibrate with and to judge by; None means all."""

    calibration: int | None = None
    evaluation: int | None = None


class Cell(Noun, frozen=True, kw_only=True):
    """One model with one recipe. `made_by` is a digest of what the figures depend on; `error` is empty if it ran."""

    model: str
    preset: str
    settings: tuple[str, ...]
    made_by: str
    sqnr: float | None = None
    agreement: float | None = None
    seconds: float
    warnings: tuple[str, ...] = ()
    error: str = ""


class AblationReport(Noun, frozen=True, kw_only=True):
    """All cells so far, those of other models and of earlier runs too."""

    schema: int = 1
    benchmark: str = "ablation"
    environment: Environment
    cells: tuple[Cell, ...] = ()

    def cell(self, model: str, variant: Variant) -> Cell | None:
        wanted = (model, variant.preset, variant.settings)
        return next((cell for cell in self.cells if (cell.model, cell.preset, cell.settings) == wanted), None)


def one_by_one() -> tuple[Variant, ...]:
    """Each row adds a step to the one before it."""
    learned = f"rules=[{_COORDINATE}]"
    smooth, split = _prepare("int8-auto", "smooth"), _prepare("int8-auto", "split_outliers", "smooth")
    equal = _prepare("int8-auto", "split_outliers", "smooth", "equalize")
    return (
        Variant(name="min-max, nearest", preset="int8-minmax", settings=(f"rules=[{_NEAREST}]",)),
        Variant(name="+ `squant` (`int8-minmax`)", preset="int8-minmax", step="squant"),
        Variant(name="+ `mse`", preset="int8", settings=(_prepare("int8"),), step="mse"),
        Variant(name="+ `auto`", preset="int8-auto", settings=(_prepare("int8-auto"),), step="auto"),
        Variant(name="+ `smooth`", preset="int8-auto", settings=(smooth,), step="smooth"),
        Variant(name="+ `split_outliers`", preset="int8-auto", settings=(split,), step="split_outliers"),
        Variant(name="+ `equalize`", preset="int8-auto", settings=(equal,), step="equalize"),
        Variant(name="+ `coordinate`", preset="int8-auto", settings=(equal, learned), step="coordinate"),
        Variant(
            name="+ `correct_bias`",
            preset="int8-auto",
            settings=(equal, learned, "finish=[correct_bias]"),
            step="correct_bias",
        ),
    )


def presets() -> tuple[Variant, ...]:
    """The presets that a user would take, as far as they are there, and 4-bit weights that do not learn."""
    known = (Variant(name=f"`{name}`", preset=name) for name in _PRESETS if name in preset_names())
    plain = Variant(name="`w4a8` with `nearest`", preset="w4a8", settings=(f"rules=[{_NEAREST}]",), step="nearest")
    return (*known, plain)


def baseline() -> Variant:
    """What single steps are compared with."""
    return Variant(name="`int8` without steps that measure", preset="int8", settings=(_prepare("int8"),))


def alone() -> tuple[Variant, ...]:
    """Every step by itself on top of `int8` without any; roundings as far as they are there."""
    roundings = [name for name in ("gptq", "coordinate", "adaround") if name in names("roundings")]
    return (
        *(_alone(name, _prepare("int8", name)) for name in ("equalize", "absorb_bias", "smooth", "split_outliers")),
        *(_alone(name, f"rules=[{{match: {{role: weight}}, rounding: {name}}}]") for name in roundings),
        *(_alone(name, f"finish=[{name}]") for name in ("refine_ranges", "correct_bias")),
        _alone("mse, weighted", "rules=[{match: {role: weight}, range: {mse: {weighted: true}}}]"),
        *(_alone(name, f"rules=[{{match: {{role: input}}, range: {name}}}]") for name in ("auto", "octav")),
    )


def variants() -> tuple[Variant, ...]:
    """All rows, those with the same recipe once."""
    rows = (*one_by_one(), *presets(), baseline(), *alone())
    found: dict[tuple[str, tuple[str, ...]], Variant] = {}
    for row in rows:
        found.setdefault((row.preset, row.settings), row)
    return tuple(found.values())


def ablate(
    models: Sequence[Subject], limits: Limits, kept: Path, save: Callable[[AblationReport], None]
) -> AblationReport:
    """Measures what `kept` does not hold yet, calling `save` after each cell.

    Cells of these models that failed, or that another version of qcli made, are forgotten first.
    """
    where = environment()
    code = _code(where)
    made_by = {
        each.name: sha256(f"{code} {_digest([each.model])} {limits}".encode()).hexdigest()[:16] for each in models
    }
    known = (cell for cell in _kept(kept) if cell.made_by == made_by.get(cell.model, cell.made_by) and not cell.error)
    report = AblationReport(environment=where, cells=tuple(known))
    for model in models:
        for variant in variants():
            if report.cell(model.name, variant) is None:
                cell = _measured(model, variant, limits, made_by[model.name])
                progress(f"{model.name}: {variant.name}: {cell.error or _figures(cell)}")
                report = msgspec.structs.replace(report, cells=(*report.cells, cell))
                save(report)
    save(report)
    return report


def _figures(cell: Cell) -> str:
    return f"{'no' if cell.sqnr is None else f'{cell.sqnr:.1f}'} dB, {cell.seconds:.1f} s"


def _alone(step: str, setting: str) -> Variant:
    settings = (setting,) if setting.startswith("prepare=") else (_prepare("int8"), setting)
    return Variant(name=f"`{step}`", preset="int8", settings=settings, step=step)


def _prepare(preset: str, *steps: str) -> str:
    """The setting that adds graph steps to those of a preset that keep what the model computes as it is."""
    plain = [spec for spec in load_recipe(preset).prepare if spec not in ("smooth", "equalize")]
    return f"prepare={msgspec.json.encode((*plain, *steps)).decode()}"


def _kept(file: Path) -> tuple[Cell, ...]:
    if not file.is_file():
        return ()
    try:
        return msgspec.json.decode(file.read_bytes(), type=AblationReport).cells
    except msgspec.MsgspecError as error:
        raise UsageError(f"'{file}' holds no ablation: {error}", "delete it to begin anew") from error


def _measured(model: Subject, variant: Variant, limits: Limits, made_by: str) -> Cell:
    """Whatever happens is a cell: a table with one hole says more than none."""
    begin = perf_counter()
    report, error = None, ""
    try:
        report = _quantized(model, variant, limits)
    except QcliError as failure:
        error = failure.message
    except Exception as failure:
        error = f"{type(failure).__name__}: {failure}"
    accuracy = report.accuracy if report is not None else None
    return Cell(
        model=model.name,
        preset=variant.preset,
        settings=variant.settings,
        made_by=made_by,
        sqnr=accuracy.sqnr if accuracy is not None else None,
        agreement=accuracy.agreement if accuracy is not None else None,
        seconds=round(perf_counter() - begin, 3),
        warnings=report.warnings if report is not None else (),
        error=" ".join(error.replace(f"{model.model.parent.parent}/", "").split()),
    )


def _quantized(model: Subject, variant: Variant, limits: Limits) -> Report:
    own = model.settings()[1:]
    judged = () if limits.evaluation is None else (f"samples.validation.limit={limits.evaluation}",)
    with TemporaryDirectory(prefix="qcli-ablation-") as folder:
        job = QuantizeJob(
            model=model.model,
            recipe=variant.preset,
            settings=(*own, *judged, *variant.settings),
            calibration=model.calibration,
            evaluation=model.evaluation,
            output=Path(folder) / "out.onnx",
            samples=limits.calibration,
            threads=1,
            latency=False,
            cache=False,
        )
        return quantize(job, Watch())


def _code(where: Environment) -> str:
    """A digest of qcli's own files and of what it runs with."""
    files = (*sorted((ROOT / "qcli").rglob("*.py")), *sorted((ROOT / "recipes").glob("*.yaml")))
    return _digest(files) + sha256(msgspec.json.encode(where)).hexdigest()


def _digest(files: Sequence[Path]) -> str:
    whole = sha256()
    for file in files:
        whole.update(f"{file.name} {file.stat().st_size} ".encode())
        whole.update(file.read_bytes())
    return whole.hexdigest()
