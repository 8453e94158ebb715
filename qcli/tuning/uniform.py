"""The network of a recipe, and plans with all of its parts in one way: what costs are measured on."""

from __future__ import annotations

from dataclasses import dataclass

from qcli.analysis.simulate import Simulation, simulate
from qcli.dataset import Sample
from qcli.graph import concrete_shapes
from qcli.solve import Solved
from qcli.tuning.base import Base, replanned
from qcli.tuning.nouns import TuneJob
from qcli.tuning.parts import Network, Part, network_of
from qcli.tuning.ways import RECIPE, WAYS
from qcli.types import Plan
from qcli.watch import Watch


@dataclass(frozen=True)
class Uniform:
    """A plan with all parts in one way that can be, by number. `parts` are those whose entries became others."""

    way: int
    solved: Solved
    parts: frozenset[int]


def network_for(base: Base, sample: Sample) -> tuple[Network, Simulation]:
    """The network of a base, and the simulation that measures the noise of its parts."""
    model, plan = base.prepared.model, base.plan
    simulation = simulate(model, plan, base.solution)
    return network_of(model, plan, simulation, concrete_shapes(model, sample.feeds)), simulation


def uniforms(base: Base, network: Network, job: TuneJob, watch: Watch) -> tuple[Uniform, ...]:
    """The plans with everything in one way, without those that change nothing."""
    found = []
    for number, way in enumerate(WAYS):
        able = [place for place, part in enumerate(network.parts) if way.takes(part)]
        solved = replanned(base, way.of([network.parts[place] for place in able]), job, watch) if able else None
        if solved is None or way is RECIPE:
            continue
        changed = frozenset(place for place in able if _differ(network.parts[place], base.plan, solved.plan))
        if changed:
            found.append(Uniform(number, solved, changed))
    return tuple(found)


def _differ(part: Part, first: Plan, second: Plan) -> bool:
    names = frozenset(part.names)
    entries = [[entry for entry in plan.entries if entry.site.node in names] for plan in (first, second)]
    return entries[0] != entries[1]
