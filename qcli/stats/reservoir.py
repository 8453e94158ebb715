"""`reservoir`: some positions of a tensor with all their channels, the same ones in whatever order they come."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import numpy as np

from qcli.distribution import Distribution, union
from qcli.errors import InputError
from qcli.stats._half import Half, hashes_of
from qcli.types import Array, FloatArray

_ARRAYS = ("lower", "upper", "rows", "counts")


class Reservoir:
    """A sample of the positions that were seen, in two halves, so that what one suggests can be tried on the other.

    A position is a row of all channels, such as one token or one pixel. Which half a batch belongs to, and which rows
    are kept, depends on their content alone, so batches come in any order; a row that fills half of an image, such as
    a black border, counts half but takes one place.

    Source: Cohen and Kaplan 2007, "Summarizing Data Using Bottom-k Sketches".
    """

    def __init__(self, halves: tuple[Half, Half]) -> None:
        self.halves = halves

    @classmethod
    def empty(cls) -> Self:
        return cls((Half(), Half()))

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array]) -> Self:
        first, second = ({name: arrays[f"{name}{half}"] for name in _ARRAYS} for half in (0, 1))
        return cls((Half.from_arrays(first), Half.from_arrays(second)))

    def update(self, batch: FloatArray) -> None:
        """Takes in [channels, n]; n may be 0. Raises InputError on Inf or NaN, or if the channels change."""
        if not batch.size:
            return
        clean = np.asarray(batch, np.float32) + np.float32(0)  # of both zeros one
        hashes = hashes_of(clean)
        index = int(hashes.sum(dtype=np.uint64) >> np.uint64(63))
        half, other = self.halves[index], self.halves[1 - index]
        half.extrema.update(clean)
        if len(other.extrema.lower) not in (0, len(clean)):
            raise InputError(f"the channels change from {len(other.extrema.lower)} to {len(clean)}")
        half.update(clean, hashes)

    def merge(self, other: Self) -> None:
        """Takes in what `other` has seen. Raises InputError if their channels differ."""
        for mine, theirs in zip(self.halves, other.halves, strict=True):
            mine.extrema.merge(theirs.extrema)
            mine.take(theirs.rows, theirs.hashes, theirs.counts)

    def arrays(self) -> dict[str, Array]:
        return {f"{name}{index}": half.arrays()[name] for index, half in enumerate(self.halves) for name in _ARRAYS}

    def distribution(self) -> Distribution:
        """The values of all rows, with the extrema of everything. Raises InputError if no value was seen."""
        seen = [half.distribution() for half in self.halves if len(half.rows)]
        if not seen:
            raise InputError("no values were seen")
        return union(seen)
