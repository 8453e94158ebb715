"""`normal_float`: levels at the quantiles of a normal distribution."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np

from qcli.formats._table import TableFormat
from qcli.types import FloatArray, Grid


class NormalFloat(TableFormat, frozen=True):
    """Levels that a normal distribution uses equally often, zero among them, from -1 to 1; `bits` from 2 to 8 (4).

    With 4 bits these are the levels of NF4. There is one level more above zero than below. Meant for blocks scaled by
    their largest magnitude (range `minmax`); `mse` is better by a little. Source: Dettmers et al. 2023, "QLoRA",
    equation 4 and appendix E.
    """

    def table(self, grid: Grid) -> FloatArray:
        """The levels [2**bits]."""
        half = 1 << (self.bits(grid) - 1)
        outermost = 1 - (1 / (4 * half) + 1 / (4 * half - 2)) / 2
        above, below = (
            [NormalDist().inv_cdf(share) for share in np.linspace(outermost, 0.5, count)[:-1]]
            for count in (half + 1, half)
        )
        table = np.array([*(-value for value in below), 0.0, *reversed(above)])
        return np.asarray(table / table.max(), np.float32)
