"""Running models on samples and summing up what they lose: sums alone are kept, one sample is in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from math import prod
from typing import Any

import numpy as np

from qcli.analysis.simulate import Simulation
from qcli.comparison import is_float
from qcli.dataset import Sample
from qcli.errors import InputError, NothingToDoError, ResourceError, RuntimeFailure, UnsupportedError
from qcli.graph import Model, concrete_shapes, float32_form
from qcli.memory import Budget
from qcli.metrics.sqnr import Sqnr
from qcli.runtime import Session, on_sample
from qcli.types import Array

Variant = frozenset[str]
"""The switches that are on."""

Progress = Callable[[int, int], None]
"""Called with the number of runs done and of runs in all."""

_TAP_BYTES = 64 << 20
"""Bytes of intermediate results made visible at once."""

_UNKNOWN_BYTES = 8 << 20


class Loss:
    """How far the float outputs of a model are from the reference, over the samples so far."""

    def __init__(self) -> None:
        self._outputs: dict[str, Sqnr] = {}

    def add(self, parts: Mapping[str, Sqnr]) -> None:
        for name, part in parts.items():
            self._outputs.setdefault(name, Sqnr()).merge(part)

    def value(self) -> float:
        """The ratio in dB of the worst output."""
        return min((sqnr.value() for sqnr in self._outputs.values()), default=Sqnr.LIMIT)


def loss_of(reference: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, Sqnr]:
    """The ratio for each float output that is not empty. Another shape, NaN or Inf is nothing but noise."""
    return {name: _sqnr(value, result[name]) for name, value in reference.items() if is_float(value) and value.size}


def check_memory(simulation: Simulation, budget: Budget) -> None:
    """Raises ResourceError where the weights do not fit, which a simulation holds as they are and decoded."""
    needed = simulation.model.run_bytes()
    if not budget.fits(needed):
        problem = f"an analysis runs the model with its weights twice, which {budget.shortage(needed)}"
        raise ResourceError(problem, "allow more with --max-memory")


def run_variants(
    simulation: Simulation, samples: Iterable[Sample], variants: Iterable[Variant], threads: int, progress: Progress
) -> dict[Variant, float]:
    """The loss in dB of each variant, against nothing quantized. The same figures for any number of `threads`.

    Raises InputError for a sample on which the float model gives NaN or Inf, UnsupportedError for a model without float
    outputs, NothingToDoError without samples, RuntimeFailure if the model does not run.
    """
    session = Session(simulation.model.runnable(), threads=1, optimize=False)
    losses = {variant: Loss() for variant in variants}
    outputs = simulation.model.outputs()

    def run(sample: Sample, variant: Variant) -> dict[str, Any]:
        return session.run({**sample.feeds, **simulation.feeds(variant)}, outputs)

    done = 0
    with ThreadPoolExecutor(threads) as pool:
        for sample in samples:
            with on_sample(sample.file):
                reference = checked(run(sample, frozenset()), sample.file)
                found = pool.map(partial(_compared, run, sample, reference), losses)
                for loss, parts in zip(losses.values(), found, strict=True):
                    loss.add(parts)
                    done += 1
                    progress(done, max(done, len(losses) * _length(samples)))
    if not done:
        raise NothingToDoError("there are no samples to run the variants on", "name a folder of samples with -d")
    return {variant: loss.value() for variant, loss in losses.items()}


def run_results(simulation: Simulation, samples: Iterable[Sample]) -> dict[str, float]:
    """The ratio in dB of each layer's own result, with everything quantized, by the layer's key."""
    everything = frozenset(switch for layer in simulation.layers for switch in layer.switches())
    losses: dict[str, Loss] = {}
    sessions: list[tuple[Session, tuple[str, ...]]] = []
    for sample in samples:
        if not sessions:
            shapes = concrete_shapes(simulation.model, sample.feeds)
            groups = _groups(dict.fromkeys(layer.output for layer in simulation.layers), shapes)
            sessions = [(_tapped(simulation.model, group), group) for group in groups]
        for session, group in sessions:
            with on_sample(sample.file):
                reference = session.run({**sample.feeds, **simulation.feeds(frozenset())}, group)
                result = session.run({**sample.feeds, **simulation.feeds(everything)}, group)
            for name, parts in loss_of(reference, result).items():
                losses.setdefault(name, Loss()).add({name: parts})
    return {layer.key: losses[layer.output].value() for layer in simulation.layers if layer.output in losses}


def run_pair(reference: Session, model: Model, samples: Iterable[Sample]) -> float:
    """The loss in dB of a model as onnxruntime optimizes it."""
    session, loss = Session(model.runnable(), threads=1), Loss()
    for sample in samples:
        with on_sample(sample.file):
            expected = checked(reference.run(sample.feeds), sample.file)
            loss.add(loss_of(expected, session.run(sample.feeds)))
    return loss.value()


def float_session(source: Model) -> Session:
    """The float model, or its float32 form where onnxruntime lacks the model's own floats."""
    try:
        return Session(source.runnable(), threads=1)
    except RuntimeFailure:
        form = float32_form(source)
        if form is None:
            raise
        return Session(form.runnable(), threads=1)


def checked(outputs: Mapping[str, Any], file: str) -> Mapping[str, Any]:
    """The outputs of the float model, if something can be compared with them."""
    floats = {name: value for name, value in outputs.items() if is_float(value)}
    if not floats:
        raise UnsupportedError("no output of the model is a float tensor", "analyze the part before its last operators")
    for name, value in floats.items():
        if not np.isfinite(value).all():
            raise InputError(
                f"{file}: the float model's output '{name}' holds NaN or Inf",
                "check the sample and its preprocessing; nothing can be compared with that",
            )
    return floats


def _compared(
    run: Callable[[Sample, Variant], dict[str, Any]], sample: Sample, reference: Mapping[str, Any], variant: Variant
) -> dict[str, Sqnr]:
    return loss_of(reference, run(sample, variant))


def _sqnr(reference: Array, result: Any) -> Sqnr:
    sqnr = Sqnr()
    fits = isinstance(result, np.ndarray) and result.shape == reference.shape and np.isfinite(reference).all()
    sqnr.update(np.nan_to_num(reference), result if fits else np.full(reference.shape or (1,), np.nan))
    return sqnr


def _tapped(model: Model, values: tuple[str, ...]) -> Session:
    return Session(model.runnable(values), threads=1, optimize=False)


def _groups(values: Iterable[str], shapes: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, ...]]:
    """The values in groups that take at most `_TAP_BYTES` together, or are alone."""
    group: list[str] = []
    held = 0
    for value in values:
        size = prod(shapes[value]) * 4 if value in shapes else _UNKNOWN_BYTES
        if group and held + size > _TAP_BYTES:
            yield tuple(group)
            group, held = [], 0
        group.append(value)
        held += size
    if group:
        yield tuple(group)


def _length(samples: Iterable[Sample]) -> int:
    return len(samples) if isinstance(samples, Sized) else 0
