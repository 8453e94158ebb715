"""What the formats share whose levels are not evenly spaced: a table of numbers, and codes that are places in it."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from qcli.errors import UsageError
from qcli.levels import nearest_codes, real_values
from qcli.plugins import choice_of
from qcli.types import Array, FloatArray, Grid, Interval, Scale

Float64Array = npt.NDArray[np.float64]

FLOAT_BITS = 32

_SMALLEST = float(np.finfo(np.float32).tiny) * 2.0**8
_LARGEST = float(np.finfo(np.float32).max)


class Fitted(NamedTuple):
    """What a format learned from groups of weights: `scale` float32 [G], and `levels` float32 [K] or [G, K]."""

    scale: FloatArray
    levels: FloatArray


class TableFormat(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Levels anywhere: real = levels[code] * scale. For weights; they are decoded before anything multiplies them.

    `default_bits` is the width where a grid states none, from `least_bits` to `most_bits`.
    """

    uniform: ClassVar[bool] = False
    learned: ClassVar[bool] = False
    """True for a table that comes from the weights: the format has a `fit`, and a rule's range has no part in it."""

    default_bits: ClassVar[int] = 4
    least_bits: ClassVar[int] = 2
    most_bits: ClassVar[int] = 8
    native: ClassVar[str | None] = None

    @property
    def dtype(self) -> str:
        """The type of the codes."""
        return "uint8"

    @property
    def min_opset(self) -> int:
        """Tables are read by Gather, which all operator sets have; types of ONNX's own came with 19."""
        return 19 if self.native is not None else 1

    def bits(self, grid: Grid) -> int:
        """The bits of a code. Raises UsageError for a number that the format has not, or for a zero point."""
        name = choice_of(grid.format).name
        bits = self.default_bits if grid.bits is None else grid.bits
        if not self.least_bits <= bits <= self.most_bits:
            span = f"{self.least_bits} to {self.most_bits}" if self.most_bits > self.least_bits else f"{self.most_bits}"
            raise UsageError(f"format '{name}': bits must be {span}, is {bits}", "correct 'bits', or leave it out")
        if not grid.symmetric or grid.narrow:
            option = "narrow: true" if grid.narrow else "symmetric: false"
            raise UsageError(f"format '{name}' has a table of levels and no '{option}'", "leave it out of the grid")
        return bits

    def entries(self, grid: Grid) -> int:
        """How many levels there are."""
        return 1 << self.bits(grid)

    @property
    def weights_per_code(self) -> int:
        """How many weights a code stands for."""
        return 1

    def side_bits(self, grid: Grid, scales: int) -> int:
        """The bits that tables and scales take in a file, for a grid of so many scales."""
        return FLOAT_BITS * (self.entries(grid) + scales)

    def table(self, grid: Grid) -> FloatArray:
        """The levels [K] of a format whose table is the same for all weights, ascending, zero among them."""
        raise NotImplementedError

    def scale(self, interval: Interval, grid: Grid) -> Scale:
        """The scale with which the outermost level reaches the farther end of the interval; 1 where it is empty."""
        self.bits(grid)
        table = self.table(grid)
        farthest = np.maximum(np.maximum(-interval.lower, interval.upper), 0.0)
        return table_scale(self._steps(farthest, float(np.abs(table).max())), table, grid, self.native)

    def _steps(self, farthest: Float64Array, outermost: float) -> FloatArray:
        exact = np.where(farthest == 0, 1.0, np.maximum(farthest / outermost, _SMALLEST))
        return np.minimum(exact, _LARGEST / outermost).astype(np.float32)

    def encode(self, values: FloatArray, scale: Scale) -> Array:
        """Codes of `values` in their shape: to the nearest level."""
        return nearest_codes(values, scale)

    def decode(self, codes: Array, scale: Scale) -> FloatArray:
        """The real values of `codes`, float32, in their shape."""
        return real_values(codes, scale)


class LearnedFormat(TableFormat, frozen=True):
    """A format whose table or scale is fitted to the weights themselves, in place of an interval."""

    learned: ClassVar[bool] = True

    def shares(self, grid: Grid) -> bool:
        """True where all groups have one table, which is then found from a sample of them by `fit`."""
        return False

    def fit(self, rows: FloatArray, counts: Float64Array, grid: Grid) -> Fitted:
        """The table and the scales for groups of weights [G, n], each of which counts `counts` [G, n] times.

        What counts nothing only fills up a row. The sum of counts times squared errors is what is made small.
        """
        raise NotImplementedError

    def scale(self, interval: Interval, grid: Grid) -> Scale:
        """Raises UsageError: an interval says too little."""
        name = choice_of(grid.format).name
        raise UsageError(f"format '{name}' is fitted to weights, not to a range", "use it in a rule for role: weight")


def table_scale(steps: FloatArray, levels: FloatArray, grid: Grid, native: str | None = None) -> Scale:
    """The scale of a table, for steps in the shape of the grid's scales."""
    return Scale(
        scale=steps,
        zero_point=np.zeros(steps.shape, np.int64),
        axis=grid.axis if grid.granularity != "tensor" else None,
        block=grid.block if grid.granularity == "block" else None,
        lowest=0,
        highest=levels.shape[-1] - 1,
        dtype="uint8",
        levels=levels.astype(np.float32),
        native=native,
    )


def dense(rows: Array, counts: Float64Array) -> tuple[Float64Array, Float64Array]:
    """The rows as float64, and counts for them of which no row is all zero."""
    empty = counts.sum(axis=1, keepdims=True) <= 0
    return rows.astype(np.float64), np.where(empty, 1.0, counts)
