"""The main job: prepare, plan, calibrate, solve, apply, validate, judge."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import msgspec

from qcli.apply import apply_plan
from qcli.calibrate import collect
from qcli.candidates import choose
from qcli.depfile import write_depfile
from qcli.errors import NothingToDoError, UsageError
from qcli.files import check_writable
from qcli.gates import check_gates, judge
from qcli.graph import Model, load_model, save_model
from qcli.job import QuantizeJob
from qcli.plan import check_plan, make_plan, read_plan, refuse_quantized, required_opset
from qcli.prepare import prepare
from qcli.recipe import Recipe, SampleSource, load_recipe
from qcli.render import write_report
from qcli.report import PlanCounts, RecipeFacts, Report, SampleCounts, Seconds, environment, peak_memory_mb, with_gates
from qcli.solve import requests_of, solve
from qcli.sources import SampleStream, open_source, random_source
from qcli.statistics import Statistics, load_statistics
from qcli.types import Plan
from qcli.validate import ValidateJob, validate
from qcli.watch import Watch

_SMOKE_SAMPLES = 16
"""Without evaluation samples the result is compared on this many of the calibration samples."""


@dataclass(frozen=True)
class Prepared:
    """A job up to its plan."""

    recipe: Recipe
    source: Model
    model: Model
    plan: Plan
    calibration: SampleStream | None


def quantize(job: QuantizeJob, watch: Watch | None = None) -> Report:
    """A float model to a quantized one that was run and judged. A failed gate is in the report's `status`.

    Raises the errors of `qcli.errors`; the output file is then as before.
    """
    watch = watch or Watch()
    output = output_path(job)
    _check_outputs(job, output)
    recipe = load_recipe(job.recipe, job.settings)
    gates = check_gates((*recipe.gates, *job.gates), lacking=("latency",) if not job.latency else ())
    prepared = prepare_job(job, watch)
    evaluation = _evaluation(job, prepared)
    quantized, plan = _quantize(job, prepared, watch)
    watch.phase("validate")
    with tempfile.TemporaryDirectory(prefix="qcli-") as folder:
        written = Path(folder) / output.name
        save_model(quantized, written)
        result = validate(_validation(job, prepared, evaluation, written), watch)
        report = _report(job, prepared, (plan, quantized), evaluation, watch)
        report = msgspec.structs.replace(report, **result.sections(output))
        report = with_gates(report, judge(gates, report))
    return _finish(job, report, quantized, output)


def prepare_job(job: QuantizeJob, watch: Watch) -> Prepared:
    """The model after its steps, and the plan, read or made. Needs samples only for steps that measure."""
    watch.phase("prepare")
    recipe = load_recipe(job.recipe, job.settings)
    source = load_model(job.model)
    refuse_quantized(source)
    calibration = _calibration(job, recipe, source)
    model = prepare(source, required_opset(recipe), recipe.prepare, calibration, watch)
    plan = make_plan(model, recipe) if job.plan is None else read_plan(job.plan)
    check_plan(plan, model)
    return Prepared(recipe, source, model, plan, calibration)


def calibrate_job(job: QuantizeJob, watch: Watch | None = None) -> Statistics:
    """The statistics that the plan of a job needs, of the samples of its shard."""
    watch = watch or Watch()
    return _measure(job, prepare_job(job, watch), watch)


def output_path(job: QuantizeJob) -> Path:
    """`-o`, or the model's stem with the recipe's name in the current folder."""
    return job.output or Path(f"{job.model.stem}.{Path(job.recipe).stem}.onnx")


def threads_of(job: QuantizeJob) -> int:
    return job.threads or os.cpu_count() or 1


def _quantize(job: QuantizeJob, prepared: Prepared, watch: Watch) -> tuple[Model, Plan]:
    if job.stats is None:
        statistics = _measure(job, prepared, watch)
    else:
        statistics = load_statistics(job.stats)
    watch.phase("solve")
    plan = choose(prepared.model, prepared.plan, statistics, prepared.calibration, watch)
    solution = solve(prepared.model, plan, statistics)
    watch.phase("apply")
    return apply_plan(prepared.model, plan, solution), plan


def _measure(job: QuantizeJob, prepared: Prepared, watch: Watch) -> Statistics:
    if prepared.calibration is None:
        raise NothingToDoError(
            "static quantization needs samples to calibrate with", "name a folder with -d, or 'samples' in the recipe"
        )
    watch.phase("calibrate")
    requests = requests_of(prepared.plan, prepared.model)
    empty = Statistics.empty(prepared.source.sha256, prepared.recipe.sha256, requests)
    return collect(prepared.model, empty, prepared.calibration, threads=threads_of(job), progress=watch.progress)


def _calibration(job: QuantizeJob, recipe: Recipe, model: Model) -> SampleStream | None:
    if job.random_samples is not None:
        return random_source(model.inputs(), job.random_samples)
    source = recipe.samples.calibration
    return open_source(source, job.calibration, model.inputs(), limit=job.samples, shard=job.shard)


def _evaluation(job: QuantizeJob, prepared: Prepared) -> SampleStream | None:
    source = prepared.recipe.samples.validation
    if source.preprocess is None:
        preprocess = prepared.recipe.samples.calibration.preprocess
        source = msgspec.structs.replace(source, preprocess=preprocess)
    return open_source(source, job.evaluation, prepared.source.inputs(), labels=job.labels)


def _validation(job: QuantizeJob, prepared: Prepared, evaluation: SampleStream | None, written: Path) -> ValidateJob:
    raise NotImplementedError
