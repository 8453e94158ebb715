"""Which settled recipes are worth a search among their parts, and in which order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from qcli.tuning.base import NOTHING, Base
from qcli.tuning.cost_sums import Costs
from qcli.tuning.limits import is_accurate
from qcli.tuning.nouns import Outcome, TuneJob
from qcli.tuning.parts import Network

_FAR_SLOWER = 0.75


def promising(bases: Sequence[Base], wholes: Mapping[str, Outcome], job: TuneJob) -> Sequence[Base]:
    """Those that multiply integers; `wholes` is what came of each as it is.

    What is far slower than the fastest as it is will hardly be the fastest with parts in other ways, and comes last. Of
    the others, accurate ones come first, the fastest of them first, then those that lack least.
    """
    fastest = max((one.speedup for one in wholes.values()), default=1.0)

    def rank(base: Base) -> tuple[bool, bool, float]:
        outcome = wholes[base.name]
        accurate = is_accurate(outcome, job.limits)
        slow = job.objective == "latency" and outcome.speedup < _FAR_SLOWER * fastest
        return (slow, not accurate, -outcome.speedup if accurate else -outcome.sqnr)

    return sorted((base for base in bases if base.name in wholes and base.computes()), key=rank)


def alike(one: Base, other: Base) -> bool:
    """Two recipes can come to the same model and plan, where the network lacks what one of them adds."""
    entries = [[msgspec.structs.replace(entry, because="") for entry in base.plan.entries] for base in (one, other)]
    return entries[0] == entries[1] and one.prepared.model.digest() == other.prepared.model.digest()


def with_foretold(outcomes: Sequence[Outcome], known: Mapping[str, tuple[Network, Costs]]) -> list[Outcome]:
    """Outcomes, with what the profile of its parts foretells for each recipe that was tried as it is."""
    plain = {one.candidate.recipe: one.time for one in outcomes if one.candidate.rules == NOTHING}

    def told(one: Outcome) -> Outcome:
        recipe = one.candidate.recipe
        if one.candidate.foretold is not None or recipe not in known or recipe not in plain:
            return one
        network, costs = known[recipe]
        time = costs.time((0,) * len(network.parts)) * plain[recipe]
        return msgspec.structs.replace(one, candidate=msgspec.structs.replace(one.candidate, foretold=time))

    return [told(one) for one in outcomes]
