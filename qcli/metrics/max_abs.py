"""`max_abs`: the largest single difference."""

from __future__ import annotations

from typing import ClassVar, Self

import msgspec
import numpy as np

from qcli.types import Array


class MaxAbs(msgspec.Struct, forbid_unknown_fields=True):
    """The largest |ref − out| of all values seen, in the unit of the output; 0 before the first.

    NaN or Inf in a result gives `WORST`, the largest float32, so that JSON can hold it.
    """

    WORST: ClassVar[float] = float(np.finfo(np.float32).max)

    largest: float = 0.0

    def update(self, reference: Array, result: Array) -> None:
        """Takes in two arrays of one shape, `reference` finite."""
        if result.size == 0:
            return
        if not np.isfinite(result).all():
            self.largest = self.WORST
            return
        difference = np.abs(reference.astype(np.float64) - result.astype(np.float64)).max()
        self.largest = max(self.largest, min(float(difference), self.WORST))

    def merge(self, other: Self) -> None:
        self.largest = max(self.largest, other.largest)

    def value(self) -> float:
        return self.largest
