"""Biases take in what quantization shifts the mean of each channel by.

    c = b + W E[x] - V E[y]        x: inputs in float, y: inputs after the quantized layers before, V: quantized weights

Source: Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.2 and
appendix D (empirical bias correction); without samples section 4.2.1 (analytic bias correction), where y = x.
"""

from __future__ import annotations

from qcli.contracts import FinishingWork
from qcli.steps._base import FinishStep


class CorrectBias(FinishStep, frozen=True, kw_only=True):
    """Corrects biases layer after layer in the order of the graph, each on top of the corrections before it.

    Half of the samples finds the correction, the other half decides for each channel whether it stays: a mean over few
    samples with a few large values is worse than none. Roundings with `sequential` correct biases as they go.

    Without samples, the mean of what a layer reads is what BatchNormalization says of it, where it can be followed.
    """

    def finish(self, work: FinishingWork) -> bool:
        return work.correct_biases() if work.samples else work.foretell_biases()
