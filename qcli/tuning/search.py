"""What to try next: divisions of one recipe's network, as costs and noise foretell them.

Along the front from the cheapest to the most exact plan, the cheapest that keeps the limits is found by halving; from
then on what is foretold to be cheaper is tried: its neighbours, with one part or two in another way, and in small
networks plans from anywhere. To compare with there are all plans that exist, and a greedy walk.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from math import inf, prod
from typing import NamedTuple

from qcli.errors import UsageError
from qcli.tuning.cost_sums import Corrected
from qcli.tuning.front import Division, Ways, cheaper, cheapest, divided, everything, foretold, greedy, steps_between
from qcli.tuning.limits import is_accurate, is_kept, margin, quality
from qcli.tuning.nouns import Candidate, Limits, Objective, Outcome, Strategy
from qcli.tuning.parts import Network
from qcli.tuning.ways import rules_for, told

Try = Callable[[Sequence[Candidate]], list[Outcome | None]]
"""Makes and measures candidates; None for each of which there is no model."""

Found = tuple[Division, Outcome]

_MOST_PLANS = 4096
_BETTER = 1.02
_NEIGHBOURS = 12
_MORE_NOISE = 1.5
"""How much more noise than the best has may be tried where the limit is not about noise."""


class Aim(NamedTuple):
    """What is searched for, how, and how many candidates are tried at a time.

    All plans are tried in the end where there are `few` or less.
    """

    limits: Limits
    objective: Objective
    strategy: Strategy = "front"
    at_once: int = 1
    few: int = 0


class PartSearch:
    """A search among the divisions of one recipe's network; `whole` is what came of the recipe as it is."""

    def __init__(self, whole: Outcome, network: Network, corrected: Corrected, aim: Aim) -> None:
        self._whole = whole
        self._network = network
        self._corrected = corrected
        self._prices = corrected.costs.prices(aim.objective)
        self._aim = aim
        self._asked: set[Ways] = set()

    def run(self, attempt: Try) -> Iterator[Outcome]:
        """The outcomes, as they are found; ends where nothing better is foretold, or all of few plans were tried.

        Raises UsageError if there are too many plans to try all of them.
        """
        search = {"front": self._along_front, "greedy": self._greedy, "exhaustive": self._exhaustive}
        yield from search[self._aim.strategy](attempt)
        if self._aim.strategy == "front" and len(self._prices.own) > 0 and self._count() <= self._aim.few:
            yield from self._exhaustive(attempt)

    def _count(self) -> int:
        return prod(len(self._prices.choices(part)) for part in range(len(self._prices.own)))

    def _exhaustive(self, attempt: Try) -> Iterator[Outcome]:
        count = self._count()
        if count > _MOST_PLANS:
            hint = "leave out --search exhaustive, or restrict the network with the rules of a recipe"
            raise UsageError(
                f"{len(self._network.parts)} parts make {count} plans, which are too many to try all", hint
            )
        plans = tuple(everything(self._prices))
        for start in range(0, len(plans), self._aim.at_once):
            yield from _outcomes(self._tried(plans[start : start + self._aim.at_once], attempt))

    def _greedy(self, attempt: Try) -> Iterator[Outcome]:
        for division in greedy(self._prices):
            for _, outcome in self._tried([division], attempt):
                yield outcome
                if self._is_good(outcome) != (self._aim.objective == "accuracy"):
                    return

    def _along_front(self, attempt: Try) -> Generator[Outcome]:
        plans = foretold(self._prices)
        best = yield from self._first_good(plans, attempt)
        if best is None:
            return
        number = plans.index(best[0])
        if number:
            between = tuple(steps_between(self._prices, plans[number - 1], best[0]))
            finer = yield from self._first_good(between, attempt)
            best = finer if finer is not None and self._is_better(finer[1], best[1]) else best
        while best is not None and self._aim.objective != "accuracy":
            best = yield from self._nearer(best, attempt)

    def _nearer(self, best: Found, attempt: Try) -> Generator[Outcome, None, Found | None]:
        """A plan that is better and foretold to be good; None if there is none."""
        near = self._promising(best)
        for start in range(0, len(near), self._aim.at_once):
            found = self._tried(near[start : start + self._aim.at_once], attempt)
            yield from _outcomes(found)
            better = [one for one in found if self._is_good(one[1]) and self._is_better(one[1], best[1])]
            if better:
                return min(better, key=lambda one: self._cost(one[1]))
        return None

    def _promising(self, best: Found) -> list[Division]:
        """What is foretold to be cheaper and was not tried yet: neighbours, and as many from anywhere."""
        noise, most = self._noise_allowed(best), _NEIGHBOURS + len(self._asked)
        near = cheaper(self._prices, best[0], noise, most)
        anywhere = cheapest(self._prices, best[0].price, noise, most)
        fresh = [
            [one for one in found if one.ways not in self._asked][: _NEIGHBOURS // 2] for found in (near, anywhere)
        ]
        return sorted({one.ways: one for one in (*fresh[0], *fresh[1])}.values(), key=lambda one: one.price)

    def _first_good(self, plans: Sequence[Division], attempt: Try) -> Generator[Outcome, None, Found | None]:
        """The first good one of plans that get more and more so: of what is left, a half or less stays each time.

        Where accuracy is the objective, plans are good as long as they are small and fast enough, so the order turns.
        """
        order = plans[::-1] if self._aim.objective == "accuracy" else plans
        best: Found | None = None
        low, high = 0, len(order) - 1
        while low <= high:
            places = _spread(low, high, self._aim.at_once)
            found = self._tried([order[place] for place in places], attempt)
            yield from _outcomes(found)
            good = {division.ways for division, outcome in found if self._is_good(outcome)}
            first = next((place for place in places if order[place].ways in good), None)
            if first is not None:
                best = next(one for one in found if one[0].ways == order[first].ways)
                low = max((place + 1 for place in places if place < first), default=low)
                high = first - 1
            else:
                low = places[-1] + 1
        return best

    def _tried(self, divisions: Sequence[Division], attempt: Try) -> list[Found]:
        self._asked.update(division.ways for division in divisions)
        outcomes = attempt([self._candidate(division) for division in divisions])
        for division, outcome in zip(divisions, outcomes, strict=True):
            if outcome is not None:
                self._corrected.note(division.ways, outcome.time)
        return [(one, outcome) for one, outcome in zip(divisions, outcomes, strict=True) if outcome is not None]

    def _candidate(self, division: Division) -> Candidate:
        return Candidate(
            recipe=self._whole.candidate.recipe,
            why=told(division.ways),
            rules=rules_for(self._network.parts, division.ways),
            foretold=self._corrected.time(division.ways),
        )

    def _is_good(self, outcome: Outcome) -> bool:
        limits = self._aim.limits
        if self._aim.objective == "accuracy":
            return is_kept(outcome, Limits(max_size=limits.max_size, max_latency=limits.max_latency))
        return is_accurate(outcome, limits)

    def _cost(self, outcome: Outcome) -> float:
        return outcome.size if self._aim.objective == "size" else outcome.time

    def _is_better(self, one: Outcome, other: Outcome) -> bool:
        if self._aim.objective == "accuracy":
            return quality(one) > quality(other)
        return self._cost(one) * _BETTER < self._cost(other)

    def _noise_allowed(self, best: Found) -> float:
        """In the sums of what is foretold, which are as wrong for neighbours as they are for the best.

        One that makes no noise says nothing about these sums; then the recipe as it is does.
        """
        exact = best[0].noise == 0
        division = divided(self._prices, (0,) * len(self._prices.own)) if exact else best[0]
        outcome = self._whole if exact else best[1]
        limits = self._aim.limits
        least = limits.min_sqnr
        if least is None:
            return inf if limits.max_drop is limits.min_metric is None else division.noise * _MORE_NOISE
        return division.noise * 10 ** ((outcome.sqnr - least - margin(outcome.error_db)) / 10)


def _outcomes(found: Sequence[Found]) -> Iterator[Outcome]:
    return (outcome for _, outcome in found)


def _spread(low: int, high: int, count: int) -> list[int]:
    """At most `count` places that divide low to high evenly."""
    wanted = min(count, high - low + 1)
    return sorted(
        {low + (high - low + 1) * (index + 1) // (wanted + 1) for index in range(wanted)} & set(range(low, high + 1))
    )
