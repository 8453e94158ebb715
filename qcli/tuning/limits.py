"""Which outcomes keep the limits, and which of two is better."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from qcli.tuning.nouns import MARGIN_DB, Limits, Objective, Outcome

_SAME_SPEED = 0.02
"""Relative differences of speed below this are chance."""


def missed(outcome: Outcome, limits: Limits) -> Iterator[str]:
    """What an outcome does not keep, in words."""
    if limits.min_sqnr is not None and outcome.sqnr < limits.min_sqnr + MARGIN_DB:
        yield f"{outcome.sqnr:.1f} dB, {limits.min_sqnr:g} and {MARGIN_DB} to spare were asked for"
    if limits.max_drop is not None and (outcome.drop is None or outcome.drop > limits.max_drop):
        drop = "an unknown drop" if outcome.drop is None else f"a drop of {outcome.drop:.4f}"
        yield f"{drop}, {limits.max_drop:g} at most was asked for"
    if limits.max_size is not None and outcome.size > limits.max_size:
        yield f"{outcome.size:.2f} of the size, {limits.max_size:g} at most was asked for"
    if limits.max_latency is not None and 1 / outcome.speedup > limits.max_latency:
        yield f"{1 / outcome.speedup:.2f} of the time, {limits.max_latency:g} at most was asked for"


def is_kept(outcome: Outcome, limits: Limits) -> bool:
    return not any(missed(outcome, limits))


def is_accurate(outcome: Outcome, limits: Limits) -> bool:
    """Whether the limits of accuracy are kept, whatever size and time are."""
    return is_kept(outcome, Limits(max_drop=limits.max_drop, min_sqnr=limits.min_sqnr))


def is_better(first: Outcome, second: Outcome, objective: Objective) -> bool:
    """Whether the first is better by the objective; among equals the smaller or faster, then the more accurate one."""
    return _merit(first, objective) > _merit(second, objective)


def _merit(outcome: Outcome, objective: Objective) -> tuple[float, ...]:
    speed = round(outcome.speedup / _SAME_SPEED)
    if objective == "latency":
        return (speed, -round(outcome.size, 2), outcome.sqnr)
    if objective == "size":
        return (-round(outcome.size, 3), speed, outcome.sqnr)
    return (outcome.sqnr, speed, -outcome.size)


def best_of(outcomes: Sequence[Outcome], limits: Limits, objective: Objective) -> tuple[int, bool]:
    """The number of the best outcome, and whether it keeps the limits; otherwise the smallest that is accurate.

    Of results that are slower than float none is best, if another one keeps the limits or is accurate.
    """
    kept = [number for number, outcome in enumerate(outcomes) if is_kept(outcome, limits)]
    accurate = [number for number, outcome in enumerate(outcomes) if is_accurate(outcome, limits)]
    ways: tuple[tuple[list[int], Objective], ...] = ((kept, objective), (accurate, "size"))
    for numbers, aim in ways:
        fast = [number for number in numbers if not _is_slow(outcomes[number])] or numbers
        if fast:
            return max(fast, key=lambda number: _merit(outcomes[number], aim)), numbers is kept
    return max(range(len(outcomes)), key=lambda number: outcomes[number].sqnr), False


def _is_slow(outcome: Outcome) -> bool:
    return outcome.speedup < 1 - _SAME_SPEED


def front(outcomes: Sequence[Outcome], cost: str) -> tuple[int, ...]:
    """The numbers of the outcomes that no other surpasses in accuracy and in `cost`, ms or size.

    The most accurate comes first.
    """
    order = sorted(range(len(outcomes)), key=lambda number: (-outcomes[number].sqnr, getattr(outcomes[number], cost)))
    found: list[int] = []
    least = float("inf")
    for number in order:
        if getattr(outcomes[number], cost) < least:
            found.append(number)
            least = getattr(outcomes[number], cost)
    return tuple(found)
