"""Trying a graph before deciding for it: quantized on part of a few samples, judged on the rest.

A step that is exact in float may still make quantization worse. Whether it does is not foretold but tried.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from zlib import crc32

import numpy as np

from qcli.apply import apply_plan
from qcli.blas import single_threaded
from qcli.calibrate import Samples, collect
from qcli.data_free import fill_in
from qcli.errors import QcliError, RuntimeFailure
from qcli.graph import Model, float32_form, infer_shapes
from qcli.measured import requests_of, wishes_of
from qcli.metrics.sqnr import Sqnr
from qcli.parallel import in_order
from qcli.plan import make_plan
from qcli.recipe import Recipe
from qcli.refine import refine_plan
from qcli.runtime import Session, on_sample
from qcli.solve import solve
from qcli.statistics import Statistics
from qcli.types import Array, Plan

Fed = tuple[str, Mapping[str, Array]]

_MOST_KEPT = 128
_MOST_BYTES = 128 << 20
"""Of samples in memory, and of outputs that they are compared with."""

_FEWEST = 4

_MOST_COMPARED = 64


@dataclass(frozen=True)
class Few:
    """Some samples in memory."""

    kept: Sequence[Fed]

    def __len__(self) -> int:
        return len(self.kept)

    def feeds(self) -> Iterator[Fed]:
        return iter(self.kept)


def few_of(samples: Samples) -> Few:
    """As many samples as may be kept, evenly spread, in an order that depends on their content alone."""
    stride = max(1, -(-len(samples) // _MOST_KEPT))
    kept: list[Fed] = []
    size = 0
    for number, sample in enumerate(samples.feeds()):
        if number % stride:
            continue
        size += sum(array.nbytes for array in sample[1].values())
        if len(kept) >= _FEWEST and size > _MOST_BYTES:
            break
        kept.append(sample)
    return Few(sorted(kept, key=_content))


def _content(sample: Fed) -> int:
    number = 0
    for name, array in sorted(sample[1].items()):
        content = array.astype(str) if array.dtype.kind == "O" else array
        number = crc32(np.ascontiguousarray(content).tobytes(), crc32(name.encode(), number))
    return number


class Yardstick:
    """Compares models with the float model on up to 64 samples, whose results in float are computed once.

    Each session has one thread, and samples run side by side: the same figures on any machine.
    """

    def __init__(self, source: Model, samples: Few, threads: int) -> None:
        self._source = source
        self._samples = samples.kept[:_MOST_COMPARED]
        self._threads = threads

    def decibels(self, quantized: Model) -> float | None:
        """The signal-to-noise ratio of the worst output; None without any to compare."""
        found = self._measured(quantized, 1)
        return found[0] if found is not None else None

    def halves(self, quantized: Model) -> tuple[float, ...] | None:
        """The same on every other sample, and on the rest."""
        return self._measured(quantized, 2)

    def each(self, quantized: Model) -> tuple[float, ...] | None:
        """The same sample by sample."""
        return self._measured(quantized, max(1, len(self._references)))

    def _measured(self, quantized: Model, parts: int) -> tuple[float, ...] | None:
        """Values that are not finite in float do not count."""
        meters: list[dict[str, Sqnr]] = [{} for _ in range(parts)]
        given = self._results(Session(quantized.runnable(), threads=1), len(self._references))
        with single_threaded():
            for number, (expected, result) in enumerate(zip(self._references, given, strict=True)):
                _compare(expected, result, meters[number % parts])
        if not all(meters):
            return None
        return tuple(min(meter.value() for meter in part.values()) for part in meters)

    @cached_property
    def _references(self) -> list[dict[str, Any]]:
        kept: list[dict[str, Any]] = []
        size = 0
        for result in self._results(self._float_session(), len(self._samples)):
            expected = {name: value for name, value in result.items() if _is_float(value)}
            size += sum(value.nbytes for value in expected.values())
            if kept and size > _MOST_BYTES:
                break
            kept.append(expected)
        return kept

    def _results(self, session: Session, count: int) -> Iterator[dict[str, Any]]:
        def run(sample: Fed) -> dict[str, Any]:
            with on_sample(sample[0]):
                return session.run(sample[1])

        yield from in_order(run, self._samples[:count], self._threads)

    def _float_session(self) -> Session:
        """The float model, or its float32 form where onnxruntime lacks the model's own floats."""
        try:
            return Session(self._source.runnable(), threads=1)
        except RuntimeFailure:
            form = float32_form(self._source)
            if form is None:
                raise
            return Session(form.runnable(), threads=1)


def _compare(expected: Mapping[str, Any], given: Mapping[str, Any], meters: dict[str, Sqnr]) -> None:
    for name, value in expected.items():
        finite = np.isfinite(value)
        if given[name].shape == value.shape and finite.any():
            meters.setdefault(name, Sqnr()).update(value[finite], given[name][finite])


class Trial:
    """Quantizes models by one recipe on some samples, and compares them with the float model on the others.

    Every `stride`-th sample is held out. `yardstick` measures on those that are not.
    """

    def __init__(self, source: Model, recipe: Recipe, samples: Samples, *, stride: int = 2, threads: int = 1) -> None:
        self._source = source
        self._recipe = recipe
        self._samples = samples
        self._stride = stride
        self._threads = threads

    @cached_property
    def _few(self) -> Few:
        return few_of(self._samples)

    @cached_property
    def fit(self) -> Few:
        return Few([sample for number, sample in enumerate(self._few.kept, 1) if number % self._stride])

    @cached_property
    def judge(self) -> Few:
        return Few(self._few.kept[self._stride - 1 :: self._stride])

    @cached_property
    def yardstick(self) -> Yardstick:
        return Yardstick(self._source, self.fit, self._threads)

    @cached_property
    def _held_out(self) -> Yardstick:
        return Yardstick(self._source, self.judge, self._threads)

    def decibels(self, model: Model) -> Iterator[float | None]:
        """The signal-to-noise ratio of the worst output, on either part of the samples after calibration on the other.

        One after the other, as they are asked for. None, and nothing more, if the model cannot be quantized and
        compared; nothing at all without samples that are held out.
        """
        for yardstick, samples in ((self._held_out, self.fit), (self.yardstick, self.judge)):
            if not len(self.judge):
                return
            try:
                ratio = yardstick.decibels(self._quantized(model, samples))
            except QcliError:  # whatever it is, the job itself will meet it and say so
                ratio = None
            yield ratio
            if ratio is None:
                return

    def compare(self, quantized: Model) -> float | None:
        """The ratio of a model that is quantized already, on what is held out."""
        return self._held_out.decibels(quantized)

    def compare_each(self, quantized: Model) -> tuple[float, ...] | None:
        """The same sample by sample."""
        return self._held_out.each(quantized)

    def _quantized(self, model: Model, samples: Samples) -> Model:
        infer_shapes(model)
        plan = self._plan(model, make_plan(model, self._recipe))
        requests = tuple(dict.fromkeys((*requests_of(plan, model), *wishes_of(plan, model))))
        statistics = Statistics.empty(requests)
        if requests:
            statistics = collect(model, statistics, samples, threads=self._threads)
        plan = self._plan(model, refine_plan(model, self._recipe, plan, statistics))
        return apply_plan(model, plan, solve(model, plan, statistics, self._threads))

    def _plan(self, model: Model, plan: Plan) -> Plan:
        return fill_in(model, plan, self._recipe, lambda _: None)


def _is_float(value: Any) -> bool:
    return getattr(value, "dtype", None) is not None and value.dtype.kind == "f" and value.size > 0
