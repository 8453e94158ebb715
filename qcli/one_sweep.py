"""One sweep over the samples: a model with a group of its values made visible, and the statistics that they go into."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from math import prod
from typing import Protocol

import numpy as np

from qcli.errors import InputError
from qcli.graph import Model
from qcli.runtime import Session, on_sample
from qcli.statistics import Statistics
from qcli.types import Array, FloatArray, Request
from qcli.windows import patches_of

_UNKNOWN_BYTES = 8 << 20

TAP_BYTES = 64 << 20
"""Bytes of activations made visible at once. Fixed, since onnxruntime fuses otherwise around other outputs, which can
change the last bit of a value: the same model gives the same statistics on any number of threads."""


class Samples(Protocol):
    """What calibration needs of a dataset."""

    def __len__(self) -> int: ...

    def feeds(self) -> Iterator[tuple[str, Mapping[str, Array]]]:
        """File names and checked inputs, one sample at a time."""
        ...


class Sweep:
    """One session with a group of values made visible, and `more` values beside them."""

    def __init__(
        self, model: Model, statistics: Statistics, group: tuple[Request, ...], more: tuple[str, ...] = ()
    ) -> None:
        inputs = {spec.name for spec in model.inputs()}
        wanted = (*more, *(request.value for request in group if request.value not in inputs))
        self._values = tuple(dict.fromkeys(wanted))
        self._session = Session(model.runnable(self._values), threads=1)
        self._targets = [(request, statistics.get(request), threading.Lock()) for request in group]
        self._turn = 0

    def measure(self, sample: tuple[str, Mapping[str, Array]]) -> dict[str, Array]:
        """Takes in one sample; the values that were made visible, and the inputs."""
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
        return values


def _batch(value: Array, request: Request) -> FloatArray:
    """[channels, n] for a statistic along an axis, [1, n] for the tensor as a whole, patches for one with a window."""
    array, axis = np.asarray(value, np.float32), request.axis
    if request.window is not None:
        return patches_of(array, request.window)
    if axis is None:
        return array.reshape(1, -1)
    channels = array.shape[axis]
    return np.ascontiguousarray(np.moveaxis(array, axis, 0)).reshape(channels, array.size // max(channels, 1))


def groups_of(
    requests: Iterable[Request], shapes: Mapping[str, tuple[int, ...]], limit: int = TAP_BYTES
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
