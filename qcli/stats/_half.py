"""Half of a reservoir: rows with the smallest hashes, and how to hash them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import numpy as np
import numpy.typing as npt

from qcli.distribution import Distribution
from qcli.stats.extrema import Extrema
from qcli.types import Array, FloatArray

_MOST = 128
_FEWEST = 8
_VALUES = 1 << 17
"""Half a reservoir keeps at most so many values, 512 KiB, as long as that leaves `_FEWEST` rows."""

_CHUNK_VALUES = 1 << 18

Hashes = npt.NDArray[np.uint64]


class Half:
    """Of the positions in some of the batches a sample: of all different ones those with the smallest hashes.

    `rows` float32 [n, channels], ascending by their `hashes` uint64 [n]; `counts` int64 [n] say how often each was
    seen; n is 128 at most, fewer where channels are many. `extrema` are exact and of everything.
    """

    def __init__(self) -> None:
        self.extrema = Extrema.empty()
        self.rows: FloatArray = np.zeros((0, 0), np.float32)
        self.hashes: Hashes = np.zeros(0, np.uint64)
        self.counts = np.zeros(0, np.int64)

    def update(self, batch: FloatArray, hashes: Hashes) -> None:
        """Takes in [channels, n] and the hashes of its columns."""
        width = max(1, _CHUNK_VALUES // len(batch))
        for start in range(0, batch.shape[1], width):
            chunk, here = batch[:, start : start + width], hashes[start : start + width]
            if len(self.hashes) == _room(len(chunk)):
                chosen = here <= self.hashes[-1]
                chunk, here = chunk[:, chosen], here[chosen]
            self.take(chunk.T, here, np.ones(len(here), np.int64))

    def take(self, rows: FloatArray, hashes: Hashes, counts: npt.NDArray[np.int64]) -> None:
        """Takes in rows [n, channels] that were seen `counts` [n] times each."""
        if not len(hashes):
            return
        held = self.rows if len(self.rows) else np.zeros((0, rows.shape[1]), np.float32)
        both, tally = np.concatenate([self.hashes, hashes]), np.concatenate([self.counts, counts])
        distinct, first, which = np.unique(both, return_index=True, return_inverse=True)
        sums = np.zeros(len(distinct), np.int64)
        np.add.at(sums, which.reshape(-1), tally)
        room = _room(rows.shape[1])
        self.rows = np.concatenate([held, rows])[first[:room]]
        self.hashes, self.counts = distinct[:room], sums[:room]

    def distribution(self) -> Distribution:
        """The values of the rows, with the extrema of everything."""
        ends = self.extrema.distribution()
        order = np.argsort(self.rows.T, axis=1, kind="stable")
        points = np.take_along_axis(self.rows.T, order, axis=1).astype(np.float64)
        return Distribution(
            lower=ends.lower, upper=ends.upper, points=points, counts=self.counts[order].astype(np.float64)
        )

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array]) -> Self:
        """What `arrays` gave. Raises ValueError if they do not belong together."""
        half, rows, counts = cls(), np.array(arrays["rows"], np.float32), np.array(arrays["counts"], np.int64)
        half.extrema = Extrema.from_arrays(arrays)
        if rows.ndim != 2 or rows.shape != (len(counts), len(half.extrema.lower)):
            raise ValueError("the rows are not those of the counts and the extrema")
        if not np.isfinite(rows).all() or np.any(counts < 1):
            raise ValueError("a row is not finite or was never seen")
        half.take(rows, hashes_of(rows.T), counts)
        return half

    def arrays(self) -> dict[str, Array]:
        """Extrema, rows and counts by name."""
        return {**self.extrema.arrays(), "rows": self.rows, "counts": self.counts}


def _room(channels: int) -> int:
    return min(_MOST, max(_FEWEST, _VALUES // max(1, channels)))


def hashes_of(batch: FloatArray) -> Hashes:
    """A hash uint64 [n] of each column of [channels, n]: multilinear, then mixed (the finalizer of splitmix64)."""
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
