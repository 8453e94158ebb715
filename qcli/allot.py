"""Choosing one of several options for each of many things: the least error within a budget."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np


class Option(NamedTuple):
    """What one choice costs, and the error that it leaves."""

    cost: float
    error: float


class _Move(NamedTuple):
    """A thing goes from one option on its hull to the next, which costs more and errs less."""

    gain: float
    thing: int
    option: int


def allot(things: Sequence[Sequence[Option]], budget: float) -> list[int]:
    """The option of each thing, by number, such that the sum of errors is small and that of costs within `budget`.

    Exact for the budgets at which the convex hulls of cost and error turn; in between, what is left goes to the most
    useful single changes. Whoever is too expensive at its cheapest option gets that. Source: Shoham and Gersho 1988,
    "Efficient Bit Allocation for an Arbitrary Set of Quantizers": Lagrangian relaxation over convex hulls.
    """
    hulls = [_hull(options) for options in things]
    chosen = [hull[0] for hull in hulls]
    spent = sum(things[at][option].cost for at, option in enumerate(chosen))
    moves = [move for at, hull in enumerate(hulls) for move in _moves(things[at], at, hull)]
    stopped: set[int] = set()
    for move in sorted(moves, key=lambda one: (-one.gain, one.thing)):
        extra = things[move.thing][move.option].cost - things[move.thing][chosen[move.thing]].cost
        if move.thing in stopped or spent + extra > budget:
            stopped.add(move.thing)
            continue
        chosen[move.thing], spent = move.option, spent + extra
    return chosen


def _hull(options: Sequence[Option]) -> list[int]:
    """The options on the lower convex hull, from the cheapest on: those that some price of a bit makes the best."""
    order = sorted(range(len(options)), key=lambda at: options[at])
    hull: list[int] = []
    for at in order:
        if hull and options[at].error >= options[hull[-1]].error:
            continue
        while len(hull) > 1 and _slope(options, hull[-1], at) >= _slope(options, hull[-2], hull[-1]):
            hull.pop()
        hull.append(at)
    return hull


def _slope(options: Sequence[Option], first: int, second: int) -> float:
    """The error that a unit of cost takes away between two options."""
    extra = options[second].cost - options[first].cost
    return (options[first].error - options[second].error) / extra if extra > 0 else float(np.inf)


def _moves(options: Sequence[Option], thing: int, hull: list[int]) -> list[_Move]:
    return [_Move(_slope(options, before, after), thing, after) for before, after in pairwise(hull)]
