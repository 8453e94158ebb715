"""Running trials: the error that grids make in what reads a value, and in the outputs of the whole model.

One thread for each sample, whose arithmetic is the same however many there are; sums are taken in the samples' order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from math import prod
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from qcli.graph import Model, concrete_shapes
from qcli.parallel import MOST_AT_ONCE, in_order
from qcli.runtime import Session, on_sample
from qcli.trial_graph import Measured, Trial, laid_out, with_trials
from qcli.types import Array

Float64Array = npt.NDArray[np.float64]
Sample = tuple[str, Mapping[str, Array]]
_Result = TypeVar("_Result")

_TRIAL_BYTES = 256 << 20
"""Bytes of candidates that one session may hold. Fixed, so that the same model gives the same errors anywhere."""

_LARGEST_TRIAL = 2 << 30
"""Larger ones are not run."""

_WORK_BYTES = 4 << 30
"""Bytes of candidates, over all samples, after which more samples would tell little; `_LEAST_SAMPLES` run anyway."""

_LEAST_SAMPLES = 4

_REFERENCE_BYTES = 256 << 20
"""Outputs of the float model that are kept for comparison; samples beyond it are left out, except for the first."""


class Errors(NamedTuple):
    """Relative error powers [K]: of a value, and of what reads it, summed over the places."""

    own: Float64Array
    readers: Float64Array


def relative_errors(
    model: Model, trials: Sequence[Trial], samples: Iterable[Sample], *, threads: int = 1
) -> list[Errors | None]:
    """For each trial the error power of its candidates over the signal's, of the value itself and of what reads it.

    None where nothing can be measured: no reader, a trial too large, a signal that is zero throughout, numbers beyond
    float32. Raises RuntimeFailure if the model does not run with the trials inside.
    """
    first = next(iter(samples), None)
    found: list[Errors | None] = [None] * len(trials)
    if first is None:
        return found
    sizes = _bytes(model, trials, concrete_shapes(model, first[1]))
    few = _Few(samples, max(_LEAST_SAMPLES, _WORK_BYTES // max(1, sum(sizes))))
    for batch in _batches(sizes):
        changed, outputs = with_trials(model, [trials[number] for number in batch])
        sums = _sums(changed, [name for places in outputs for place in places for name in place], few, threads)
        for number, places in zip(batch, outputs, strict=True):
            own, readers = _over_signal(places[:1], sums), _over_signal(places[1:], sums)
            found[number] = Errors(own, readers) if own is not None and readers is not None else None
    return found


class _Few:
    """The first so many samples."""

    def __init__(self, samples: Iterable[Sample], count: int) -> None:
        self._samples, self._count = samples, count

    def __iter__(self) -> Iterator[Sample]:
        return islice(self._samples, self._count)


def output_errors(
    model: Model, candidates: Iterable[Model], samples: Iterable[Sample], *, threads: int = 1
) -> list[Float64Array]:
    """For each candidate the error power in its outputs by sample [samples], summed over the float outputs.

    An output counts over its mean power in the float model. Infinite where a result is not finite or has another shape.
    QuantizeLinear and DequantizeLinear are run as they are. Samples end where the outputs take too much memory.
    """
    reference = _Reference(model, samples)
    return [reference.error_of(candidate, threads) for candidate in candidates]


def _batches(sizes: Sequence[int]) -> Iterator[list[int]]:
    """The numbers of the trials that run together."""
    batch: list[int] = []
    total = 0
    for number, size in enumerate(sizes):
        if size > _LARGEST_TRIAL:
            continue
        if batch and total + size > _TRIAL_BYTES:
            yield batch
            batch, total = [], 0
        batch.append(number)
        total += size
    if batch:
        yield batch


def _bytes(model: Model, trials: Sequence[Trial], shapes: Mapping[str, tuple[int, ...]]) -> list[int]:
    """About what each trial lays out for one sample."""
    elements = [sum(prod(shapes.get(name, ())) for name in names) for names in laid_out(model, trials)]
    return [8 * len(trial.scales) * count for trial, count in zip(trials, elements, strict=True)]


def _sums(model: Model, names: list[str], samples: Iterable[Sample], threads: int) -> dict[str, Float64Array]:
    """The sums of outputs over all samples."""
    wanted = list(dict.fromkeys(names))
    if not wanted:
        return {}
    session = Session(model.runnable(tuple(wanted)), fuse_qdq=False)
    rows = _each(samples, threads, lambda feeds: [np.asarray(value) for value in session.run(feeds, wanted).values()])
    with np.errstate(over="ignore", invalid="ignore"):
        totals = [np.sum([row[place].astype(np.float64) for row in rows], axis=0) for place in range(len(wanted))]
    return dict(zip(wanted, totals, strict=True))


def _over_signal(places: Sequence[Measured], sums: Mapping[str, Float64Array]) -> Float64Array | None:
    powers = [float(sums[place.signal].sum()) for place in places]
    terms = [sums[place.noise] / power for place, power in zip(places, powers, strict=True) if 0 < power < np.inf]
    total = np.sum(terms, axis=0) if terms else np.full(1, np.nan)
    return total if np.isfinite(total).all() else None


def _each(samples: Iterable[Sample], threads: int, work: Callable[[Mapping[str, Array]], _Result]) -> list[_Result]:
    """The results of `work` on all samples, in their order."""

    def one(sample: Sample) -> _Result:
        with on_sample(sample[0]):
            return work(sample[1])

    return list(in_order(one, samples, min(threads, MOST_AT_ONCE)))


class _Reference:
    """What the float model makes of some samples, which are read again for each candidate."""

    def __init__(self, model: Model, samples: Iterable[Sample]) -> None:
        self._samples = samples
        self._outputs: list[dict[str, Array]] = []
        session = Session(model.runnable())
        kept = 0
        for file, feeds in samples:
            with on_sample(file):
                found = {name: value for name, value in session.run(feeds).items() if _is_float(value)}
            kept += sum(value.nbytes for value in found.values())
            if self._outputs and kept > _REFERENCE_BYTES:
                break
            self._outputs.append(found)

    def error_of(self, candidate: Model, threads: int) -> Float64Array:
        session = Session(candidate.runnable(), fuse_qdq=False)
        results = _each(islice(self._samples, len(self._outputs)), threads, session.run)
        total = np.zeros(len(self._outputs))
        for name in self._outputs[0] if self._outputs else ():
            signal = np.mean([_power(expected[name]) for expected in self._outputs])
            pairs = zip(self._outputs, results, strict=True)
            noise = np.array([_distance(expected[name], result[name]) for expected, result in pairs])
            total += noise / signal if signal > 0 else (noise > 0)
        return np.where(np.isfinite(total), total, np.inf)


def _is_float(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind == "f"


def _power(value: Array) -> float:
    flat = value.astype(np.float64).ravel()
    return float(np.dot(flat, flat))


def _distance(expected: Array, result: Any) -> float:
    if not isinstance(result, np.ndarray) or result.shape != expected.shape:
        return float("inf")
    with np.errstate(invalid="ignore"):
        return _power(expected.astype(np.float64) - result)
