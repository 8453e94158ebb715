"""The ways in which parts of a network go back from coarse integers, and the order in which it pays to send them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from glob import escape
from itertools import islice
from typing import Literal, NamedTuple

from qcli.analysis.measure import Variant, check_memory, run_variants
from qcli.analysis.simulate import Simulation, simulate
from qcli.dataset import Sample
from qcli.graph import concrete_shapes
from qcli.memory import Budget
from qcli.plugins import create
from qcli.tuning.base import Base
from qcli.tuning.parts import Part, network_of
from qcli.tuning.ways import STORED, UNTOUCHED
from qcli.types import Entry, Grid, Match, Plan, Role, Rule
from qcli.watch import Watch

Now = Literal["wider", "float", "untouched"]
"""What becomes of a part: weights of 8 bits in place of fewer, float with weights stored as integers, or as it was."""

_COMPARED = 6
"""Samples that the noise of parts is measured on."""

_BITS = 8
_EIGHT_BITS = Grid(format="int8", symmetric=True, granularity="channel", narrow=True)


class Way(NamedTuple):
    """What becomes of parts, the rules for it, and the parts in turn, those that save most noise first."""

    now: Now
    rules: Callable[[tuple[Part, ...]], tuple[Rule, ...]]
    order: tuple[Part, ...]


class Means(NamedTuple):
    """Cores to spread the work over, and what the models may take."""

    cores: int
    budget: Budget


AS_IT_IS = Way("float", STORED.of, ())
"""No part goes back."""


def ways_back(base: Base, samples: Iterable[Sample], means: Means, watch: Watch) -> tuple[int, tuple[Way, ...]]:
    """How many parts there are, and the ways in which they go back, in the order in which they are to be tried.

    Weights of fewer than 8 bits get 8; parts compute in float, with weights stored as integers; parts are untouched,
    where that is too coarse. Raises ResourceError where a simulation does not fit into the memory.
    """
    model, plan = base.prepared.model, base.plan
    compared = tuple(islice(samples, _COMPARED))
    simulation = simulate(model, plan, base.solution)
    check_memory(simulation, means.budget)
    parts = network_of(model, plan, simulation, concrete_shapes(model, compared[0].feeds)).parts
    noise = _noise(parts, simulation, compared, means.cores, watch)
    return len(parts), tuple(_ways(noise, plan))


def widened(parts: tuple[Part, ...]) -> tuple[Rule, ...]:
    """The rules that give the weights of these parts 8 bits."""
    names = tuple(escape(part.key) for part in parts)
    return (Rule(match=Match(name=names, role=Role.WEIGHT), grid=_EIGHT_BITS),) if names else ()


def _ways(noise: Sequence[tuple[Part, tuple[float, float]]], plan: Plan) -> Iterator[Way]:
    few = {entry.site.node for entry in plan.entries if _has_few_bits(entry)}
    yield Way("wider", widened, _ranked((weights, part) for part, (_, weights) in noise if part.key in few))
    active = [(part, pair) for part, pair in noise if part.activations is not None]
    yield Way("float", STORED.of, _ranked((both - weights, part) for part, (both, weights) in active))
    yield Way("untouched", UNTOUCHED.of, _ranked((both, part) for part, (both, _) in noise))


def _has_few_bits(entry: Entry) -> bool:
    return entry.site.role is Role.WEIGHT and create("formats", entry.grid.format).bits(entry.grid) < _BITS


def _ranked(saved: Iterable[tuple[float, Part]]) -> tuple[Part, ...]:
    """The parts that save most first; of equal ones those that come first in the graph."""
    return tuple(part for _, part in sorted(saved, key=lambda pair: -pair[0]))


def _noise(
    parts: Sequence[Part], simulation: Simulation, samples: Sequence[Sample], cores: int, watch: Watch
) -> list[tuple[Part, tuple[float, float]]]:
    """Of each part alone, and of its weights alone: the power of the noise relative to the worst output's."""
    pairs = [(_switches(part.weights, part.activations), _switches(part.weights)) for part in parts]
    variants = dict.fromkeys(variant for pair in pairs for variant in pair if variant)
    losses = run_variants(simulation, samples, variants, cores, watch.progress)
    power = {variant: 10 ** (-loss / 10) for variant, loss in losses.items()}
    found = [(power.get(both, 0.0), power.get(weights, 0.0)) for both, weights in pairs]
    return list(zip(parts, found, strict=True))


def _switches(*names: str | None) -> Variant:
    return frozenset(name for name in names if name is not None)
