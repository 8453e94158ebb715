"""Some of many patches, the same ones in whatever order they come."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import numpy as np
import numpy.typing as npt

from qcli.types import Array, FloatArray

_MOST = 1024
_FEWEST = 64
_VALUES = 1 << 20
"""A sample keeps at most so many values, 4 MiB, as long as that leaves `_FEWEST` patches."""

Hashes = npt.NDArray[np.uint64]


class Sample:
    """Of all different patches that were seen those with the smallest hashes.

    `patches` float32 [groups, K, n], ascending by their `hashes` uint64 [n]; `counts` int64 [n] say how often each was
    seen. n is 1,024 at most, fewer where patches are long. A patch that is among those with the smallest hashes in the
    end was so from the start, so counts are exact.

    Source: Cohen and Kaplan 2007, "Summarizing Data Using Bottom-k Sketches".
    """

    def __init__(self) -> None:
        self.patches: FloatArray = np.zeros((0, 0, 0), np.float32)
        self.hashes: Hashes = np.zeros(0, np.uint64)
        self.counts = np.zeros(0, np.int64)

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array]) -> Self:
        """What `arrays` gave. Raises KeyError or ValueError for anything else."""
        sample, patches, counts = cls(), arrays["patches"], arrays["counts"]
        if patches.dtype != np.float32 or patches.ndim != 3 or not np.isfinite(patches).all():
            raise ValueError("those are no patches")
        if counts.dtype != np.int64 or counts.shape != patches.shape[2:] or (counts < 1).any():
            raise ValueError("the patches were not seen so often")
        sample.take(patches, _hashes_of(patches), counts)
        return sample

    def arrays(self) -> dict[str, Array]:
        return {"patches": self.patches, "counts": self.counts}

    def update(self, batch: FloatArray) -> None:
        """Takes in finite patches [groups, K, P]."""
        clean = np.asarray(batch, np.float32) + np.float32(0)  # of both zeros one
        hashes = _hashes_of(clean)
        if len(self.hashes) == _room(clean):
            chosen = hashes <= self.hashes[-1]
            clean, hashes = clean[..., chosen], hashes[chosen]
        self.take(clean, hashes, np.ones(len(hashes), np.int64))

    def merge(self, other: Self) -> None:
        """Takes in what `other` has seen, of the same groups and K."""
        self.take(other.patches, other.hashes, other.counts)

    def take(self, patches: FloatArray, hashes: Hashes, counts: npt.NDArray[np.int64]) -> None:
        """Takes in patches [groups, K, n] that were seen `counts` [n] times each."""
        if not len(hashes):
            return
        held = self.patches if len(self.hashes) else np.zeros((*patches.shape[:2], 0), np.float32)
        both, tally = np.concatenate([self.hashes, hashes]), np.concatenate([self.counts, counts])
        distinct, first, which = np.unique(both, return_index=True, return_inverse=True)
        sums = np.zeros(len(distinct), np.int64)
        np.add.at(sums, which.reshape(-1), tally)
        room = _room(patches)
        self.patches = np.ascontiguousarray(np.concatenate([held, patches], axis=2)[..., first[:room]])
        self.hashes, self.counts = distinct[:room], sums[:room]


def _room(patches: FloatArray) -> int:
    groups, size, _ = patches.shape
    fitting: int = _VALUES // max(1, groups * size)
    return min(_MOST, max(_FEWEST, fitting))


def _hashes_of(patches: FloatArray) -> Hashes:
    """A hash uint64 [n] of each patch of [groups, K, n]: multilinear, then mixed (the finalizer of splitmix64)."""
    groups, size, places = patches.shape
    words = patches.reshape(groups * size, places).view(np.uint32)
    sums = np.zeros(words.shape[1], np.uint64)
    for begin in range(0, len(words), 64):
        part = words[begin : begin + 64]
        sums += np.einsum("kp,k->p", part.astype(np.uint64), _factors(begin, len(part)))
    sums ^= sums >> np.uint64(30)
    sums *= np.uint64(0xBF58476D1CE4E5B9)
    sums ^= sums >> np.uint64(27)
    sums *= np.uint64(0x94D049BB133111EB)
    return sums ^ (sums >> np.uint64(31))


def _factors(begin: int, count: int) -> Hashes:
    """Odd 64-bit numbers, always the same ones at the same place."""
    numbers = np.arange(begin + 1, begin + count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    numbers ^= numbers >> np.uint64(29)
    numbers *= np.uint64(0xBF58476D1CE4E5B9)
    return numbers | np.uint64(1)
