"""How fast models are beside each other: interleaved medians, so that a busy machine disturbs all alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

import numpy as np

from qcli.contracts import InputSpec
from qcli.errors import InputError, UnsupportedError, UsageError
from qcli.graph import check_sizes, load_model
from qcli.report import model_bytes
from qcli.runtime import Session
from qcli.types import Array, Noun

_WARM_UP_RUNS = 3
_WARM_UP_SECONDS = 0.5
_ENOUGH_ROUNDS = 15
_FEWEST_ROUNDS = 2


class Runnable(Protocol):
    """A loaded model."""

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Any]: ...


class Effort(Noun, frozen=True, kw_only=True):
    """How long to measure, in seconds: until `least` and 15 rounds are reached, but not beyond `most`."""

    least: float = 0.6
    most: float = 4.0


NORMAL_EFFORT = Effort()


class Timing(Noun, frozen=True, kw_only=True):
    """The median time of one run and the distance between the quartiles, both in milliseconds."""

    median_ms: float
    spread_ms: float


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


class BenchRow(Noun, frozen=True, kw_only=True):
    """One model of a comparison; `speedup` is relative to the first model."""

    path: str
    bytes: int
    ms: float
    spread_ms: float
    speedup: float


class BenchReport(Noun, frozen=True, kw_only=True):
    """Models side by side, in the order given."""

    schema: int = 1
    command: str = "bench"
    models: tuple[BenchRow, ...]
    rounds: int
    threads: int
    invented_samples: bool


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
        _warm_up(model, feeds[0])
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
    timings = tuple(_timing(seconds) for seconds in times)
    ratios = tuple(timings[0].median_ms / timing.median_ms for timing in timings)
    return Latency(timings=timings, ratios=ratios, rounds=rounds, threads=threads)


def bench(
    models: Sequence[Path],
    feeds: Sequence[Mapping[str, Array]] = (),
    threads: int = 1,
    effort: Effort = NORMAL_EFFORT,
) -> BenchReport:
    """The latency of model files side by side, on `feeds` or, without any, on made-up samples of one row.

    Raises UsageError for no models, InputError for one that cannot be read, RuntimeFailure for one that
    cannot run.
    """
    if not models:
        raise UsageError("there is no model to measure", "name one or more .onnx files")
    loaded = [load_model(path) for path in models]
    for model in loaded:
        check_sizes(model)
    inputs = [model.inputs() for model in loaded]
    _check_same_inputs(models, inputs)
    given = list(feeds) or [made_up_feeds(inputs[0])]
    latency = measure([Session(path, threads=threads, spin=False) for path in models], given, threads, effort)
    rows = tuple(
        BenchRow(
            path=str(path),
            bytes=model_bytes(path),
            ms=timing.median_ms,
            spread_ms=timing.spread_ms,
            speedup=ratio,
        )
        for path, timing, ratio in zip(models, latency.timings, latency.ratios, strict=True)
    )
    return BenchReport(models=rows, rounds=latency.rounds, threads=threads, invented_samples=not feeds)


def _check_same_inputs(models: Sequence[Path], inputs: Sequence[tuple[InputSpec, ...]]) -> None:
    wanted = {spec.name for spec in inputs[0]}
    for path, specs in zip(models, inputs, strict=True):
        names = {spec.name for spec in specs}
        if names != wanted:
            problem = f"'{path}' takes {', '.join(sorted(names))}, '{models[0]}' takes {', '.join(sorted(wanted))}"
            raise InputError(problem, "only models with the same inputs can be timed side by side")


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


def _warm_up(model: Runnable, feeds: Mapping[str, Array]) -> None:
    begin = perf_counter()
    for _ in range(_WARM_UP_RUNS):
        model.run(feeds)
        if perf_counter() - begin > _WARM_UP_SECONDS:
            return


def _enough(rounds: int, seconds: float, effort: Effort) -> bool:
    if rounds < _FEWEST_ROUNDS or rounds % 2:  # whole A B B A turns, so that no model is always the second
        return False
    return seconds >= effort.most or (seconds >= effort.least and rounds >= _ENOUGH_ROUNDS)


def _timing(seconds: Sequence[float]) -> Timing:
    lower, median, upper = np.percentile(np.array(seconds) * 1000, [25, 50, 75])
    return Timing(median_ms=float(median), spread_ms=float(upper - lower))
