"""What is hard to quantize moves from the input of a product into its weight, as far as both together lose least.

    x W  =  (x / s) (s W)           s_j = max|x_j|^a / max|W_j|^(1 - a)

The division joins the constants in front of the product: a LayerNormalization's gain and bias, a layer's weight and
bias, a Mul. Where nothing there takes it, a Div of its own does, if the gain is worth one. All products of one input
share one s, as the projections of an attention do.

Source: Xiao et al. 2022, "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models",
equation 4; there with one a for a whole model, here for each input the one with the least measured error, or none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

import msgspec
import numpy as np

from qcli.graph import Model
from qcli.statistics import Statistics
from qcli.steps._base import MeasuredStep
from qcli.steps._linear import Linear
from qcli.steps._noise import Measured, Samples, Trials, measured
from qcli.steps._scaling import ScalingSite, scale_channels, scaling_sites
from qcli.types import Array, Request

_QUIET = 0.5
"""Channels below this share of the median one count as that large: what is quiet in the samples may not stay so.
Silent ones are no measure: of few images most pixels of a border are 0, and so would be the median of all."""

_SMALLEST = 1e-5
"""Channels and rows below this share of the largest one count as that large, so that dead ones divide by no zero."""


class Smooth(MeasuredStep, frozen=True, kw_only=True):
    """Divides the channels of MatMul and Gemm inputs by factors that their weights are multiplied with; exact in float.

    Of the `alphas`, the share of the difficulty that moves into the weight, the one is taken that lowers the error of
    the outputs most, that of 8-bit weights included; none if that gains less than `gain_db`, or less than `div_gain_db`
    where it costs a Div of its own. What is chosen on one half of the samples is tried on the other.
    """

    worth_db: ClassVar[float | None] = 0.05
    looks_for: ClassVar[tuple[str, ...]] = ("Gemm", "MatMul")

    alphas: tuple[Annotated[float, msgspec.Meta(ge=0, le=1)], ...] = (0.25, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    gain_db: float = 1.0
    div_gain_db: float = 3.0

    def requests(self, model: Model) -> tuple[Request, ...]:
        """Some rows of each input that can be divided."""
        return tuple(site.readers[0].request() for site in scaling_sites(model))

    def run_measured(self, model: Model, statistics: Statistics) -> int:
        smoothed = 0
        for site in scaling_sites(model):
            known = measured(statistics, site.readers[0].request())
            factors = self.factors(known, site.readers, self._least(site)) if known is not None else None
            if factors is not None:
                scale_channels(model.graph, site, factors)
                smoothed += 1
        return smoothed

    def _least(self, site: ScalingSite) -> float:
        return self.div_gain_db if site.changes is None else self.gain_db

    def factors(self, known: Measured, readers: Sequence[Linear], least_db: float) -> Array | None:
        """The best s for products of one input, float64 [channels]; None if the best gains less than `least_db`."""
        trials = Trials(known, readers)
        rows, best, chosen = trials.row_peaks, least_db, None
        for alpha in self.alphas:

            def pair(samples: Samples, alpha: float = alpha) -> tuple[Array, Array]:
                factors = _factors(samples.peaks, rows, alpha)
                return 1 / factors, factors

            if (gained := trials.gain(pair)) > best:
                best, chosen = gained, alpha
        return _factors(known.whole.peaks, rows, chosen) if chosen is not None else None


def _factors(peaks: Array, rows: Array, alpha: float) -> Array:
    """Equation 4 for the largest magnitudes of the input's channels and of the weight's rows; geometric mean 1."""
    if not peaks.max() or not rows.max():
        return np.ones(len(peaks))
    shares = peaks / peaks.max()
    typical = np.median(shares[shares > _SMALLEST])
    logs = alpha * np.log(np.maximum(shares, max(_SMALLEST, _QUIET * typical)))
    logs -= (1 - alpha) * np.log(np.maximum(rows / rows.max(), _SMALLEST))
    factors: Array = np.exp(logs - logs.mean())
    return factors
