"""`reservoir`: some positions of a tensor with all their channels, the same ones in whatever order they come."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import numpy as np
import numpy.typing as npt

from qcli.distribution import Distribution
from qcli.stats.extrema import Extrema
from qcli.types import Array, FloatArray

_MOST = 256
_FEWEST = 16
_VALUES = 1 << 18
"""At most so many values are kept, 1 MiB, as long as that leaves `_FEWEST` rows."""

_CHUNK_VALUES = 1 << 18

Hashes = npt.NDArray[np.uint64]


class Reservoir:
    """A sample of the positions that were seen: of all different ones those with the smallest hashes.

    A position is a row of all channels, such as one token or one pixel. `rows` are float32 [n, channels], ascending by
    `hashes` uint64 [n]; `counts` int64 [n] say how often each was seen. n is 256 at most, fewer where channels are many.
    `extrema` are exact and of everything. Which rows are kept depends on their content alone, so batches come in any
    order, and a row that fills half of an image, such as a black border, counts half but takes one place.

    Source: Cohen and Kaplan 2007, "Summarizing Data Using Bottom-k Sketches".
    """

    def __init__(self, extrema: Extrema, rows: FloatArray, hashes: Hashes, counts: npt.NDArray[np.int64]) -> None:
        self.extrema = extrema
        self.rows = rows
        self.hashes = hashes
        self.counts = counts

    @classmethod
    def empty(cls) -> Self:
        return cls(Extrema.empty(), np.zeros((0, 0), np.float32), np.zeros(0, np.uint64), np.zeros(0, np.int64))

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array]) -> Self:
        rows, counts = np.array(arrays["rows"], np.float32), np.array(arrays["counts"], np.int64)
        extrema = Extrema.from_arrays(arrays)
        if rows.ndim != 2 or rows.shape != (len(counts), len(extrema.lower)):
            raise ValueError("the rows are not those of the counts and the extrema")
        if not np.isfinite(rows).all() or np.any(counts < 1):
            raise ValueError("a row is not finite or was never seen")
        return cls(extrema, rows, _hashes(rows.T), counts)

    def update(self, batch: FloatArray) -> None:
        """Takes in [channels, n]; n may be 0. Raises InputError on Inf or NaN, or if the channels change."""
        self.extrema.update(batch)
        width = max(1, _CHUNK_VALUES // max(1, len(batch)))
        for start in range(0, batch.shape[1] if batch.size else 0, width):
            chunk = np.asarray(batch[:, start : start + width], np.float32) + np.float32(0)  # of both zeros one
            hashes = _hashes(chunk)
            if len(self.hashes) == self._room(len(chunk)):
                chosen = hashes <= self.hashes[-1]
                chunk, hashes = chunk[:, chosen], hashes[chosen]
            self._take(chunk.T, hashes, np.ones(len(hashes), np.int64))

    def merge(self, other: Self) -> None:
        """Takes in what `other` has seen. Raises InputError if their channels differ."""
        self.extrema.merge(other.extrema)
        self._take(other.rows, other.hashes, other.counts)

    def arrays(self) -> dict[str, Array]:
        return {**self.extrema.arrays(), "rows": self.rows, "counts": self.counts}

    def distribution(self) -> Distribution:
        """The values of the rows, with the extrema of everything. Raises InputError if no value was seen."""
        ends = self.extrema.distribution()
        order = np.argsort(self.rows.T, axis=1, kind="stable")
        points = np.take_along_axis(self.rows.T, order, axis=1).astype(np.float64)
        return Distribution(
            lower=ends.lower, upper=ends.upper, points=points, counts=self.counts[order].astype(np.float64)
        )

    def _take(self, rows: FloatArray, hashes: Hashes, counts: npt.NDArray[np.int64]) -> None:
        if not len(hashes):
            return
        held = self.rows if len(self.rows) else np.zeros((0, rows.shape[1]), np.float32)
        both, tally = np.concatenate([self.hashes, hashes]), np.concatenate([self.counts, counts])
        distinct, first, which = np.unique(both, return_index=True, return_inverse=True)
        sums = np.zeros(len(distinct), np.int64)
        np.add.at(sums, which.reshape(-1), tally)
        room = self._room(rows.shape[1])
        self.rows = np.concatenate([held, rows])[first[:room]]
        self.hashes, self.counts = distinct[:room], sums[:room]

    def _room(self, channels: int) -> int:
        return min(_MOST, max(_FEWEST, _VALUES // max(1, channels)))


def _hashes(batch: FloatArray) -> Hashes:
    """A hash of each column of [channels, n]: multilinear, then mixed (the finalizer of splitmix64)."""
    words = np.ascontiguousarray(batch).view(np.uint32)
    sums = np.zeros(batch.shape[1], np.uint64)
    for word, factor in zip(words, _factors(len(words)), strict=True):
        sums += word * factor
    sums ^= sums >> np.uint64(30)
    sums *= np.uint64(0xBF58476D1CE4E5B9)
    sums ^= sums >> np.uint64(27)
    sums *= np.uint64(0x94D049BB133111EB)
    return sums ^ (sums >> np.uint64(31))


def _factors(count: int) -> Hashes:
    """Odd 64-bit numbers, always the same."""
    numbers = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    numbers ^= numbers >> np.uint64(29)
    numbers *= np.uint64(0xBF58476D1CE4E5B9)
    return numbers | np.uint64(1)
