"""Any pair of models, compared and judged as a report."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from qcli.benching.peak import measure_both
from qcli.dataset import Sample
from qcli.doubts import slower
from qcli.errors import NothingToDoError
from qcli.files import check_distinct, check_writable
from qcli.gates import check_gates, evaluate, refuse_unrun, unmeasured
from qcli.graph import Model, check_sizes, load_model
from qcli.latency import Effort
from qcli.memory import budget_of
from qcli.parallel import MOST_AT_ONCE
from qcli.recipe import Recipe, load_recipe
from qcli.render import report_writer, write_report
from qcli.report import (
    Report,
    Seconds,
    environment,
    file_facts,
    peak_memory_mb,
    size_of,
    with_gates,
)
from qcli.sources import SampleStream, open_source
from qcli.storage import read_storage
from qcli.types import Noun
from qcli.validate import Means, ValidateJob, Validation, means_of, validate, with_validation
from qcli.watch import Watch


class CompareJob(Noun, frozen=True, kw_only=True):
    """Everything that `qcli validate` can be told.

    `recipe` says how samples become inputs, names the samples if `evaluation` does not, and adds its gates.
    """

    float_model: Path
    compressed: Path
    recipe: str = "int8"
    settings: tuple[str, ...] = ()
    evaluation: Path | None = None
    labels: Path | None = None
    gates: tuple[str, ...] = ()
    reports: tuple[Path, ...] = ()
    threads: int = 0
    latency: bool = True
    memory: bool = False
    max_memory: int | None = None


def compare_models(job: CompareJob, watch: Watch | None = None) -> Report:
    """Runs a float and a compressed model on the same samples. A failed gate is in the report's `status`.

    Raises the errors of `qcli.errors`, among them NothingToDoError without samples.
    """
    watch = watch or Watch()
    named = (job.float_model, job.compressed, Path(job.recipe), job.evaluation, job.labels)
    check_distinct(job.reports, [path for path in named if path is not None])
    for path in job.reports:
        report_writer(path)
        check_writable(path)
    recipe = load_recipe(job.recipe, job.settings)
    gates = check_gates((*recipe.gates, *job.gates), lacking=unmeasured(job.latency, job.memory))
    watch.phase("prepare")
    models = load_model(job.float_model), load_model(job.compressed)
    for model in models:
        check_sizes(model)
    means = means_of(budget_of(job.max_memory), models[0])
    refuse_unrun(gates, means.unmeasured, means.why)
    samples = evaluation_samples(job, recipe, models[0])
    watch.phase("validate")
    if means.why:
        watch.warn(means.why)
    validation = _validate(job, means, _watched(samples, watch)) if means.runs else None
    report = _report(job, models, validation, watch)
    if job.memory and means.runs:
        both = measure_both(job.float_model, job.compressed, next(iter(samples)).feeds)
        report = msgspec.structs.replace(report, memory=both)
    report = with_gates(report, evaluate(gates, report))
    for path in job.reports:
        write_report(report, path)
    return report


def _validate(job: CompareJob, means: Means, samples: Iterator[Sample]) -> Validation:
    return validate(
        ValidateJob(
            float_model=job.float_model,
            compressed=job.compressed,
            samples=samples,
            threads=job.threads or 1,
            parallel=1 if job.threads or means.lean else min(os.cpu_count() or 1, MOST_AT_ONCE),
            latency=Effort() if job.latency and not means.lean else None,
            lean=means.lean,
        )
    )


def evaluation_samples(job: CompareJob, recipe: Recipe, model: Model) -> SampleStream:
    """The samples that both models run on. Raises NothingToDoError without any, and as `open_source` does."""
    source = recipe.samples.validation
    if source.preprocess is None:
        source = msgspec.structs.replace(source, preprocess=recipe.samples.calibration.preprocess)
    samples = open_source(source, job.evaluation, model.inputs(), labels=job.labels)
    if samples is None:
        raise NothingToDoError(
            "there are no samples to validate with", "name a folder with -d, or 'samples' in the recipe"
        )
    return samples


def _watched(samples: SampleStream, watch: Watch) -> Iterator[Sample]:
    for done, sample in enumerate(samples, 1):
        yield sample
        watch.progress(done, len(samples))


def _report(job: CompareJob, models: tuple[Model, Model], validation: Validation | None, watch: Watch) -> Report:
    for warning in (*validation.warnings, *slower(validation)) if validation is not None else ():
        watch.warn(warning)
    before, after = file_facts(job.float_model, models[0]), file_facts(job.compressed, models[1])
    report = Report(
        command="validate",
        model=before,
        output=after,
        size=size_of(before, after, read_storage(job.compressed)),
        warnings=tuple(watch.warnings),
        seconds=Seconds(**watch.finish()),
        peak_memory_mb=peak_memory_mb(),
        environment=environment(),
    )
    return report if validation is None else with_validation(report, validation)
