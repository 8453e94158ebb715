"""The search: every candidate is made, run, compared and timed; the best so far lies on the disk at any time."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from time import perf_counter

import msgspec

from qcli.analysis.simulate import Simulation
from qcli.cache import find_document, keep_document, key_of_facts
from qcli.dataset import Sample
from qcli.errors import Interrupted, NothingToDoError, QcliError, UsageError
from qcli.files import check_distinct, check_writable, scratch_folder
from qcli.graph import load_model, save_model
from qcli.job import named_inputs
from qcli.job_files import check_outputs, output_path
from qcli.pipeline import threads_of
from qcli.recipe import Recipe, load_recipe
from qcli.report import Report, environment, file_facts
from qcli.side_by_side import CompareJob, compare_models
from qcli.tuning.base import Base, Built, build, settle
from qcli.tuning.costs import Machine, costs_of, network_for
from qcli.tuning.doubts import busy, doubts
from qcli.tuning.files import standing, tune_writer, write_plan, write_tuning
from qcli.tuning.front import Costs
from qcli.tuning.judge import Judge, check_resolution, drop_of, evaluated, shards
from qcli.tuning.limits import best_of, front, is_accurate, reason_of
from qcli.tuning.metric import check_float_model, metric_of
from qcli.tuning.nouns import FLOAT, Candidate, Outcome, TuneJob, TuneReport
from qcli.tuning.parts import Network
from qcli.tuning.search import PartSearch
from qcli.watch import Watch

_TUNING = 1
"""Raised whenever the same candidate would be measured otherwise."""


def tune(job: TuneJob, watch: Watch | None = None) -> TuneReport:
    """The best plan that keeps the limits, found within the time; the model is written as soon as there is one.

    Raises UsageError for limits that cannot be, NothingToDoError without samples, and what `quantize` raises if not one
    of the recipes gives a model. An interrupt ends the search, not the work: the best so far is the result.
    """
    watch = watch or Watch()
    check_outputs(msgspec.structs.replace(job, reports=()))
    check_distinct(job.reports, named_inputs(job))
    for path in job.reports:
        tune_writer(path)
        check_writable(path)
    search = _Search(job, watch)
    try:
        search.run()
    except (Interrupted, KeyboardInterrupt):
        if not search.outcomes:
            raise
        watch.warn("the search was interrupted: the result is the best so far")
    report = search.report()
    for path in job.reports:
        write_tuning(report, path)
    return report


class _Search:
    def __init__(self, job: TuneJob, watch: Watch) -> None:
        self._job = job
        self._metric = metric_of(job)
        self._watch = watch
        self._begin = perf_counter()
        self._source = load_model(job.model)
        self._bases: dict[str, Base] = {}
        self._judge: Judge | None = None
        self._shard: tuple[int, int] | None = None
        self._written: int | None = None
        self.outcomes: list[Outcome] = []
        self._keys: dict[str, int] = {}

    def run(self) -> None:
        """Whole recipes, then parts of those that are accurate and fast, or may become so."""
        failures: list[QcliError] = []
        for recipe in dict.fromkeys((self._job.recipe, *self._job.recipes)):
            if self.outcomes and not self._time_left():
                return
            try:
                self._settle(recipe)
                self._try(Candidate(recipe=recipe, why="as it is"))
            except (UsageError, NothingToDoError) as error:
                if isinstance(error, UsageError) or self._judge is None:
                    raise
                failures.append(error)
        for base in self._promising():
            self._divide(base)

    def report(self) -> TuneReport:
        """What was found, with the last word of the evaluation samples where there are any."""
        job, best = self._job, self._best()
        self._watch.on_standing(None)
        for text in doubts(job, self.outcomes, perf_counter() - self._begin, divisible=any(self._promising())):
            self._watch.warn(text)
        outcome, met = self.outcomes[best], self._met()
        self._learn_from_all(outcome.candidate)
        result, result_metric = self._judged() if outcome.candidate.recipe != FLOAT else (None, None)
        return TuneReport(
            model=file_facts(job.model, self._source),
            limits=job.limits,
            objective=job.objective,
            met=met,
            reason="" if met else reason_of(self.outcomes, best, job.limits, self._metric.name),
            best=best,
            tried=tuple(self.outcomes),
            front_latency=front(self.outcomes, "ms"),
            front_size=front(self.outcomes, "size"),
            samples=self._judge.samples if self._judge is not None else 0,
            result=result,
            warnings=tuple(self._watch.warnings),
            environment=environment(),
            metric=self._metric.name,
            result_metric=result_metric,
            seconds=self._watch.finish(),
        )

    def _settle(self, recipe: str) -> None:
        self._watch.phase(f"settle {recipe}")
        if self._judge is None:
            self._judge = self._first_judge(load_recipe(recipe, self._job.settings))
        self._bases[recipe] = settle(self._job, recipe, self._watch, self._shard)

    def _first_judge(self, recipe: Recipe) -> Judge:
        """The judge, who sees the float model first: it is a result too, if nothing else is."""
        samples, self._shard = shards(self._job, recipe, self._source)
        if self._shard is None:
            self._watch.warn("plans are judged on the samples that they learn from, since these are few: they flatter")
        threads, limits = self._job.threads or 1, self._job.limits
        judge = Judge(self._source, samples, threads=threads, cores=threads_of(self._job), metric=self._metric)
        accuracy = judge.accuracy(self._source)
        beyond = check_float_model(self._metric, accuracy.metric, limits.min_metric, judge.samples)
        for doubt in (check_resolution(limits.max_drop, accuracy, judge.samples), beyond):
            if doubt is not None:
                self._watch.warn(doubt)
        latency = judge.latency(self._source)
        for text in busy(latency):
            self._watch.warn(text)
        exact = Outcome(
            candidate=Candidate(recipe=FLOAT, why="the model as it was"),
            sqnr=accuracy.sqnr if accuracy.sqnr is not None else 200.0,
            drop=drop_of(accuracy),
            size=1.0,
            ms=latency.timings[0].median_ms,
            speedup=1.0,
            steady=latency.steady,
            seconds=0.0,
            metric=accuracy.metric,
        )
        self._keep(exact, None)
        return judge

    def _try(self, candidate: Candidate) -> Outcome | None:
        """The outcome of a candidate, from an earlier time if there was one; None for what cannot be made."""
        base, judge = self._bases[candidate.recipe], self._judge
        key = self._key(base, candidate)
        if key in self._keys:
            return self.outcomes[self._keys[key]]
        if judge is None or (len(self.outcomes) > 1 and not self._time_left()):
            return None
        self._watch.phase("search")
        start = perf_counter()
        known = find_document(key) if self._job.cache else None
        built = None if known is not None else build(base, candidate, self._job, self._watch)
        if known is not None:
            outcome = msgspec.json.decode(known, type=Outcome)
        elif built is None:
            return None
        else:
            outcome = self._measured(judge, candidate, built, start)
            if self._job.cache:
                keep_document(key, msgspec.json.encode(outcome))
        self._keys[key] = len(self.outcomes)
        self._keep(msgspec.structs.replace(outcome, found=perf_counter() - self._begin), built)
        return outcome

    def _measured(self, judge: Judge, candidate: Candidate, built: Built, start: float) -> Outcome:
        accuracy, latency = judge.accuracy(built.model), judge.latency(built.model)
        with scratch_folder() as folder:
            save_model(built.model, folder / "model.onnx")
            size = file_facts(folder / "model.onnx").bytes / file_facts(self._job.model, self._source).bytes
        return Outcome(
            candidate=candidate,
            sqnr=accuracy.sqnr if accuracy.sqnr is not None else 200.0,
            drop=drop_of(accuracy),
            size=size,
            ms=latency.timings[1].median_ms,
            speedup=latency.ratios[1],
            steady=latency.steady,
            seconds=perf_counter() - start,
            metric=accuracy.metric,
        )

    def _keep(self, outcome: Outcome, built: Built | None) -> None:
        self.outcomes.append(outcome)
        best = self._best()
        self._watch.on_standing(standing(self.outcomes, best, self._begin + self._job.time_limit))
        if best == len(self.outcomes) - 1 or self._written is None:
            self._write(best, built)

    def _write(self, number: int, built: Built | None) -> None:
        """The model and its plan, in place of those of the best before."""
        candidate = self.outcomes[number].candidate
        self._written = number
        if candidate.recipe == FLOAT:  # which is there already, as the input
            return
        made = built or build(self._bases[candidate.recipe], candidate, self._job, self._watch)
        if made is not None:
            self._save(made)

    def _promising(self) -> Iterator[Base]:
        """Accurate recipes first, the fastest of them first; then the others, the most accurate first."""
        whole = {outcome.candidate.recipe: outcome for outcome in self.outcomes if not outcome.candidate.rules}
        limits = self._job.limits

        def rank(base: Base) -> tuple[bool, float]:
            outcome = whole[base.name]
            accurate = is_accurate(outcome, limits)
            return (not accurate, -outcome.speedup if accurate else -outcome.sqnr)

        divisible = (base for base in self._bases.values() if base.name in whole and base.computes())
        return iter(sorted(divisible, key=rank))

    def _divide(self, base: Base) -> None:
        """Takes parts out of a recipe's plan, as long as there is time."""
        if self._judge is None or not self._time_left():
            return
        self._watch.phase("measure parts")
        samples = list(islice(self._judge.sample(), 8))
        found = network_for(base, samples[0])
        costs = self._costs(base, found, samples)
        for _ in PartSearch(base.name, found[0], costs, self._job.limits).run(self._try):
            if not self._time_left():
                return

    def _costs(self, base: Base, found: tuple[Network, Simulation], samples: list[Sample]) -> Costs:
        """Measured once, so that a search that goes on where another one ended looks at the same front."""
        key = key_of_facts(["costs", self._key(base, Candidate(recipe=base.name, why=""))])
        known = find_document(key) if self._job.cache else None
        if known is not None:
            return msgspec.json.decode(known, type=Costs)
        machine = Machine(self._job.threads or 1, threads_of(self._job))
        costs = costs_of(base, found, samples, machine, self._watch)
        if self._job.cache:
            keep_document(key, msgspec.json.encode(costs))
        return costs

    def _key(self, base: Base, candidate: Candidate) -> str:
        digest = base.prepared.calibration.digest() if base.prepared.calibration is not None else None
        facts = [
            _TUNING,
            self._source.sha256,
            base.prepared.recipe.sha256,
            base.prepared.model.digest(),
            msgspec.to_builtins(base.plan),
            msgspec.to_builtins(candidate.rules),
            digest,
            self._judge.key if self._judge is not None else None,
            self._job.threads or 1,
            msgspec.to_builtins(environment()),
        ]
        return key_of_facts(facts)

    def _time_left(self) -> bool:
        return perf_counter() - self._begin < self._job.time_limit

    def _best(self) -> int:
        return best_of(self.outcomes, self._job.limits, self._job.objective)[0]

    def _met(self) -> bool:
        return best_of(self.outcomes, self._job.limits, self._job.objective)[1]

    def _learn_from_all(self, candidate: Candidate) -> None:
        """The best plan once more, with the samples that were held out from it so far."""
        if candidate.recipe == FLOAT:
            save_model(self._source, output_path(self._job))
        if candidate.recipe == FLOAT or self._shard is None:
            return
        self._watch.phase("learn from all samples")
        base = settle(self._job, candidate.recipe, self._watch)
        made = build(base, candidate, self._job, self._watch)
        if made is not None:
            self._save(made)

    def _save(self, made: Built) -> None:
        save_model(made.model, output_path(self._job))
        write_plan(made.plan, output_path(self._job))

    def _judged(self) -> tuple[Report, float | None]:
        """The result beside the float model, and its metric, on the evaluation samples or without any on all others."""
        job = self._job
        self._watch.phase("validate")
        compared = CompareJob(
            float_model=job.model,
            compressed=output_path(job),
            recipe=job.recipe,
            settings=job.settings,
            evaluation=job.evaluation or job.calibration,
            labels=job.labels,
            threads=job.threads,
            max_memory=job.max_memory,
        )
        report = compare_models(compared, Watch(on_progress=self._watch.on_progress))
        try:
            return report, evaluated(compared, report, self._metric)
        except UsageError as error:
            self._watch.warn(f"the result has no value of the metric on the evaluation samples: {error.message}")
            return report, None
