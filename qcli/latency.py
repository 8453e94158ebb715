"""How fast models are beside each other: interleaved medians, so that a busy machine disturbs all alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from time import perf_counter
from typing import Any, Protocol

import numpy as np

from qcli.contracts import InputSpec
from qcli.errors import UnsupportedError
from qcli.types import Array, Noun

_WARM_UP_RUNS = 3
_WARM_UP_SECONDS = 0.5
_ENOUGH_ROUNDS = 15
_FEWEST_ROUNDS = 2

_OUTLIER = 3
"""A run that takes this many times the median was disturbed."""

_MANY_OUTLIERS = 0.05


BUSY = "the latencies vary by more than their medians: use a quiet machine or fewer threads"


class Runnable(Protocol):
    """A loaded model."""

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Any]: ...


class Effort(Noun, frozen=True, kw_only=True):
    """How long to measure, in seconds: until `least` and 15 rounds are reached, but not beyond `most`.

    Before that each model runs `warm_up` times; None means three times, but fewer if it is slow.
    """

    least: float = 0.6
    most: float = 4.0
    warm_up: int | None = None


NORMAL_EFFORT = Effort()


def effort_of(least: float | None = None, warm_up: int | None = None) -> Effort:
    """The usual effort, but at least `least` seconds; the other limit moves as far as it must."""
    seconds = NORMAL_EFFORT.least if least is None else least
    return Effort(least=seconds, most=max(seconds, NORMAL_EFFORT.most), warm_up=warm_up)


class Timing(Noun, frozen=True, kw_only=True):
    """The median time of one run and the distance between the quartiles, both in milliseconds.

    `outliers` is the share of runs that took more than three times the median.
    """

    median_ms: float
    spread_ms: float
    fastest_ms: float = 0.0
    slowest_ms: float = 0.0
    outliers: float = 0.0


class Latency(Noun, frozen=True, kw_only=True):
    """Timings in the order of the models. `ratios` are first / each: above 1 is faster than the first."""

    timings: tuple[Timing, ...]
    ratios: tuple[float, ...]
    rounds: int
    threads: int

    @property
    def steady(self) -> bool:
        """False if half of some model's runs lie further apart than its median: the machine was busy."""
        return all(timing.spread_ms <= timing.median_ms for timing in self.timings)

    def doubts(self) -> Iterator[str]:
        """Warnings that the machine had other things to do."""
        if not self.steady:
            yield BUSY
        worst = max((timing.outliers for timing in self.timings), default=0.0)
        if worst > _MANY_OUTLIERS:
            yield f"{worst:.0%} of a model's runs took more than {_OUTLIER} times their median: use a quiet machine"


def measure(
    models: Sequence[Runnable],
    feeds: Sequence[Mapping[str, Array]],
    threads: int,
    effort: Effort = NORMAL_EFFORT,
) -> Latency:
    """Runs the models in turn over the same feeds: A B, B A, A B, …

    `threads` is what the models were loaded with; it is only passed on. Whatever the models cost, each
    runs at least twice.
    """
    for model in models:
        _warm_up(model, feeds[0], effort.warm_up)
    times: list[list[float]] = [[] for _ in models]
    begin = perf_counter()
    rounds = 0
    while not _enough(rounds, perf_counter() - begin, effort):
        feed = feeds[rounds // 2 % len(feeds)]
        order = range(len(models)) if rounds % 2 == 0 else reversed(range(len(models)))
        for index in order:
            start = perf_counter()
            models[index].run(feed)
            times[index].append(perf_counter() - start)
        rounds += 1
    timings = tuple(_timing(seconds, len(feeds)) for seconds in times)
    ratios = tuple(timings[0].median_ms / timing.median_ms for timing in timings)
    return Latency(timings=timings, ratios=ratios, rounds=rounds, threads=threads)


def made_up_feeds(inputs: Sequence[InputSpec]) -> dict[str, Array]:
    """A sample to time a model with: seeded noise, zeros for integers, 1 for each free dimension."""
    generator = np.random.default_rng(0)
    feeds: dict[str, Array] = {}
    for spec in inputs:
        if spec.dtype == "string":
            raise UnsupportedError(f"input '{spec.name}' takes text, which qcli does not invent", "name real samples")
        shape = tuple(size or 1 for size in spec.shape or ())
        dtype = np.dtype(spec.dtype)
        noise = generator.standard_normal(shape) if dtype.kind == "f" else np.zeros(shape)
        feeds[spec.name] = np.asarray(noise).astype(dtype)
    return feeds


def _warm_up(model: Runnable, feeds: Mapping[str, Array], runs: int | None) -> None:
    begin = perf_counter()
    for _ in range(_WARM_UP_RUNS if runs is None else runs):
        model.run(feeds)
        if runs is None and perf_counter() - begin > _WARM_UP_SECONDS:
            return


def _enough(rounds: int, seconds: float, effort: Effort) -> bool:
    if rounds < _FEWEST_ROUNDS or rounds % 2:  # whole A B B A turns, so that no model is always the second
        return False
    return seconds >= effort.most or (seconds >= effort.least and rounds >= _ENOUGH_ROUNDS)


def _timing(seconds: Sequence[float], feeds: int) -> Timing:
    """Spread and outliers are those among runs of one feed: that longer inputs take longer is no unrest."""
    times = np.array(seconds) * 1000
    median = float(np.median(times))
    alike = times.copy()
    which = np.arange(len(times)) // 2 % feeds
    for feed in range(feeds):
        own = which == feed
        usual = np.median(times[own]) if own.any() else 0.0
        alike[own] *= median / usual if usual > 0 else 1.0
    lower, upper = np.percentile(alike, [25, 75])
    return Timing(
        median_ms=median,
        spread_ms=float(upper - lower),
        fastest_ms=float(times.min()),
        slowest_ms=float(times.max()),
        outliers=float((alike > _OUTLIER * median).mean()),
    )
