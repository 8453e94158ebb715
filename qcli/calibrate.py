"""One sweep over the samples that measures everything asked for, in memory that does not grow with them.

Activations are made outputs of the model in groups bounded by bytes; each sample passes through and is forgotten.
Statistics do not depend on the order, so samples run in parallel: one thread each, whose arithmetic is the same
however many there are.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from math import prod
from typing import Protocol

import numpy as np

from qcli.blas import single_threaded
from qcli.errors import InputError, NothingToDoError, ResourceError
from qcli.graph import Model, concrete_shapes
from qcli.memory import Budget
from qcli.parallel import MOST_AT_ONCE, in_parallel
from qcli.runtime import Session, on_sample
from qcli.statistics import Statistics
from qcli.types import Array, FloatArray, Request
from qcli.windows import patches_of

Progress = Callable[[int, int], None]
"""Called with the number of samples done and of samples in all."""

_TAP_BYTES = 64 << 20
"""Bytes of activations made visible at once. Fixed, since onnxruntime fuses otherwise around other outputs, which can
change the last bit of a value: the same model gives the same statistics on any number of threads."""

_UNKNOWN_BYTES = 8 << 20


class Samples(Protocol):
    """What calibration needs of a dataset."""

    def __len__(self) -> int: ...

    def feeds(self) -> Iterator[tuple[str, Mapping[str, Array]]]:
        """File names and checked inputs, one sample at a time."""
        ...


def collect(
    model: Model, statistics: Statistics, samples: Samples, *, threads: int = 1, progress: Progress | None = None
) -> Statistics:
    """Measures the requests of `statistics` (empty, or of other samples) on every sample.

    Raises InputError naming the sample on which a value is NaN or Inf, NothingToDoError without samples.
    """
    requests = statistics.header.requests
    first = next(samples.feeds(), None)
    if first is None:
        raise NothingToDoError("there are no samples to calibrate with", "name a folder of samples with -d")
    shapes = concrete_shapes(model, first[1])
    groups = _groups(requests, shapes, _TAP_BYTES)
    done = 0
    for group in groups:
        sweep = _Sweep(model, statistics, group)
        done = 0
        with single_threaded():
            for _ in in_parallel(sweep.measure, samples.feeds(), min(threads, MOST_AT_ONCE)):
                done += 1
                if progress is not None:
                    progress(done, len(samples))
    return statistics.counted(statistics.header.samples + done)


def check_memory(model: Model, budget: Budget) -> None:
    """Raises ResourceError where the model may not run, without which nothing can be measured."""
    needed = model.run_bytes()
    if not budget.fits(needed):
        problem = f"calibrating needs to run the model, which {budget.shortage(needed)}"
        raise ResourceError(problem, "allow more with --max-memory, or use the preset int8-weights, which runs nothing")


class _Sweep:
    """One session with a group of values made visible."""

    def __init__(self, model: Model, statistics: Statistics, group: tuple[Request, ...]) -> None:
        inputs = {spec.name for spec in model.inputs()}
        self._values = tuple(dict.fromkeys(request.value for request in group if request.value not in inputs))
        self._session = Session(model.runnable(self._values), threads=1)
        self._targets = [(request, statistics.get(request), threading.Lock()) for request in group]
        self._turn = 0

    def measure(self, sample: tuple[str, Mapping[str, Array]]) -> None:
        file, feeds = sample
        with on_sample(file):
            values = {**feeds, **self._session.run(feeds, self._values)} if self._values else dict(feeds)
        self._turn += 1
        start = self._turn * len(self._targets) // 2 % max(len(self._targets), 1)
        for request, statistic, lock in (*self._targets[start:], *self._targets[:start]):
            batch = _batch(values[request.value], request)
            try:
                with lock:
                    statistic.update(batch)
            except InputError as error:
                raise InputError(f"sample '{file}' makes '{request.value}' NaN or Inf", "check the sample") from error


def _batch(value: Array, request: Request) -> FloatArray:
    """[channels, n] for a statistic along an axis, [1, n] for the tensor as a whole, patches for one with a window."""
    array, axis = np.asarray(value, np.float32), request.axis
    if request.window is not None:
        return patches_of(array, request.window)
    if axis is None:
        return array.reshape(1, -1)
    channels = array.shape[axis]
    return np.ascontiguousarray(np.moveaxis(array, axis, 0)).reshape(channels, array.size // max(channels, 1))


def _groups(
    requests: Iterable[Request], shapes: Mapping[str, tuple[int, ...]], limit: int
) -> list[tuple[Request, ...]]:
    """The requests in groups whose values take at most `limit` bytes together, or are alone."""
    groups: list[list[Request]] = [[]]
    sizes: dict[str, int] = {}
    for request in requests:
        size = prod(shapes[request.value]) * 4 if request.value in shapes else _UNKNOWN_BYTES
        if sizes and request.value not in sizes and sum(sizes.values()) + size > limit:
            groups.append([])
            sizes = {}
        sizes[request.value] = size
        groups[-1].append(request)
    return [tuple(group) for group in groups if group]
