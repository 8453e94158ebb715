"""From costs and noise to plans that might pay: the front that is foretold, from the fastest plan to the most exact.

Times and noise powers of parts add up, conversions between them cost as well. For each price of noise the best
division of the network is a minimum cut (`cut.py`); raising the price from nothing on gives the plans in turn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from qcli.tuning.cut import least_cost
from qcli.types import Noun

_PRICES = 96


class Costs(Noun, frozen=True):
    """Of each part, as [integer, otherwise] pairs: `ms` and `noise`, the power relative to the output's.

    `crossings` are (part, part, ms): what two parts pay for converting between them if one is integer and one is not.
    """

    ms: tuple[tuple[float, float], ...]
    noise: tuple[tuple[float, float], ...]
    crossings: tuple[tuple[int, int, float], ...]

    @property
    def borders(self) -> dict[tuple[int, int], float]:
        return {(one, other): cost for one, other, cost in self.crossings}


@dataclass(frozen=True)
class Division:
    """Which parts are not integer, and what that is foretold to take."""

    out: tuple[bool, ...]
    ms: float
    noise: float


def foretold(costs: Costs) -> tuple[Division, ...]:
    """The divisions that no other surpasses in both, from the fastest to the most exact."""
    found = {out: divided(costs, out) for out in _swept(costs)}
    order = sorted(found.values(), key=lambda division: (division.ms, division.noise))
    kept: list[Division] = []
    for division in order:
        if not kept or division.noise < kept[-1].noise:
            kept.append(division)
    return tuple(kept)


def steps_between(costs: Costs, fast: Division, exact: Division) -> Iterator[Division]:
    """The plans between two neighbours on the front: part by part, the one that saves most noise for its time first."""
    here = fast
    left = {number for number, (one, other) in enumerate(zip(fast.out, exact.out, strict=True)) if one != other}
    while left:
        nearer = {number: divided(costs, turned(here.out, number)) for number in sorted(left)}
        chosen = max(nearer, key=lambda number: _worth(here, nearer[number]))
        here = nearer[chosen]
        left.remove(chosen)
        yield here


def turned(out: Sequence[bool], number: int) -> tuple[bool, ...]:
    """A division with one part the other way."""
    return tuple(way != (place == number) for place, way in enumerate(out))


def _worth(before: Division, after: Division) -> tuple[bool, float]:
    """Noise saved for each ms; what saves time as well comes first."""
    noise, time = before.noise - after.noise, after.ms - before.ms
    return (True, noise - time) if time <= 0 else (False, noise / time)


def divided(costs: Costs, out: Sequence[bool]) -> Division:
    """What a division takes."""
    ms = sum(pair[way] for pair, way in zip(costs.ms, out, strict=True))
    ms += sum(cost for (one, other), cost in costs.borders.items() if out[one] != out[other])
    return Division(tuple(out), ms, sum(pair[way] for pair, way in zip(costs.noise, out, strict=True)))


def _swept(costs: Costs) -> Iterator[tuple[bool, ...]]:
    if not costs.ms:
        return
    times = sum(abs(first) + abs(second) for first, second in costs.ms)
    noises = [abs(first - second) for first, second in costs.noise if first != second]
    yield least_cost(costs.ms, costs.borders)
    if not noises or not times:
        return
    least, most = 1e-4 * times / len(costs.ms) / max(noises), 10 * times / min(noises)
    for price in np.geomspace(least, max(most, 10 * least), _PRICES):
        pairs = [
            (ms[0] + price * noise[0], ms[1] + price * noise[1])
            for ms, noise in zip(costs.ms, costs.noise, strict=True)
        ]
        yield least_cost(pairs, costs.borders)
