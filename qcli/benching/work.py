"""Models measured side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

import msgspec

from qcli.benching.files import bench_writer, write_bench
from qcli.benching.nouns import BenchJob, BenchReport, BenchRow
from qcli.benching.peak import measure_peak
from qcli.contracts import InputSpec
from qcli.errors import InputError, RuntimeFailure, UsageError
from qcli.files import check_distinct, check_writable
from qcli.graph import check_sizes, load_model
from qcli.latency import NORMAL_EFFORT, Effort, Latency, made_up_feeds, measure
from qcli.node_costs import NodeCost, compare_nodes
from qcli.recipe import SampleSource, load_recipe
from qcli.report import model_bytes
from qcli.runtime import Session
from qcli.sources import open_source
from qcli.types import Array
from qcli.watch import Watch

_SAMPLES = 8
"""Run on at most this many samples, spread evenly over those there are."""

_MOST_THREADS = 1024

Feeds = Sequence[Mapping[str, Array]]


def bench_job(job: BenchJob, watch: Watch | None = None) -> BenchReport:
    """What `qcli bench` does: `bench` on the samples that the job names, with reports.

    Raises as `bench` and `open_dataset` do, and UsageError for a report that cannot be written.
    """
    watch = watch or Watch()
    read = (*job.models, job.data, Path(job.recipe) if job.recipe is not None else None)
    check_distinct(job.reports, [path for path in read if path is not None])
    for path in job.reports:
        bench_writer(path)
        check_writable(path)
    _check_job(job.models, job.threads, job.effort)
    feeds = _samples(job)
    report = bench(job.models, feeds, job.threads, job.effort, watch=watch, profile=job.profile, memory=job.memory)
    for path in job.reports:
        write_bench(report, path)
    return report


def bench(
    models: Sequence[Path],
    feeds: Feeds = (),
    threads: int | Sequence[int] = 1,
    effort: Effort = NORMAL_EFFORT,
    *,
    watch: Watch | None = None,
    profile: bool = False,
    memory: bool = False,
) -> BenchReport:
    """The latency of model files side by side, on `feeds` or, without any, on made-up samples of one row.

    `threads` is a number of them inside an operator, or several to try in turn. `profile` also tells what each node
    takes, `memory` how much memory each model does. Raises UsageError for no models or impossible numbers, InputError
    for a model that cannot be read, RuntimeFailure for one that cannot run.
    """
    watch = watch or Watch()
    counts = (threads,) if isinstance(threads, int) else tuple(dict.fromkeys(threads))
    _check_job(models, counts, effort)
    loaded = [load_model(path) for path in models]
    for model in loaded:
        check_sizes(model)
    inputs = [model.inputs() for model in loaded]
    _check_same_inputs(models, inputs)
    given = list(feeds) or [made_up_feeds(inputs[0])]
    watch.phase("latency")
    rows: list[BenchRow] = []
    for done, count in enumerate(counts):
        watch.progress(done, len(counts))
        latency = measure([_Loaded(path, count) for path in models], given, count, effort)
        for doubt in latency.doubts():
            watch.warn(doubt if len(counts) == 1 else f"at {_threads(count)}: {doubt}")
        rows += _rows(models, latency)
    nodes: tuple[NodeCost, ...] = ()
    if profile:
        watch.phase("profile")
        nodes = compare_nodes(models, loaded[0], given[0], threads=counts[0])
    return BenchReport(
        models=tuple(_with_memory(rows, given[0], watch) if memory else rows),
        rounds=min(row.rounds for row in rows),
        threads=counts[0],
        samples=len(given),
        invented_samples=not feeds,
        nodes=nodes,
        warnings=tuple(watch.warnings),
    )


class _Loaded:
    """A session whose errors name the model's file."""

    def __init__(self, path: Path, threads: int) -> None:
        self._path = path
        try:
            self._session = Session(path, threads=threads, spin=False)
        except RuntimeFailure as error:
            raise self._named(error) from error

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Any]:
        try:
            return self._session.run(feeds, outputs)
        except RuntimeFailure as error:
            raise self._named(error) from error

    def _named(self, error: RuntimeFailure) -> RuntimeFailure:
        return RuntimeFailure(f"'{self._path}': {error.message}", error.hint)


def _check_job(models: Sequence[Path], counts: Sequence[int], effort: Effort) -> None:
    if not models:
        raise UsageError("there is no model to measure", "name one or more .onnx files")
    for count in counts:
        if not 1 <= count <= _MOST_THREADS:
            raise UsageError(f"{_threads(count)} cannot be had", f"give 1 to {_MOST_THREADS}, as in --threads 1,2,4")
    if not counts:
        raise UsageError("there is no number of threads", "give one or more, as in --threads 1,2,4")
    if not (isfinite(effort.least) and isfinite(effort.most) and effort.least >= 0 and effort.most >= 0):
        raise UsageError(
            f"{effort.least} seconds cannot be measured for", "give a number of seconds, as in --min-time 5"
        )
    if effort.warm_up is not None and effort.warm_up < 0:
        raise UsageError(f"{effort.warm_up} runs cannot be made", "give 0 or more, as in --warm-up 10")


def _samples(job: BenchJob) -> list[dict[str, Array]]:
    """The samples that the job or its recipe names; none if they are to be made up."""
    source = SampleSource()
    if job.recipe is not None:
        samples = load_recipe(job.recipe).samples
        source = samples.validation if samples.validation.path or job.data else samples.calibration
        source = msgspec.structs.replace(source, preprocess=source.preprocess or samples.calibration.preprocess)
    if job.data is None and source.path is None:
        return []
    stream = open_source(source, job.data, load_model(job.models[0]).inputs(), limit=_SAMPLES)
    return [sample.feeds for sample in stream] if stream is not None else []


def _check_same_inputs(models: Sequence[Path], inputs: Sequence[tuple[InputSpec, ...]]) -> None:
    wanted = {spec.name for spec in inputs[0]}
    for path, specs in zip(models, inputs, strict=True):
        names = {spec.name for spec in specs}
        if names != wanted:
            problem = f"'{path}' takes {', '.join(sorted(names))}, '{models[0]}' takes {', '.join(sorted(wanted))}"
            raise InputError(problem, "only models with the same inputs can be timed side by side")


def _rows(models: Sequence[Path], latency: Latency) -> Iterator[BenchRow]:
    for path, timing, ratio in zip(models, latency.timings, latency.ratios, strict=True):
        yield BenchRow(
            path=str(path),
            bytes=model_bytes(path),
            threads=latency.threads,
            rounds=latency.rounds,
            ms=timing.median_ms,
            spread_ms=timing.spread_ms,
            fastest_ms=timing.fastest_ms,
            slowest_ms=timing.slowest_ms,
            outliers=timing.outliers,
            speedup=ratio,
        )


def _with_memory(rows: Sequence[BenchRow], feeds: Mapping[str, Array], watch: Watch) -> Iterator[BenchRow]:
    """The rows with what each model takes in a process of its own."""
    watch.phase("memory")
    for done, row in enumerate(rows):
        watch.progress(done, len(rows))
        peak = measure_peak(Path(row.path), feeds, row.threads)
        if peak is None:
            watch.warn(f"'{row.path}': how much memory it takes could not be measured")
            yield row
        else:
            yield msgspec.structs.replace(row, peak_memory_mb=peak.peak_mb, base_memory_mb=peak.base_mb)


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"
