"""`gptq`: weights are rounded one after the other, and those to come make up for the error so far."""

from __future__ import annotations

from typing import ClassVar

from qcli.roundings._learned import LearnedRounding, Moments
from qcli.roundings._rows import Float64Array, Rows
from qcli.roundings._vectors import compensate_vectors


class Gptq(LearnedRounding, frozen=True, kw_only=True):
    """Rounds the inputs' weights in the order of their energy, compensating each error in those not yet rounded.

    Source: Frantar et al. 2022, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers";
    for vectors that share a code van Baalen et al. 2024, "GPTVQ: The Blessing of Dimensionality for LLM Quantization".
    """

    statistic: ClassVar[str] = "gram"
    takes_vectors: ClassVar[bool] = True

    def learn(self, rows: Rows, measured: Moments) -> Float64Array:
        """Codes [groups, R, K], zero points taken off."""
        if rows.words is not None:
            return compensate_vectors(rows, self.products(measured))
        return self.compensated(rows, measured)
