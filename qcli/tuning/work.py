"""The search: every candidate is made, run, compared and timed; the best so far lies on the disk at any time."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from time import perf_counter

import msgspec

from qcli.analysis.simulate import Simulation
from qcli.cache import find_document, keep_document, key_of_facts
from qcli.dataset import Sample
from qcli.errors import Interrupted, NothingToDoError
from qcli.files import check_distinct, check_writable
from qcli.graph import load_model, save_model
from qcli.job import threads_of
from qcli.job_files import check_outputs, output_path
from qcli.recipe import load_recipe
from qcli.report import environment, file_facts
from qcli.tuning.base import NOTHING, Base, Built, build, settle
from qcli.tuning.cost_sums import Corrected, Costs
from qcli.tuning.costs import Machine, costs_of
from qcli.tuning.doubts import doubts
from qcli.tuning.files import files_read, plan_path, standing, tune_writer, write_plan, write_tuning
from qcli.tuning.judge import Judge, Judged, check_resolution, open_judge
from qcli.tuning.last_word import last_word
from qcli.tuning.limits import best_of, front, reason_of
from qcli.tuning.metric import check_float_model, metric_of
from qcli.tuning.nouns import FLOAT, Candidate, Outcome, TuneJob, TuneReport
from qcli.tuning.parts import Network
from qcli.tuning.ranking import alike, promising, with_foretold
from qcli.tuning.run_off import finalists, timed
from qcli.tuning.search import Aim, PartSearch
from qcli.tuning.table_costs import Elsewhere, foretold_costs, table_for
from qcli.tuning.trying import Tried, Trying
from qcli.tuning.uniform import network_for, uniforms
from qcli.watch import Watch

_SAMPLES = 8
"""That parts are measured on."""

_LEARNING = 10
"""How many times longer than the first recipe one with finishing steps takes, about."""

_FEW_PLANS = 128
"""So many are all tried, since noise and time of the smallest networks are foretold worst."""

_COSTS = 2
"""Raised whenever the same parts would cost otherwise."""


def tune(job: TuneJob, watch: Watch | None = None) -> TuneReport:
    """The best plan that keeps the limits, found within the time; the model is written as soon as there is one.

    Raises UsageError for limits that cannot be, NothingToDoError without samples, and what `quantize` raises if not one
    of the recipes gives a model. An interrupt ends the search, not the work: the best so far is the result.
    """
    watch = watch or Watch()
    check_outputs(msgspec.structs.replace(job, reports=()))
    output = output_path(job)
    check_distinct((output, plan_path(output), *job.reports), files_read(job))
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
    finally:
        search.close()
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
        self._table = table_for(job, watch)
        self._source = load_model(job.model)
        self._judge, self._shard = self._first_judge()
        self._trying: Trying | None = None
        self._bases: dict[str, Base] = {}
        self._costs: dict[str, tuple[Network, Costs]] = {}
        self._written: int | None = None
        self._first_seconds = 0.0
        self._keys: dict[str, int] = {}
        self.outcomes: list[Outcome] = []

    def close(self) -> None:
        if self._trying is not None:
            self._trying.close()

    def run(self) -> None:
        """Whole recipes, parts of those that are accurate and fast, or may become so, and a race of the fastest."""
        self._search()
        self._race()

    def _search(self) -> None:
        if self._table is None:
            self._start()
        waiting = self._recipes(tuple(dict.fromkeys((self._job.recipe, *self._job.recipes))))
        for base in islice(self._bases.values(), 1):
            self._plain(base)
        divided: set[str] = set()
        while True:
            for base in self._promising():
                if base.name not in divided:
                    divided.add(base.name)
                    self._divide(base)
            if not waiting or not self._time_left():
                return
            self._recipes(waiting, patient=True)
            waiting = ()

    def _recipes(self, names: tuple[str, ...], *, patient: bool = False) -> tuple[str, ...]:
        """Tries whole recipes; what learns for long waits until parts of the others were tried, unless `patient`."""
        nothing: NothingToDoError | None = None
        waiting: list[str] = []
        for recipe in names:
            if len(self.outcomes) > 1 and not self._time_left():
                break
            if not patient and self._bases and self._takes_long(recipe):
                waiting.append(recipe)
                continue
            try:
                self._whole(recipe)
            except NothingToDoError as error:
                nothing = error
        if nothing is not None and not self.outcomes:
            raise nothing
        return tuple(waiting)

    def _takes_long(self, recipe: str) -> bool:
        """Whether a recipe with finishing steps is expected to take half of the time that is left."""
        finishes = bool(load_recipe(recipe, self._job.settings).finish)
        left = self._job.time_limit - (perf_counter() - self._begin)
        return finishes and _LEARNING * self._first_seconds > left / 2

    def report(self) -> TuneReport:
        """What was found, with the last word of the evaluation samples where there are any."""
        job, best = self._job, self._best()
        self._watch.on_standing(None)
        for text in doubts(job, self.outcomes, perf_counter() - self._begin, divisible=bool(self._promising())):
            self._watch.warn(text)
        self.outcomes[:] = with_foretold(self.outcomes, self._costs)
        outcome, met = self.outcomes[best], self._met()
        self._learn_from_all(outcome.candidate)
        result, result_metric = (
            last_word(job, self._metric, self._watch) if outcome.candidate.recipe != FLOAT else (None, None)
        )
        return TuneReport(
            model=file_facts(job.model, self._source),
            limits=job.limits,
            objective=job.objective,
            met=met,
            reason="" if met else reason_of(self.outcomes, best, job.limits, self._metric.name),
            best=best,
            tried=tuple(self.outcomes),
            front_latency=front(self.outcomes, "time"),
            front_size=front(self.outcomes, "size"),
            samples=self._judge.samples,
            result=result,
            warnings=tuple(self._watch.warnings),
            environment=environment(),
            metric=self._metric.name,
            result_metric=result_metric,
            seconds=self._watch.finish(),
        )

    def _first_judge(self) -> tuple[Judge, tuple[int, int] | None]:
        recipe = load_recipe(self._job.recipe, self._job.settings)
        judge, shard = open_judge(self._job, self._source, recipe, self._metric)
        if shard is None:
            self._watch.warn("plans are judged on the samples that they learn from, since these are few: they flatter")
        return judge, shard

    def _start(self, float_ms: float | None = None) -> None:
        """The float model first: it is a result too, if nothing else is."""
        self._trying = Trying(self._job, self._source, self._judge, self._watch, float_ms)
        self._keep(self._trying.float_outcome(self._source, self._check), None)

    def _check(self, accuracy: Judged) -> None:
        """Limits that the float model itself does not keep, or that its samples cannot tell."""
        limits, samples = self._job.limits, self._judge.samples
        beyond = check_float_model(self._metric, accuracy.metric, limits.min_metric, samples)
        for doubt in (check_resolution(limits.max_drop, accuracy, samples), beyond):
            if doubt is not None:
                self._watch.warn(doubt)

    def _whole(self, recipe: str) -> None:
        """A recipe as `quantize` follows it."""
        self._watch.phase(f"settle {recipe}")
        begin = perf_counter()
        base = settle(self._job, recipe, self._watch, self._shard)
        self._first_seconds = self._first_seconds or perf_counter() - begin
        if any(alike(base, other) for other in self._bases.values()):
            return
        self._bases[recipe] = base
        if base.prepared.recipe.convert is not None:
            self._watch.warn(f"{recipe} is tried without its 'convert'")
        foretold = None
        if self._table is not None:
            network, costs = self._network(base)
            foretold = costs.time((0,) * len(network.parts))
            if self._trying is None:
                self._start(costs.float_ms)
        self._try([Candidate(recipe=recipe, why="as it is", foretold=foretold)])

    def _try(self, candidates: Sequence[Candidate]) -> list[Outcome | None]:
        """The outcomes of candidates, from an earlier time if there were any; None for what cannot be made.

        After the time limit only what is known already; but one recipe is always tried.
        """
        if self._trying is None:
            return [None] * len(candidates)
        self._watch.phase("search")
        keys = [self._trying.key(self._bases[one.recipe], one) for one in candidates]
        new = {key: Tried(one, key) for key, one in zip(keys, candidates, strict=True) if key not in self._keys}
        if len(self.outcomes) <= 1 or self._time_left():
            for tried in new.values():
                self._trying.known(tried)
                if tried.outcome is None:
                    self._trying.make(tried, self._bases[tried.candidate.recipe])
            self._trying.measure([tried for tried in new.values() if tried.outcome is None])
        for tried in new.values():
            if tried.outcome is not None:
                self._keys[tried.key] = len(self.outcomes)
                self._keep(msgspec.structs.replace(tried.outcome, found=perf_counter() - self._begin), tried.built)
        return [self.outcomes[self._keys[key]] if key in self._keys else None for key in keys]

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

    def _race(self) -> None:
        """Times the fastest plans together, and makes the best of them the result."""
        numbers = finalists(self.outcomes, self._job)
        if self._trying is None or not numbers:
            return
        self._watch.phase("race")
        runners = [self.outcomes[number] for number in numbers]
        made = [(self._bases[one.candidate.recipe], one.candidate) for one in runners]
        for number, outcome in zip(numbers, timed(runners, self._trying.race(made)), strict=True):
            self.outcomes[number] = outcome
        if self._best() != self._written:
            self._write(self._best(), None)

    def _promising(self) -> Sequence[Base]:
        return promising(list(self._bases.values()), self._wholes(), self._job)

    def _wholes(self) -> dict[str, Outcome]:
        return {one.candidate.recipe: one for one in self.outcomes if not one.candidate.rules}

    def _divide(self, base: Base) -> None:
        """Makes parts of a recipe's plan compute in other ways, as long as there is time."""
        if not self._time_left():
            return
        self._watch.phase("measure parts")
        network, costs = self._network(base)
        whole = self._wholes()[base.name]
        corrected = Corrected(costs, whole.time, self._plain(base))
        aim = Aim(self._job.limits, self._job.objective, self._job.search, self._job.jobs, _FEW_PLANS)
        for _ in PartSearch(whole, network, corrected, aim).run(self._try):
            if not self._time_left():
                return

    def _plain(self, base: Base) -> float:
        """The time of the prepared model with nothing quantized, relative to the float model's as it was given.

        Preparation alone can be worth more than integers, where onnxruntime cannot fold what a model leaves open.
        """
        [plain] = self._try([Candidate(recipe=base.name, why="prepared, in float", rules=NOTHING, foretold=1.0)])
        return plain.time if plain is not None else 1.0

    def _network(self, base: Base) -> tuple[Network, Costs]:
        """A recipe's parts and what they cost; measured once, so that a search that goes on sees the same front."""
        if base.name not in self._costs:
            samples = list(islice(self._judge.sample(), _SAMPLES))
            found = network_for(base, samples[0])
            self._costs[base.name] = found[0], self._measured_costs(base, found, samples)
        return self._costs[base.name]

    def _measured_costs(self, base: Base, found: tuple[Network, Simulation], samples: list[Sample]) -> Costs:
        cores = threads_of(self._job)
        others = uniforms(base, found[0], self._job, self._watch)
        if self._table is not None:
            costs, missing = foretold_costs(base, found, others, samples, Elsewhere(self._table, cores))
            if missing:
                hint = f"'qcli doctor --kernels MODEL -r {base.name} --save FILE' there measures them"
                self._watch.warn(
                    f"the cost table lacks {missing} kernels of {base.name}, so that they count nothing: {hint}"
                )
            return costs
        key = key_of_facts(["costs", _COSTS, self._trying.base_key(base) if self._trying is not None else None])
        known = find_document(key) if self._job.cache else None
        if known is not None:
            return msgspec.json.decode(known, type=Costs)
        costs = costs_of(base, found, others, samples, Machine(self._job.threads or 1, cores))
        if self._job.cache:
            keep_document(key, msgspec.json.encode(costs))
        return costs

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
