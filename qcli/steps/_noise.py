"""What 8 bits for a layer's input and weight do to its outputs, computed on rows of its input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from qcli.blas import single_threaded
from qcli.statistics import Statistics
from qcli.stats._half import Half
from qcli.stats.reservoir import Reservoir
from qcli.steps._linear import Linear
from qcli.types import Array, FloatArray, Request

_COLUMNS = 512
"""Outputs that errors are judged by: more of them cost time and change nothing."""

_CLIPS = (0.8, 0.6, 0.4, 0.25)
"""Shares of the whole span, of which the one with the least error is what `range: mse` comes to."""

_LEVELS = 255
_WEIGHT_LEVELS = 127

_CONSTANT = 1e-6
"""Outputs that vary less than this share of their mean square are judged by that."""

_TYPICAL = 0.01
"""Outputs that vary less than this share of a typical one count no more than that."""

_MOST_DB = 120.0

_boundless = np.errstate(over="ignore", invalid="ignore")
"""Squares of large activations may overflow; what is not finite then says that nothing is gained."""


@dataclass(frozen=True)
class Samples:
    """What is known of a layer's input.

    `rows` float32 [n, channels], each of which counts `weights` float32 [n], of sum 1; `lower` and `upper` float64
    [channels], the exact extrema.
    """

    rows: FloatArray
    weights: FloatArray
    lower: Array
    upper: Array

    @property
    def peaks(self) -> Array:
        """The largest magnitude of each channel, float64 [channels]."""
        return np.maximum(np.abs(self.lower), np.abs(self.upper))

    @_boundless
    def scaled(self, factors: Array) -> Samples:
        """Every channel multiplied by its factor, which is not negative."""
        rows = (self.rows * factors).astype(np.float32)
        return Samples(rows, self.weights, self.lower * factors, self.upper * factors)


class Measured(NamedTuple):
    """Everything known of an input, and trials: the extrema of one half of the samples with the rows of the other.

    What suits the samples that it was made for alone shows there.
    """

    whole: Samples
    trials: tuple[Samples, ...]


def measured(statistics: Statistics, request: Request) -> Measured | None:
    """What was measured; None if the value was empty in every sample. A single sample is tried on itself."""
    known = statistics.get(request)
    if not isinstance(known, Reservoir):
        raise TypeError(f"{request.key} is no reservoir")
    seen = [half for half in known.halves if len(half.rows)]
    if not seen:
        return None
    ends = known.distribution()
    whole = _samples(seen, ends.lower, ends.upper)
    if len(seen) < 2:
        return Measured(whole, (whole,))
    first, second = (half.distribution() for half in seen)
    return Measured(
        whole, (_samples(seen[1:], first.lower, first.upper), _samples(seen[:1], second.lower, second.upper))
    )


def _samples(halves: Sequence[Half], lower: Array, upper: Array) -> Samples:
    counts = np.concatenate([half.counts for half in halves])
    weights = (counts / counts.sum()).astype(np.float32)
    return Samples(np.concatenate([half.rows for half in halves]), weights, lower, upper)


class Errors(NamedTuple):
    """Squared errors of outputs relative to their variance, of an input of 8 bits.

    `whole`: the grid spans all values, as with `range: minmax` and dynamic quantization; `best`: it spans the part of
    them that leaves the least error, as with `range: mse`.
    """

    whole: float
    best: float


class Judge:
    """Tells what becomes of a layer's outputs when its input and its weight have 8 bits each.

    The input has one scale and a zero point, the weight is symmetric with one scale for each output channel. Errors of
    neighbouring positions under a kernel are taken for independent.
    """

    def __init__(self, layer: Linear, samples: Samples) -> None:
        weight = np.moveaxis(layer.weight, layer.inner, 0)
        matrix = weight.reshape(*weight.shape[:2], -1)
        peaks = np.broadcast_to(np.abs(matrix).max(axis=(0, 2))[:, None], matrix.shape[1:]).reshape(-1)
        matrix = matrix.reshape(len(matrix), -1)
        chosen = np.linspace(0, matrix.shape[1] - 1, min(_COLUMNS, matrix.shape[1])).round().astype(int)
        self.row_peaks: Array = np.abs(matrix).max(axis=1).astype(np.float64)
        self._samples = samples
        columns = np.ascontiguousarray(matrix[:, chosen])
        shares = _shares(samples, columns)
        self._columns, self._peaks = columns * shares, peaks[chosen] * shares

    @_boundless
    def errors(self, data: Array | None = None, weight: Array | None = None) -> Errors:
        """With the input's channels multiplied by `data` and the weight's rows by `weight`, float64 [channels] each."""
        samples = self._samples if data is None else self._samples.scaled(data)
        columns, peaks = self._columns, self._peaks
        if weight is not None:
            columns = (columns * weight[:, None]).astype(np.float32)
            peaks = peaks * np.abs(columns).max(axis=0) / np.maximum(np.abs(self._columns).max(axis=0), 1e-30)
        stored = _weight_error(samples, columns, peaks)
        whole, best = _input_errors(samples, columns)
        return Errors(stored + whole, stored + best)


class Trials:
    """The layers that read one input, judged on every trial of it."""

    def __init__(self, known: Measured, layers: Sequence[Linear]) -> None:
        with single_threaded():
            self._judges = [(trial, [Judge(layer, trial) for layer in layers]) for trial in known.trials]
            self._before = [[judge.errors() for judge in judges] for _, judges in self._judges]

    @property
    def row_peaks(self) -> Array:
        """The largest magnitude of each row over all weights, float64 [channels]."""
        peaks: Array = np.max([judge.row_peaks for judge in self._judges[0][1]], axis=0)
        return peaks

    def gain(self, factors: Callable[[Samples], tuple[Array, Array]]) -> float:
        """By how many dB the summed errors of the layers fall, in the trial and with the grid that gain least by it.

        `factors` gives, for what is known in a trial, what multiplies the input's channels and the weights' rows.
        """
        gains = []
        for (trial, judges), before in zip(self._judges, self._before, strict=True):
            data, weight = factors(trial)
            with single_threaded():
                after = [judge.errors(data, weight) for judge in judges]
            gains += [
                _decibels(sum(old), sum(new))
                for old, new in zip(zip(*before, strict=True), zip(*after, strict=True), strict=True)
            ]
        return min(gains)


def _decibels(before: float, after: float) -> float:
    if not (np.isfinite(before) and np.isfinite(after)):
        return -_MOST_DB
    return float(np.clip(10 * np.log10((before or 1e-300) / (after or 1e-300)), -_MOST_DB, _MOST_DB))


@_boundless
def _input_errors(samples: Samples, columns: FloatArray) -> tuple[float, float]:
    low, high = float(min(samples.lower.min(), 0.0)), float(max(samples.upper.max(), 0.0))
    if high <= low:
        return 0.0, 0.0
    whole = _rounding(samples.rows, low, high)
    best, least = whole, _power(whole, samples.weights)
    for clip in _CLIPS:
        error = _rounding(samples.rows, low * clip, high * clip)
        if (power := _power(error, samples.weights)) < least:
            best, least = error, power
    first = _power(whole @ columns, samples.weights)
    return first, first if best is whole else _power(best @ columns, samples.weights)


@_boundless
def _weight_error(samples: Samples, columns: FloatArray, peaks: FloatArray) -> float:
    steps = np.where(peaks > 0, peaks / _WEIGHT_LEVELS, 1).astype(np.float32)
    return _power(samples.rows @ (np.round(columns / steps) * steps - columns), samples.weights)


@_boundless
def _shares(samples: Samples, columns: FloatArray) -> FloatArray:
    """Factors [n] that make outputs count alike: where a few dwarf the others, as in the residual stream of a
    transformer, the others hold most of what is known. The mean says nothing about what is computed from an output,
    unless that varies too little to be judged by its variance."""
    products = samples.rows @ columns
    mean = samples.weights @ products
    varying = samples.weights @ np.square(products - mean)
    varying = np.maximum(varying, _CONSTANT * np.square(mean))
    typical = np.median(varying)
    shares: FloatArray = (1 / np.sqrt(np.maximum(varying + _TYPICAL * typical, 1e-30) * len(mean))).astype(np.float32)
    return shares


@_boundless
def _rounding(rows: FloatArray, low: float, high: float) -> FloatArray:
    """The error of uint8 with a zero point."""
    step = np.float32((high - low) / _LEVELS)
    if step <= np.finfo(np.float32).tiny:
        return -rows
    zero = np.round(np.float32(-low) / step)
    return ((np.clip(np.round(rows / step) + zero, 0, _LEVELS) - zero) * step - rows).astype(np.float32)


@_boundless
def _power(rows: FloatArray, weights: FloatArray) -> float:
    """The mean square of [n, k], summed over k."""
    return float(weights @ np.square(rows).sum(axis=1))
