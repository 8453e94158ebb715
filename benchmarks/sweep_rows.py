"""What a sweep is made of: the models of a zoo, how each is quantized, and the row that becomes of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from qcli import QuantizeJob
from qcli.plugins import choice_of
from qcli.recipe import load_recipe
from qcli.report import Environment
from qcli.types import Noun

CALIBRATION = 32
LEARNING = 16
"""Samples for presets that learn, on models of more than `LARGE` bytes, where they would take many minutes."""

LARGE = 5_000_000

EVALUATION = 64
MADE_UP = 8
"""Random inputs for models without samples: they show that a model runs, not how well."""

_ON_PHOTOGRAPHS = ("mobilenetv2", "squeezenet")


class SweepRow(Noun, frozen=True, kw_only=True):
    """One model with one preset. Without a result only `code`, `reason` and `seconds` are known.

    `samples` says which ones. `fault` is what no run may end with: a crash, too long a time, a file that does not load
    again, NaN. `speedup` is for presets that compute in integers here.
    """

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
    fault: str = ""
    warnings: tuple[str, ...] = ()
    seconds: float = 0.0


class SweepReport(Noun, frozen=True, kw_only=True):
    """All rows, and where they were measured."""

    schema: int = 2
    benchmark: str = "sweep"
    environment: Environment
    rows: tuple[SweepRow, ...]


class Case(Noun, frozen=True, kw_only=True):
    """One model of a zoo and the presets to try on it. Results stay in the folder `kept`, under `output`."""

    zoo: str
    model: str
    presets: tuple[str, ...]
    kept: str

    @property
    def name(self) -> str:
        """The model's folder in the zoo, or its file where it has none to itself."""
        model = Path(self.model)
        return str((model.parent if model.name == "model.onnx" else model).relative_to(self.zoo))

    def output(self, preset: str) -> Path:
        return Path(self.kept) / f"{self.name.replace('/', '.').removesuffix('.onnx')}.{preset}.onnx"

    def job(self, preset: str) -> QuantizeJob:
        """Random inputs where the zoo has no samples for the model."""
        model, zoo = Path(self.model), Path(self.zoo)
        job = QuantizeJob(
            model=model,
            recipe=preset,
            threads=1,
            samples=LEARNING if model.stat().st_size > LARGE and learns(preset) else CALIBRATION,
            cache=False,
            latency=False,
            output=self.output(preset),
        )
        folder = model.parent
        settings = [f"samples.validation.limit={EVALUATION}"]
        if any(name in self.name for name in _ON_PHOTOGRAPHS):
            folder = zoo / "imagenet"
            settings.append("samples.calibration.preprocess=imagenet")
        if not (folder / "calib").is_dir():
            return msgspec.structs.replace(job, random_samples=MADE_UP, samples=None)
        return msgspec.structs.replace(
            job, calibration=folder / "calib", evaluation=folder / "eval", settings=tuple(settings)
        )


def models_of(zoo: Path) -> Iterator[Path]:
    """Its models, then the files of its folder `odd`."""
    yield from sorted(zoo.glob("*/model.onnx"))
    yield from sorted((zoo / "odd").rglob("*.onnx"))


def claims_speed(preset: str) -> bool:
    """True if its recipe has this machine's integer kernels compute: it quantizes activations, or says `dynamic`."""
    recipe = load_recipe(preset)
    if recipe.target != "ort_cpu":
        return False
    rules = [sourced.rule for sourced in recipe.rules]
    return any(rule.match.role == "input" or rule.encoding == "dynamic" for rule in rules)


def learns(preset: str) -> bool:
    """True if its recipe learns weights or ranges from samples, which takes minutes."""
    recipe = load_recipe(preset)
    rules = [sourced.rule for sourced in recipe.rules]
    return "refine_ranges" in recipe.finish or any(
        rule.range == "auto" or (rule.rounding is not None and choice_of(rule.rounding).name in _LEARNERS)
        for rule in rules
    )


_LEARNERS = ("coordinate", "gptq", "adaround")
