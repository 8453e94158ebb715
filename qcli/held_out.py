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


class Yardstick:
    """Compares models with the float model on up to `most` samples, whose results in float are computed once."""

    def __init__(self, source: Model, samples: Samples, threads: int, most: int = _MOST_COMPARED) -> None:
        self._most = most
        self._source = source
        self._samples = samples
        self._threads = threads
        self._reference: list[dict[str, Any]] = []

    def decibels(self, quantized: Model) -> float | None:
        """The signal-to-noise ratio of the worst output; None without a float output."""
        found = self._measured(quantized, 1)
        return found[0] if found is not None else None

    def halves(self, quantized: Model) -> tuple[float, ...] | None:
        """The same on every other sample, and on the rest."""
        return self._measured(quantized, 2)

    def _measured(self, quantized: Model, parts: int) -> tuple[float, ...] | None:
        result = Session(quantized.runnable(), threads=self._threads)
        meters: list[dict[str, Sqnr]] = [{} for _ in range(parts)]
        for number, (feeds, expected) in enumerate(self._compared()):
            given = result.run(feeds)
            for name, value in expected.items():
                meters[number % parts].setdefault(name, Sqnr()).update(value, given[name])
        if not all(meters):
            return None
        return tuple(min(meter.value() for meter in part.values()) for part in meters)

    def _compared(self) -> Iterator[tuple[Mapping[str, Array], dict[str, Any]]]:
        """Inputs with the float model's results, which are computed once and kept within bounds."""
        if self._reference:
            for (_, feeds), expected in zip(self._samples.feeds(), self._reference, strict=False):
                yield feeds, expected
            return
        session = Session(self._source.runnable(), threads=self._threads)
        kept = 0
        for _, feeds in islice(self._samples.feeds(), self._most):
            expected = {name: value for name, value in session.run(feeds).items() if _is_float(value)}
            kept += sum(value.nbytes for value in expected.values())
            if self._reference and kept > _MOST_BYTES:
                return
            self._reference.append(expected)
            yield feeds, expected


class Trial:
    """Quantizes models by one recipe on some samples, and compares them with the float model on the others.

    Every `stride`-th sample is held out. `yardstick` measures on those that are not.
    """

    def __init__(self, source: Model, recipe: Recipe, samples: Samples, *, stride: int = 2, threads: int = 1) -> None:
        self._recipe = recipe
        self.fit = Part(samples, stride, held_out=False)
        self.judge = Part(samples, stride, held_out=True)
        self._threads = threads
        self._held_out = Yardstick(source, self.judge, threads)
        self.yardstick = Yardstick(source, self.fit, threads, 2 * _MOST_COMPARED)

    def decibels(self, model: Model) -> tuple[float, ...] | None:
        """The signal-to-noise ratio of the worst output, on either part of the samples after calibration on the other.

        None if the model cannot be quantized and compared.
        """
        if not len(self.judge):
            return None
        try:
            found = (self._held_out.decibels(self._quantized(model, self.fit)), self._turned(model))
        except QcliError:  # whatever it is, the job itself will meet it and say so
            return None
        ratios = tuple(ratio for ratio in found if ratio is not None)
        return ratios if len(ratios) == len(found) else None

    def _turned(self, model: Model) -> float | None:
        return self.yardstick.decibels(self._quantized(model, self.judge))

    def compare(self, quantized: Model) -> float | None:
        """The same for a model that is quantized already."""
        return self._held_out.decibels(quantized)

    def _quantized(self, model: Model, samples: Samples) -> Model:
        infer_shapes(model)
        plan = make_plan(model, self._recipe)
        requests = tuple(dict.fromkeys((*requests_of(plan, model), *wishes_of(plan, model))))
        statistics = Statistics.empty(requests)
        if requests:
            statistics = collect(model, statistics, samples, threads=self._threads)
        plan = refine_plan(model, self._recipe, plan, statistics)
        return apply_plan(model, plan, solve(model, plan, statistics))


def _is_float(value: Any) -> bool:
    return getattr(value, "dtype", None) is not None and value.dtype.kind == "f" and value.size > 0
