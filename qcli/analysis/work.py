"""The analysis itself, in the order in which Nagel et al. 2021 debug a quantized network.

    float check → weights alone, activations alone → each part alone, and float among the rest → what would help

Source: "A White Paper on Neural Network Quantization", figure 7.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from qcli.analysis.files import analysis_writer, write_analysis
from qcli.analysis.groups import Group, check_grouping, grouped
from qcli.analysis.kept import find_analysis, keep_analysis, key_of
from qcli.analysis.measure import Variant, check_memory, float_session, run_pair, run_results, run_variants
from qcli.analysis.nouns import Analysis, AnalysisSamples, AnalyzeJob, Blame, Row, Suggestion, Whole
from qcli.analysis.samples import compared_samples
from qcli.analysis.simulate import Simulation, simulate
from qcli.analysis.suggest import WORTH_DB, Findings, suggest
from qcli.analysis.trial import Ground, Reference, Trials
from qcli.apply import apply_plan
from qcli.files import check_distinct, check_writable
from qcli.finish import Settled
from qcli.job import named_inputs, threads_of
from qcli.measured import quantizes_as_it_runs
from qcli.memory import budget_of
from qcli.metrics.sqnr import Sqnr
from qcli.pipeline import finish_job, prepare_job, settle_job
from qcli.prepared import Prepared
from qcli.report import RecipeFacts, environment, file_facts
from qcli.runtime import Session
from qcli.solve import Solution, solve
from qcli.sources import SampleStream
from qcli.statistics import Statistics
from qcli.types import Plan
from qcli.watch import Watch

_APART_DB = 6.0
"""Weights or activations alone are to blame if they make this much more noise than the others."""

_QUIET_DB = 60.0
"""Nothing is to blame where the whole model is at least as good as this."""

_DIFFERS_DB = 3.0

_BEFORE_FINISH = "what the suggestions gain was measured without the recipe's steps under 'finish'"


@dataclass(frozen=True)
class _Settled:
    """A job up to its numbers, and the samples to compare on."""

    prepared: Prepared
    plan: Plan
    statistics: Statistics
    solution: Solution
    samples: SampleStream


def analyze(job: AnalyzeJob, watch: Watch | None = None) -> Analysis:
    """What each quantized part of a model costs in accuracy, and which changes of the recipe would help.

    Found again in the cache if model, recipe, samples and options are those of an earlier run. Raises UsageError for an
    unknown grouping or report, NothingToDoError without samples or without anything to quantize, UnsupportedError for
    a quantized model and one without float outputs, RuntimeFailure if the model does not run, ResourceError if there
    is no memory for it.
    """
    watch = watch or Watch()
    check_grouping(job.by)
    check_distinct(job.reports, named_inputs(job))
    for path in job.reports:
        analysis_writer(path)
        check_writable(path)
    key = key_of(job)
    analysis = find_analysis(key) if key is not None else None
    if analysis is None:
        analysis = _analyze(job, watch)
        if key is not None:
            keep_analysis(key, analysis)
    for text in analysis.warnings:
        watch.warn(text)
    facts = msgspec.structs.replace(analysis.model, path=str(job.model))
    analysis = msgspec.structs.replace(analysis, model=facts)
    for path in job.reports:
        write_analysis(analysis, path, job.top)
    return analysis


def _analyze(job: AnalyzeJob, watch: Watch) -> Analysis:
    settled = _settle(job, watch)
    prepared = settled.prepared
    watch.phase("simulate")
    simulation = simulate(prepared.model, settled.plan, settled.solution)
    check_memory(simulation, budget_of(job.max_memory))
    groups = grouped(simulation.layers, prepared.model, job.by)
    reference = float_session(prepared.source)
    losses = run_variants(simulation, settled.samples, _variants(simulation, groups), threads_of(job), watch.progress)
    watch.phase("compare")
    whole = _whole(settled, simulation, losses, reference)
    rows = _rows(groups, simulation, losses, run_results(simulation, settled.samples))
    blame = blame_of(whole)
    ground = Ground(prepared, settled.plan, settled.statistics)
    against = Reference(reference, settled.samples, _unfinished(job, settled, reference, whole.quantized))
    trials = Trials(job, ground, against, watch)
    suggestions, notes = _suggestions(job, settled, (blame, rows), trials)
    calibration = prepared.calibration
    return Analysis(
        model=file_facts(job.model, prepared.source),
        recipe=RecipeFacts(name=prepared.recipe.name, sha256=prepared.recipe.sha256),
        samples=AnalysisSamples(calibration=len(calibration) if calibration else None, compared=len(settled.samples)),
        by=job.by,
        whole=whole,
        blame=blame,
        rows=tuple(row for row, _ in rows),
        suggestions=suggestions,
        notes=(*_notes(whole, settled.plan), *notes),
        warnings=tuple(watch.warnings),
        environment=environment(),
    )


def _settle(job: AnalyzeJob, watch: Watch) -> _Settled:
    prepared = prepare_job(job, watch)
    if prepared.recipe.convert is not None:
        watch.warn("the model is analyzed as it is before the recipe's 'convert'")
    samples = compared_samples(job, prepared.recipe, prepared.source)
    plan, statistics = settle_job(job, prepared, watch)
    solution = finish_job(job, prepared, Settled(prepared.model, plan, statistics), watch)
    return _Settled(prepared, plan, statistics, solution, samples)


def _variants(simulation: Simulation, groups: tuple[Group, ...]) -> list[Variant]:
    """Every set of switches that some figure needs, each once."""
    everything = _all(simulation)
    wanted: dict[Variant, None] = {everything: None, _all(simulation, "weights"): None}
    wanted[_all(simulation, "activations")] = None
    for group in groups:
        for part in ("", "weights", "activations"):
            wanted[group.switches(part)] = None
        wanted[everything - group.switches()] = None
    return [variant for variant in wanted if variant]


def _all(simulation: Simulation, part: str = "") -> Variant:
    return Group("", simulation.layers).switches(part)


def _whole(settled: _Settled, simulation: Simulation, losses: dict[Variant, float], reference: Session) -> Whole:
    prepared, samples = settled.prepared, settled.samples
    result = apply_plan(prepared.model, settled.plan, settled.solution)
    return Whole(
        float_check=run_pair(reference, prepared.model, samples),
        quantized=run_pair(reference, result, samples),
        simulated=losses[_all(simulation)],
        weights_only=losses.get(_all(simulation, "weights")),
        activations_only=losses.get(_all(simulation, "activations")),
    )


def _unfinished(job: AnalyzeJob, settled: _Settled, reference: Session, finished: float) -> float:
    """The ratio in dB without the steps under `finish`, which changes are tried without, since they take minutes."""
    prepared = settled.prepared
    if not prepared.recipe.finish:
        return finished
    solution = solve(prepared.model, settled.plan, settled.statistics, threads_of(job))
    return run_pair(reference, apply_plan(prepared.model, settled.plan, solution), settled.samples)


def blame_of(whole: Whole) -> Blame:
    """Which part of the quantization makes most of the noise."""
    weights, activations = whole.weights_only, whole.activations_only
    if whole.simulated >= _QUIET_DB:
        return "neither"
    if activations is None or (weights is not None and weights <= activations - _APART_DB):
        return "weights"
    if weights is None or activations <= weights - _APART_DB:
        return "activations"
    return "both"


def _rows(
    groups: tuple[Group, ...], simulation: Simulation, losses: dict[Variant, float], results: dict[str, float]
) -> list[tuple[Row, Group]]:
    """The rows from the worst to the best; those of equal noise in the order of the graph."""
    everything = _all(simulation)
    noise = [10 ** (-losses[group.switches()] / 10) for group in groups]
    rows = [
        Row(
            name=group.name,
            op=group.op,
            nodes=tuple(layer.name for layer in group.layers),
            graph=group.layers[0].graph,
            values=tuple(dict.fromkeys(value for layer in group.layers for value in layer.values)),
            output=results.get(group.layers[-1].key),
            alone=losses[group.switches()],
            weights=losses.get(group.switches("weights")),
            activations=losses.get(group.switches("activations")),
            gain=losses.get(everything - group.switches(), Sqnr.LIMIT) - losses[everything],
            share=power / sum(noise),
        )
        for group, power in zip(groups, noise, strict=True)
    ]
    return sorted(zip(rows, groups, strict=True), key=lambda pair: pair[0].alone)


def _suggestions(
    job: AnalyzeJob, settled: _Settled, found: tuple[Blame, list[tuple[Row, Group]]], trials: Trials
) -> tuple[tuple[Suggestion, ...], tuple[str, ...]]:
    """What would help, and what is to be said about it."""
    blame, rows = found
    if not job.suggest or blame == "neither":
        return (), ()
    if job.plan is not None:
        return (), ("nothing is suggested for a plan that was given: rules are for recipes",)
    recipe = settled.prepared.recipe
    findings = Findings(settled.prepared.model, settled.plan, recipe.prepare, blame, tuple(rows))
    trials.watch.phase("suggest")
    suggestions, tried = suggest(findings, trials)
    if not suggestions:
        return (), (f"none of the {tried} changes that were tried gains {WORTH_DB} dB",)
    return suggestions, (_BEFORE_FINISH,) if recipe.finish else ()


def _notes(whole: Whole, plan: Plan) -> Iterator[str]:
    """What the figures mean, in the order in which they were found."""
    if whole.float_check < _QUIET_DB:
        yield f"the steps before quantization cost accuracy by themselves: they leave {whole.float_check:.1f} dB"
    if whole.quantized < whole.simulated - _DIFFERS_DB:
        lost = whole.simulated - whole.quantized
        yield (
            f"onnxruntime's integer kernels lose {lost:.1f} dB that the grids do not explain: "
            "products saturate on this processor, or a fusion is wrong; see 'qcli validate'"
        )
    if any(entry.site.op == "LSTM" and quantizes_as_it_runs(entry) for entry in plan.entries):
        yield "the state of LSTM nodes that are quantized as they run stays float in all figures of parts"
