"""What the integer formats share: evenly spaced levels around an integer zero point."""

from __future__ import annotations

from typing import ClassVar

import msgspec
import numpy as np
import numpy.typing as npt

from qcli.contracts import along
from qcli.errors import UsageError
from qcli.types import Array, FloatArray, Grid, Interval, Scale

_SMALLEST_SCALE = np.finfo(np.float32).tiny * 2.0**8
"""256 times the smallest normal float32: 1 / scale and a 1/256 of a step are then still normal numbers."""

_BYTE = 8

_PIECE = 1 << 18
"""Values that are encoded at a time: their temporaries stay near, and threads that do so seldom meet."""

_LARGEST = float(np.finfo(np.float32).max)


class IntegerFormat(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A grid of integers of `width` bits: real = (code - zero_point) * scale.

    Kernels read codes of 8 or 16 bits, so `dtype` is the smallest type of numpy that holds the levels. A file may store
    them in fewer bits: that is up to the encoding.

    Source: Nagel et al. 2021, "A White Paper on Neural Network Quantization", section 2.1 (uniform affine and
    symmetric uniform quantization); the arithmetic is that of ONNX QuantizeLinear and DequantizeLinear.
    """

    signed: ClassVar[bool]
    width: ClassVar[int] = 8

    @property
    def dtype(self) -> str:
        """The type of the codes."""
        return f"{'' if self.signed else 'u'}int{_BYTE if self.width <= _BYTE else 2 * _BYTE}"

    @property
    def min_opset(self) -> int:
        """QuantizeLinear came with operator set 10, its 16-bit form with 21."""
        return 10 if self.width <= _BYTE else 21

    def bits(self, grid: Grid) -> int:
        """The bits of a code. Raises UsageError for a number that the format has not."""
        bits = self.width if grid.bits is None else grid.bits
        if not 2 <= bits <= self.width:
            hint = "leave out 'bits': the format's name says how many there are"
            raise UsageError(f"format '{grid.format}': bits must be 2 to {self.width}, is {bits}", hint)
        return bits

    def levels(self, grid: Grid) -> tuple[int, int]:
        """The lowest and the highest code of `grid`."""
        bits = self.bits(grid)
        lowest = -(1 << (bits - 1)) if self.signed else 0
        return lowest + grid.narrow, lowest + (1 << bits) - 1

    def scale(self, interval: Interval, grid: Grid) -> Scale:
        """The smallest scale whose levels span the interval, for each of its channels or blocks.

        Zero is always a level, even if the interval leaves it out. A symmetric grid has its zero point in the
        middle (0, or 128 for uint8). An asymmetric one rounds it to nearest, which moves the levels by half a
        step at most: no value of the interval is then further than half a step from a level, at the ends too.
        An interval of width zero gets the scale 1. Scales never underflow, and no level decodes to Inf.
        """
        lowest, highest = self.levels(grid)
        lower, upper = np.minimum(interval.lower, 0.0), np.maximum(interval.upper, 0.0)
        if grid.symmetric:
            middle = 0 if lowest < 0 else (highest + 1) // 2
            exact = np.maximum(-lower / (middle - lowest), upper / (highest - middle))
            zero_point = np.broadcast_to(np.int64(middle), exact.shape)
        else:
            exact = (upper - lower) / (highest - lowest)
            zero_point = np.rint(lowest - lower / _storable(exact)).clip(lowest, highest).astype(np.int64)
        steps = _storable(exact)
        if steps.max(initial=0.0) > _LARGEST / (2 * (highest - lowest)):  # else no level comes near
            steps = _finite(steps, np.maximum(highest - zero_point, zero_point - lowest))
        return Scale(
            scale=steps,
            zero_point=zero_point,
            axis=grid.axis if grid.granularity != "tensor" else None,
            block=grid.block if grid.granularity == "block" else None,
            lowest=lowest,
            highest=highest,
            dtype=self.dtype,
        )

    def encode(self, values: FloatArray, scale: Scale) -> Array:
        """Codes of `values` in their shape: to the nearest level, ties to even codes, saturated."""
        if not values.ndim or values.size == 0:
            return _codes(values, *_along(scale, values.shape), scale)
        steps, zero_points, cut = _in_blocks(scale, values.shape)
        source = values.reshape(cut)
        codes = np.empty(cut, scale.dtype)
        height = max(1, _PIECE * len(source) // source.size)
        for begin in range(0, len(source), height):
            piece = slice(begin, begin + height)
            step, zero_point = (array[piece] if array.shape[0] > 1 else array for array in (steps, zero_points))
            codes[piece] = _codes(source[piece], step, zero_point, scale)
        return codes.reshape(values.shape)

    def decode(self, codes: Array, scale: Scale) -> FloatArray:
        """The real values of `codes`, float32, in their shape."""
        step, zero_point = _along(scale, codes.shape)
        return np.multiply(codes.astype(np.float32) - zero_point, step, dtype=np.float32)


def _storable(exact: npt.NDArray[np.float64]) -> FloatArray:
    """`exact` as float32, 1 where it is zero and never so small that dividing by it overflows."""
    return np.where(exact == 0, 1.0, np.maximum(exact, _SMALLEST_SCALE)).astype(np.float32)


def _finite(scale: FloatArray, farthest: npt.NDArray[np.int64]) -> FloatArray:
    """`scale`, reduced where the level `farthest` from zero would decode beyond the largest float32."""
    largest = np.nextafter((_LARGEST / farthest).astype(np.float32), np.float32(0.0))
    return np.minimum(scale, largest)


def _codes(values: FloatArray, steps: Array, zero_points: Array, scale: Scale) -> Array:
    with np.errstate(over="ignore"):
        codes = np.asarray(np.divide(values, steps, dtype=np.float32))
    np.rint(codes, out=codes)
    if zero_points.any():
        codes += zero_points
    return np.clip(codes, scale.lowest, scale.highest, out=codes).astype(scale.dtype)


def _in_blocks(scale: Scale, shape: tuple[int, ...]) -> tuple[Array, Array, tuple[int, ...]]:
    """Steps and zero points that broadcast against an array of `shape` once it has the shape that comes third.

    Blocks that are all whole are an axis of their own, so that nothing has to be repeated for each element.
    """
    axis, block = scale.axis, scale.block
    if axis is not None and block is not None and shape[axis] % block == 0:
        cut = (*shape[:axis], shape[axis] // block, block, *shape[axis + 1 :])
        steps, zero_points = (np.expand_dims(array, axis + 1) for array in (scale.scale, scale.zero_point))
        return steps, zero_points.astype(np.float32), cut
    steps, zero_points = _along(scale, shape)
    ones = (1,) * len(shape)
    return (steps.reshape(steps.shape or ones), zero_points.reshape(zero_points.shape or ones), shape)


def _along(scale: Scale, shape: tuple[int, ...]) -> tuple[Array, Array]:
    step, zero_point = along(scale, shape)
    return step, zero_point.astype(np.float32)
