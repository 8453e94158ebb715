"""What is learned once a whole quantized model is there: layer after layer, and by the steps under `finish`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from qcli.apply import apply_plan
from qcli.foretold import correct_as_foretold
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

    `trial` is None without samples; then steps do what they can without, unjudged. `inputs` gives the ends of
    the inputs of the model, those that are known.
    """

    def __init__(
        self,
        work: Settled,
        solution: Solution,
        watch: Watch,
        *,
        trial: Trial | None,
        inputs: Callable[[], Mapping[str, tuple[float, float]]],
    ) -> None:
        self._model = work.model
        self._plan = work.plan
        self._statistics = work.statistics
        self.solution = solution
        self._watch = watch
        self._trial = trial
        self._inputs = inputs
        self._known: _Heard | None = None

    @property
    def samples(self) -> int:
        """How many samples there are to learn from; others are held out."""
        return len(self._trial.fit) if self._trial is not None else 0

    def correct_biases(self) -> bool:
        """From samples; False if there are none, or no biases."""
        return self._learn(biases=True)

    def foretell_biases(self) -> bool:
        """Without samples; False if there are no biases, or nothing is known of what their layers read."""
        return self._replace(correct_as_foretold(self._model, self._plan, self.solution, self._inputs()))

    def refine_ranges(self, factors: tuple[float, ...], limit: int) -> bool:
        """From samples; False if there are none."""
        if self._trial is None:
            return False
        yardstick = self._trial.yardstick

        def judge(solution: Solution) -> tuple[float, ...] | None:
            return yardstick.halves(apply_plan(self._model, self._plan, solution))

        def settle(solution: Solution) -> Solution | None:
            return with_fitting_biases(self._model, self._plan, solution)

        search = RangeSearch(self._plan, self._statistics, judge, settle, self._watch.progress)
        return self._replace(search.run(self.solution, factors, limit))

    def run(self, steps: tuple[Spec, ...]) -> Solution:
        """The solution after roundings that learn in order, and after all steps."""
        if has_order(self._plan, self._model):
            self._tried(_LEARNING, lambda: self._learn(biases=False))
        for spec in steps:
            step = create("steps", spec)
            self._tried(f"step '{choice_of(spec).name}'", lambda step=step: step.finish(self))  # type: ignore[misc]
        return self.solution

    def _learn(self, *, biases: bool) -> bool:
        if self._trial is None:
            return False
        fit, progress = self._trial.fit, self._watch.progress
        return self._replace(
            learn_in_order(self._model, self._plan, self.solution, fit, biases=biases, progress=progress)
        )

    def _replace(self, solution: Solution) -> bool:
        changed = solution is not self.solution
        self.solution = solution
        return changed

    def _tried(self, name: str, work: Callable[[], bool]) -> None:
        """Does the work, and undoes it if the result is worse."""
        if self._trial is None:
            if not work():
                self._watch.warn(f"{name} needs samples to run the model on and was skipped")
            return
        if self.samples < 2 or not len(self._trial.judge):
            self._watch.warn(f"{name} needs more samples and was skipped")
            return
        before = self.solution
        if self._known is None:
            self._known = self._heard(before)
        if not work():
            self._watch.warn(f"{name} found nothing that it could change")
            return
        after = self._heard(self.solution)
        refusal = _refusal(self._known, after)
        if refusal:
            self._watch.warn(f"{name} was undone: on calibration samples held out for it, the result {refusal}")
            self.solution = before
            return
        self._known = after

    def _heard(self, solution: Solution) -> _Heard | None:
        if self._trial is None:
            return None
        model = apply_plan(self._model, self._plan, solution)
        whole, each = self._trial.compare(model), self._trial.compare_each(model)
        return _Heard(whole, np.array(each)) if whole is not None and each is not None else None


class _Heard(NamedTuple):
    """Ratios in dB: of all samples together, and of each."""

    whole: float
    each: npt.NDArray[np.float64]


def _refusal(before: _Heard | None, after: _Heard | None) -> str:
    """What speaks against a change: no gain, or one that may be chance since samples differ more than it gains."""
    if before is None:
        return ""
    if after is None:
        return "could not be compared"
    went = f"went from {before.whole:.1f} to {after.whole:.1f} dB"
    gains = after.each - before.each
    chance = gains.std(ddof=1) / np.sqrt(gains.size) if gains.size > 1 else 0.0
    if after.whole < before.whole:
        return went
    certain = after.whole - before.whole >= _LEAST_DB and gains.mean() > chance
    return "" if certain else f"{went}, which may be chance"


_LEAST_DB = 0.2
