"""The network of a recipe, and plans with all of its parts in one way: what costs are measured on."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from qcli.analysis.simulate import Simulation, simulate
from qcli.dataset import Sample
from qcli.graph import concrete_shapes
from qcli.solve import Solved
from qcli.tuning.base import Base, replanned
from qcli.tuning.nouns import TuneJob
from qcli.tuning.parts import Network, Part, network_of
from qcli.tuning.ways import RECIPE, WAYS
from qcli.types import Entry, Plan
from qcli.watch import Watch


@dataclass(frozen=True)
class Uniform:
    """A plan with all parts in one way that can be, by number.

    `parts` are those that it makes so, without those that a way before makes the same.
    """

    way: int
    solved: Solved
    parts: frozenset[int]


def network_for(base: Base, sample: Sample) -> tuple[Network, Simulation]:
    """The network of a base, and the simulation that measures the noise of its parts."""
    model, plan = base.prepared.model, base.plan
    simulation = simulate(model, plan, base.solution)
    return network_of(model, plan, simulation, concrete_shapes(model, sample.feeds)), simulation


def uniforms(base: Base, network: Network, job: TuneJob, watch: Watch) -> tuple[Uniform, ...]:
    """The plans with everything in one way, without those that change nothing.

    A part is in those alone that do what they say: a narrow matrix that was to be dynamic becomes a stored one, a small
    one that was to be stored is left as it is.
    """
    found = []
    known = [[_entries(part, base.plan)] for part in network.parts]
    for number, way in enumerate(WAYS):
        able = [place for place, part in enumerate(network.parts) if way.takes(part)]
        solved = replanned(base, way.of([network.parts[place] for place in able]), job, watch) if able else None
        if solved is None or way is RECIPE:
            continue
        fresh = set()
        for place in able:
            entries = _entries(network.parts[place], solved.plan)
            if way.is_said_by(entries) and entries not in known[place]:
                fresh.add(place)
                known[place].append(entries)
        if fresh:
            found.append(Uniform(number, solved, frozenset(fresh)))
    return tuple(found)


def _entries(part: Part, plan: Plan) -> list[Entry]:
    """What a plan says about a part, whichever rule it is because of."""
    names = frozenset(part.names)
    return [msgspec.structs.replace(entry, because="") for entry in plan.entries if entry.site.node in names]
