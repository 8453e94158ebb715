"""`hqq`: scales and zero points that make most errors small, whatever becomes of a few; needs no data."""

from __future__ import annotations

from typing import Annotated, ClassVar

import msgspec
import numpy as np

from qcli.contracts import along
from qcli.levels import nearest_codes
from qcli.types import Array, FloatArray, Scale


class Hqq(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Moves the zero points and the scales of blocks or channels, then rounds to nearest.

    Looks for the smallest sum of |w - q(w)|^p, in units of the step; p below 1 forgives outliers. `iterations` times
    the errors are shrunk, which leaves the outlying ones, and zero point and scale are fitted to what is left of the
    weight by least squares; `beta` grows by `kappa` each time. Zero points stay integers, and symmetric grids keep
    theirs. A block keeps the best that was found, which may be what it began with.

    Source: Badri and Shaji 2023, "Half-Quadratic Quantization of Large Machine Learning Models", equations 3 to 6,
    there with zero points that are floats and scales that stay.
    """

    elementwise: ClassVar[bool] = True
    p: Annotated[float, msgspec.Meta(gt=0, le=2)] = 0.7
    beta: Annotated[float, msgspec.Meta(gt=0)] = 10.0
    kappa: Annotated[float, msgspec.Meta(ge=1)] = 1.01
    iterations: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 20

    def fitted(self, weight: FloatArray, scale: Scale) -> Scale:
        """The scale and zero points for `weight`; both keep their shapes."""
        best, least = scale, self._cost(weight, scale)
        beta, tried = self.beta, scale
        for _ in range(self.iterations):
            tried = self._step(weight, tried, beta)
            cost = self._cost(weight, tried)
            better = cost < least
            if not better.any():
                break
            best = msgspec.structs.replace(
                best,
                scale=np.where(better, tried.scale, best.scale),
                zero_point=np.where(better, tried.zero_point, best.zero_point),
            )
            least, beta = np.minimum(cost, least), beta * self.kappa
        return best

    def round(self, weight: FloatArray, scale: Scale) -> Array:
        """Codes of the scale's dtype in the shape of `weight`, to nearest."""
        if scale.is_table:
            return nearest_codes(weight, scale)
        steps, zero = along(scale, weight.shape)
        return np.asarray(_levels(weight, scale, steps, zero) + zero, scale.dtype)

    def _step(self, weight: FloatArray, scale: Scale, beta: float) -> Scale:
        """Zero points and then scales that fit the weight without its outlying errors."""
        steps, zero = along(scale, weight.shape)
        levels = _levels(weight, scale, steps, zero)
        wrong = weight / steps - levels
        outlying = np.sign(wrong) * np.maximum(np.abs(wrong) - _power(wrong, self.p - 1) / np.float32(beta), 0)
        kept = weight / steps - outlying
        if scale.zero_point.any():  # an asymmetric grid
            shift = _sums(levels - kept, scale) / _sums(np.ones_like(levels), scale)
            moved = np.rint(scale.zero_point + shift).clip(scale.lowest, scale.highest).astype(np.int64)
            scale = msgspec.structs.replace(scale, zero_point=moved)
            levels = _levels(weight, scale, *along(scale, weight.shape))
        return msgspec.structs.replace(scale, scale=_refitted(kept, levels, scale))

    def _cost(self, weight: FloatArray, scale: Scale) -> Array:
        """The sum of |error|^p of each block or channel, in the shape of the scale."""
        steps, zero = along(scale, weight.shape)
        wrong = weight - _levels(weight, scale, steps, zero) * steps
        return _sums(_power(wrong, self.p), scale)


_SMALLEST = np.float32(1e-12)


def _power(wrong: FloatArray, exponent: float) -> FloatArray:
    return np.asarray(np.maximum(np.abs(wrong), _SMALLEST) ** np.float32(exponent), np.float32)


def _levels(weight: FloatArray, scale: Scale, steps: FloatArray, zero: Array) -> FloatArray:
    """Codes without their zero points, float32."""
    lowest, highest = np.float32(scale.lowest) - zero, np.float32(scale.highest) - zero
    return np.asarray(np.rint(weight / steps).clip(lowest, highest), np.float32)


def _refitted(kept: FloatArray, levels: FloatArray, scale: Scale) -> FloatArray:
    """The scales by least squares, none below a half or above two of what it was."""
    squares = _sums(levels * levels, scale)
    products = _sums(kept * levels, scale)
    factors = np.divide(products, squares, out=np.ones_like(squares), where=squares > 0).clip(0.5, 2.0)
    return np.asarray(scale.scale * factors, np.float32)


def _sums(array: FloatArray, scale: Scale) -> FloatArray:
    """The sum over the elements that share a scale, in the shape of the scale."""
    if scale.block is not None and scale.axis is not None:
        starts = np.arange(0, array.shape[scale.axis], scale.block)
        return np.asarray(np.add.reduceat(array, starts, scale.axis), np.float32)
    others = tuple(axis for axis in range(array.ndim) if axis != scale.axis)
    return np.asarray(array.sum(axis=others).reshape(scale.scale.shape), np.float32)
