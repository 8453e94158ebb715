"""What the floating-point formats without a scale share: the levels are the numbers of the type."""

from __future__ import annotations

from typing import ClassVar

import msgspec
import numpy as np

from qcli.errors import UsageError
from qcli.types import Array, FloatArray, Grid, Interval, Scale

_BITS = 16


class FloatFormat(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Floats of 16 bits, the type `dtype`, stored as they are: a scale of 1, no zero point.

    Ranges and roundings have no say: each number goes to the nearest one of the type. `largest` is the largest finite
    number; numbers closer to zero than `smallest_normal` have fewer bits, and none at last.
    """

    dtype: ClassVar[str]
    largest: ClassVar[float]
    smallest_normal: ClassVar[float]
    min_opset: ClassVar[int]
    unscaled: ClassVar[bool] = True

    def bits(self, grid: Grid) -> int:
        """Always 16. Raises UsageError for fewer, and for scales of channels or blocks, which have nothing to do."""
        if grid.bits is not None or grid.narrow:
            raise UsageError(f"format '{grid.format}' takes no 'bits' and no 'narrow'", "leave them out")
        if grid.granularity != "tensor":
            problem = f"format '{grid.format}' has no scale, so none for each {grid.granularity}"
            raise UsageError(problem, "leave out 'granularity' and 'block'")
        return _BITS

    def scale(self, interval: Interval, grid: Grid) -> Scale:
        """A scale of 1, whatever the interval."""
        self.bits(grid)
        return Scale(
            scale=np.ones(1, np.float32),
            zero_point=np.zeros(1, np.int64),
            lowest=-int(self.largest),
            highest=int(self.largest),
            dtype=self.dtype,
        )

    def encode(self, values: FloatArray, scale: Scale) -> Array:
        """`values` as numbers of the type, in their shape: to nearest, ties to even; beyond its ends they saturate."""
        inside = np.clip(values, -self.largest, self.largest)
        return np.asarray(inside, np.float32).astype(np.dtype(self.dtype))

    def decode(self, codes: Array, scale: Scale) -> FloatArray:
        """The same numbers as float32, which holds each of them."""
        return np.asarray(codes).astype(np.float32)
