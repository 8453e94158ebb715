"""What a user should hear about a search that had too little time or a busy machine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import ceil

from qcli.latency import Latency
from qcli.tuning.nouns import FLOAT, Outcome, TuneJob

_APART = 0.03
"""Two medians of one and the same model that differ by more were disturbed."""

_SPREAD = 0.5
"""And so were runs of which half lie further apart than this share of their median."""


def busy(float_twice: Latency) -> Iterator[str]:
    """A warning if the float model, timed beside itself, is faster or slower than itself."""
    first, second = float_twice.timings[:2]
    least = min(first.median_ms, second.median_ms)
    apart = abs(first.median_ms - second.median_ms) / least if least > 0 else 0.0
    spread = max(timing.spread_ms / timing.median_ms if timing.median_ms > 0 else 0.0 for timing in (first, second))
    if apart > _APART:
        yield f"the machine is busy: timed twice, the float model differs from itself by {apart:.0%}: {_REMEDY}"
    elif spread > _SPREAD:
        yield f"the machine is busy: latencies of the float model differ by {spread:.0%}: {_REMEDY}"


_REMEDY = "run on an idle machine, with --no-cache to measure anew; accuracy and size are right in any case"


def doubts(job: TuneJob, tried: Sequence[Outcome], seconds: float, *, divisible: bool) -> Iterator[str]:
    """Warnings about a search that ended after so many seconds.

    `divisible` says whether any recipe has parts that could have been tried on their own.
    """
    yield from _unsteady(tried)
    if seconds < job.time_limit:
        return
    over = f"the time limit of {job.time_limit:g} s was over"
    whole = {one.candidate.recipe for one in tried if not one.candidate.rules}
    missing = [name for name in dict.fromkeys((job.recipe, *job.recipes)) if name not in whole]
    if missing:
        names = " and ".join([", ".join(missing[:-1]), missing[-1]] if missing[1:] else missing)
        enough = _round(_foretold(tried, seconds, len(missing)))
        be = "were" if missing[1:] else "was"
        yield f"{over} before {names} {be} tried: --time-limit {enough} would do for all recipes, more for parts too"
    elif divisible and not any(one.candidate.rules for one in tried):
        enough = _round(max(2 * seconds, job.time_limit))
        yield f"{over} before any part of a recipe was tried on its own: use --time-limit {enough} or more"


def _foretold(tried: Sequence[Outcome], seconds: float, missing: int) -> float:
    """How long all recipes would have taken, in seconds, if each takes as long as the slowest so far."""
    whole = [one.found for one in tried if not one.candidate.rules and one.candidate.recipe != FLOAT]
    return seconds + missing * max((after - before for before, after in pairwise((0.0, *whole))), default=seconds)


def _round(seconds: float) -> int:
    """Up to what a person would write."""
    step = int("1".ljust(len(f"{ceil(seconds)}") - 1, "0"))
    return ceil(seconds / step) * step


def _unsteady(tried: Sequence[Outcome]) -> Iterator[str]:
    count = sum(not one.steady for one in tried)
    if count:
        yield f"the machine was busy while {count} of {len(tried)} plans were timed, marked with '?': {_REMEDY}"
