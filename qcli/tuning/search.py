"""The search itself: whole recipes first, then parts of the best taken out, every step made into a model and measured.

What is foretold (`front.py`) only says what to try next. Along the front from the fastest to the most exact plan, the
fastest that keeps the limits is found by halving; its neighbours, one part more or less, are tried from then on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from qcli.tuning.front import Costs, Division, divided, foretold
from qcli.tuning.limits import is_accurate
from qcli.tuning.nouns import Candidate, Limits, Outcome
from qcli.tuning.parts import Network, untouched, without

Try = Callable[[Candidate], Outcome | None]
"""Makes and measures a candidate; None if there is no such model."""


class PartSearch:
    """Divisions of one recipe's network."""

    def __init__(self, recipe: str, network: Network, costs: Costs, limits: Limits) -> None:
        self._recipe = recipe
        self._network = network
        self._costs = costs
        self._limits = limits

    def run(self, attempt: Try) -> Iterator[Outcome]:
        """The outcomes, as they are found; without end of its own only as long as something gains."""
        best: tuple[Division, Outcome] | None = None
        for division, outcome in self._halved(attempt):
            yield outcome
            if is_accurate(outcome, self._limits) and (best is None or outcome.speedup > best[1].speedup):
                best = division, outcome
        if best is None:
            yield from self._exact(attempt)
            return
        while True:
            improved = False
            for division in self._neighbours(best[0]):
                tried = attempt(self._candidate(division))
                if tried is None:
                    continue
                yield tried
                if is_accurate(tried, self._limits) and tried.speedup > best[1].speedup * _BETTER:
                    best, improved = (division, tried), True
                    break
            if not improved:
                return

    def _halved(self, attempt: Try) -> Iterator[tuple[Division, Outcome]]:
        """The fastest accurate plan of the front: accuracy grows along it, so half of what is left falls each time."""
        plans = foretold(self._costs)
        low, high = 0, len(plans) - 1
        while low <= high:
            middle = (low + high) // 2
            outcome = attempt(self._candidate(plans[middle]))
            if outcome is not None:
                yield plans[middle], outcome
            if outcome is not None and is_accurate(outcome, self._limits):
                high = middle - 1
            else:
                low = middle + 1

    def _exact(self, attempt: Try) -> Iterator[Outcome]:
        """Weights as integers are too coarse as well: the parts with most noise stay as they are, more and more."""
        order = sorted(range(len(self._costs.noise)), key=lambda number: -max(self._costs.noise[number]))
        count = 1
        while count < len(order):
            parts = tuple(self._network.parts[number] for number in sorted(order[:count]))
            why = f"{count} of {len(order)} parts as they were"
            outcome = attempt(Candidate(recipe=self._recipe, why=why, rules=untouched(parts)))
            if outcome is not None:
                yield outcome
                if is_accurate(outcome, self._limits):
                    return
            count *= 2

    def _neighbours(self, division: Division) -> Sequence[Division]:
        """One part more or less, the most promising first."""
        found = []
        for number in range(len(division.out)):
            out = tuple(way != (place == number) for place, way in enumerate(division.out))
            near = divided(self._costs, out)
            if near.ms < division.ms or near.noise < division.noise:
                found.append(near)
        return sorted(found, key=lambda near: (near.ms - division.ms, near.noise))[:_NEIGHBOURS]

    def _candidate(self, division: Division) -> Candidate:
        parts = tuple(part for part, out in zip(self._network.parts, division.out, strict=True) if out)
        why = f"{len(parts)} of {len(division.out)} parts float" if parts else "as it is"
        return Candidate(recipe=self._recipe, why=why, rules=without(parts))


_BETTER = 1.02
_NEIGHBOURS = 12
