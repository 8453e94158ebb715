"""`coordinate`: every weight in turn takes its best code, the others being as they are."""

from __future__ import annotations

from typing import ClassVar

from qcli.errors import UsageError
from qcli.roundings._learned import LearnedRounding, Moments
from qcli.roundings._quadratic import descend
from qcli.roundings._rows import Float64Array, Rows
from qcli.roundings._vectors import compensate_vectors, descend_vectors


class Coordinate(LearnedRounding, frozen=True, kw_only=True):
    """Cyclic coordinate descent on the error of the layer's output, at most `sweeps` times over all inputs.

    Begins with what `gptq` finds, and never makes it worse. Source: Behdin et al. 2023, "QuantEase: Optimization-based
    Quantization for Language Models"; Nair and Suggala 2024, "CDQuant: Greedy Coordinate Descent".
    """

    statistic: ClassVar[str] = "gram"
    takes_vectors: ClassVar[bool] = True

    sweeps: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.sweeps <= 1000:
            raise UsageError(f"sweeps must be 0 to 1000, is {self.sweeps}")

    def learn(self, rows: Rows, measured: Moments) -> Float64Array:
        """Codes [groups, R, K], zero points taken off."""
        products = self.products(measured)
        if rows.words is not None:
            return descend_vectors(compensate_vectors(rows, products), rows, products, self.sweeps)
        return descend(self.compensated(rows, measured), rows, products, self.sweeps)
