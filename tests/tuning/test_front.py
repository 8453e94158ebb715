"""The front that is foretold holds the best divisions for some price of noise, and nothing that is surpassed."""

from __future__ import annotations

from itertools import pairwise, product

from hypothesis import given, settings
from hypothesis import strategies as st

from qcli.tuning.front import Costs, divided, foretold, steps_between

TIME = st.floats(0.01, 10).map(lambda value: round(value, 2))
NOISE = st.floats(0.0, 1.0).map(lambda value: round(value, 3))


@st.composite
def networks(draw: st.DrawFn) -> Costs:
    count = draw(st.integers(1, 7))
    ms = tuple(draw(st.tuples(TIME, TIME)) for _ in range(count))
    noise = tuple((draw(NOISE), 0.0) for _ in range(count))
    return Costs(ms, noise, tuple((part, part + 1, draw(TIME)) for part in range(count - 1)))


@settings(max_examples=100)
@given(networks())
def test_from_the_fastest_to_the_most_exact(costs: Costs) -> None:
    found = foretold(costs)
    everything = [divided(costs, out) for out in product((False, True), repeat=len(costs.ms))]
    fastest = min(division.ms for division in everything)
    assert abs(found[0].ms - fastest) < 1e-9
    assert all(first.ms <= second.ms and first.noise > second.noise for first, second in pairwise(found))
    assert found[-1].noise <= min(division.noise for division in everything) + 1e-9


@settings(max_examples=100)
@given(networks())
def test_nothing_lies_below_the_line_through_the_front(costs: Costs) -> None:
    """What the sweep finds is the lower convex hull: no division is better for any price of noise."""
    found = foretold(costs)
    everything = [divided(costs, out) for out in product((False, True), repeat=len(costs.ms))]
    for price in (0.0, 0.3, 3.0, 30.0):
        best = min(division.ms + price * division.noise for division in everything)
        ours = min(division.ms + price * division.noise for division in found)
        assert ours <= best * 1.02 + 1e-9


def test_an_island_costs_its_borders() -> None:
    costs = Costs(
        ((1.0, 5.0), (2.0, 1.5), (1.0, 5.0)), ((0.1, 0.0), (0.1, 0.0), (0.1, 0.0)), ((0, 1, 0.2), (1, 2, 0.2))
    )
    assert foretold(costs)[0].out == (False, True, False)
    dear = Costs(costs.ms, costs.noise, ((0, 1, 0.4), (1, 2, 0.4)))
    assert foretold(dear)[0].out == (False, False, False)


def test_nothing_to_divide() -> None:
    assert foretold(Costs((), (), ())) == ()


@given(networks())
def test_from_one_plan_to_the_next_part_by_part(costs: Costs) -> None:
    found = foretold(costs)
    for fast, exact in pairwise(found):
        steps = [fast, *steps_between(costs, fast, exact)]
        assert steps[-1].out == exact.out
        changes = [sum(one != other for one, other in zip(a.out, b.out, strict=True)) for a, b in pairwise(steps)]
        assert changes == [1] * len(changes)
