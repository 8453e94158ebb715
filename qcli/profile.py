"""Where the time of a model goes, by onnxruntime's own profile.

for row in profile(Path("a.int8.onnx"), load_model(Path("a.onnx")), feeds):
    print(row.op, row.ms, row.sources)
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from statistics import fmean
from time import perf_counter
from typing import Any, NamedTuple

from qcli.errors import RuntimeFailure
from qcli.files import scratch_folder
from qcli.graph import Model
from qcli.graph.optimized import OptimizedGraph, read_optimized
from qcli.origins import Origin, origins
from qcli.runtime import Session
from qcli.types import Array, Noun

_WARM_UP_ROUNDS = 2
_MOST_SECONDS = 3.0
"""For each model."""

_FEWEST_ROUNDS = 2
_MOST_EVENTS = 1_000_000
"""As many as onnxruntime keeps itself."""

_KERNEL = "_kernel_time"


class NodeTime(Noun, frozen=True, kw_only=True):
    """One node of the optimized graph and what its kernel takes, in ms; 0 if it did not run.

    `sources` are the keys (`node_key`) of the source graph's nodes that it comes from. What onnxruntime or the
    quantization put in, conversions above all, belongs to none: it has the source nodes on both sides of it in
    `beside`. `main` is the source that does most of the work.
    """

    name: str
    op: str
    ms: float
    sources: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    main: str = ""


def profile(
    model: Path | bytes, source: Model, feeds: Mapping[str, Array], *, threads: int = 1, rounds: int = 15
) -> tuple[NodeTime, ...]:
    """The nodes of `model` as onnxruntime optimizes it, traced to `source`, in the order in which they are stored.

    `rounds` runs on `feeds`, fewer of a slow model. The time of If and Loop is without that of their bodies.
    Raises RuntimeFailure if the model does not run, or if onnxruntime wrote no profile of it.
    """
    return profiles([model], source, feeds, threads=threads, rounds=rounds)[0]


def profiles(
    models: Sequence[Path | bytes], source: Model, feeds: Mapping[str, Array], *, threads: int = 1, rounds: int = 15
) -> tuple[tuple[NodeTime, ...], ...]:
    """The profiles of models that run in turn, so that a busy machine disturbs all alike."""
    with scratch_folder() as folder:
        runs = [_Profiled(model, folder / str(index), feeds, threads) for index, model in enumerate(models)]
        begin = perf_counter()
        for done in range(_WARM_UP_ROUNDS + rounds):
            if done >= _WARM_UP_ROUNDS + _FEWEST_ROUNDS and perf_counter() - begin > _MOST_SECONDS * len(runs):
                break
            for run in runs:
                run.session.run(feeds)
        return tuple(run.rows(source) for run in runs)


class _Profiled:
    """A session that writes its profile and its optimized graph into a folder of its own."""

    def __init__(self, model: Path | bytes, folder: Path, feeds: Mapping[str, Array], threads: int) -> None:
        folder.mkdir()
        saved = folder / "optimized.onnx"
        self.session = Session(model, threads=threads, spin=False, optimized_to=saved, profile_to=folder / "profile")
        self._optimized = read_optimized(saved, feeds)

    def rows(self, source: Model) -> tuple[NodeTime, ...]:
        times = read_profile(self.session.end_profile(), _WARM_UP_ROUNDS)
        return tuple(_rows(times, self._optimized, origins(self._optimized, source)))


class Kernel(NamedTuple):
    """How the profile knows a node: `number` counts the nodes of its graph."""

    name: str
    op: str
    number: int


def read_profile(path: Path, skipped: int = 0) -> dict[Kernel, float]:
    """The ms of each kernel over the runs after the first `skipped`. Raises RuntimeFailure without any.

    It is the mean of the middle half: the profile counts whole microseconds, which a median would stay with.
    """
    events = list(_events(path))
    starts = sorted(event.start for event in events if event.kernel is None)[skipped:]
    totals: dict[Kernel, list[float]] = defaultdict(lambda: [0.0] * len(starts))
    for kernel, start, own in _own_times(events):
        run = bisect_right(starts, start) - 1
        if run >= 0:
            totals[kernel][run] += own / 1000
    if not totals:
        raise RuntimeFailure("onnxruntime wrote no profile of the model", "run 'qcli doctor' to see its version")
    return {kernel: _middle(values) for kernel, values in totals.items()}


def _middle(values: Sequence[float]) -> float:
    cut = len(values) // 4
    return fmean(sorted(values)[cut : len(values) - cut])


class _Event(NamedTuple):
    """Times in microseconds; without a kernel it is a run of the whole model."""

    kernel: Kernel | None
    start: int
    length: int
    thread: int


def _events(path: Path) -> Iterator[_Event]:
    """The kernels and runs in a profile, which has one event a line; what cannot be read is passed over."""
    with path.open(encoding="utf-8", errors="replace") as stream:
        for line in islice(stream, _MOST_EVENTS):
            try:
                event = _event(json.loads(line.strip().rstrip(",")))
            except (ValueError, TypeError, KeyError, AttributeError):
                continue
            if event is not None:
                yield event


def _event(entry: dict[str, Any]) -> _Event | None:
    name, kernel = str(entry["name"]), None
    if entry["cat"] == "Node" and name.endswith(_KERNEL):
        details = entry["args"]
        kernel = Kernel(name.removesuffix(_KERNEL), str(details["op_name"]), int(details.get("node_index", 0)))
    elif name != "model_run":
        return None
    return _Event(kernel, int(entry["ts"]), int(entry["dur"]), int(entry.get("tid", 0)))


def _own_times(events: list[_Event]) -> Iterator[tuple[Kernel, int, int]]:
    """Kernel, start and time; for If and Loop the time before and after their bodies.

    What lies between the kernels of a body is left out: for the most part it is the work of writing the profile.
    """
    kernels = [event for event in events if event.kernel is not None]
    kernels.sort(key=lambda event: (event.thread, event.start, -event.length))
    inside: dict[int, tuple[int, int]] = {}
    around: list[int] = []
    for index, event in enumerate(kernels):
        while around and not _holds(kernels[around[-1]], event):
            around.pop()
        if around:
            begin, _ = inside.get(around[-1], (event.start, 0))
            inside[around[-1]] = begin, event.start + event.length
        around.append(index)
    for index, event in enumerate(kernels):
        begin, end = inside.get(index, (0, 0))
        if event.kernel is not None:
            yield event.kernel, event.start, event.length - (end - begin)


def _holds(outer: _Event, inner: _Event) -> bool:
    """True if `inner` runs within `outer`; kernels that follow each other can share a microsecond."""
    ends = outer.start + outer.length
    return outer.thread == inner.thread and inner.start < ends and inner.start + inner.length <= ends


def _rows(times: dict[Kernel, float], optimized: OptimizedGraph, found: tuple[Origin, ...]) -> Iterator[NodeTime]:
    """A row for each node, and one for each kernel that belongs to none."""
    waiting: dict[tuple[str, str], list[Kernel]] = defaultdict(list)
    for kernel in sorted(times, key=lambda kernel: kernel.number):
        waiting[kernel.name, kernel.op].append(kernel)
        if kernel.name == f"{kernel.op}_{kernel.number}":  # how onnxruntime calls a node without a name
            waiting["", kernel.op].append(kernel)
    taken: set[Kernel] = set()
    for item, origin in zip(optimized.nodes, found, strict=True):
        own = next((one for one in waiting[item.name, item.op] if one not in taken), None)
        if own is not None:
            taken.add(own)
        yield NodeTime(
            name=item.name or next(filter(None, item.outputs), ""),
            op=item.op,
            ms=times[own] if own is not None else 0.0,
            sources=origin.sources,
            beside=origin.beside,
            main=origin.main,
        )
    yield from (NodeTime(name=one.name, op=one.op, ms=times[one]) for one in times if one not in taken)
