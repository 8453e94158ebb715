"""The search itself: whole recipes first, then parts of the best taken out, every step made into a model and measured.

What is foretold (`front.py`) only says what to try next. Along the front from the fastest to the most exact plan, the
fastest that keeps the limits is found by halving; its neighbours, one part more or less, are tried from then on.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence

from qcli.tuning.front import Costs, Division, divided, foretold, steps_between, turned
from qcli.tuning.limits import is_accurate
from qcli.tuning.nouns import Candidate, Limits, Outcome
from qcli.tuning.parts import Network, untouched, without

Try = Callable[[Candidate], Outcome | None]
"""Makes and measures a candidate; None if there is no such model."""


class PartSearch:
    """Divisions of one recipe's network: parts compute in float with weights stored as integers, or stay untouched."""

    def __init__(self, recipe: str, network: Network, costs: Costs, limits: Limits) -> None:
        self._recipe = recipe
        self._network = network
        self._costs = costs
        self._limits = limits
        self._rules, self._what = without, "float"

    def run(self, attempt: Try) -> Iterator[Outcome]:
        """The outcomes, as they are found; ends when no neighbour of the best is faster.

        Where integers are too coarse for the weights alone, parts stay as they were.
        """
        if (yield from self._search(attempt)) is None:
            exact = tuple((noise, 0.0) for noise, _ in self._costs.noise)
            self._costs = Costs(self._costs.ms, exact, self._costs.crossings)
            self._rules, self._what = untouched, "as they were"
            yield from self._search(attempt)

    def _search(self, attempt: Try) -> Generator[Outcome, None, Outcome | None]:
        plans = foretold(self._costs)
        best = yield from self._fastest(plans, attempt)
        if best is None:
            return None
        number = plans.index(best[0])
        if number:
            finer = yield from self._fastest(tuple(steps_between(self._costs, plans[number - 1], best[0])), attempt)
            best = finer if finer is not None and finer[1].speedup > best[1].speedup else best
        improved = True
        while improved:
            improved = False
            for division in self._neighbours(best[0]):
                tried = attempt(self._candidate(division))
                if tried is None:
                    continue
                yield tried
                if is_accurate(tried, self._limits) and tried.speedup > best[1].speedup * _BETTER:
                    best, improved = (division, tried), True
                    break
        return best[1]

    def _fastest(
        self, plans: Sequence[Division], attempt: Try
    ) -> Generator[Outcome, None, tuple[Division, Outcome] | None]:
        """The first accurate one of plans that get slower and more accurate: half of what is left falls each time."""
        best: tuple[Division, Outcome] | None = None
        low, high = 0, len(plans) - 1
        while low <= high:
            middle = (low + high) // 2
            outcome = attempt(self._candidate(plans[middle]))
            if outcome is not None:
                yield outcome
            if outcome is not None and is_accurate(outcome, self._limits):
                best, high = (plans[middle], outcome), middle - 1
            else:
                low = middle + 1
        return best

    def _neighbours(self, division: Division) -> Sequence[Division]:
        """One part more or less, where that is foretold to be faster, the most promising first."""
        found = []
        for number in range(len(division.out)):
            near = divided(self._costs, turned(division.out, number))
            if near.ms < division.ms:
                found.append(near)
        return sorted(found, key=lambda near: near.ms)[:_NEIGHBOURS]

    def _candidate(self, division: Division) -> Candidate:
        parts = tuple(part for part, out in zip(self._network.parts, division.out, strict=True) if out)
        why = f"{len(parts)} of {len(division.out)} parts {self._what}" if parts else "as it is"
        return Candidate(recipe=self._recipe, why=why, rules=self._rules(parts))


_BETTER = 1.02
_NEIGHBOURS = 12
