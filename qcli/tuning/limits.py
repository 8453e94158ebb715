"""Which outcomes keep the limits, and which of two is better."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from typing import NamedTuple

from qcli.metrics.sqnr import Sqnr
from qcli.tuning.nouns import MARGIN_DB, SURE, Limits, Objective, Outcome, option_of

_SAME_SPEED = 0.02
"""Relative differences of speed below this are chance."""


def quality(outcome: Outcome) -> tuple[float, float]:
    """How accurate an outcome is: by the metric of the search, then by its ratio in dB."""
    return (0.0 if outcome.metric is None else outcome.metric), outcome.sqnr


def margin(error_db: float) -> float:
    """By how many dB a ratio with this standard error has to exceed the one asked for."""
    return max(MARGIN_DB, SURE * error_db)


def missed(outcome: Outcome, limits: Limits, metric: str = "the metric") -> Iterator[str]:
    """What an outcome does not keep, in words; `metric` is the name of the search's. Where that is sqnr, a limit of it
    is one of the ratio."""
    least, own = limits.min_metric, outcome.metric
    for ratio in (limits.min_sqnr, least if own is None else None):
        spare = margin(outcome.error_db)
        if ratio is not None and outcome.sqnr < min(ratio + spare, Sqnr.LIMIT):
            yield f"{outcome.sqnr:.1f} dB, {ratio:g} and {spare:.1f} to spare were asked for"
    if least is not None and own is not None and own < least:
        yield f"{metric} {own:.6g}, {least:g} at least was asked for"
    if limits.max_drop is not None and _lost(outcome) > limits.max_drop:
        yield f"{_drop(outcome)}, {limits.max_drop:g} at most was asked for"
    if limits.max_size is not None and outcome.size > limits.max_size:
        yield f"{outcome.size:.2f} of the size, {limits.max_size:g} at most was asked for"
    if limits.max_latency is not None and 1 / outcome.speedup > limits.max_latency:
        yield f"{1 / outcome.speedup:.2f} of the time, {limits.max_latency:g} at most was asked for"


def is_kept(outcome: Outcome, limits: Limits) -> bool:
    return not any(missed(outcome, limits))


def is_accurate(outcome: Outcome, limits: Limits) -> bool:
    """Whether the limits of accuracy are kept, whatever size and time are."""
    accuracy = Limits(max_drop=limits.max_drop, min_sqnr=limits.min_sqnr, min_metric=limits.min_metric)
    return is_kept(outcome, accuracy)


def is_better(first: Outcome, second: Outcome, objective: Objective) -> bool:
    """Whether the first is better by the objective; among equals the smaller or faster, then the more accurate one."""
    return _merit(first, objective) > _merit(second, objective)


def _merit(outcome: Outcome, objective: Objective) -> tuple[float, ...]:
    speed = round(outcome.speedup / _SAME_SPEED)
    if objective == "latency":
        return (speed, -round(outcome.size, 2), *quality(outcome))
    if objective == "size":
        return (-round(outcome.size, 3), speed, *quality(outcome))
    return (*quality(outcome), speed, -outcome.size)


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
    return max(range(len(outcomes)), key=lambda number: quality(outcomes[number])), False


def _is_slow(outcome: Outcome) -> bool:
    return outcome.speedup < 1 - _SAME_SPEED


def front(outcomes: Sequence[Outcome], cost: str) -> tuple[int, ...]:
    """The numbers of the outcomes that no other surpasses in accuracy and in `cost`, time or size.

    The most accurate comes first.
    """

    def rank(number: int) -> tuple[float, ...]:
        return (*(-value for value in quality(outcomes[number])), getattr(outcomes[number], cost))

    order = sorted(range(len(outcomes)), key=rank)
    found: list[int] = []
    least = float("inf")
    for number in order:
        if getattr(outcomes[number], cost) < least:
            found.append(number)
            least = getattr(outcomes[number], cost)
    return tuple(found)


def reason_of(outcomes: Sequence[Outcome], best: int, limits: Limits, metric: str) -> str:
    """Why no outcome keeps the limits, what the best is instead, and which limits exclude each other.

    The first outcome is the float model; `metric` is the name of the search's.
    """
    what = "smallest accurate model" if is_accurate(outcomes[best], limits) else "most accurate model"
    what = "float model" if best == 0 else what
    why = "; ".join(missed(outcomes[best], limits, metric))
    against = "; ".join(conflicts(outcomes, limits, metric))
    against = against[:1].upper() + against[1:]
    return f"nothing that was tried keeps the limits: the result is the {what}, {why}. {against}"


def conflicts(outcomes: Sequence[Outcome], limits: Limits, metric: str) -> Iterator[str]:
    """The limits that no outcome keeps, and of the others the pairs that none keeps both of."""
    given = {name: value for name in _TOLD if (value := getattr(limits, name)) is not None}
    kept = {name: [one for one in outcomes if is_kept(one, Limits(**{name: given[name]}))] for name in given}
    asked = {name: f"{option_of(name)} {value:g}" for name, value in given.items()}
    hopeless = [name for name in kept if not kept[name]]
    for name in hopeless:
        yield f"no plan that was tried keeps {asked[name]}: {_extreme(name, outcomes, metric)}"
    excluded = bool(hopeless)
    for one, other in combinations((name for name in given if name not in hopeless), 2):
        if not any(is_kept(outcome, Limits(**{other: given[other]})) for outcome in kept[one]):
            excluded = True
            first, second = _extreme(other, kept[one], metric), _extreme(one, kept[other], metric)
            yield (
                f"{asked[one]} and {asked[other]} exclude each other in what was tried: "
                f"of what keeps {option_of(one)} {first}, of what keeps {option_of(other)} {second}"
            )
    if not excluded:
        yield f"any two of {', '.join(asked.values())} are kept by some plan, all of them by none"


class _Told(NamedTuple):
    """How outcomes are told apart by what one limit is about."""

    best: str
    merit: Callable[[Outcome], float]
    figure: Callable[[Outcome, str], str]


def _extreme(name: str, outcomes: Sequence[Outcome], metric: str) -> str:
    """The outcome that comes nearest to a limit, in words."""
    told = _TOLD[name]
    return f"the {told.best} has {told.figure(max(outcomes, key=told.merit), metric)}"


def _own(outcome: Outcome, metric: str) -> str:
    return f"{outcome.sqnr:.1f} dB" if outcome.metric is None else f"{metric} {outcome.metric:.6g}"


def _lost(outcome: Outcome) -> float:
    return float("inf") if outcome.drop is None else outcome.drop


def _drop(outcome: Outcome) -> str:
    return "an unknown drop" if outcome.drop is None else f"a drop of {outcome.drop:.4f}"


_TOLD = {
    "min_metric": _Told("most accurate", lambda one: one.sqnr if one.metric is None else one.metric, _own),
    "min_sqnr": _Told("most accurate", lambda one: one.sqnr, lambda one, _: f"{one.sqnr:.1f} dB"),
    "max_drop": _Told("most accurate", lambda one: -_lost(one), lambda one, _: _drop(one)),
    "max_size": _Told("smallest", lambda one: -one.size, lambda one, _: f"{one.size:.3f} of the size"),
    "max_latency": _Told("fastest", lambda one: one.speedup, lambda one, _: f"{1 / one.speedup:.3f} of the time"),
}
