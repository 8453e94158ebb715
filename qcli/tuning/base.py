"""A recipe settled on a model, from which candidates are made without measuring or learning again."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from qcli.analysis.trial import Ground
from qcli.apply import apply_plan
from qcli.choose import is_undecided
from qcli.errors import QcliError, UsageError
from qcli.finish import Settled
from qcli.graph import Model
from qcli.job import QuantizeJob, threads_of
from qcli.pipeline import finish_job, prepare_job, settle_job
from qcli.plan import make_plan
from qcli.plugins import choice_of, create
from qcli.prepared import Prepared
from qcli.recipe import Recipe, SourcedRule
from qcli.refine import refine_plan
from qcli.solve import Solution, Solved, solve_again
from qcli.targets._support import traits_of
from qcli.tuning.nouns import Candidate, TuneJob
from qcli.types import Entry, Plan, Role, Rule, Spec
from qcli.watch import Watch

NOTHING = (Rule(keep="float"),)
"""The rules of the candidate that is the prepared model, with nothing quantized."""


@dataclass
class Base:
    """A recipe up to its solution."""

    name: str
    ground: Ground
    solution: Solution

    @property
    def prepared(self) -> Prepared:
        return self.ground.prepared

    @property
    def plan(self) -> Plan:
        return self.ground.plan

    def computes(self) -> bool:
        """Whether anything is multiplied in integers."""
        return any(create("encodings", entry.encoding).multiplies for entry in self.plan.entries)


@dataclass(frozen=True)
class Built:
    """A candidate as a model, and the plan that it follows."""

    model: Model
    plan: Plan


def settle(job: TuneJob, recipe: str, watch: Watch, shard: tuple[int, int] | None = None) -> Base:
    """Everything that `quantize` does up to writing the model, on the samples of a shard or on all."""
    one = msgspec.structs.replace(job, recipe=recipe, shard=shard)
    prepared = prepare_job(one, watch)
    target = prepared.recipe.target
    if not traits_of(create("targets", target)).here:
        hint = "plans are timed with onnxruntime's CPU provider; quantize for other runtimes with 'qcli quantize'"
        raise UsageError(f"recipe '{recipe}' is for the target '{choice_of(target).name}', which is not timed", hint)
    plan, statistics = settle_job(one, prepared, watch)
    solution = finish_job(one, prepared, Settled(prepared.model, plan, statistics), watch)
    return Base(recipe, Ground(prepared, plan, statistics), solution)


def build(base: Base, candidate: Candidate, job: QuantizeJob, watch: Watch) -> Built | None:
    """The model of a candidate; None if its rules leave nothing to quantize, unless that is all they say."""
    if candidate.rules == NOTHING:
        plan = msgspec.structs.replace(base.plan, entries=(), ties=(), kept_float=())
        return Built(base.prepared.model.copy(), plan)
    solved = replanned(base, candidate.rules, job, watch)
    return None if solved is None else Built(apply_plan(base.prepared.model, *solved), solved.plan)


def replanned(base: Base, rules: tuple[Rule, ...], job: QuantizeJob, watch: Watch) -> Solved | None:
    """A base's plan with rules on top of its recipe, solved; None if they leave nothing to quantize."""
    prepared, known = base.prepared, Solved(base.plan, base.solution)
    if not rules:
        return known
    recipe = _with_rules(prepared.recipe, rules)
    try:
        plan = _as_decided(make_plan(prepared.model, recipe), base.plan)
        base.ground.measure((plan,), job, watch)
        refined = refine_plan(prepared.model, recipe, plan, base.ground.statistics)
    except QcliError:
        return None
    plan = _as_decided(refined, base.plan)
    solution = solve_again(prepared.model, plan, base.ground.statistics, known, threads_of(job))
    return Solved(plan, solution)


def _as_decided(plan: Plan, base: Plan) -> Plan:
    """`range: auto` stays what it became for the same value."""
    decided: dict[str, Spec] = {entry.site.value: entry.range for entry in base.entries if _is_activation(entry)}

    def same(entry: Entry) -> Entry:
        known = decided.get(entry.site.value, _UNDECIDED if is_undecided(entry) else entry.range)
        return msgspec.structs.replace(entry, range=known) if _is_activation(entry) else entry

    return msgspec.structs.replace(plan, entries=tuple(same(entry) for entry in plan.entries))


_UNDECIDED: Spec = {"percentile": {"keep": 99.999}}


def _is_activation(entry: Entry) -> bool:
    return entry.site.role in (Role.INPUT, Role.OUTPUT)


def _with_rules(recipe: Recipe, rules: tuple[Rule, ...]) -> Recipe:
    added = (SourcedRule(rule=rule, origin=f"tune {number}", own=False) for number, rule in enumerate(rules))
    return msgspec.structs.replace(recipe, rules=(*recipe.rules, *added))
