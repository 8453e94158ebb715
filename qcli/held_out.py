"""Trying a graph before deciding for it: quantized on half of a few samples, judged on the other half.

A step that is exact in float may still make quantization worse. Whether it does is not foretold but tried.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from qcli.apply import apply_plan
from qcli.calibrate import Samples, collect
from qcli.data_free import fill_in
from qcli.errors import QcliError, RuntimeFailure
from qcli.graph import Model, float32_form, infer_shapes
from qcli.metrics.sqnr import Sqnr
from qcli.plan import make_plan
from qcli.recipe import Recipe
from qcli.refine import refine_plan
from qcli.runtime import Session, on_sample
from qcli.solve import requests_of, solve, wishes_of
from qcli.statistics import Statistics
from qcli.types import Array, Plan

_MOST_COMPARED = 32

_MOST_BYTES = 64 << 20
"""Of outputs that are kept for comparison."""


@dataclass(frozen=True)
class Part:
    """Every `stride`-th sample (`held_out`), or the others."""

    samples: Samples
    stride: int
    held_out: bool

    def __len__(self) -> int:
        apart = len(self.samples) // self.stride
        return apart if self.held_out else len(self.samples) - apart

    def feeds(self) -> Iterator[tuple[str, Mapping[str, Array]]]:
        for number, sample in enumerate(self.samples.feeds(), 1):
            if (number % self.stride == 0) is self.held_out:
                yield sample


class Trial:
    """Quantizes models by one recipe on some samples, and compares them with the float model on the others.

    Every `stride`-th sample is held out; up to 32 of these are compared, in one thread: the same figures on any machine
    with as many as it likes.
    """

    def __init__(self, source: Model, recipe: Recipe, samples: Samples, *, stride: int = 2, threads: int = 1) -> None:
        self._source = source
        self._recipe = recipe
        self.fit = Part(samples, stride, held_out=False)
        self.judge = Part(samples, stride, held_out=True)
        self._threads = threads
        self._reference: list[dict[str, Any]] = []

    def decibels(self, model: Model) -> float | None:
        """The signal-to-noise ratio of the worst output; None if the model cannot be quantized and compared."""
        if not len(self.judge):
            return None
        try:
            return self.compare(self._quantized(model))
        except QcliError:  # whatever it is, the job itself will meet it and say so
            return None

    def compare(self, quantized: Model) -> float | None:
        """The same for a model that is quantized already. Values that are not finite in float do not count."""
        references = self._references()
        result = Session(quantized.runnable(), threads=1)
        meters: dict[str, Sqnr] = {}
        for (file, feeds), expected in zip(self.judge.feeds(), references, strict=False):
            with on_sample(file):
                given = result.run(feeds)
            for name, value in expected.items():
                finite = np.isfinite(value)
                if given[name].shape == value.shape and finite.any():
                    meters.setdefault(name, Sqnr()).update(value[finite], given[name][finite])
        return min((meter.value() for meter in meters.values()), default=None)

    def _quantized(self, model: Model) -> Model:
        infer_shapes(model)
        plan = self._plan(model, make_plan(model, self._recipe))
        requests = tuple(dict.fromkeys((*requests_of(plan, model), *wishes_of(plan, model))))
        statistics = Statistics.empty(requests)
        if requests:
            statistics = collect(model, statistics, self.fit, threads=self._threads)
        plan = self._plan(model, refine_plan(model, self._recipe, plan, statistics))
        return apply_plan(model, plan, solve(model, plan, statistics))

    def _plan(self, model: Model, plan: Plan) -> Plan:
        return fill_in(model, plan, self._recipe, lambda _: None)

    def _references(self) -> list[dict[str, Any]]:
        """The float model's results for the held-out inputs, computed once and kept within bounds."""
        if not self._reference:
            session = self._float_session()
            kept = 0
            for file, feeds in islice(self.judge.feeds(), _MOST_COMPARED):
                with on_sample(file):
                    expected = {name: value for name, value in session.run(feeds).items() if _is_float(value)}
                kept += sum(value.nbytes for value in expected.values())
                if self._reference and kept > _MOST_BYTES:
                    break
                self._reference.append(expected)
        return self._reference

    def _float_session(self) -> Session:
        """The float model, or its float32 form where onnxruntime lacks the model's own floats."""
        try:
            return Session(self._source.runnable(), threads=1)
        except RuntimeFailure:
            form = float32_form(self._source)
            if form is None:
                raise
            return Session(form.runnable(), threads=1)


def _is_float(value: Any) -> bool:
    return getattr(value, "dtype", None) is not None and value.dtype.kind == "f" and value.size > 0
