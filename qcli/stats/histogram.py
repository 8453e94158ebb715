"""`histogram`: all values of each channel, counted in 65,536 fixed bins in one pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import numpy as np
import numpy.typing as npt

from qcli.distribution import Distribution, from_bins
from qcli.errors import InputError
from qcli.stats import _bins
from qcli.stats.extrema import Extrema
from qcli.types import Array, FloatArray

# Measured: below 64 Ki values the call overhead shows, above 256 Ki the temporaries leave the cache.
_CHUNK_VALUES = 1 << 18


class Histogram:
    """How often which values occur, to 0.4 % of each value, with exact extrema beside.

    The bin of a value is the top 16 bits of its float32, so no range is needed in advance. Memory: 512 KiB
    per channel, allocated when the first value comes. The file form keeps only the bins that hold something:
    `offsets` int64 [channels + 1], and for channel c `bins` uint16 and `counts` int64 from offsets[c] to
    offsets[c + 1].
    """

    def __init__(self, extrema: Extrema, counts: npt.NDArray[np.int64]) -> None:
        self.extrema = extrema
        self.counts = counts

    @classmethod
    def empty(cls) -> Self:
        return cls(Extrema.empty(), _no_counts(0))

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array]) -> Self:
        extrema, held = Extrema.from_arrays(arrays), np.diff(arrays["offsets"])
        if len(held) != len(extrema.lower):
            raise ValueError("the histograms are not those of the extrema")
        if np.any(arrays["counts"] < 0):
            raise ValueError("a bin holds less than nothing")
        counts = _no_counts(len(held))
        counts[np.repeat(np.arange(len(held)), held), arrays["bins"]] = arrays["counts"]
        return cls(extrema, counts)

    def update(self, batch: FloatArray) -> None:
        """Takes in [channels, n]; n may be 0. Raises InputError on Inf or NaN, or if the channels change."""
        width = max(1, _CHUNK_VALUES // max(1, len(batch)))
        for start in range(0, batch.shape[1] if batch.size else 0, width):
            chunk = batch[:, start : start + width]
            self.extrema.update(chunk)
            self._allocate(len(chunk))
            for counts, values in zip(self.counts, chunk, strict=True):
                # As fast as bincount on long rows, and short rows do not pay for 65,536 additions.
                np.add.at(counts, _bins.bin_numbers(values), 1)

    def merge(self, other: Self) -> None:
        """Takes in what `other` has seen. Raises InputError if their channels differ."""
        self.extrema.merge(other.extrema)
        if len(other.counts):
            self._allocate(len(other.counts))
            self.counts += other.counts

    def arrays(self) -> dict[str, Array]:
        channels, bins = np.nonzero(self.counts)
        offsets = np.searchsorted(channels, np.arange(len(self.counts) + 1))
        return {
            **self.extrema.arrays(),
            "offsets": offsets.astype(np.int64),
            "bins": bins.astype(np.uint16),
            "counts": self.counts[channels, bins],
        }

    def distribution(self) -> Distribution:
        """The middles of the bins, clamped into the extrema. Raises InputError if no value was seen."""
        if len(self.counts) == 0:
            raise InputError("no values were seen")
        return from_bins(self.counts, self.extrema.lower, self.extrema.upper)

    def _allocate(self, channels: int) -> None:
        if len(self.counts) == 0:
            self.counts = _no_counts(channels)


def _no_counts(channels: int) -> npt.NDArray[np.int64]:
    return np.zeros((channels, _bins.BINS), dtype=np.int64)
