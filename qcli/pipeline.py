"""The main job: prepare, plan, calibrate, solve, apply, validate, judge."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import msgspec

from qcli.aimet import encodings_json, refuse_blocks
from qcli.amendments import FallbackFacts
from qcli.apply import apply_plan
from qcli.cache import cache_key, find_statistics, keep_statistics
from qcli.calibrate import check_memory, collect
from qcli.choose import choose, is_undecided
from qcli.data_free import ends_of_inputs, fill_in
from qcli.dataset import Sample
from qcli.depfile import write_depfile
from qcli.doubts import doubts
from qcli.energies import doubts_about_energies
from qcli.errors import NothingToDoError, UsageError
from qcli.existing import refuse_quantized
from qcli.files import replace_file, scratch_folder
from qcli.finish import Finishing, Settled
from qcli.gates import check_gates, evaluate, refuse_unrun, unmeasured
from qcli.graph import Model, check_sizes, infer_shapes, load_model, move_model, save_model
from qcli.halves import doubts_about_halves, refuse_done
from qcli.held_out import Trial
from qcli.job import QuantizeJob, threads_of
from qcli.job_files import check_outputs, dependencies, output_path
from qcli.job_results import converted_by, memory_of, reasons_of
from qcli.job_samples import calibration_samples, evaluation_samples, named_evaluation, step_samples
from qcli.latency import Effort
from qcli.learn import doubts_about_learning
from qcli.measured import requests_of, weight_requests, wishes_of
from qcli.memory import budget_of
from qcli.opsets import computes_in_integers, required_opset, written_opset
from qcli.parallel import MOST_AT_ONCE
from qcli.plan import check_plan, make_plan, read_plan
from qcli.prepare import prepare, sampling_steps
from qcli.prepared import Prepared
from qcli.recipe import load_recipe
from qcli.refine import doubted_plan, refine_plan
from qcli.render import write_report
from qcli.report import (
    FileFacts,
    PlanCounts,
    RecipeFacts,
    Report,
    SampleCounts,
    Seconds,
    environment,
    file_facts,
    peak_memory_mb,
    size_of,
    with_gates,
)
from qcli.small_floats import doubts_about_saturation
from qcli.solve import Solution
from qcli.statistics import Statistics, load_statistics
from qcli.storage import read_storage
from qcli.suitability import refuse_version
from qcli.teaching import Teaching, solve_taught
from qcli.types import Plan, Request
from qcli.validate import Means, ValidateJob, Validation, means_of, validate, with_validation
from qcli.watch import Watch

_NO_SAMPLES = "static quantization needs samples to calibrate with"
_WITHOUT_SAMPLES = (
    "name a folder with -d, or 'samples' in the recipe; int8-weights, int8-dynamic, int8-data-free need none"
)

FallBack = Callable[[QuantizeJob, Prepared, Watch], tuple[Prepared, FallbackFacts | None]]
"""What keeps a recipe's `fallback`: it puts into recipe and plan what goes back to float. See `qcli.fallback`."""


def quantize(job: QuantizeJob, watch: Watch | None = None, fall_back: FallBack | None = None) -> Report:
    """A float model to a quantized one that was run and judged. A failed gate is in the report's `status`.

    Without `fall_back` the recipe's `fallback` is not applied, and a warning says so; `qcli.quantize` applies it.
    Raises the errors of `qcli.errors`; the output file is then as before.
    """
    watch = watch or Watch()
    check_outputs(job)
    prepared = prepare_job(job, watch)
    fallible = prepared.recipe.fallback is not None and job.plan is None
    lacking = (*unmeasured(job.latency, job.memory), *(() if fallible else ("a fallback",)))
    gates = check_gates((*prepared.recipe.gates, *job.gates), lacking=lacking)
    means = means_of(budget_of(job.max_memory), prepared.source)
    refuse_unrun(gates, means.unmeasured, means.why)
    evaluation = evaluation_samples(job, prepared, watch) if means.runs else ()
    if job.encodings is not None:
        refuse_blocks(prepared.plan, job.encodings_version)
    if job.dry_run:
        return _dry_report(job, prepared, watch)
    for step in sampling_steps(prepared.recipe.prepare) if prepared.calibration is None else ():
        watch.warn(f"step '{step}' needs samples and was skipped")
    prepared, fallback = (fall_back or _ignored)(job, prepared, watch)
    quantized, plan, solution = _quantize(job, prepared, watch)
    prepared = replace(prepared, plan=plan)
    converted = converted_by(job, prepared, quantized, watch)
    quantized = converted.model if converted is not None else quantized
    watch.phase("validate")
    with scratch_folder() as folder:
        made = _Made(quantized, folder / output_path(job).name)
        save_model(quantized, made.path)
        facts = msgspec.structs.replace(file_facts(made.path, load_model(made.path)), path=str(output_path(job)))
        reasons = reasons_of(plan, converted)
        validation = validate(_validate_job(job, reasons, evaluation, made.path, means)) if means.runs else None
        storage = read_storage(made.path)
        memory = memory_of(job, prepared, made.path) if job.memory and means.runs else None
        if means.why:
            watch.warn(means.why)
        report = _report(job, prepared, validation, watch)
        report = msgspec.structs.replace(
            report,
            fallback=fallback,
            conversion=converted.facts if converted is not None else None,
            output=facts,
            size=size_of(_facts_of(report.model), facts, storage),
            memory=memory,
            seconds=Seconds(**watch.finish()),
            peak_memory_mb=peak_memory_mb(),
        )
        report = with_gates(report, evaluate(gates, report))
        if job.encodings is not None and (report.status == "passed" or job.keep_failing):
            replace_file(job.encodings, encodings_json(plan, solution, job.encodings_version))
        return _finish(job, prepared, made, report, watch)


class _Made(NamedTuple):
    """The result, and the file that was judged."""

    model: Model
    path: Path

    def save(self, path: Path) -> None:
        """Writes it; of a large model the file is moved, since each of its weights would be rounded again."""
        if self.model.large and self.path.name == path.name:
            move_model(self.model, self.path, path)
        else:
            save_model(self.model, path)


def prepare_job(job: QuantizeJob, watch: Watch) -> Prepared:
    """The model after its steps, and the plan, read or made. Needs samples only for steps that measure."""
    watch.phase("prepare")
    recipe = load_recipe(job.recipe, job.settings)
    source = load_model(job.model)
    if not job.requantize_rest:
        refuse_quantized(source)
    check_sizes(source)
    calibration = calibration_samples(job, recipe, source, watch)
    given = read_plan(job.plan) if job.plan is not None else None
    samples = step_samples(job, recipe, source)
    opset = max(required_opset(recipe), written_opset(given) if given is not None else 0)
    refuse_version(source, given.target if given is not None else recipe.target, opset)
    judge = Trial(source, recipe, samples, threads=threads_of(job)).decibels if samples is not None else None
    budget = budget_of(job.max_memory)
    model = prepare(source, opset, recipe.prepare, samples, watch, budget=budget, judge=judge)
    infer_shapes(model)  # as making a plan does, so that reading one gives the same bytes
    plan = fill_in(model, given if given is not None else make_plan(model, recipe), recipe, watch.warn)
    check_plan(plan, model, may_be_empty=recipe.convert is not None)
    refuse_done(source, plan, recipe.convert)
    return Prepared(recipe, source, model, plan, calibration)


def calibrate_job(job: QuantizeJob, watch: Watch | None = None) -> Statistics:
    """The statistics that the plan of a job needs, of the samples of its shard."""
    watch = watch or Watch()
    return _measure(job, prepare_job(job, watch), watch)


def settle_job(job: QuantizeJob, prepared: Prepared, watch: Watch) -> tuple[Plan, Statistics]:
    """The statistics that a plan needs, and what they leave of the plan."""
    statistics = _statistics(job, prepared, watch)
    watch.phase("solve")
    if job.plan is None:
        plan = refine_plan(prepared.model, prepared.recipe, prepared.plan, statistics)
        plan = fill_in(prepared.model, plan, prepared.recipe, watch.warn)
    else:  # a plan that was given is the user's word
        plan = doubted_plan(prepared.model, prepared.plan, statistics, watch.warn)
    if any(is_undecided(entry) for entry in plan.entries):
        samples = step_samples(job, prepared.recipe, prepared.source)
        plan = choose(prepared.model, plan, statistics, samples, watch, threads=threads_of(job))
    return plan, statistics


def _ignored(job: QuantizeJob, prepared: Prepared, watch: Watch) -> tuple[Prepared, None]:
    if prepared.recipe.fallback is not None:
        watch.warn("the recipe's 'fallback' was not applied")
    return prepared, None


def _quantize(job: QuantizeJob, prepared: Prepared, watch: Watch) -> tuple[Model, Plan, Solution]:
    plan, statistics = settle_job(job, prepared, watch)
    for doubts_about in (doubts_about_learning, doubts_about_energies, doubts_about_halves):
        for doubt in doubts_about(plan, prepared.model, statistics):
            watch.warn(doubt)
    solution = finish_job(job, prepared, Settled(prepared.model, plan, statistics), watch)
    for doubt in doubts_about_saturation(plan, solution, statistics):
        watch.warn(doubt)
    watch.phase("apply")
    return apply_plan(prepared.model, plan, solution), plan, solution


def finish_job(job: QuantizeJob, prepared: Prepared, work: Settled, watch: Watch) -> Solution:
    """The solution, after what is learned from the quantized model itself."""
    trial: Trial | None = None
    if prepared.calibration is not None and means_of(budget_of(job.max_memory), prepared.source).runs:
        trial = Trial(prepared.source, prepared.recipe, prepared.calibration, stride=4, threads=threads_of(job))
    model, recipe, plan = prepared.model, prepared.recipe, work.plan
    ends = partial(ends_of_inputs, model, plan, recipe)
    teaching = Teaching(prepared.calibration, watch) if prepared.calibration is not None else None
    solution = solve_taught(*work, threads=threads_of(job), teaching=teaching)
    return Finishing(work, solution, watch, trial=trial, inputs=ends).run(recipe.finish)


def _statistics(job: QuantizeJob, prepared: Prepared, watch: Watch) -> Statistics:
    if job.stats is not None:
        return _read_statistics(job.stats, prepared)
    if weight_requests(prepared.plan, prepared.model):
        if prepared.calibration is None:
            raise NothingToDoError(_NO_SAMPLES, _WITHOUT_SAMPLES)
        check_memory(prepared.model, budget_of(job.max_memory))
    if prepared.model.large and not _requests(job, prepared):
        return Statistics.empty(())  # nobody will read the digests, which take as long as reading the model
    return _measure(job, prepared, watch)


def _measure(job: QuantizeJob, prepared: Prepared, watch: Watch) -> Statistics:
    watch.phase("calibrate")
    requests = _requests(job, prepared)
    empty = Statistics.empty(
        requests,
        model_sha256=prepared.source.sha256,
        recipe_sha256=prepared.recipe.sha256,
        prepared_sha256=prepared.model.digest(),
    )
    if not requests:
        return empty
    if prepared.calibration is None:
        raise NothingToDoError(_NO_SAMPLES, _WITHOUT_SAMPLES)
    key = _cache_key(job, prepared, requests)
    known = find_statistics(key) if key is not None else None
    if known is not None:
        return known
    check_memory(prepared.model, budget_of(job.max_memory))
    samples = prepared.calibration
    statistics = collect(prepared.model, empty, samples, threads=threads_of(job), progress=watch.progress)
    if key is not None:
        keep_statistics(key, statistics)
    return statistics


def _requests(job: QuantizeJob, prepared: Prepared) -> tuple[Request, ...]:
    requests = requests_of(prepared.plan, prepared.model)
    if prepared.calibration is None or job.plan is not None:
        return requests
    return tuple(dict.fromkeys((*requests, *wishes_of(prepared.plan, prepared.model))))


def _cache_key(job: QuantizeJob, prepared: Prepared, requests: tuple[Request, ...]) -> str | None:
    """The name of the measurement in the cache, or None if it is not to be kept there."""
    digest = prepared.calibration.digest() if job.cache and prepared.calibration is not None else None
    if digest is None:
        return None
    facts = (prepared.source.sha256, prepared.recipe.sha256, prepared.model.digest())
    preprocess = prepared.recipe.samples.calibration.preprocess
    return cache_key(":".join(facts), digest, preprocess, requests)


def _read_statistics(path: Path, prepared: Prepared) -> Statistics:
    """Statistics of an earlier run. Raises UsageError if they were measured on another graph."""
    statistics = load_statistics(path)
    if statistics.header.model_sha256 != prepared.source.sha256:
        raise UsageError(f"the statistics '{path}' were measured on another model", "calibrate again")
    if statistics.header.prepared_sha256 != prepared.model.digest():
        hint = "use the same recipe, and the same samples if one of its steps measures"
        raise UsageError(f"the statistics '{path}' were measured on the model after other steps", hint)
    return statistics


def _validate_job(
    job: QuantizeJob, reasons: Mapping[str, str], samples: Iterable[Sample], written: Path, means: Means
) -> ValidateJob:
    return ValidateJob(
        float_model=job.model,
        compressed=written,
        samples=samples,
        threads=job.threads or 1,
        parallel=1 if job.threads or means.lean else min(threads_of(job), MOST_AT_ONCE),
        latency=Effort() if job.latency and not means.lean else None,
        reasons=reasons,
        lean=means.lean,
    )


def _report(job: QuantizeJob, prepared: Prepared, validation: Validation | None, watch: Watch) -> Report:
    """The report, without a `validation` of what is known before models run."""
    report = Report(
        command="quantize",
        model=file_facts(job.model, prepared.source),
        recipe=RecipeFacts(name=prepared.recipe.name, sha256=prepared.recipe.sha256),
        samples=SampleCounts(calibration=len(prepared.calibration) if prepared.calibration is not None else None),
        plan=PlanCounts(entries=len(prepared.plan.entries), ties=len(prepared.plan.ties)),
        environment=environment(),
    )
    if validation is None:
        return report
    for doubt in doubts(validation, prepared.plan, integers=job.plan is None and computes_in_integers(prepared.recipe)):
        watch.warn(doubt)
    return with_validation(report, validation)


def _dry_report(job: QuantizeJob, prepared: Prepared, watch: Watch) -> Report:
    """What would be done: nothing is measured and nothing is written."""
    report = _report(job, prepared, None, watch)
    return msgspec.structs.replace(report, warnings=tuple(watch.warnings), seconds=Seconds(**watch.finish()))


def _finish(job: QuantizeJob, prepared: Prepared, made: _Made, report: Report, watch: Watch) -> Report:
    """Writes what was asked for: the model if its gates hold, the reports in any case."""
    output = output_path(job)
    facts = _facts_of(report.output)
    rejected = output.with_name(f"{output.stem}.rejected.onnx")
    if report.status == "passed":
        made.save(output)
    elif job.keep_failing:
        made.save(rejected)
        facts = file_facts(rejected) if made.model.large else facts  # which names its data after itself
        report = msgspec.structs.replace(report, output=msgspec.structs.replace(facts, path=str(rejected)))
    else:
        report = msgspec.structs.replace(report, output=None)
    report = msgspec.structs.replace(report, warnings=tuple(watch.warnings))
    for path in job.reports:
        write_report(report, path)
    if job.depfile is not None and report.status == "passed":
        judged = named_evaluation(job, prepared)
        write_depfile(job.depfile, output, dependencies(job, (prepared.calibration, judged)))
    return report


def _facts_of(facts: FileFacts | None) -> FileFacts:
    if facts is None:
        raise ValueError("the report lacks the model")
    return facts
