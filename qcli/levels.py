"""Levels that lie anywhere: which code is next to a value, what a code stands for, and how well a table fits."""

from __future__ import annotations

from typing import Self

import msgspec
import numpy as np
import numpy.typing as npt

from qcli.contracts import along
from qcli.plugins import create
from qcli.types import Array, FloatArray, Grid, Scale
from qcli.vectors import vector_codes, vector_values

Float64Array = npt.NDArray[np.float64]


def is_uniform(grid: Grid) -> bool:
    """False for a format whose levels are not evenly spaced."""
    return bool(getattr(create("formats", grid.format), "uniform", True))


def native_of(grid: Grid) -> str | None:
    """ONNX's type of which the levels of `grid` are the numbers, as in `FLOAT8E4M3FN`; None where there is none."""
    native: str | None = getattr(create("formats", grid.format), "native", None)
    return native


def code_bits(entries: int) -> float:
    """The bits that a code of so many takes in a file: two or three of them are digits of a byte.

    Example: 3 codes are stored five to a byte, in 1.6 bits each; 16 codes in 4 bits.
    """
    digits = digits_of(entries)
    return _BYTE / digits if digits else next(bits for bits in (2, 4, _BYTE) if entries <= 1 << bits)


def digits_of(entries: int) -> int:
    """How many codes a byte holds as digits; 0 where ONNX has a type of so many bits."""
    return {2: 8, 3: 5}.get(entries, 0)


_BYTE = 8


def middles(levels: Array) -> Float64Array:
    """Where the nearest level changes, along the last axis."""
    wide = levels.astype(np.float64)
    return np.asarray((wide[..., 1:] + wide[..., :-1]) / 2)


def nearest_codes(values: Array, scale: Scale) -> Array:
    """Codes of the scale's dtype in their shape: the level next to each; of two that are as near the lower.

    With vectors the codeword next to each of them, in the shape that codes of vectors have.
    """
    if scale.vectors is not None:
        return vector_codes(values, scale)
    if scale.levels is None:
        raise ValueError("the scale has no levels")
    steps, _ = along(scale, values.shape)
    divisors = np.where(steps > 0, steps, np.float32(1))  # what is all zero has the scale zero
    with np.errstate(over="ignore"):
        placed = np.divide(values, divisors, dtype=np.float32)
    if scale.levels.ndim == 1:
        codes = np.searchsorted(middles(scale.levels).astype(np.float32), placed)
    else:
        codes = nearest_in(scale.levels.reshape(-1, scale.levels.shape[-1]), _tables(scale, values.shape), placed)
    return codes.astype(scale.dtype)


def real_values(codes: Array, scale: Scale) -> FloatArray:
    """The real values of `codes`, float32, in their shape; of vectors in that of the weight."""
    if scale.vectors is not None:
        return vector_values(codes, scale)
    if scale.levels is None:
        raise ValueError("the scale has no levels")
    steps, _ = along(scale, codes.shape)
    if scale.levels.ndim == 1:
        return np.asarray(np.multiply(scale.levels[codes], steps, dtype=np.float32))
    places = _tables(scale, codes.shape) * scale.levels.shape[-1] + codes
    return np.asarray(np.multiply(scale.levels.reshape(-1)[places], steps, dtype=np.float32))


def nearest_in(tables: Array, numbers: Array, values: Array) -> Array:
    """Codes of `values` in ascending `tables` [tables, K]; `numbers`, which broadcast, say in which."""
    between = middles(tables)
    depth = int(between.shape[-1]).bit_length()
    fences = np.full((len(tables), 1 << depth), np.inf)
    fences[:, : between.shape[-1]] = between
    codes = np.zeros(values.shape, np.int64)
    for bit in reversed(range(depth)):
        step = 1 << bit
        codes += step * (values > fences[numbers, codes + step - 1])
    return codes


def _tables(scale: Scale, shape: tuple[int, ...]) -> Array:
    """The number of the table of each element, in a shape that broadcasts against `shape`."""
    numbered = np.arange(scale.scale.size).reshape(scale.scale.shape)
    return along(msgspec.structs.replace(scale, zero_point=numbered), shape)[1]


class Cells(msgspec.Struct, frozen=True, kw_only=True):
    """Values in ascending rows [G, n] with sums from their beginning, so that those of any run cost nothing.

    `weights`, `firsts` and `seconds` float64 [G, n + 1] are the sums of c, c w and c w**2.
    """

    values: Float64Array
    weights: Float64Array
    firsts: Float64Array
    seconds: Float64Array
    flat: Float64Array
    floors: Float64Array
    widths: Float64Array

    @classmethod
    def of(cls, values: Array, counts: Array) -> Self:
        """`values` [G, n] in any order, each of which counts `counts` [G, n] times."""
        order = np.argsort(values, axis=1, kind="stable")
        ordered = np.take_along_axis(values, order, axis=1).astype(np.float64)
        many = np.take_along_axis(np.broadcast_to(counts, values.shape), order, axis=1).astype(np.float64)
        return cls.sorted(ordered, many)

    @classmethod
    def sorted(cls, values: Float64Array, counts: Float64Array) -> Self:
        """The same for rows that ascend."""
        floors = values[:, :1]
        widths = np.maximum(values[:, -1:] - floors, np.finfo(np.float64).tiny)
        rows = np.arange(len(values))[:, None] * _APART
        flat = ((values - floors) / widths + rows).ravel()
        firsts = counts * values
        return cls(
            values=values,
            weights=_sums(counts),
            firsts=_sums(firsts),
            seconds=_sums(firsts * values),
            flat=flat,
            floors=floors,
            widths=widths,
        )

    def places(self, bounds: Float64Array) -> Array:
        """How many values of each row lie below ascending `bounds` [G, m]: int64 [G, m]."""
        rows, size = np.arange(len(self.values))[:, None], self.values.shape[1]
        with np.errstate(over="ignore"):
            relative = np.clip((bounds - self.floors) / self.widths, -_MARGIN, 1 + _MARGIN)
        return np.asarray(np.searchsorted(self.flat, relative + rows * _APART) - rows * size)

    def within(self, places: Array) -> tuple[Float64Array, Float64Array, Float64Array]:
        """The sums of c, c w and c w**2 in the cells that `places` [G, m] divide the rows into: [G, m + 1] each."""
        size = self.values.shape[1]
        edges = np.pad(places, ((0, 0), (1, 1)), constant_values=((0, 0), (0, size)))
        weights, firsts, seconds = (
            np.diff(np.take_along_axis(sums, edges, axis=1)) for sums in (self.weights, self.firsts, self.seconds)
        )
        return weights, firsts, seconds

    def errors(self, levels: Float64Array) -> Float64Array:
        """The sum of c (w - q(w))**2 of each row, [G], for ascending `levels` [G, K]."""
        weights, firsts, seconds = self.within(self.places(middles(levels)))
        return np.asarray((seconds - levels * (2 * firsts - levels * weights)).sum(axis=1))


_APART = 4.0
"""Rows lie in one ascending sequence, each from 0 to 1, four apart: a single search finds places in all of them."""

_MARGIN = 1.0


def _sums(terms: Float64Array) -> Float64Array:
    return np.pad(np.cumsum(terms, axis=1), ((0, 0), (1, 0)))
