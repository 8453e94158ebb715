"""Changes of a recipe, tried: the model is made again with them, run by onnxruntime and compared with the float one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from qcli.analysis.measure import run_pair
from qcli.analysis.nouns import AnalyzeJob, Suggestion
from qcli.apply import apply_plan
from qcli.calibrate import collect
from qcli.configure import convert
from qcli.dataset import Sample
from qcli.errors import QcliError
from qcli.job import QuantizeJob, threads_of
from qcli.measured import requests_of, wishes_of
from qcli.pipeline import prepare_job, settle_job
from qcli.plan import make_plan
from qcli.prepared import Prepared
from qcli.recipe import Recipe, SourcedRule
from qcli.refine import refine_plan
from qcli.runtime import Session
from qcli.solve import solve
from qcli.statistics import Statistics
from qcli.types import Plan, Request, Rule, Spec
from qcli.watch import Watch
from qcli.yaml_file import write_yaml


@dataclass(frozen=True)
class Change:
    """Rules to be added to a recipe, as plain data, and graph steps to be added to its `prepare`.

    `kinds` says what they are about; two changes of one kind exclude each other.
    """

    why: str
    kinds: frozenset[str]
    rules: tuple[dict[str, Any], ...] = ()
    steps: tuple[str, ...] = ()

    def joined(self, other: Change) -> Change:
        """Both changes; the rules of `other` come last and so win."""
        why = f"{self.why}; {other.why}"
        return Change(why, self.kinds | other.kinds, (*self.rules, *other.rules), (*self.steps, *other.steps))

    def yaml(self, recipe: Recipe) -> str:
        """The lines to be added to a recipe that extends this one."""
        lines = write_yaml({"prepare": list(prepare_with(recipe, self.steps))}) if self.steps else ""
        return lines + (write_yaml({"rules": list(self.rules)}) if self.rules else "")


@dataclass(frozen=True)
class Reference:
    """The float model, the samples to compare on, and the ratio in dB that the model has without any change."""

    session: Session
    samples: Iterable[Sample]
    sqnr: float


@dataclass
class Ground:
    """A prepared model, its plan, and what is known of its values."""

    prepared: Prepared
    plan: Plan
    statistics: Statistics

    def measure(self, plans: Iterable[Plan], job: QuantizeJob, watch: Watch) -> None:
        """Adds what the plans ask for and was not measured yet, in one sweep over the samples."""
        model, samples = self.prepared.model, self.prepared.calibration
        known = set(self.statistics.header.requests)
        wanted = [request for plan in plans for request in (*requests_of(plan, model), *wishes_of(plan, model))]
        missing = tuple(dict.fromkeys(request for request in wanted if request not in known))
        if not missing or samples is None:
            return
        empty = Statistics.empty(missing)
        found = collect(model, empty, samples, threads=threads_of(job), progress=watch.progress)
        self.statistics = _joined(self.statistics, found)


@dataclass
class Trials:
    """Where changes are tried: on the model as it was prepared, or after further steps."""

    job: AnalyzeJob
    base: Ground
    against: Reference
    watch: Watch
    _grounds: dict[tuple[str, ...], Ground] = field(default_factory=dict)

    def announce(self, changes: Iterable[Change]) -> None:
        """Measures what several changes need together; those that cannot be planned need nothing."""
        ground = self.base
        plans = [self._plan(ground, change) for change in changes if not change.steps]
        ground.measure((plan for plan in plans if plan is not None), self.job, self.watch)

    def run(self, change: Change) -> Suggestion | None:
        """What a change brings; None for one that the model cannot have, or that changes nothing."""
        try:
            ground = self._ground(change.steps)
            plan = self._plan(ground, change)
            if plan is None:
                return None
            ground.measure((plan,), self.job, self.watch)
            recipe = _with_rules(ground.prepared.recipe, change.rules)
            plan = refine_plan(ground.prepared.model, recipe, plan, ground.statistics)
            solution = solve(ground.prepared.model, plan, ground.statistics, threads_of(self.job))
            quantized = apply_plan(ground.prepared.model, plan, solution)
            sqnr = run_pair(self.against.session, quantized, self.against.samples)
        except QcliError:
            return None
        working = {(entry.site.node, entry.site.op) for entry in self.base.plan.entries}
        floats = sum((kept.node, kept.op) in working for kept in plan.kept_float)
        floats -= sum((kept.node, kept.op) in working for kept in self.base.plan.kept_float)
        text = change.yaml(self.base.prepared.recipe)
        return Suggestion(why=change.why, yaml=text, sqnr=sqnr, gain=sqnr - self.against.sqnr, floats=floats)

    def _plan(self, ground: Ground, change: Change) -> Plan | None:
        try:
            return make_plan(ground.prepared.model, _with_rules(ground.prepared.recipe, change.rules))
        except QcliError:  # such as nothing that is left to quantize
            return None

    def _ground(self, steps: tuple[str, ...]) -> Ground:
        """The model after further steps, which is made and measured once."""
        if not steps:
            return self.base
        if steps not in self._grounds:
            base = self.base.prepared
            names = msgspec.json.encode(prepare_with(base.recipe, steps)).decode()
            job = msgspec.structs.replace(self.job, settings=(*self.job.settings, f"prepare={names}"))
            quiet = Watch(on_progress=self.watch.on_progress)
            prepared = prepare_job(job, quiet)
            if prepared.model.digest() == base.model.digest():
                raise QcliError("the steps change nothing")
            self._grounds[steps] = Ground(prepared, *settle_job(job, prepared, quiet))
        return self._grounds[steps]


def prepare_with(recipe: Recipe, steps: tuple[str, ...]) -> tuple[Spec, ...]:
    return (*recipe.prepare, *steps)


def _with_rules(recipe: Recipe, rules: tuple[dict[str, Any], ...]) -> Recipe:
    added = tuple(
        SourcedRule(rule=convert(rule, Rule, where="suggestion"), origin=f"suggestion {number}", own=False)
        for number, rule in enumerate(rules)
    )
    return msgspec.structs.replace(recipe, rules=(*recipe.rules, *added))


def _joined(first: Statistics, second: Statistics) -> Statistics:
    requests: tuple[Request, ...] = (*first.header.requests, *second.header.requests)
    measured = {request.key: first.get(request) for request in first.header.requests}
    measured |= {request.key: second.get(request) for request in second.header.requests}
    return Statistics(msgspec.structs.replace(first.header, requests=requests), measured)
