"""`auto`: of several methods the one whose grid does least harm."""

from __future__ import annotations

from typing import ClassVar

import msgspec
import numpy as np

from qcli.contracts import Format
from qcli.distribution import Distribution
from qcli.plugins import choice_of, create
from qcli.ranges._error import SquaredError
from qcli.ranges._interval import Float64Array
from qcli.types import Grid, Interval, Spec

_METHODS: tuple[Spec, ...] = (
    {"percentile": {"keep": 99.999}},
    "minmax",
    {"percentile": {"keep": 99.99}},
    "mse",
    "octav",
    "entropy",
)


class Auto(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Chooses among `methods` for each value, since none of them is best everywhere; the first stays in case of doubt.

    Activations are decided in a stage of its own, on samples, by the error that each candidate makes in the outputs of
    the layers that read the value; the plan then names the method in place of `auto`. What cannot be decided so is
    decided here, by the mean squared error of the values themselves: weights, values in the bodies of If, Loop and
    Scan, and everything where there are statistics but no samples.

    Raises ValueError (shown as a usage error) if `methods` is empty or names `auto` or what
    needs more than a histogram, UsageError for an unknown method.
    """

    statistic: ClassVar[str] = "histogram"

    methods: tuple[Spec, ...] = _METHODS

    def __post_init__(self) -> None:
        if not self.methods:
            raise ValueError("'methods' names nothing to choose from")
        if any(choice_of(method).name == "auto" for method in self.methods):
            raise ValueError("'methods' cannot name auto itself")
        for method in self.methods:
            created = create("ranges", method)
            if created.statistic == "rows" or getattr(created, "weighted", False):
                raise ValueError(f"'methods' cannot name {choice_of(method).name} as it needs more than a histogram")

    def interval(self, distribution: Distribution, grid: Grid) -> Interval:
        """For each channel the candidate with the least squared error; the first of several that are equal."""
        found, errors = self._candidates(distribution, grid)
        best = np.argmin(errors, axis=0)
        channels = np.arange(best.size)
        lower, upper = (np.stack([getattr(item, end) for item in found]) for end in ("lower", "upper"))
        return Interval(lower=lower[best, channels], upper=upper[best, channels])

    def nearest(self, distribution: Distribution, grid: Grid) -> Spec:
        """The method with the least squared error of all values."""
        _, errors = self._candidates(distribution, grid)
        return self.methods[int(np.argmin(errors.sum(axis=1)))]

    def _candidates(self, distribution: Distribution, grid: Grid) -> tuple[list[Interval], Float64Array]:
        """The interval of each method, and its squared errors [methods, channels]."""
        number_format: Format = create("formats", grid.format)
        error = SquaredError.of(distribution)
        found = [create("ranges", method).interval(distribution, grid) for method in self.methods]
        return found, np.stack([error.of_grids(number_format.scale(item, grid))[:, 0] for item in found])
