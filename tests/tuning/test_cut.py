"""The minimum cut is the minimum, by trying everything."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcli.tuning.cut import least_cost

COST = st.floats(-5, 5, allow_nan=False).map(lambda value: round(value, 3))
Borders = dict[tuple[int, int], float]


def cost_of(choice: tuple[bool, ...], costs: list[tuple[float, float]], borders: Borders) -> float:
    own = sum(pair[way] for pair, way in zip(costs, choice, strict=True))
    return own + sum(cost for (one, other), cost in borders.items() if choice[one] != choice[other])


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[tuple[float, float]], Borders]:
    costs = draw(st.lists(st.tuples(COST, COST), min_size=1, max_size=8))
    pairs = [(one, other) for one in range(len(costs)) for other in range(len(costs)) if one != other]
    chosen = draw(st.lists(st.sampled_from(pairs), max_size=12, unique=True)) if pairs else []
    return costs, {pair: abs(draw(COST)) for pair in chosen}


@settings(max_examples=300)
@given(problems())
def test_nothing_costs_less(problem: tuple[list[tuple[float, float]], Borders]) -> None:
    costs, borders = problem
    found = cost_of(least_cost(costs, borders), costs, borders)
    best = min(cost_of(choice, costs, borders) for choice in product((False, True), repeat=len(costs)))
    assert found == pytest.approx(best, abs=1e-6)


def test_a_long_chain_keeps_together() -> None:
    """Each part alone would save less by the second way than two borders cost."""
    length = 3000
    costs = [(1.0, 0.9)] * length
    chain = {(place, place + 1): 1.0 for place in range(length - 1)}
    assert least_cost(costs, chain) == (True,) * length
    costs[0] = (0.0, 1000.0)
    assert least_cost(costs, chain) == (False,) + (True,) * (length - 1)
    assert not any(least_cost([(0.0, 0.0)] * 4, {}))


def test_a_negative_border_is_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        least_cost([(0, 1), (1, 0)], {(0, 1): -1.0})
