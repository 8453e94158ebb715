"""The search on made-up networks, whose truth is known: it finds what a search through everything finds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf, log10
from random import Random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcli.errors import UsageError
from qcli.tuning.cost_sums import Corrected, Costs
from qcli.tuning.limits import is_accurate, is_kept
from qcli.tuning.nouns import Candidate, Limits, Objective, Outcome, Strategy
from qcli.tuning.parts import Network, Part
from qcli.tuning.search import Aim, PartSearch, _spread
from qcli.tuning.ways import UNTOUCHED, WAYS, rules_for
from qcli.types import Rule

LAST = WAYS.index(UNTOUCHED)


def network(count: int) -> Network:
    return Network(tuple(Part(f"n{number}", "MatMul", (f"n{number}",), "w", "a") for number in range(count)), ())


@st.composite
def made_up(draw: st.DrawFn, most: int = 6) -> Costs:
    """Costs as they are found: the first way is the noisiest, the last one has no noise, some ways are missing."""
    return costs_from(Random(draw(st.integers(0, 1 << 32))), draw(st.integers(1, most)))


def costs_from(random: Random, count: int) -> Costs:
    own, noise, sizes = [], [], []
    for _ in range(count):
        usual, loud, size = random.uniform(0.2, 4), 10 ** random.uniform(-5, -2), random.uniform(10, 1000)
        own.append(tuple(_maybe(random, way, usual) for way in range(len(WAYS))))
        noise.append((loud, *(loud * random.uniform(0.05, 0.9) for _ in WAYS[1:-1]), 0.0))
        sizes.append((size / 4, *(size / 4 * random.uniform(0.6, 1.2) for _ in WAYS[1:-1]), size))
    floats = sum(times[-1] or 0.0 for times in own)
    return Costs(
        ms=tuple(own),
        noise=tuple(noise),
        bytes=tuple(sizes),
        crossings=tuple((part, part + 1, random.uniform(0, 0.4)) for part in range(count - 1)),
        rest=(0.1 * floats, 0.1 * floats),
        float_ms=1.1 * floats,
        float_bytes=sum(row[-1] for row in sizes),
    )


def _maybe(random: Random, way: int, usual: float) -> float | None:
    if way == LAST:
        return usual
    return usual * random.uniform(0.3, 1.1) if way == 0 or random.random() < 0.5 else None


def ways_of(candidate: Candidate, parts: Sequence[Part]) -> tuple[int, ...]:
    """The way of each part that a candidate's rules say."""
    rules = [
        tuple(_nameless(rule) for rule in candidate.rules if part.key in (rule.match.name or ())) for part in parts
    ]
    return tuple([way.rules for way in WAYS].index(own) for own in rules)


def _nameless(rule: Rule) -> Rule:
    return msgspec.structs.replace(rule, match=msgspec.structs.replace(rule.match, name=None))


Truth = Callable[[tuple[int, ...]], tuple[float, float]]
"""What a plan takes as a share of the float model's time, and its noise."""


def as_foretold(costs: Costs) -> Truth:
    def truth(ways: tuple[int, ...]) -> tuple[float, float]:
        return costs.time(ways), sum(heard[way] for heard, way in zip(costs.noise, ways, strict=True))

    return truth


class World:
    """A network whose plans are as `truth` says; it remembers how many were asked for at a time."""

    def __init__(self, costs: Costs, truth: Truth | None = None) -> None:
        self.costs = costs
        self.network = network(len(costs.ms))
        self.truth = truth or as_foretold(costs)
        self.asked: list[int] = []
        self.missing: set[tuple[int, ...]] = set()

    def outcome(self, candidate: Candidate) -> Outcome:
        ways = ways_of(candidate, self.network.parts)
        time, noise = self.truth(ways)
        size = sum(row[way] for row, way in zip(self.costs.bytes, ways, strict=True)) / self.costs.float_bytes
        ratio = min(-10 * log10(noise), 200.0) if noise else 200.0
        return Outcome(
            candidate=candidate, sqnr=ratio, drop=None, size=size, ms=time, speedup=1 / time, steady=True, seconds=0.0
        )

    def attempt(self, candidates: Sequence[Candidate]) -> list[Outcome | None]:
        self.asked.append(len(candidates))
        outcomes = [self.outcome(one) for one in candidates]
        return [None if ways_of(one.candidate, self.network.parts) in self.missing else one for one in outcomes]

    def search(
        self, limits: Limits, strategy: Strategy = "front", objective: Objective = "latency", at_once: int = 1
    ) -> list[Outcome]:
        """What was tried, the recipe as it is first."""
        whole = self.outcome(Candidate(recipe="made up", why="as it is"))
        aim = Aim(limits, objective, strategy, at_once)
        return [whole, *PartSearch(whole, self.network, Corrected(self.costs, whole.time, 1.0), aim).run(self.attempt)]


def fastest(outcomes: Sequence[Outcome], limits: Limits) -> float:
    return min((one.time for one in outcomes if is_accurate(one, limits)), default=inf)


def smallest(outcomes: Sequence[Outcome], limits: Limits) -> float:
    return min((one.size for one in outcomes if is_accurate(one, limits)), default=inf)


def without_sizes(costs: Costs) -> Costs:
    """Time is all that counts, so that the cheapest is the fastest."""
    return msgspec.structs.replace(costs, bytes=((1.0,) * len(WAYS),) * len(costs.ms), float_bytes=len(costs.ms))


RATIOS = st.floats(15, 60)


@settings(max_examples=40, deadline=None)
@given(made_up(3), RATIOS)
def test_as_good_as_a_search_through_everything(costs: Costs, ratio: float) -> None:
    limits, world = Limits(min_sqnr=ratio), World(without_sizes(costs))
    every, along = world.search(limits, "exhaustive"), world.search(limits)
    assert fastest(along, limits) <= 1.02 * fastest(every, limits)
    assert len(along) <= 40


@settings(max_examples=15, deadline=None)
@given(made_up(8), RATIOS)
def test_as_good_with_up_to_eight_parts(costs: Costs, ratio: float) -> None:
    """The best of all is looked up in the sums, which are the truth here."""
    costs = without_sizes(costs)
    limits, world = Limits(min_sqnr=ratio), World(costs)
    along = world.search(limits)
    assert fastest(along, limits) <= 1.02 * best_by_hand(costs, 10 ** (-(ratio + 0.5) / 10))


def best_by_hand(costs: Costs, noise: float) -> float:
    """The least time with at most this noise: what no other surpasses, part by part; borders go by the last way."""
    kept: dict[int, list[tuple[float, float]]] = {}
    borders = costs.borders
    for part, (times, heard) in enumerate(zip(costs.ms, costs.noise, strict=True)):
        reached: dict[int, list[tuple[float, float]]] = {0: [], 1: []}
        for way, ms in enumerate(times):
            if ms is None:
                continue
            out = int(way != 0)
            for before, pairs in (kept or {out: [(0.0, 0.0)]}).items():
                extra = ms + (borders.get((part - 1, part), 0.0) if before != out else 0.0)
                reached[out] += [(a + extra, b + heard[way]) for a, b in pairs if b + heard[way] <= noise * (1 + 1e-12)]
        kept = {out: _unsurpassed(pairs) for out, pairs in reached.items()}
    least = min(pair[0] for pairs in kept.values() for pair in pairs)
    return (least + costs.rest[1]) / costs.float_ms


def _unsurpassed(pairs: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    found: list[tuple[float, float]] = []
    for pair in sorted(pairs):
        if not found or pair[1] < found[-1][1]:
            found.append(pair)
    return found


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1 << 32), RATIOS)
def test_almost_as_good_in_large_networks(seed: int, ratio: float) -> None:
    costs = without_sizes(costs_from(Random(seed), 30))
    limits, world = Limits(min_sqnr=ratio), World(costs)
    along = world.search(limits)
    assert fastest(along, limits) <= 1.03 * best_by_hand(costs, 10 ** (-(ratio + 0.5) / 10))
    assert len(along) <= 60


@settings(max_examples=40, deadline=None)
@given(made_up(6), RATIOS, st.integers(0, 1 << 32))
def test_the_truth_may_differ_from_what_was_foretold(costs: Costs, ratio: float, seed: int) -> None:
    """Each part's noise is off by up to 3 dB, and each plan's time by 5 %: it still ends within a sixth of the best."""
    random = Random(seed)
    factors = [10 ** random.uniform(-0.3, 0.3) for _ in costs.ms]
    noise = tuple(tuple(factor * value for value in heard) for factor, heard in zip(factors, costs.noise, strict=True))
    actual = as_foretold(msgspec.structs.replace(costs, noise=noise))

    def truth(ways: tuple[int, ...]) -> tuple[float, float]:
        time, power = actual(ways)
        return time * Random(f"{seed} {ways}").uniform(0.95, 1.05), power

    limits, world = Limits(min_sqnr=ratio), World(without_sizes(costs), truth)
    along = world.search(limits)
    exact = world.outcome(Candidate(recipe="made up", why="", rules=rules_for(world.network.parts, exactly(costs))))
    best = best_by_hand(msgspec.structs.replace(costs, noise=noise), 10 ** (-(ratio + 0.5) / 10))
    assert fastest(along, limits) <= 1.05 * exact.time
    assert fastest(along, limits) <= 1.3 * best


def exactly(costs: Costs) -> tuple[int, ...]:
    return (LAST,) * len(costs.ms)


@settings(max_examples=30, deadline=None)
@given(made_up(3), RATIOS)
def test_the_smallest(costs: Costs, ratio: float) -> None:
    limits, world = Limits(min_sqnr=ratio), World(costs)
    along, every = world.search(limits, objective="size"), world.search(limits, "exhaustive", "size")
    assert smallest(along, limits) <= 1.02 * smallest(every, limits)


@settings(max_examples=30, deadline=None)
@given(made_up(3), st.floats(0.3, 1.0))
def test_the_most_accurate_that_is_fast_enough(costs: Costs, most: float) -> None:
    limits, world = Limits(max_latency=most), World(costs)
    along = world.search(limits, objective="accuracy")
    every = world.search(limits, "exhaustive", "accuracy")
    kept = [one.sqnr for one in along if is_kept(one, limits)]
    possible = [one.sqnr for one in every if is_kept(one, limits)]
    assert bool(kept) == bool(possible)
    assert not possible or kept
    assert len(along) <= 30


@settings(max_examples=30, deadline=None)
@given(made_up(6), RATIOS, st.integers(2, 5))
def test_several_at_once_find_what_one_by_one_finds(costs: Costs, ratio: float, at_once: int) -> None:
    limits, one_by_one, together = Limits(min_sqnr=ratio), World(without_sizes(costs)), World(without_sizes(costs))
    alone = fastest(one_by_one.search(limits), limits)
    assert fastest(together.search(limits, at_once=at_once), limits) <= 1.02 * alone
    assert set(one_by_one.asked) <= {1} and max(together.asked) <= at_once
    assert len(together.asked) <= len(one_by_one.asked), "no more rounds"


@settings(max_examples=30, deadline=None)
@given(made_up(6), RATIOS)
def test_a_greedy_walk_ends_at_the_first_that_is_accurate(costs: Costs, ratio: float) -> None:
    limits, world = Limits(min_sqnr=ratio), World(costs)
    _, *walk = world.search(limits, "greedy")
    good = [is_accurate(one, limits) for one in walk]
    assert good == [False] * (len(good) - 1) + [True]
    assert set(world.asked) == {1}


def test_everything_is_tried_in_rounds() -> None:
    costs = costs_from(Random(1), 3)
    world = World(costs)
    tried = world.search(Limits(min_sqnr=30.0), "exhaustive", at_once=4)[1:]
    plans = [ways_of(one.candidate, world.network.parts) for one in tried]
    choices = [sum(ms is not None for ms in times) for times in costs.ms]
    assert len(plans) == len(set(plans)) == choices[0] * choices[1] * choices[2]
    assert set(world.asked[:-1]) <= {4} and world.asked[-1] <= 4


def test_too_many_plans_to_try_all() -> None:
    world = World(costs_from(Random(2), 13))
    with pytest.raises(UsageError, match="which are too many to try all") as caught:
        world.search(Limits(min_sqnr=30.0), "exhaustive")
    assert "--search exhaustive" in caught.value.hint and world.asked == []


@pytest.mark.parametrize("strategy", ["front", "greedy", "exhaustive"])
def test_what_cannot_be_made_is_passed_over(strategy: Strategy) -> None:
    costs, limits = costs_from(Random(5), 3), Limits(min_sqnr=35.0)
    world = World(costs)
    best = min((one for one in world.search(limits, strategy) if is_accurate(one, limits)), key=lambda one: one.time)
    lacking = World(costs)
    lacking.missing = {ways_of(best.candidate, world.network.parts)}
    found = lacking.search(limits, strategy)[1:]
    assert all(ways_of(one.candidate, world.network.parts) not in lacking.missing for one in found)
    assert strategy == "greedy" or fastest(found, limits) < inf


def test_nothing_that_can_be_made() -> None:
    world = World(costs_from(Random(5), 3))

    def never(candidates: Sequence[Candidate]) -> list[Outcome | None]:
        return [None] * len(candidates)

    whole = world.outcome(Candidate(recipe="made up", why="as it is"))
    strategies: tuple[Strategy, ...] = ("front", "greedy", "exhaustive")
    for strategy in strategies:
        aim = Aim(Limits(min_sqnr=30.0), "latency", strategy)
        assert list(PartSearch(whole, world.network, Corrected(world.costs, whole.time, 1.0), aim).run(never)) == []


def test_no_parts_are_nothing_to_search() -> None:
    costs = Costs(ms=(), noise=(), bytes=(), crossings=(), rest=(1.0, 1.0), float_ms=1.0, float_bytes=1.0)
    world = World(costs)
    assert len(world.search(Limits(min_sqnr=30.0))) == 1


def test_an_exact_plan_is_no_dead_end() -> None:
    """From a plan without any noise there is a way on to those that have as much as is allowed."""
    quiet = (1e-6, 0.0, 0.0, 0.0, 0.0, 0.0)
    loud = (1e-2, 0.0, 0.0, 0.0, 0.0, 0.0)
    missing = (None,) * 4
    costs = Costs(
        ms=((2.0, *missing, 3.0), (1.0, *missing, 3.0)),
        noise=(quiet, loud),
        bytes=((1.0,) * len(WAYS),) * 2,
        crossings=((0, 1, 1.5),),
        rest=(0.0, 0.0),
        float_ms=6.0,
        float_bytes=2.0,
    )
    cheap = msgspec.structs.replace(costs, crossings=((0, 1, 0.9),))
    limits = Limits(min_sqnr=40.0)
    assert fastest(World(costs).search(limits), limits) == pytest.approx(1.0)
    assert fastest(World(cheap).search(limits), limits) == pytest.approx(5.9 / 6)


def test_a_limit_that_is_not_about_noise() -> None:
    """Neighbours with half as much noise again are tried where a drop is limited, or nothing but size."""
    costs = without_sizes(costs_from(Random(11), 5))
    for limits in (Limits(max_drop=0.1), Limits(min_metric=30.0), Limits(max_size=0.5)):
        world = World(costs)
        assert len(world.search(limits)) > 1


def test_candidates_say_what_they_are_and_what_they_take() -> None:
    world, limits = World(costs_from(Random(3), 4)), Limits(min_sqnr=35.0)
    for one in world.search(limits)[1:]:
        ways = ways_of(one.candidate, world.network.parts)
        assert one.candidate.recipe == "made up"
        assert one.candidate.foretold == pytest.approx(one.time), "the truth is what was foretold"
        assert f"of {len(ways)} parts" in one.candidate.why or not any(ways)


@given(st.integers(0, 40), st.integers(0, 40), st.integers(1, 12))
def test_places_are_spread_between_their_bounds(low: int, more: int, count: int) -> None:
    places = _spread(low, low + more, count)
    assert places == sorted(set(places)) and 1 <= len(places) <= count
    assert low <= places[0] and places[-1] <= low + more
    if count == 1:
        assert places == [low + (more + 1) // 2]
    if count > more:
        assert places == list(range(low, low + more + 1))


def test_a_way_is_known_by_its_rules() -> None:
    """What these tests rely on."""
    parts = network(len(WAYS)).parts
    ways = tuple(range(len(WAYS)))
    assert ways_of(Candidate(recipe="r", why="", rules=rules_for(parts, ways)), parts) == ways
    assert ways_of(Candidate(recipe="r", why=""), parts) == (0,) * len(WAYS)


def test_few_plans_are_all_tried() -> None:
    world = World(costs_from(Random(3), 2))
    whole = world.outcome(Candidate(recipe="made up", why="as it is"))
    corrected = Corrected(world.costs, whole.time, 1.0)
    every = PartSearch(whole, world.network, corrected, Aim(Limits(min_sqnr=25.0), "latency", "exhaustive"))
    few = PartSearch(whole, world.network, corrected, Aim(Limits(min_sqnr=25.0), "latency", few=128))
    asked, all_of = ({one.candidate.why for one in search.run(world.attempt)} for search in (few, every))
    assert asked == all_of
