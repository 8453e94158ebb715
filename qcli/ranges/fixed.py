"""A range given by hand, or by the definition of an operator."""

from __future__ import annotations

from typing import ClassVar

import msgspec
import numpy as np

from qcli.distribution import Distribution
from qcli.types import Grid, Interval


class Fixed(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The interval from `lower` to `upper`, whatever the samples show; Sigmoid and Softmax use 0 to 1.

    Raises ValueError (shown as a usage error) if `upper` is not above `lower`.
    """

    statistic: ClassVar[str] = "extrema"
    lower: float
    upper: float

    def __post_init__(self) -> None:
        if not self.lower < self.upper:
            raise ValueError("'upper' must be above 'lower'")

    def interval(self, distribution: Distribution, grid: Grid) -> Interval:
        """The same interval for each channel, widened to contain zero."""
        shape = distribution.lower.shape
        return Interval(lower=np.full(shape, min(self.lower, 0.0)), upper=np.full(shape, max(self.upper, 0.0)))
