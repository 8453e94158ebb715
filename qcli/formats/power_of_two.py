"""`power_of_two`: zero, and powers of two of both signs."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from qcli.formats._signed import both_signs
from qcli.formats._table import TableFormat
from qcli.types import FloatArray, Grid


class PowerOfTwo(TableFormat, frozen=True):
    """0 and +-2**-k for k from 0 to 2**(bits - 1) - 2, times a scale; `bits` from 2 to 6 (4).

    Levels are dense around zero and coarse at the ends, where neighbours are a factor of two apart: more than 4 bits
    gain nearly nothing. Hardware shifts instead of multiplying; onnxruntime decodes the weights. One code is not used.
    Source: Miyashita et al. 2016, "Convolutional Neural Networks using Logarithmic Data Representation"; Zhou et al.
    2017, "Incremental Network Quantization".
    """

    most_bits: ClassVar[int] = 6

    def entries(self, grid: Grid) -> int:
        """An odd number: zero has no sign."""
        return (1 << self.bits(grid)) - 1

    def table(self, grid: Grid) -> FloatArray:
        """The levels [2**bits - 1], from -1 to 1."""
        return both_signs(np.exp2(-np.arange((1 << (self.bits(grid) - 1)) - 1, dtype=np.float64)))
