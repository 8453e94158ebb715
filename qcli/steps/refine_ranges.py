"""Activation ranges are narrowed or widened where the output of the whole model gains by it.

What is best for a tensor, or for the layer behind it, need not be best for the model: values that occur at a few places
of a few samples may carry most of a tensor's energy and matter little in the end, where pooling averages them away.
Narrowing such a range to a third can gain a decibel; no error measured at the tensor would suggest it.

Source: a coordinate search on the loss of the model, as Nahshan et al. 2019, "Loss Aware Post-Training Quantization",
propose, here one value at a time.
"""

from __future__ import annotations

from qcli.contracts import FinishingWork
from qcli.errors import UsageError
from qcli.steps._base import FinishStep


class RefineRanges(FinishStep, frozen=True, kw_only=True):
    """Tries for each value whether its range should be multiplied by one of `factors`, the most outlying values first.

    At most `limit` values are tried; values that are tied change together. Each trial runs the quantized model on part
    of the calibration samples; the rest decides whether the result stays.
    """

    factors: tuple[float, ...] = (0.7, 0.85, 1.2)
    limit: int = 48

    def __post_init__(self) -> None:
        if not self.factors or not all(0 < factor < 10 for factor in self.factors):
            raise UsageError("refine_ranges: factors must be above 0 and below 10")
        if not 1 <= self.limit <= 1000:
            raise UsageError("refine_ranges: limit must be 1 to 1000")

    def finish(self, work: FinishingWork) -> bool:
        return work.refine_ranges(self.factors, self.limit)
