"""`gram`: the products of all pairs of inputs of a layer, summed over what it reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import numpy as np
import numpy.typing as npt

from qcli.distribution import Distribution
from qcli.errors import InputError
from qcli.stats._exact import ExactSum
from qcli.types import Array, FloatArray

Float64Array = npt.NDArray[np.float64]


class Gram:
    """The matrix X X^T of a layer's inputs X [K, patches] with a one at the end of each patch, for each group.

    The error of a linear layer with weights W that became V is quadratic in them, (W - V) X X^T (W - V)^T summed over
    its diagonal, so this matrix is all that a rounding needs to know of the samples. The ones add the sums of the
    inputs and the number of patches to it.
    """

    def __init__(self, total: ExactSum) -> None:
        self._total = total

    @classmethod
    def empty(cls) -> Self:
        return cls(ExactSum.empty())

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array]) -> Self:
        total = ExactSum.from_arrays(arrays)
        if total.shape != (0,) and (len(total.shape) != 3 or total.shape[1] != total.shape[2]):
            raise ValueError("the sums are no square matrices")
        return cls(total)

    def update(self, batch: FloatArray) -> None:
        """Takes in patches [groups, K, P]; P may be 0. Raises InputError on Inf or NaN, or if K changes."""
        groups, _, places = batch.shape
        patches = np.concatenate([batch, np.ones((groups, 1, places), np.float32)], axis=1)
        with np.errstate(over="ignore", invalid="ignore"):
            products = np.matmul(patches, np.swapaxes(patches, 1, 2))
        self._total.add(products.astype(np.float64))

    def merge(self, other: Self) -> None:
        """Takes in what `other` has seen. Raises InputError if their shapes differ."""
        self._total.merge(other._total)

    def arrays(self) -> dict[str, Array]:
        return self._total.arrays()

    def distribution(self) -> Distribution:
        """Raises InputError: which values occur is not known."""
        raise InputError("a gram matrix does not tell which values occur")

    def moments(self) -> tuple[Float64Array, Float64Array]:
        """The mean products [groups, K, K] and the mean inputs [groups, K].

        Raises InputError if nothing was seen.
        """
        total = self._total.value()
        places = total[0, -1, -1] if total.ndim == 3 else 0.0
        if not places:
            raise InputError("no values were seen")
        return total[:, :-1, :-1] / places, total[:, :-1, -1] / places
