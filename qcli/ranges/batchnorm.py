"""`batchnorm`: from what BatchNormalization says of its results, without samples."""

from __future__ import annotations

from typing import Annotated, ClassVar

import msgspec
import numpy as np

from qcli.distribution import Distribution
from qcli.errors import NothingToDoError
from qcli.types import Grid, Interval


class Batchnorm(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Spans `sigmas` standard deviations around the mean of every channel, which BatchNormalization has in its
    parameters: beta - sigmas * |gamma| to beta + sigmas * |gamma|, clipped by the activation function behind it.

    The plan follows these distributions through the graph (`expectation.py`) and fills in `lower` and `upper`. Where
    they are given in a recipe they are taken as they are: the way to say what an input's values lie between.

    Source: Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section 5
    (activation ranges, with 6 standard deviations).

    Raises ValueError (shown as a usage error) if `upper` is not above `lower`.
    """

    statistic: ClassVar[str | None] = None

    sigmas: Annotated[float, msgspec.Meta(gt=0, le=100)] = 6.0
    lower: float | None = None
    upper: float | None = None

    def __post_init__(self) -> None:
        if (self.lower is None) != (self.upper is None):
            raise ValueError("'lower' and 'upper' go together")
        if self.lower is not None and self.upper is not None and not self.lower <= self.upper:
            raise ValueError("'upper' must be above 'lower'")

    def interval(self, distribution: Distribution, grid: Grid) -> Interval:
        """The interval for each channel, widened to contain zero. Raises NothingToDoError while it is not known."""
        if self.lower is None or self.upper is None:
            raise NothingToDoError("the range 'batchnorm' is for activations that BatchNormalization describes")
        shape = distribution.lower.shape
        return Interval(lower=np.full(shape, min(self.lower, 0.0)), upper=np.full(shape, max(self.upper, 0.0)))
