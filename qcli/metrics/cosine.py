"""`cosine`: whether two results point the same way."""

from __future__ import annotations

from typing import Self

import msgspec
import numpy as np

from qcli.types import Array


class Cosine(msgspec.Struct, forbid_unknown_fields=True):
    """The cosine similarity of everything seen, taken as one long vector: Σ ref·out / √(Σ ref² · Σ out²).

    Two zero vectors are alike (1), a zero vector and another one are not (0). NaN or Inf in a result gives
    -1, the worst there is. Sums are float64.
    """

    product: float = 0.0
    reference_power: float = 0.0
    result_power: float = 0.0
    finite: bool = True

    def update(self, reference: Array, result: Array) -> None:
        """Takes in two arrays of one shape, `reference` finite."""
        if not np.isfinite(result).all():
            self.finite = False
            return
        left, right = reference.astype(np.float64).ravel(), result.astype(np.float64).ravel()
        self.product += float(np.dot(left, right))
        self.reference_power += float(np.dot(left, left))
        self.result_power += float(np.dot(right, right))

    def merge(self, other: Self) -> None:
        self.product += other.product
        self.reference_power += other.reference_power
        self.result_power += other.result_power
        self.finite = self.finite and other.finite

    def value(self) -> float:
        if not self.finite:
            return -1.0
        if self.reference_power == 0 or self.result_power == 0:
            return 1.0 if self.reference_power == self.result_power else 0.0
        cosine = self.product / (np.sqrt(self.reference_power) * np.sqrt(self.result_power))
        return float(np.clip(cosine, -1.0, 1.0))
