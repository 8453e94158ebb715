"""From costs and noise to plans that might pay: the front that is foretold, from the fastest plan to the most exact.

Prices and noise powers of parts add up, conversions between them cost as well. What a conversion costs depends on who
reads and writes codes, and only the first way does that; so of the others each part takes the best, and for each price
of noise the best division of the network is a minimum cut (`cut.py`). Raising that price gives the plans in turn.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from math import prod

import numpy as np

from qcli.tuning.cut import least_cost
from qcli.types import Array

_PRICES = 96
IMPOSSIBLE = 1e9
"""The price of a way that a part cannot take."""

Ways = tuple[int, ...]
"""The way that each part takes."""


@dataclass(frozen=True)
class Prices:
    """Of each part in each way: what it costs, and its noise power relative to the output's.

    `borders` are what two parts pay if just one of them takes the first way.
    """

    own: tuple[tuple[float, ...], ...]
    noise: tuple[tuple[float, ...], ...]
    borders: Mapping[tuple[int, int], float]

    def choices(self, part: int) -> tuple[int, ...]:
        return tuple(way for way, price in enumerate(self.own[part]) if price < IMPOSSIBLE)


@dataclass(frozen=True)
class Division:
    """The way of each part, and what that is foretold to cost."""

    ways: Ways
    price: float
    noise: float


def divided(prices: Prices, ways: Sequence[int]) -> Division:
    """What a division costs."""
    price = sum(own[way] for own, way in zip(prices.own, ways, strict=True))
    price += sum(cost for (one, other), cost in prices.borders.items() if (ways[one] == 0) != (ways[other] == 0))
    noise = sum(own[way] for own, way in zip(prices.noise, ways, strict=True))
    return Division(tuple(ways), price, noise)


def foretold(prices: Prices) -> tuple[Division, ...]:
    """The divisions that no other surpasses in both, from the cheapest to the most exact."""
    return _unsurpassed(divided(prices, ways) for ways in dict.fromkeys(_swept(prices)))


def everything(prices: Prices) -> Iterator[Division]:
    """All divisions there are, the cheapest first. For networks of few parts."""
    choices = (prices.choices(part) for part in range(len(prices.own)))
    yield from sorted((divided(prices, ways) for ways in product(*choices)), key=lambda one: (one.price, one.noise))


def greedy(prices: Prices) -> Iterator[Division]:
    """From the cheapest ways on, one part after the other, the one that saves most noise for its price first."""
    here = divided(prices, [min(prices.choices(part), key=own.__getitem__) for part, own in enumerate(prices.own)])
    while True:
        yield here
        nearer = [near for near in _singles(prices, here) if near.noise < here.noise]
        if not nearer:
            return
        here = max(nearer, key=lambda near: _worth(here, near))


def steps_between(prices: Prices, fast: Division, exact: Division) -> Iterator[Division]:
    """The plans between two neighbours on the front: part by part, what saves most noise for its price first."""
    here = fast
    left = {number for number, (one, other) in enumerate(zip(fast.ways, exact.ways, strict=True)) if one != other}
    while left:
        nearer = {number: divided(prices, _turned(here.ways, number, exact.ways[number])) for number in sorted(left)}
        chosen = max(nearer, key=lambda number: _worth(here, nearer[number]))
        here = nearer[chosen]
        left.remove(chosen)
        yield here


def cheaper(prices: Prices, division: Division, noise: float, most: int) -> tuple[Division, ...]:
    """What one part or two in another way make cheaper, with at most this noise; the cheapest first."""
    singles = tuple(_singles(prices, division))
    found = [near for near in singles if near.price < division.price]
    found += _pairs(prices, division, singles)
    kept = {near.ways: near for near in found if near.price < division.price and near.noise <= noise}
    return tuple(sorted(kept.values(), key=lambda near: near.price)[:most])


def _pairs(prices: Prices, division: Division, singles: Sequence[Division]) -> Iterator[Division]:
    """Two changes at once, one that saves and one that makes up for its noise; of many the most promising."""
    saves = sorted((near for near in singles if near.price < division.price), key=lambda near: near.price)
    mends = sorted(
        (near for near in singles if near.noise < division.noise), key=lambda near: -_worth(division, near)[1]
    )
    for one, other in product(saves[:_TRIED_SAVES], mends[:_TRIED_SAVES]):
        changed = [b if b != a else c for a, b, c in zip(division.ways, one.ways, other.ways, strict=True)]
        yield divided(prices, changed)
    for one, other in combinations(saves[:_TRIED_SAVES], 2):
        changed = [b if b != a else c for a, b, c in zip(division.ways, one.ways, other.ways, strict=True)]
        yield divided(prices, changed)


_TRIED_SAVES = 24


def cheapest(prices: Prices, below: float, noise: float, most: int) -> tuple[Division, ...]:
    """Of all divisions there are the cheapest below a price and with at most this noise; none if there are too many.

    One part or two at a time do not lead everywhere: three can make room for each other.
    """
    choices = [prices.choices(part) for part in range(len(prices.own))]
    free = [part for part, ways in enumerate(choices) if len(ways) > 1]
    if not free or prod(len(choices[part]) for part in free) > _MOST_LOOKED_AT:
        return ()
    price, heard = np.zeros(()), np.zeros(())
    for part, ways in enumerate(choices):
        price = price + _along(free, part, [prices.own[part][way] for way in ways])
        heard = heard + _along(free, part, [prices.noise[part][way] for way in ways])
    for (one, other), cost in prices.borders.items():
        first, second = (_along(free, part, [way == 0 for way in choices[part]]) for part in (one, other))
        price = price + cost * (first != second)
    found = np.argwhere((price < below) & (heard <= noise))
    order = np.argsort(price[tuple(found.T)], kind="stable")[:most]
    chosen = (dict(zip(free, places, strict=True)) for places in found[order].tolist())
    return tuple(divided(prices, [ways[places.get(part, 0)] for part, ways in enumerate(choices)]) for places in chosen)


_MOST_LOOKED_AT = 1 << 21


def _along(free: Sequence[int], part: int, values: Sequence[float]) -> Array:
    """Values of a part's ways, along the axis of that part."""
    return np.array(values).reshape([len(values) if part == other else 1 for other in free])


def _singles(prices: Prices, division: Division) -> Iterator[Division]:
    for part, current in enumerate(division.ways):
        for way in prices.choices(part):
            if way != current:
                yield divided(prices, _turned(division.ways, part, way))


def _turned(ways: Sequence[int], part: int, way: int) -> Ways:
    return tuple(way if place == part else other for place, other in enumerate(ways))


def _worth(before: Division, after: Division) -> tuple[bool, float]:
    """Noise saved for its price; what saves both comes first."""
    noise, price = before.noise - after.noise, after.price - before.price
    return (True, noise - price) if price <= 0 else (False, noise / price)


def _unsurpassed(divisions: Iterable[Division]) -> tuple[Division, ...]:
    kept: list[Division] = []
    for division in sorted(divisions, key=lambda one: (one.price, one.noise)):
        if not kept or division.noise < kept[-1].noise:
            kept.append(division)
    return tuple(kept)


def _swept(prices: Prices) -> Iterator[Ways]:
    """The best division for each price of noise, from none on."""
    if not prices.own:
        return
    possible = [[own[way] for way in prices.choices(part)] for part, own in enumerate(prices.own)]
    costs = sum(max(map(abs, own)) for own in possible)
    noises = [
        max(found) - min(found)
        for part, own in enumerate(prices.noise)
        if max(found := [own[way] for way in prices.choices(part)]) > min(found)
    ]
    yield _best(prices, 0.0)
    if not noises or not costs:
        return
    least, most = 1e-4 * costs / len(possible) / max(noises), 10 * costs / min(noises)
    for rate in np.geomspace(least, max(most, 10 * least), _PRICES):
        yield _best(prices, float(rate))
    yield _quietest(prices)


def _quietest(prices: Prices) -> Ways:
    """What no price of noise may be high enough for, where ways differ by little."""
    return tuple(
        min(prices.choices(part), key=lambda way: (heard[way], own[way]))
        for part, (own, heard) in enumerate(zip(prices.own, prices.noise, strict=True))
    )


def _best(prices: Prices, rate: float) -> Ways:
    """The division of least cost if noise costs `rate`, exactly."""
    sums = [
        [price + rate * noise for price, noise in zip(own, heard, strict=True)]
        for own, heard in zip(prices.own, prices.noise, strict=True)
    ]
    others = [min(range(1, len(own)), key=own.__getitem__, default=0) for own in sums]
    pairs = [(own[0], own[other] if other else 2 * IMPOSSIBLE) for own, other in zip(sums, others, strict=True)]
    chosen = least_cost(pairs, prices.borders)
    return tuple(other if out else 0 for out, other in zip(chosen, others, strict=True))
