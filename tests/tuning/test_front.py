"""The front that is foretold holds the best divisions for some price of noise, and nothing that is surpassed."""

from __future__ import annotations

from itertools import pairwise, product

from hypothesis import given, settings
from hypothesis import strategies as st

from qcli.tuning.front import (
    IMPOSSIBLE,
    Division,
    Prices,
    cheaper,
    cheapest,
    divided,
    everything,
    foretold,
    greedy,
    steps_between,
)

PRICE = st.floats(0.01, 10).map(lambda value: round(value, 2))
NOISE = st.floats(0.0, 1.0).map(lambda value: round(value, 3))


@st.composite
def networks(draw: st.DrawFn, most: int = 6) -> Prices:
    count, ways = draw(st.integers(1, most)), draw(st.integers(2, 4))
    own = [[draw(PRICE) for _ in range(ways)] for _ in range(count)]
    noise = [[draw(NOISE) for _ in range(ways - 1)] + [0.0] for _ in range(count)]
    for part in own:
        for way in range(1, ways - 1):
            part[way] = IMPOSSIBLE if draw(st.booleans()) else part[way]
    borders = {(part, part + 1): draw(PRICE) for part in range(count - 1)}
    return Prices(tuple(map(tuple, own)), tuple(map(tuple, noise)), borders)


def all_of(prices: Prices) -> list[Division]:
    choices = [[way for way, price in enumerate(own) if price < IMPOSSIBLE] for own in prices.own]
    return [divided(prices, ways) for ways in product(*choices)]


@settings(max_examples=100)
@given(networks())
def test_from_the_cheapest_to_the_most_exact(prices: Prices) -> None:
    found = foretold(prices)
    assert abs(found[0].price - min(division.price for division in all_of(prices))) < 1e-9
    assert all(first.price <= second.price and first.noise > second.noise for first, second in pairwise(found))
    assert found[-1].noise <= min(division.noise for division in all_of(prices)) + 1e-9


@settings(max_examples=100)
@given(networks())
def test_nothing_lies_below_the_line_through_the_front(prices: Prices) -> None:
    """What the sweep finds is the lower convex hull: no division is better for any price of noise."""
    found = foretold(prices)
    for rate in (0.0, 0.3, 3.0, 30.0):
        best = min(division.price + rate * division.noise for division in all_of(prices))
        ours = min(division.price + rate * division.noise for division in found)
        assert ours <= best * 1.02 + 1e-9


@settings(max_examples=50)
@given(networks())
def test_no_way_is_taken_that_a_part_lacks(prices: Prices) -> None:
    walk = list(greedy(prices))
    for division in (*foretold(prices), *walk, *cheaper(prices, walk[-1], 10.0, 12)):
        assert division.price < IMPOSSIBLE


@settings(max_examples=50)
@given(networks(4))
def test_everything_is_all_there_is(prices: Prices) -> None:
    found = list(everything(prices))
    assert {division.ways for division in found} == {division.ways for division in all_of(prices)}
    assert all(one.price <= other.price for one, other in pairwise(found))


@settings(max_examples=50)
@given(networks())
def test_a_greedy_walk_only_gets_more_exact(prices: Prices) -> None:
    walk = list(greedy(prices))
    assert all(one.noise > other.noise for one, other in pairwise(walk))
    changes = [sum(a != b for a, b in zip(one.ways, other.ways, strict=True)) for one, other in pairwise(walk)]
    assert changes == [1] * len(changes)


@settings(max_examples=50)
@given(networks(), st.floats(0.0, 3.0))
def test_what_is_near_is_cheaper_and_within_the_noise(prices: Prices, noise: float) -> None:
    start = foretold(prices)[-1]
    near = cheaper(prices, start, noise, 5)
    assert len(near) <= 5
    for division in near:
        assert division.price < start.price and division.noise <= noise
        assert division == divided(prices, division.ways)
        assert 1 <= sum(a != b for a, b in zip(start.ways, division.ways, strict=True)) <= 2


@settings(max_examples=50)
@given(networks(), st.floats(0.0, 3.0), PRICE)
def test_the_cheapest_of_all(prices: Prices, noise: float, below: float) -> None:
    found = cheapest(prices, 3 * below, noise, 4)
    fit = sorted(one.price for one in all_of(prices) if one.price < 3 * below and one.noise <= noise)
    assert all(division == divided(prices, division.ways) for division in found)
    assert len(found) == len({one.ways for one in found}) == min(4, len(fit))
    assert all(abs(one.price - price) < 1e-9 for one, price in zip(found, fit, strict=False))


def test_too_many_to_look_at_all() -> None:
    count = 22
    assert cheapest(Prices(((1.0, 2.0),) * count, ((0.1, 0.0),) * count, {}), 100.0, 9.0, 4) == ()
    fixed = Prices(((1.0, IMPOSSIBLE),) * count, ((0.1, 0.0),) * count, {(0, 1): 1.0})
    assert cheapest(fixed, 100.0, 9.0, 4) == (), "there is just one"
    free = Prices(((1.0, 2.0), *fixed.own), ((0.1, 0.0), *fixed.noise), {(0, 1): 1.0})
    assert [one.ways for one in cheapest(free, 100.0, 9.0, 4)] == [(0,) * 23, (1, *(0,) * 22)]


def test_the_most_exact_is_there_whatever_noise_costs() -> None:
    """The second way has so little noise that no price of noise of the sweep speaks for the third."""
    prices = Prices(((0.36, 0.23, 0.71),), ((3.5e-3, 1.8e-4, 0.0),), {})
    assert [one.ways for one in foretold(prices)] == [(1,), (2,)]


def test_two_changes_reach_what_one_cannot() -> None:
    """The first part can become cheaper only if the second makes up for its noise."""
    prices = Prices(((1.0, 5.0), (2.0, 3.0)), ((0.6, 0.0), (0.5, 0.0)), {})
    start = divided(prices, (1, 0))
    assert [near.ways for near in cheaper(prices, start, 0.7, 5)] == [(0, 1)]


def test_an_island_costs_its_borders() -> None:
    own = ((1.0, 5.0), (2.0, 1.5), (1.0, 5.0))
    noise = ((0.1, 0.0), (0.1, 0.0), (0.1, 0.0))
    assert foretold(Prices(own, noise, {(0, 1): 0.2, (1, 2): 0.2}))[0].ways == (0, 1, 0)
    assert foretold(Prices(own, noise, {(0, 1): 0.4, (1, 2): 0.4}))[0].ways == (0, 0, 0)


def test_nothing_to_divide() -> None:
    assert foretold(Prices((), (), {})) == ()


@given(networks())
def test_from_one_plan_to_the_next_part_by_part(prices: Prices) -> None:
    for fast, exact in pairwise(foretold(prices)):
        steps = [fast, *steps_between(prices, fast, exact)]
        assert steps[-1].ways == exact.ways
        changes = [sum(one != other for one, other in zip(a.ways, b.ways, strict=True)) for a, b in pairwise(steps)]
        assert changes == [1] * len(changes)
