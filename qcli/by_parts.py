"""Measuring a model that is too large to run as a whole: part by part, each on all samples.

What crosses from one part to a later one waits in a temporary folder, for each sample, and is deleted when no part is
left to read it. So memory holds the weights of one part, and the disk the samples times what crosses.
"""

from __future__ import annotations

import errno
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np

from qcli.blas import single_threaded
from qcli.errors import ResourceError
from qcli.files import scratch_folder
from qcli.graph import Model, Part, concrete_shapes, infer_shapes, parts_of
from qcli.memory import shown
from qcli.one_sweep import Samples, Sweep, groups_of
from qcli.parallel import MOST_AT_ONCE, in_parallel
from qcli.statistics import Statistics
from qcli.types import Array, Request

Progress = Callable[[int, int], None]
"""Called with the number of samples done and of samples in all."""

Holder = Callable[[tuple[Request, ...]], Statistics]
"""Where the measurements of some requests go."""

_HINT = "take fewer or shorter samples with --samples, or let TMPDIR point to another disk"


def measure_by_parts(
    model: Model,
    requests: Iterable[Request],
    samples: Samples,
    holder: Holder,
    *,
    threads: int = 1,
    progress: Progress | None = None,
) -> Iterator[Statistics]:
    """What `holder` gave for the requests of one part after the other, measured on every sample.

    The float model's values, as when it runs as a whole, but for the last bits of what onnxruntime would fuse across a
    cut. Raises InputError naming the sample on which a value is NaN or Inf, ResourceError where the disk has no room
    for what crosses.
    """
    wanted = tuple(requests)
    infer_shapes(model)
    parts = parts_of(model, (request.value for request in wanted))
    with scratch_folder() as folder, single_threaded():
        shelf = _Crossing(folder, len(samples))
        for number, part in enumerate(parts):
            own = tuple(request for request in wanted if request.value in part.holds)
            statistics = holder(own)
            run = _PartRun(part, own, statistics, shelf)
            for done, _ in enumerate(run.all(samples, threads), start=1):
                if progress is not None:
                    progress(number * len(samples) + done, len(parts) * len(samples))
            shelf.forget(parts[number + 1 :])
            if own:
                yield statistics


class _Crossing:
    """The values that wait for later parts, one file for each value and sample."""

    def __init__(self, folder: Path, samples: int) -> None:
        self._folder = folder
        self._samples = samples
        self._numbers: dict[str, int] = {}
        self._count = count()
        self._checked: set[tuple[str, ...]] = set()
        self._lock = threading.Lock()

    def put(self, sample: int, values: Mapping[str, Array]) -> None:
        with self._lock:
            self._check_room(values)
            for name in values:
                if name not in self._numbers:
                    self._numbers[name] = next(self._count)
        try:
            for name, array in values.items():
                np.save(self._path(sample, name), array, allow_pickle=False)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise ResourceError(
                    f"no space left in '{self._folder.parent}' for values between parts", _HINT
                ) from error
            raise

    def get(self, sample: int, names: Iterable[str]) -> dict[str, Array]:
        known = [name for name in names if name in self._numbers]
        return {name: np.load(self._path(sample, name), allow_pickle=False) for name in known}

    def forget(self, parts: Sequence[Part]) -> None:
        """Deletes what none of the parts reads."""
        read = {spec.name for part in parts for spec in part.model.inputs()}
        for name in [name for name in self._numbers if name not in read]:
            for sample in range(self._samples):
                self._path(sample, name).unlink(missing_ok=True)
            del self._numbers[name]

    def _check_room(self, values: Mapping[str, Array]) -> None:
        """By the first sample of a part: the others are about as long."""
        if tuple(values) in self._checked:
            return
        self._checked.add(tuple(values))
        needed = sum(array.nbytes for array in values.values()) * self._samples
        free = shutil.disk_usage(self._folder).free
        if needed > free:
            problem = f"values between the parts of the model take {shown(needed)} for {self._samples} samples"
            raise ResourceError(f"{problem}, '{self._folder.parent}' has {shown(free)}", _HINT)

    def _path(self, sample: int, name: str) -> Path:
        return self._folder / f"{self._numbers[name]}.{sample}.npy"


class _PartRun:
    """One part on all samples: once for each group of its requests, the first time with what it gives."""

    def __init__(self, part: Part, requests: tuple[Request, ...], statistics: Statistics, crossing: _Crossing) -> None:
        self._part = part
        self._requests = requests
        self._statistics = statistics
        self._crossing = crossing
        self._inputs = tuple(spec.name for spec in part.model.inputs())

    def all(self, samples: Samples, threads: int) -> Iterator[None]:
        """Yields once for each sample."""
        first = next(samples.feeds(), None)
        shapes = concrete_shapes(self._part.model, self._fed(0, first[1])) if first is not None else {}
        groups = groups_of(self._requests, shapes) or [()]
        for number, group in enumerate(groups):
            gives = self._part.gives if number == 0 else ()
            work = partial(self._one, Sweep(self._part.model, self._statistics, group, gives), gives)
            for _ in in_parallel(work, enumerate(samples.feeds()), min(threads, MOST_AT_ONCE)):
                if number == 0:
                    yield

    def _one(self, sweep: Sweep, gives: tuple[str, ...], item: tuple[int, tuple[str, Mapping[str, Array]]]) -> None:
        place, (file, feeds) = item
        values = sweep.measure((file, self._fed(place, feeds)))
        if gives:
            self._crossing.put(place, {name: values[name] for name in gives})

    def _fed(self, place: int, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """The inputs of the part, and those of the model that are measured themselves."""
        measured = {request.value for request in self._requests}
        own = {name: feeds[name] for name in feeds if name in self._inputs or name in measured}
        return {**own, **self._crossing.get(place, self._inputs)}
