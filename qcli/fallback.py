"""Partial quantization by a budget: what costs most accuracy goes back to float, as little of it as the budget needs.

    learn on one half → judge on the other → noise of each part alone → the fewest parts that do, by halving

What the noise foretells is only the order in which parts go back. Every plan that decides was made and run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import msgspec

from qcli import pipeline
from qcli.amendments import FallbackFacts, ReturnedPart
from qcli.analysis.measure import float_session
from qcli.analysis.trial import Ground
from qcli.comparison import Comparison
from qcli.data_free import fill_in
from qcli.errors import NothingToDoError, ResourceError, UsageError
from qcli.finish import Settled
from qcli.graph import Model, node_key, original_name
from qcli.job import QuantizeJob, threads_of
from qcli.job_samples import calibration_samples
from qcli.measured import requests_of
from qcli.memory import budget_of
from qcli.pipeline import finish_job, settle_job
from qcli.plan import make_plan
from qcli.prepared import Prepared
from qcli.recipe import Fallback, with_rules
from qcli.report import Report
from qcli.runtime import on_sample
from qcli.sources import SampleStream
from qcli.statistics import load_statistics
from qcli.tuning.base import Base, build
from qcli.tuning.judge import Judge, Judged, check_resolution, drop_of
from qcli.tuning.limits import margin
from qcli.tuning.nouns import MARGIN_DB, Candidate
from qcli.tuning.parts import Part
from qcli.types import Rule
from qcli.watch import Watch
from qcli.ways_back import AS_IT_IS, Means, Now, Way, ways_back

_FEWEST = 8
"""With fewer samples all of them judge as well."""

_SIDE_BY_SIDE = 5
"""Both models, the quantized one decoded, with the copies that kernels work on: in sizes of the float weights."""

_NAMES = ("fallback.max_drop", "fallback.min_sqnr")

_EXACT = 1e-9
"""Drops are differences of shares, so 1 of 50 samples may come out as a bit more than 0.02."""


def quantize(job: QuantizeJob, watch: Watch | None = None) -> Report:
    """A float model to a quantized one that was run and judged, with what its recipe's `fallback` keeps in float.

    A failed gate is in the report's `status`. Raises the errors of `qcli.errors`; the output file is then as before.
    """
    return pipeline.quantize(job, watch, fall_back)


def fall_back(job: QuantizeJob, prepared: Prepared, watch: Watch) -> tuple[Prepared, FallbackFacts | None]:
    """The job with rules for what goes back to float, and its plan made again by them; as it was if nothing does.

    Raises NothingToDoError without samples, UsageError for a `max_drop` of what is no classifier and for statistics
    from a file that the new plan does not find what it needs in, ResourceError if models cannot be run.
    """
    limits = prepared.recipe.fallback
    if limits is None:
        return prepared, None
    if job.plan is not None:
        watch.warn("the plan was given and stays as it is: the recipe's 'fallback' was not applied")
        return prepared, None
    _check_memory(job, prepared)
    watch.phase("fallback")
    search = _Search(job, prepared, limits, watch)
    best = search.run()
    facts = search.facts(best)
    if not facts.met:
        watch.warn(_unmet(limits, facts))
    if not best.rules:
        return prepared, facts
    recipe = with_rules(prepared.recipe, best.rules, f"fallback ({limits.limits})")
    plan = fill_in(prepared.model, make_plan(prepared.model, recipe), recipe, watch.warn)
    after = replace(prepared, recipe=recipe, plan=plan)
    _check_statistics(job, after)
    return after, facts


def fewest(most: int, keeps: Callable[[int], bool]) -> int | None:
    """The least count from 1 to `most` that keeps the budget, if `most` does and 0 does not.

    Half of what is left falls each time. The count that is returned was tried, and so was the one below it.
    """
    if most < 1 or not keeps(most):
        return None
    low, high = 0, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if keeps(middle) else (middle, high)
    return high


@dataclass(frozen=True)
class _Attempt:
    """A plan that was made and run: the parts that changed, what became of them, and what that gave."""

    parts: tuple[Part, ...]
    now: Now
    rules: tuple[Rule, ...]
    accuracy: Judged


class _Search:
    """Plans of one job, settled on half of its samples and judged on the others, with more and fewer parts in float."""

    def __init__(self, job: QuantizeJob, prepared: Prepared, limits: Fallback, watch: Watch) -> None:
        self._job = job
        self._limits = limits
        self._quiet = Watch(on_progress=lambda _, done, total: watch.progress(done, total))
        samples, learned = _halves(job, prepared)
        self._held_out = learned is not samples
        if not self._held_out:
            watch.warn(
                "the fallback is judged on the samples that ranges are learned from, few as they are: they flatter"
            )
        self._judge = Judge(prepared.source, samples, threads=1, cores=threads_of(job))
        doubt = _doubt(limits, prepared.source, samples)
        if doubt is not None:
            watch.warn(doubt)
        self._base = self._settled(replace(prepared, calibration=learned))
        self._parts = 0
        self._tried: list[_Attempt] = []

    def run(self) -> _Attempt:
        """The plan with the fewest parts in float that keeps the limits; the closest one if none does."""
        here = self._attempt(AS_IT_IS, 0)
        if here is not None and self._keeps(here):
            return here
        means = Means(threads_of(self._job), budget_of(self._job.max_memory))
        self._parts, ways = ways_back(self._base, self._judge.sample(), means, self._quiet)
        for way in ways:
            found = self._fewest(way)
            if found is not None:
                return found
        return min(self._tried, key=self._distance)

    def facts(self, best: _Attempt) -> FallbackFacts:
        before, after = self._tried[0].accuracy, best.accuracy
        return FallbackFacts(
            met=self._keeps(best),
            returned=len(best.parts),
            of=self._parts or None,
            parts=tuple(self._returned(best)),
            sqnr_before=before.sqnr,
            sqnr_after=after.sqnr,
            drop_before=drop_of(before),
            drop_after=drop_of(after),
            samples=self._judge.samples,
            held_out=self._held_out,
            tried=len(self._tried),
        )

    def _returned(self, best: _Attempt) -> Iterator[ReturnedPart]:
        names = {node_key(node): original_name(node) for node in self._base.prepared.model.graph}
        for part in best.parts:
            nodes = tuple(names[key] or key for key in part.names)
            yield ReturnedPart(node=nodes[0], op=part.op, nodes=nodes, now=best.now)

    def _settled(self, prepared: Prepared) -> Base:
        """What `quantize` does up to the solution, on the samples to learn from."""
        job = msgspec.structs.replace(self._job, stats=None)
        plan, statistics = settle_job(job, prepared, self._quiet)
        solution = finish_job(job, prepared, Settled(prepared.model, plan, statistics), self._quiet)
        return Base(job.recipe, Ground(prepared, plan, statistics), solution)

    def _fewest(self, way: Way) -> _Attempt | None:
        found: dict[int, _Attempt | None] = {}

        def keeps(count: int) -> bool:
            found[count] = attempt = self._attempt(way, count)
            return attempt is None or self._keeps(attempt)  # with nothing left to quantize all of it is float

        count = fewest(min(len(way.order), self._most()), keeps)
        return found[count] if count is not None else None

    def _attempt(self, way: Way, count: int) -> _Attempt | None:
        """What the first parts of an order in float give; None if that leaves nothing to quantize."""
        parts = way.order[:count]
        candidate = Candidate(recipe=self._base.name, why="fallback", rules=way.rules(parts))
        built = build(self._base, candidate, self._job, self._quiet)
        if built is None:
            return None
        self._tried.append(_Attempt(parts, way.now, candidate.rules, self._judge.accuracy(built.model)))
        return self._tried[-1]

    def _most(self) -> int:
        """How many parts may go back: of a share at least one."""
        most = self._limits.max_parts
        if most is None:
            return self._parts
        return most if isinstance(most, int) else max(1, int(most * self._parts))

    def _keeps(self, attempt: _Attempt) -> bool:
        over, under, *_ = self._distance(attempt)
        return over <= _EXACT and under <= 0

    def _distance(self, attempt: _Attempt) -> tuple[float, ...]:
        """By how much a plan misses the drop and the ratio; among equals more exact ones, then smaller ones."""
        sqnr, drop = attempt.accuracy.sqnr or 0.0, drop_of(attempt.accuracy) or 0.0
        most, least = self._limits.max_drop, self._limits.min_sqnr
        over = 0.0 if most is None else max(0.0, drop - most)
        under = 0.0 if least is None else max(0.0, least + margin(attempt.accuracy.error_db) - sqnr)
        return over, under, -sqnr, len(attempt.parts)


def _halves(job: QuantizeJob, prepared: Prepared) -> tuple[SampleStream, SampleStream]:
    """The samples to judge by and those to learn from: every other one, or all of them twice where they are few."""
    everything = prepared.calibration
    if everything is None:
        hint = "name their folder with -d, also beside --stats, or leave out the recipe's fallback"
        raise NothingToDoError("a fallback compares models on samples, and there are none", hint)
    if len(everything) < _FEWEST or job.random_samples is not None:
        return everything, everything
    index, count = job.shard or (1, 1)

    def half(first: int) -> SampleStream:
        one = msgspec.structs.replace(job, shard=(first, 2 * count))
        found = calibration_samples(one, prepared.recipe, prepared.source, Watch())
        return found if found is not None else everything

    return half(index + count), half(index)


def _doubt(limits: Fallback, source: Model, samples: SampleStream) -> str | None:
    """A warning if the samples are too few for `max_drop`. Raises UsageError, before the work, for no classifier."""
    if limits.max_drop is None:
        return None
    sample, comparison = next(iter(samples)), Comparison()
    with on_sample(sample.file):
        outputs = float_session(source).run(sample.feeds)
    comparison.update(outputs, outputs, sample)
    return check_resolution(limits.max_drop, comparison.accuracy(), len(samples), _NAMES)


def _check_memory(job: QuantizeJob, prepared: Prepared) -> None:
    budget = budget_of(job.max_memory)
    needed = _SIDE_BY_SIDE * prepared.source.weight_bytes()
    if not budget.fits(needed):
        problem = f"a fallback runs models side by side, which {budget.shortage(needed)}"
        raise ResourceError(problem, "allow more with --max-memory, or leave out the recipe's fallback")


def _check_statistics(job: QuantizeJob, prepared: Prepared) -> None:
    """Statistics from a file were measured for the plan before parts of it went back to float."""
    if job.stats is None:
        return
    known = set(load_statistics(job.stats).header.requests)
    lacking = [request.value for request in requests_of(prepared.plan, prepared.model) if request not in known]
    if lacking:
        problem = f"the statistics '{job.stats}' lack '{lacking[0]}', which is quantized since parts went back"
        raise UsageError(problem, "leave out --stats, so that it is measured")


def _unmet(limits: Fallback, facts: FallbackFacts) -> str:
    found = [] if facts.drop_after is None else [f"a drop of {facts.drop_after:.4f}"]
    found += [] if facts.sqnr_after is None else [f"{facts.sqnr_after:.1f} dB"]
    kept = f"{facts.returned} of {facts.of} parts {facts.what}" if facts.returned else "the plan as it is"
    spare = f" with {MARGIN_DB} dB or more to spare" if limits.min_sqnr is not None else ""
    return (
        f"the recipe's fallback ({limits.limits}{spare}) is not kept: the closest, {kept}, gives {' and '.join(found)}"
    )
