"""Trying a graph before deciding for it: quantized on half of a few samples, judged on the other half.

A step that is exact in float may still make quantization worse. Whether it does is not foretold but tried.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from qcli.apply import apply_plan
from qcli.calibrate import Samples, collect
from qcli.errors import QcliError
from qcli.graph import Model, infer_shapes
from qcli.metrics.sqnr import Sqnr
from qcli.plan import make_plan
from qcli.recipe import Recipe
from qcli.refine import refine_plan
from qcli.runtime import Session
from qcli.solve import requests_of, solve, wishes_of
from qcli.statistics import Statistics
from qcli.types import Array

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

    Every `stride`-th sample is held out; up to 32 of these are compared.
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
        """The same for a model that is quantized already."""
        result = Session(quantized.runnable(), threads=self._threads)
        meters: dict[str, Sqnr] = {}
        for feeds, expected in self._compared():
            given = result.run(feeds)
            for name, value in expected.items():
                meters.setdefault(name, Sqnr()).update(value, given[name])
        return min((meter.value() for meter in meters.values()), default=None)

    def _quantized(self, model: Model) -> Model:
        infer_shapes(model)
        plan = make_plan(model, self._recipe)
        requests = tuple(dict.fromkeys((*requests_of(plan, model), *wishes_of(plan, model))))
        statistics = Statistics.empty(requests)
        if requests:
            statistics = collect(model, statistics, self.fit, threads=self._threads)
        plan = refine_plan(model, self._recipe, plan, statistics)
        return apply_plan(model, plan, solve(model, plan, statistics))

    def _compared(self) -> Iterator[tuple[Mapping[str, Array], dict[str, Any]]]:
        """Held-out inputs with the float model's results, which are computed once and kept within bounds."""
        if self._reference:
            for (_, feeds), expected in zip(self.judge.feeds(), self._reference, strict=False):
                yield feeds, expected
            return
        session = Session(self._source.runnable(), threads=self._threads)
        kept = 0
        for _, feeds in islice(self.judge.feeds(), _MOST_COMPARED):
            expected = {name: value for name, value in session.run(feeds).items() if _is_float(value)}
            kept += sum(value.nbytes for value in expected.values())
            if self._reference and kept > _MOST_BYTES:
                return
            self._reference.append(expected)
            yield feeds, expected


def _is_float(value: Any) -> bool:
    return getattr(value, "dtype", None) is not None and value.dtype.kind == "f" and value.size > 0
