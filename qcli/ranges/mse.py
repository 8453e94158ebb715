"""`mse`: the range with the smallest mean squared error."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import msgspec

from qcli.contracts import Format
from qcli.distribution import Distribution
from qcli.plugins import create
from qcli.ranges._error import LevelError, SquaredError, error_for
from qcli.ranges._interval import Float64Array
from qcli.ranges._quick import best_clip
from qcli.ranges._search import least
from qcli.types import FloatArray, Grid, Interval


class Mse(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Clips as much as makes the mean squared quantization error smallest: rounding noise against saturation.

    Tries ranges from the extrema down to the typical magnitude, evenly spaced in their logarithm, then finer
    ones around the best. Symmetric grids and one-sided channels have one bound to find; otherwise both ends
    are searched together. Each candidate is measured on the very grid that the format would make of it, so
    the result is never worse than minmax. One-sided channels keep exactly 0 as their other end.

    With `weighted`, for weights alone, each error counts by the energy of the input that the weight meets:

        sum over j of E[x_j**2] * (w_j - q(w_j))**2

    which is the error of the layer's output if its inputs are independent, as far as they are known (samples are
    needed). The energies come as the counts of the distribution; weights that cannot have them, such as those that
    several nodes read, are searched without, and a warning says so.

    Source: Nagel et al. 2021, "A White Paper on Neural Network Quantization", section 3.1, "Mean squared
    error"; the diagonal of the Hessian as in Guo et al. 2022, "SQuant: On-the-Fly Data-Free Quantization via Diagonal
    Hessian Approximation"; the search is ours.
    """

    statistic: ClassVar[str] = "histogram"

    weighted: bool = False

    def quick(self, values: FloatArray, grid: Grid) -> Interval:
        """Nearly the best interval [...] of each run along the first axis of `values` [size, ...]."""
        return best_clip(values, grid)

    def interval(self, distribution: Distribution, grid: Grid) -> Interval:
        """The best interval [channels] for `grid`."""
        number_format: Format = create("formats", grid.format)
        measure = partial(_errors, error_for(distribution, grid), number_format, grid)
        return least(measure, distribution, grid)


def _errors(
    error: SquaredError | LevelError, number_format: Format, grid: Grid, lows: Float64Array, highs: Float64Array
) -> Float64Array:
    """The squared errors of the grids that span -lows to highs, all of shape [channels, candidates]."""
    return error.of_grids(number_format.scale(Interval(lower=-lows.ravel(), upper=highs.ravel()), grid))
