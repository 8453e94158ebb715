"""`rows`: some of the rows [classes] of a value [N, classes], with all that stood together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self

import numpy as np

from qcli.distribution import Distribution
from qcli.distribution import Rows as Kept
from qcli.errors import InputError
from qcli.stats._sample import Sample
from qcli.types import Array, FloatArray


class Rows:
    """Up to 1,024 different rows of logits, chosen by their content, and the exact extrema of all values.

    Fewer rows where they are long, so that a million values are kept at most; 64 in any case.
    """

    axis: ClassVar[int] = 1

    def __init__(self, lower: FloatArray, upper: FloatArray, sample: Sample) -> None:
        self._lower = lower
        self._upper = upper
        self._sample = sample

    @classmethod
    def empty(cls) -> Self:
        return cls(np.zeros(0, np.float32), np.zeros(0, np.float32), Sample())

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array]) -> Self:
        """What `arrays` gave. Raises KeyError or ValueError for anything else."""
        lower, upper = np.array(arrays["lower"], np.float32), np.array(arrays["upper"], np.float32)
        sample = Sample.from_arrays(arrays)
        kept = sample.patches
        if lower.shape != upper.shape or lower.shape != ((1,) if kept.size else (0,)) or (kept.size and len(kept) > 1):
            raise ValueError("the extrema are not those of the rows")
        if kept.size and not (np.isfinite([lower, upper]).all() and lower <= kept.min() and kept.max() <= upper):
            raise ValueError("the rows exceed the extrema")
        return cls(lower, upper, sample)

    def update(self, batch: FloatArray) -> None:
        """Takes in [classes, n]; n may be 0. Raises InputError on Inf or NaN, or if the classes change."""
        if not batch.size:
            return
        clean = np.ascontiguousarray(batch, np.float32) + np.float32(0)  # of both zeros one
        lower, upper = clean.min().reshape(1), clean.max().reshape(1)
        if not (np.isfinite(lower).all() and np.isfinite(upper).all()):
            raise InputError("the activations hold Inf or NaN")
        self._check(len(clean))
        self._include(lower, upper)
        self._sample.update(clean[None])

    def merge(self, other: Self) -> None:
        """Takes in what `other` has seen. Raises InputError if its classes are others."""
        if other._lower.size:
            self._check(other._sample.patches.shape[1])
            self._include(other._lower, other._upper)
            self._sample.merge(other._sample)

    def arrays(self) -> dict[str, Array]:
        return {"lower": self._lower, "upper": self._upper, **self._sample.arrays()}

    def distribution(self) -> Distribution:
        """The values of the rows kept, with the extrema of everything, as one channel. Raises InputError if none."""
        if not self._lower.size:
            raise InputError("no values were seen")
        values, counts = self._sample.patches[0].T, self._sample.counts.astype(np.float64)
        each = np.repeat(counts, values.shape[1])
        order = np.argsort(values, axis=None, kind="stable")
        return Distribution(
            lower=self._lower.astype(np.float64),
            upper=self._upper.astype(np.float64),
            points=values.reshape(1, -1)[:, order].astype(np.float64),
            counts=each[None, order],
            rows=Kept(values=values, counts=counts),
        )

    def _check(self, classes: int) -> None:
        known = self._sample.patches.shape[1]
        if known not in (0, classes):
            raise InputError(f"the number of classes changed from {known} to {classes}")

    def _include(self, lower: FloatArray, upper: FloatArray) -> None:
        seen = self._lower.size > 0
        self._lower = np.minimum(self._lower, lower) if seen else lower
        self._upper = np.maximum(self._upper, upper) if seen else upper
