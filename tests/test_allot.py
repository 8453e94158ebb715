"""The least error within a budget."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcli.allot import Option, allot

THINGS = st.lists(
    st.lists(st.builds(Option, st.integers(1, 40), st.integers(0, 100)), min_size=1, max_size=4),
    min_size=1,
    max_size=5,
)


def total(things: list[list[Option]], chosen: tuple[int, ...] | list[int]) -> Option:
    picked = [things[at][option] for at, option in enumerate(chosen)]
    return Option(sum(one.cost for one in picked), sum(one.error for one in picked))


def best(things: list[list[Option]], budget: float) -> float:
    """By trying everything."""
    found = [total(things, chosen) for chosen in product(*(range(len(few)) for few in things))]
    return min((one.error for one in found if one.cost <= budget), default=np.inf)


@settings(deadline=None, max_examples=200)
@given(THINGS, st.integers(0, 200))
def test_the_budget_is_kept_and_used(things: list[list[Option]], budget: int) -> None:
    chosen = allot(things, budget)
    least = sum(min(few).cost for few in things)
    found = total(things, chosen)
    assert found.cost <= max(budget, least)
    assert found.error >= best(things, max(budget, least))
    assert found.error <= total(things, allot(things, 0)).error


@settings(deadline=None, max_examples=200)
@given(THINGS, st.integers(0, 200))
def test_it_is_exact_where_the_hulls_turn(things: list[list[Option]], budget: int) -> None:
    """Lagrange: for some price of a unit of cost, no other choice has a smaller sum of error and price."""
    for price in (0.0, 0.3, 1.0, 5.0):
        wanted = tuple(
            min(range(len(few)), key=lambda at, few=few: (few[at].error + price * few[at].cost, few[at].cost))  # type: ignore[misc]
            for few in things
        )
        reached = total(things, wanted)
        assert total(things, allot(things, reached.cost)).error <= reached.error + 1e-9


def test_more_budget_is_never_worse_where_gains_fall() -> None:
    things = [[Option(2, 16 / n), Option(4, 4 / n), Option(8, 0.1 / n)] for n in range(1, 6)]
    errors = [total(things, allot(things, budget)).error for budget in range(10, 41)]
    assert errors == sorted(errors, reverse=True)
    assert allot(things, 40) == [2] * 5 and allot(things, 10) == [0] * 5


def test_what_does_not_fit_makes_room_for_smaller_things() -> None:
    things = [[Option(10, 100.0), Option(100, 0.0)], [Option(1, 5.0), Option(2, 1.0)]]
    assert allot(things, 20) == [0, 1]


def test_an_option_that_costs_more_and_errs_more_is_never_taken() -> None:
    assert allot([[Option(4, 1.0), Option(4, 2.0), Option(6, 1.0)]], 100) == [0]


@pytest.mark.parametrize("budget", [0.0, 1e9])
def test_nothing_to_choose(budget: float) -> None:
    assert allot([], budget) == []
    assert allot([[Option(1, 1.0)]], budget) == [0]
