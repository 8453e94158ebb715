"""The fastest plans once more, all in one race: each speed alone is as much chance as the machine is busy."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from qcli.cache import find_document, keep_document
from qcli.latency import Latency
from qcli.tuning.limits import best_of, is_kept
from qcli.tuning.nouns import FLOAT, Outcome, TuneJob

_CLOSE = 0.95
"""Of the best speed: what is as fast may prove faster."""

_MOST = 3


def finalists(outcomes: Sequence[Outcome], job: TuneJob) -> tuple[int, ...]:
    """The numbers of what keeps the limits and is about as fast as the best, fastest first; fewer than two are none.

    Only where speed is the objective, and where it is measured.
    """
    best, met = best_of(outcomes, job.limits, job.objective)
    if not met or job.objective != "latency" or job.cost_table is not None:
        return ()
    fast = [
        number
        for number, one in enumerate(outcomes)
        if one.candidate.recipe != FLOAT and is_kept(one, job.limits) and one.speedup >= _CLOSE * outcomes[best].speedup
    ]
    order = sorted(fast, key=lambda number: (number != best, -outcomes[number].speedup))[:_MOST]
    return tuple(order) if len(order) > 1 else ()


def timed(outcomes: Sequence[Outcome], latency: Latency) -> list[Outcome]:
    """Outcomes with the speeds of a race, in which the float model came first."""
    return [
        msgspec.structs.replace(one, ms=timing.median_ms, speedup=ratio, steady=latency.steady)
        for one, timing, ratio in zip(outcomes, latency.timings[1:], latency.ratios[1:], strict=True)
    ]


def known_race(key: str, job: TuneJob) -> Latency | None:
    """A race of the same plans on this machine, from the cache."""
    content = find_document(key) if job.cache else None
    return None if content is None else msgspec.json.decode(content, type=Latency)


def keep_race(key: str, job: TuneJob, latency: Latency) -> None:
    """Puts a race into the cache, unless the machine was busy."""
    if job.cache and latency.steady:
        keep_document(key, msgspec.json.encode(latency))
