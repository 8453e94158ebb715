"""The channels that share a tensor are centred, so that one scale serves them all; biases take in the difference.

    W x + b  =  W (x - c) + (b + W c)          relu(x) - c  =  relu(x - c)  wherever x >= c >= 0

The bias of the layer that writes x takes -c, those of the layers that read it take W c. Residual streams are shifted
too: each shift is a sum of terms (`qcli/shifts.py`), which are found by least squares. A tensor is shifted only if all
that reads it can make up for that, which a convolution with padded borders cannot: zeros would have to become -c.
What lies behind a Relu or a Clip is shifted where the samples stayed within its bounds, with a margin.

Sources: Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.1.3,
there behind Relu and from BatchNormalization; Wei et al. 2023, "Outlier Suppression+: Accurate quantization of large
language models by equivalent and effective shifting and scaling", there by the middle of each channel's range.
Whole streams are ours, and so is the mean for a centre: the error of weights is multiplied by what they meet, which is
least around the mean. The middle of skewed channels narrowed MobileNetV2's tensors by a third and lost it 4 dB.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from qcli.errors import UsageError
from qcli.graph import Model, Value
from qcli.shift_rules import shifts_of
from qcli.shifts import Gate, Shifts, Track, shift
from qcli.statistics import Statistics
from qcli.steps._base import MeasuredStep
from qcli.steps._centre import Bound, Wish, free_terms, terms_for
from qcli.steps._noise import Samples, measured
from qcli.types import Request


class AbsorbBias(MeasuredStep, frozen=True, kw_only=True):
    """Subtracts from the channels between linear layers what they are on average; exact in float, on what was seen.

    `margin`: which share of the distance between a channel and the bounds of the Relu or Clip that it passes is kept,
    for samples to come; with 1 nothing is shifted there.
    """

    worth_db: ClassVar[float | None] = 0.5

    margin: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.margin <= 1:
            raise UsageError("absorb_bias: margin must be 0 to 1")

    def requests(self, model: Model) -> tuple[Request, ...]:
        """Some rows of each value that could be shifted."""
        found = shifts_of(model)
        free = free_terms(found)
        return tuple(_request(value, track) for value, track in found.tracks.items() if free[track.numbers].any())

    def run_measured(self, model: Model, statistics: Statistics) -> int:
        found = shifts_of(model)
        free = free_terms(found)
        known = {
            value: samples
            for value, track in found.tracks.items()
            if free[track.numbers].any() and (samples := _samples(statistics, value, track)) is not None
        }
        bounds = [_bound(gate, known.get(gate.value), 1 - self.margin) for gate in found.gates]
        terms = terms_for(found, _wishes(found, known), bounds)
        shift(model.graph, found, terms)
        return int(terms.any())


def _wishes(found: Shifts, known: dict[Value, Samples]) -> list[Wish]:
    """The mean of each channel; a miss counts in relation to the width of the tensor's grid."""
    wishes = []
    for value, samples in known.items():
        width = max(samples.upper.max(), 0.0) - min(samples.lower.min(), 0.0)
        if width > 0:
            means = samples.weights.astype(np.float64) @ samples.rows
            wishes.append(Wish(found.tracks[value], means, 1 / width))
    return wishes


def _bound(gate: Gate, samples: Samples | None, share: float) -> Bound:
    """How far a shift may go so that nothing is cut off that was not, and nothing was."""
    if samples is None or not share:
        nothing = np.zeros(gate.track.channels)
        return Bound(gate.track, nothing, nothing)
    lower, upper = share * (samples.upper - gate.upper), share * (samples.lower - gate.lower)
    passes = (lower <= 0) & (upper >= 0)
    return Bound(gate.track, np.where(passes, lower, 0.0), np.where(passes, upper, 0.0))


def _request(value: Value, track: Track) -> Request:
    return Request(value=value.name or "", statistic="reservoir", axis=track.axis)


def _samples(statistics: Statistics, value: Value, track: Track) -> Samples | None:
    known = measured(statistics, _request(value, track))
    return known.whole if known is not None else None
