"""What the float formats of four and eight bits share: their levels, and scales that are themselves coarse."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np

from qcli.formats._signed import float_levels
from qcli.formats._table import FLOAT_BITS, Float64Array, TableFormat
from qcli.types import FloatArray, Grid

_BYTE = 8

_SPAN = 30
"""Powers of two between the largest scale and the smallest: what lies below is all zero beside the rest."""

_E4M3 = float_levels(4, 3, 7, 448.0)
_E4M3_TOP = 8
"""The exponent of the largest number of float8_e4m3fn."""


class SmallFloat(TableFormat, frozen=True, kw_only=True):
    """The numbers of a small float type, times a scale.

    `scales` says what the scales may be: any `float32`; a `power_of_two`, one byte each, as in the MX formats
    (granularity block, blocks of 32); or `float8`, numbers of float8_e4m3fn times one power of two for the weight, one
    byte each, as in NVFP4 (blocks of 16). Source: Open Compute Project 2023, "OCP Microscaling Formats (MX)
    Specification", section 6.3; Micikevicius et al. 2022, "FP8 Formats for Deep Learning".
    """

    exponent_bits: ClassVar[int]
    mantissa_bits: ClassVar[int]
    bias: ClassVar[int]
    largest: ClassVar[float]

    scales: Literal["float32", "power_of_two", "float8"] = "float32"

    @property
    def min_opset(self) -> int:
        """Types of eight bits came with operator set 19."""
        return 19 if self.native is not None or self.scales != "float32" else 1

    def entries(self, grid: Grid) -> int:
        """Both zeros are one level."""
        return int(self.table(grid).size)

    def side_bits(self, grid: Grid, scales: int) -> int:
        """A type of ONNX's own needs no table."""
        table = 0 if self.native is not None else FLOAT_BITS * self.entries(grid)
        return table + scales * (FLOAT_BITS if self.scales == "float32" else _BYTE)

    def table(self, grid: Grid) -> FloatArray:
        """All finite numbers of the type, zero once."""
        self.bits(grid)
        return float_levels(self.exponent_bits, self.mantissa_bits, self.bias, self.largest)

    def _steps(self, farthest: Float64Array, outermost: float) -> FloatArray:
        if self.scales == "float32":
            return super()._steps(farthest, outermost)
        known = np.where(farthest > 0, farthest, np.max(farthest, initial=0.0) or 1.0)
        if self.scales == "power_of_two":
            exponents = np.floor(np.log2(known)) - np.floor(np.log2(outermost))
            lowest = exponents.max() - _SPAN
            return np.asarray(np.exp2(np.maximum(exponents, lowest)), np.float32)
        exact = known / outermost
        factor = np.exp2(np.floor(np.log2(exact.max(initial=0.0) or 1.0)) - _E4M3_TOP)
        positive = _E4M3[_E4M3 > 0].astype(np.float64)
        places = np.searchsorted((positive[1:] + positive[:-1]) / 2, exact / factor)
        return np.asarray(positive[places] * factor, np.float32)
