"""Sums of floats that do not depend on the order in which they are added.

Adding floats rounds, and rounds otherwise in another order. Here every addend is cut, towards zero, at two fixed
places of 32 bits each: a high part, a multiple of 2**(32 * level), and a low part, a multiple of 2**(32 * (level - 1)).
Sums of up to 2**21 such parts are exact in float64. The level is that of the largest addend so far; when it rises, the
old high part is the new low part, exactly as if the addends had been cut at the higher level from the start.

Source: the indexed sums of Demmel and Nguyen 2015, "Parallel Reproducible Summation", with two bins.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import numpy as np
import numpy.typing as npt

from qcli.errors import InputError
from qcli.types import Array

Float64Array = npt.NDArray[np.float64]

_BITS = 32
_LOWEST = -30
"""No level lies below: there, float64 has no bits left for a low part."""

_HIGHEST = 31
"""That of the largest float64."""

_CHUNK = 1 << 14
"""Values in one go: their temporaries stay in the cache."""


class ExactSum:
    """A sum of float64 arrays of one shape. Each addend errs by 2**-32 of the largest, of all elements, at most."""

    def __init__(self, level: int, high: Float64Array, low: Float64Array) -> None:
        self._level = level
        self._high = high
        self._low = low

    @classmethod
    def empty(cls) -> Self:
        return cls(_LOWEST, np.zeros(0), np.zeros(0))

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array]) -> Self:
        """What `arrays` gave. Raises KeyError or ValueError for anything else."""
        level, high, low = (arrays[name] for name in ("level", "high", "low"))
        if level.dtype != np.int64 or level.shape != () or not _LOWEST <= level <= _HIGHEST:
            raise ValueError("the sum has no such level")
        if high.dtype != np.float64 or low.dtype != np.float64 or high.shape != low.shape:
            raise ValueError("the parts of the sum do not fit together")
        if not (np.isfinite(high).all() and np.isfinite(low).all()):
            raise ValueError("the sum is not finite")
        return cls(int(level), np.array(high, order="C"), np.array(low, order="C"))

    def arrays(self) -> dict[str, Array]:
        return {"level": np.array(self._level, np.int64), "high": self._high, "low": self._low}

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the addends; (0,) before the first."""
        return self._high.shape

    def add(self, values: Float64Array) -> None:
        """Raises InputError on Inf or NaN, or if the shape changes."""
        largest = float(np.abs(values).max(initial=0.0))
        if not np.isfinite(largest):
            raise InputError("the activations hold Inf or NaN")
        level = max(int(np.frexp(largest)[1] - 1) // _BITS, _LOWEST) if largest else _LOWEST
        self._prepare(values.shape, level)
        parts = [array.reshape(-1) for array in (values, self._high, self._low)]
        for begin in range(0, values.size, _CHUNK):
            self._add_chunk(*(part[begin : begin + _CHUNK] for part in parts))

    def _add_chunk(self, values: Float64Array, high: Float64Array, low: Float64Array) -> None:
        """Adds the parts of `values` [n] to `high` and `low` [n], in place."""
        unit = 2.0 ** (_BITS * self._level)
        large = np.trunc(values / unit)
        large *= unit
        high += large
        small = values - large
        small *= 2.0**_BITS / unit
        np.trunc(small, out=small)
        small *= unit / 2.0**_BITS
        low += small

    def merge(self, other: Self) -> None:
        """Adds what `other` has summed. Raises InputError if the shapes differ."""
        if other.shape == (0,):
            return
        self._prepare(other.shape, other._level)
        steps = self._level - other._level
        if steps == 0:
            self._high += other._high
            self._low += other._low
        elif steps == 1:
            self._low += other._high

    def value(self) -> Float64Array:
        return self._high + self._low

    def _prepare(self, shape: tuple[int, ...], level: int) -> None:
        if self.shape == (0,):
            self._level, self._high, self._low = level, np.zeros(shape), np.zeros(shape)
        if self.shape != shape:
            raise InputError(f"the shape of the sum changed from {self.shape} to {shape}")
        if level > self._level:
            self._low = self._high if level == self._level + 1 else np.zeros(shape)
            self._high = np.zeros(shape)
            self._level = level
