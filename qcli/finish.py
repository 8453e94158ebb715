"""What is learned once a whole quantized model is there: layer after layer, and by the steps under `finish`."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from qcli.apply import apply_plan
from qcli.graph import Model
from qcli.held_out import Trial
from qcli.in_order import has_order, learn_in_order
from qcli.plugins import choice_of, create
from qcli.range_search import RangeSearch
from qcli.solve import Solution, with_fitting_biases
from qcli.statistics import Statistics
from qcli.types import Plan, Spec
from qcli.watch import Watch

_LEARNING = "learning layer after layer"


class Settled(NamedTuple):
    """What a solution was made for, and of."""

    model: Model
    plan: Plan
    statistics: Statistics


class Finishing:
    """A solution for a plan, and the steps that make it better: each stays only if held-out samples agree.

    `trial` is None without samples.
    """

    def __init__(self, work: Settled, solution: Solution, trial: Trial | None, watch: Watch) -> None:
        self._model = work.model
        self._plan = work.plan
        self._statistics = work.statistics
        self.solution = solution
        self._trial = trial
        self._watch = watch
        self._known: float | None = None

    @property
    def samples(self) -> int:
        return len(self._trial.fit) if self._trial is not None else 0

    def correct_biases(self) -> None:
        self._learn(biases=True)

    def refine_ranges(self, factors: tuple[float, ...], limit: int) -> None:
        if self._trial is None:
            return
        yardstick = self._trial.yardstick

        def judge(solution: Solution) -> tuple[float, ...] | None:
            return yardstick.halves(apply_plan(self._model, self._plan, solution))

        def settle(solution: Solution) -> Solution | None:
            return with_fitting_biases(self._model, self._plan, solution)

        search = RangeSearch(self._plan, self._statistics, judge, settle, self._watch.progress)
        self.solution = search.run(self.solution, factors, limit)

    def run(self, steps: tuple[Spec, ...]) -> Solution:
        """The solution after roundings that learn in order, and after all steps."""
        if has_order(self._plan, self._model):
            self._tried(_LEARNING, lambda: self._learn(biases=False))
        for spec in steps:
            step = create("steps", spec)
            self._tried(f"step '{choice_of(spec).name}'", lambda step=step: step.finish(self))  # type: ignore[misc]
        return self.solution

    def _learn(self, *, biases: bool) -> None:
        if self._trial is None:
            return
        progress = self._watch.progress
        self.solution = learn_in_order(
            self._model, self._plan, self.solution, self._trial.fit, biases=biases, progress=progress
        )

    def _tried(self, name: str, work: Callable[[], object]) -> None:
        """Does the work, and undoes it if the result is worse."""
        if self._trial is None or self.samples < 2 or not len(self._trial.judge):
            self._watch.warn(f"{name} needs more samples and was skipped")
            return
        before = self.solution
        if self._known is None:
            self._known = self._decibels(before)
        work()
        after = self._decibels(self.solution)
        if self._known is not None and (after is None or after < self._known):
            change = f"went from {self._known:.1f} to {after:.1f} dB" if after is not None else "could not be compared"
            self._watch.warn(f"{name} was undone: on calibration samples held out for it, the result {change}")
            self.solution = before
            return
        self._known = after

    def _decibels(self, solution: Solution) -> float | None:
        if self._trial is None:
            return None
        return self._trial.compare(apply_plan(self._model, self._plan, solution))
