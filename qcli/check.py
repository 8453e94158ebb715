"""Finding every problem of a job before the work, not the first one alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from qcli.dataset import Dataset
from qcli.dataset import Problem as SampleProblem
from qcli.errors import QcliError, UsageError
from qcli.existing import refuse_quantized
from qcli.gates import parse_gate
from qcli.graph import Model, check_sizes, load_model
from qcli.job import QuantizeJob
from qcli.matching import RuleBook
from qcli.memory import budget_of
from qcli.opsets import calibrates, required_opset
from qcli.plan import make_plan
from qcli.prepare import prepare
from qcli.recipe import Recipe, SampleSource, load_recipe
from qcli.sources import SampleStream, open_source
from qcli.types import Noun
from qcli.watch import Watch

T = TypeVar("T")


class Problem(Noun, frozen=True, kw_only=True):
    """One thing to mend: an `error` stops the work, a `warning` does not. `place` is a part of the job."""

    level: Literal["error", "warning"]
    place: str
    message: str
    hint: str = ""


class Findings(Noun, frozen=True, kw_only=True):
    """All problems of a job; `failed` if one of them is an error."""

    schema: int = 1
    command: str = "check"
    status: Literal["passed", "failed"]
    problems: tuple[Problem, ...]


@dataclass
class _Notes:
    problems: list[Problem] = field(default_factory=list)

    def add(self, place: str, error: QcliError) -> None:
        self.problems.append(Problem(level="error", place=place, message=error.message, hint=error.hint))

    def warn(self, place: str, message: str, hint: str) -> None:
        self.problems.append(Problem(level="warning", place=place, message=message, hint=hint))

    def attempt(self, place: str, work: Callable[[], T]) -> T | None:
        """What `work` returns; None, and a note, if it raises."""
        try:
            return work()
        except QcliError as error:
            self.add(place, error)
            return None


def check_job(job: QuantizeJob) -> Findings:
    """Looks at the model, the recipe, their match, the gates and every sample. Writes and raises nothing."""
    notes = _Notes()
    model = notes.attempt("model", lambda: load_model(job.model))
    recipe = notes.attempt("recipe", lambda: load_recipe(job.recipe, job.settings))
    if model is not None:
        found = len(notes.problems)
        notes.attempt("model", lambda: None if job.requantize_rest else refuse_quantized(model))
        notes.attempt("model", lambda: check_sizes(model))
        if len(notes.problems) == found and recipe is not None:
            _check_opset(model, recipe, notes)
            _check_plan(model, recipe, notes)
    for gate in (*(recipe.gates if recipe is not None else ()), *job.gates):
        notes.attempt("gates", lambda text=gate: parse_gate(text))  # type: ignore[misc]
    if model is not None:
        _check_samples(job, recipe, model, notes)
    failed = any(problem.level == "error" for problem in notes.problems)
    return Findings(status="failed" if failed else "passed", problems=tuple(notes.problems))


def _prepared(model: Model, recipe: Recipe) -> Model:
    return prepare(model, required_opset(recipe), recipe.prepare, None, Watch(), budget=budget_of(None))


def _check_plan(model: Model, recipe: Recipe, notes: _Notes) -> None:
    """Each rule of the user's on its own, then what the good ones come to together."""
    prepared = notes.attempt("model", lambda: _prepared(model, recipe))
    if prepared is None:
        return
    good = []
    for rule in recipe.rules:
        alone = msgspec.structs.replace(recipe, rules=(rule,))
        if notes.attempt("recipe", lambda one=alone: RuleBook(prepared, one)) is not None:  # type: ignore[misc]
            good.append(rule)
    usable = msgspec.structs.replace(recipe, rules=tuple(good))
    notes.attempt("plan", lambda: make_plan(prepared, usable))


def _check_opset(model: Model, recipe: Recipe, notes: _Notes) -> None:
    needed = required_opset(recipe)
    if model.opset < needed:
        hint = f"qcli converts it; to be sure of the result export with opset {needed} or newer"
        notes.warn("model", f"the model has opset {model.opset}, the recipe's grids need {needed}", hint)


def _check_samples(job: QuantizeJob, recipe: Recipe | None, model: Model, notes: _Notes) -> None:
    sources = recipe.samples if recipe is not None else None
    calibration = sources.calibration if sources is not None else SampleSource()
    validation = sources.validation if sources is not None else SampleSource()
    if validation.preprocess is None:
        validation = msgspec.structs.replace(validation, preprocess=calibration.preprocess)
    found = _open(("calibration", calibration), job.calibration, None, model, notes)
    judged = _open(("evaluation", validation), job.evaluation, job.labels, model, notes)
    named = calibration.path is not None or job.calibration is not None
    if not named and (recipe is None or calibrates(recipe) or recipe.fallback is not None):
        notes.warn("calibration", "no samples are named", "name a folder with -d, or 'samples' in the recipe")
    for place, stream in (("calibration", found), ("evaluation", judged)):
        notes.problems.extend(_bad_samples(place, stream))


def _open(
    named: tuple[str, SampleSource], path: Path | None, labels: Path | None, model: Model, notes: _Notes
) -> SampleStream | None:
    place, source = named
    return notes.attempt(place, lambda: open_source(source, path, model.inputs(), labels=labels))


def _bad_samples(place: str, stream: SampleStream | None) -> Iterator[Problem]:
    if stream is None or not isinstance(stream.dataset, Dataset):
        return
    bad: list[SampleProblem] = []
    try:
        for _ in stream.dataset.good(bad):
            pass
    except UsageError as error:  # no sample can be read so
        yield Problem(level="error", place=place, message=error.message, hint=error.hint)
    for one in bad:
        yield Problem(level="error", place=f"{place}: {one.file}", message=one.reason, hint=one.hint)
