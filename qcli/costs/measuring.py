"""Kernels timed one by one: all modes of one node in turn, so that a busy machine disturbs them alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qcli.costs.build import between_convolutions, build
from qcli.costs.nouns import KernelCost, KernelKey
from qcli.errors import QcliError
from qcli.files import scratch_folder
from qcli.graph import make_node
from qcli.graph.blank import add_input, add_output, blank_model
from qcli.graph.core import LAYOUTS, Parts, take_apart, write_core
from qcli.latency import Effort, Timing, measure
from qcli.runtime import Session
from qcli.types import Array
from qcli.watch import Watch

EFFORT = Effort(least=0.03, most=0.5)
"""Of one node in all its modes."""

_REFUSALS = (QcliError, ValueError, TypeError, LookupError, AttributeError, OverflowError, MemoryError)
"""What a node can end with that nobody foresaw: it then has no cost, and the others have theirs."""


@dataclass(frozen=True)
class Loaded:
    """A session with the inputs that it runs on."""

    session: Session
    feeds: Mapping[str, Array]

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Any]:
        """Runs on its own inputs: each model of a comparison has others."""
        return self.session.run(self.feeds)


@dataclass(frozen=True)
class Prepared:
    """A kernel ready to be timed: as a model of its own, and without the changes of layout that this adds."""

    key: KernelKey
    whole: Loaded
    core: Loaded | None
    kernels: tuple[str, ...]


def measure_kernels(keys: Sequence[KernelKey], watch: Watch) -> Iterator[KernelCost]:
    """The costs of keys, each once; those of one node follow each other. One that cannot run alone has None."""
    families: dict[tuple[Any, ...], list[KernelKey]] = {}
    for key in dict.fromkeys(keys):
        families.setdefault((key.threads, *key.family), []).append(key)
    for done, family in enumerate(families.values(), 1):
        yield from _measure_family(family)
        watch.progress(done, len(families))


def _measure_family(keys: Sequence[KernelKey]) -> Iterator[KernelCost]:
    with ExitStack() as stack:
        ready: list[Prepared] = []
        for key in keys:
            try:
                ready.append(_prepare(key, stack.enter_context(scratch_folder())))
            except _REFUSALS as error:
                yield KernelCost(key=key, ms=None, why=_reason(error))
        try:
            found = _timed(ready, keys[0].threads) if ready else []
        except _REFUSALS as error:
            found = [KernelCost(key=one.key, ms=None, why=_reason(error)) for one in ready]
        yield from found


_LONGEST = 300


def _reason(error: BaseException) -> str:
    text = error.message if isinstance(error, QcliError) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())[:_LONGEST]


def _prepare(key: KernelKey, folder: Path) -> Prepared:
    """Loads a kernel and runs it once. Raises one of `_REFUSALS` if it does not run."""
    model, feeds = build(key)
    saved = folder / "optimized.onnx"
    whole = Loaded(Session(model.serialize(), threads=key.threads, spin=False, optimized_to=saved), feeds)
    whole.run({})
    if not feeds:
        raise ValueError("it reads nothing but constants")
    skin = _CONVOLUTIONS if between_convolutions(key) else LAYOUTS
    parts = take_apart(saved, skin)
    core = _core(key, saved, parts, feeds)
    if core is not None and between_convolutions(key):
        whole, core = core, None
    return Prepared(key=key, whole=whole, core=core, kernels=parts.kernels)


_CONVOLUTIONS = (*LAYOUTS, "Conv", "QLinearConv")


def _core(key: KernelKey, saved: Path, parts: Parts, feeds: Mapping[str, Array]) -> Loaded | None:
    """The kernel without what is around it; None if there is nothing."""
    if not parts.wrapped:
        return None
    inputs = dict(feeds)
    if parts.head is not None:
        head = Session(parts.head, optimize=False)
        inputs |= head.run({name: feeds[name] for name in head.input_names()})
    skin = _CONVOLUTIONS if between_convolutions(key) else LAYOUTS
    session = Session(write_core(saved, inputs, skin), threads=key.threads, spin=False, optimize=False)
    core = Loaded(session, {name: inputs[name] for name in session.input_names()})
    core.run({})
    return core


def _timed(ready: Sequence[Prepared], threads: int) -> list[KernelCost]:
    """The costs, less what a run with as many inputs and outputs costs that computes nothing."""
    session = ready[0].whole.session
    models = [_idle(threads, len(session.input_names()), len(session.output_names()))]
    for one in ready:
        models += [one.whole] if one.core is None else [one.whole, one.core]
    timings = iter(measure(models, [{}], threads, EFFORT).timings)
    idle = next(timings).median_ms
    costs: list[KernelCost] = []
    for one in ready:
        whole = next(timings)
        costs.append(_cost(one, whole, next(timings) if one.core is not None else whole, idle))
    return costs


def _cost(prepared: Prepared, whole: Timing, core: Timing, idle: float) -> KernelCost:
    return KernelCost(
        key=prepared.key,
        ms=max(core.median_ms - idle, 0.0),
        spread_ms=core.spread_ms,
        layout_ms=max(whole.median_ms - core.median_ms, 0.0),
        kernel=", ".join(dict.fromkeys(prepared.kernels))[:_LONGEST],
    )


def _idle(threads: int, inputs: int, outputs: int) -> Loaded:
    """A model that does next to nothing."""
    model = blank_model(_IDLE_OPSET)
    values = [add_input(model, f"x{index}", "float32", (1,)) for index in range(inputs)]
    for index in range(outputs):
        node = make_node("Neg", values[:1], name=f"y{index}", output=f"y{index}")
        model.graph.append(node)
        add_output(model, node.outputs[0])
    feeds = {f"x{index}": np.ones(1, np.float32) for index in range(inputs)}
    return Loaded(Session(model.serialize(), threads=threads, spin=False), feeds)


_IDLE_OPSET = 13
