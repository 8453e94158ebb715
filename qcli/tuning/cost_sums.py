"""What the parts of a network cost in each way, and what that makes of a whole plan."""

from __future__ import annotations

from collections.abc import Sequence

from qcli.tuning.front import IMPOSSIBLE, Prices
from qcli.tuning.nouns import Objective
from qcli.types import Noun

_WHOLE_SIZE = 0.2
"""Bytes as many as the float model's are worth this share of its time: of about equally fast ways the small wins."""

_WHOLE_TIME = 0.001
"""And this share of the bytes is what its time is worth where size counts."""


_TELLING = 0.05
_FLATTEST, _STEEPEST = 0.5, 2.0


class Costs(Noun, frozen=True, kw_only=True):
    """Of each part in each way (`ways.py`): `ms`, None for a way that it lacks, `noise`, and `bytes` of its constants.

    Noise is the power at the worst output relative to the output's own. `crossings` are (part, part, ms): what two
    parts pay for converting between them if just one takes the first way. `rest` are the ms of all nodes that are no
    parts, in the quantized and in the float model; `float_ms` and `float_bytes` are all of the float model.
    """

    ms: tuple[tuple[float | None, ...], ...]
    noise: tuple[tuple[float, ...], ...]
    bytes: tuple[tuple[float, ...], ...]
    crossings: tuple[tuple[int, int, float], ...]
    rest: tuple[float, float]
    float_ms: float
    float_bytes: float

    @property
    def borders(self) -> dict[tuple[int, int], float]:
        return {(one, other): cost for one, other, cost in self.crossings}

    def prices(self, objective: Objective) -> Prices:
        """What a search adds up: time and a little for size, or size and a little for time."""
        if objective == "size":
            return self._sums(_WHOLE_TIME * self.float_bytes / max(self.float_ms, 1e-9), 1.0)
        return self._sums(1.0, _WHOLE_SIZE * self.float_ms / max(self.float_bytes, 1.0))

    def _sums(self, of_ms: float, of_bytes: float) -> Prices:
        own = tuple(
            tuple(
                IMPOSSIBLE if ms is None else of_ms * ms + of_bytes * size
                for ms, size in zip(times, sizes, strict=True)
            )
            for times, sizes in zip(self.ms, self.bytes, strict=True)
        )
        return Prices(own, self.noise, {pair: of_ms * cost for pair, cost in self.borders.items()})

    def time(self, ways: Sequence[int]) -> float:
        """The time of a whole plan as a multiple of the prepared float model's; 1 where nothing is known of that."""
        if not self.float_ms:
            return 1.0
        own = sum(times[way] or 0.0 for times, way in zip(self.ms, ways, strict=True))
        own += sum(cost for (one, other), cost in self.borders.items() if (ways[one] == 0) != (ways[other] == 0))
        share = sum(way == 0 for way in ways) / max(len(ways), 1)
        rest = self.rest[1] + (self.rest[0] - self.rest[1]) * share
        return (own + rest) / self.float_ms


class Corrected:
    """Costs whose times are drawn to plans that were measured, relative to the float model as it was given.

    Profiles of small kernels are off, all of them alike: the line through the recipe as it is (`whole`) and the
    prepared model in float (`plain`) says by how much. From the measured plan with the fewest parts in other ways on,
    only differences are foretold.
    """

    def __init__(self, costs: Costs, whole: float, plain: float) -> None:
        self.costs = costs
        self._measured: dict[tuple[int, ...], float] = {(0,) * len(costs.ms): whole}
        first = costs.time((0,) * len(costs.ms))
        slope = (plain - whole) / (1 - first) if abs(1 - first) > _TELLING else plain
        self._slope = min(max(slope, _FLATTEST * plain), _STEEPEST * plain)

    def note(self, ways: Sequence[int], time: float) -> None:
        """A plan that was measured."""
        self._measured[tuple(ways)] = time

    def time(self, ways: Sequence[int]) -> float:
        """The time of a whole plan."""

        def apart(other: Sequence[int]) -> int:
            return sum(one != another for one, another in zip(ways, other, strict=True))

        near = min(self._measured, key=apart)
        return self._measured[near] + self._slope * (self.costs.time(ways) - self.costs.time(near))
