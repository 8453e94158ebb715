"""What several statistics of patches keep: sums of products and of inputs, the same in any order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import numpy as np
import numpy.typing as npt

from qcli.errors import InputError
from qcli.stats._exact import ExactSum
from qcli.types import Array, FloatArray

Float64Array = npt.NDArray[np.float64]

_SMALL, _LARGE = 1e-12, 1e16
"""Between these the products of float32 numbers are float32 numbers."""


class Products:
    """Sums over patches X [groups, K, P]: X X^T [groups, K, K], X [groups, K], and the number of patches."""

    def __init__(self, products: ExactSum, inputs: ExactSum, places: int) -> None:
        self._products = products
        self._inputs = inputs
        self._places = places

    @classmethod
    def empty(cls) -> Self:
        return cls(ExactSum.empty(), ExactSum.empty(), 0)

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array]) -> Self:
        """What `arrays` gave. Raises KeyError or ValueError for anything else."""
        products, inputs = (
            ExactSum.from_arrays({name: arrays[f"{part}_{name}"] for name in ("level", "high", "low")})
            for part in ("products", "inputs")
        )
        places = arrays["places"]
        if places.shape != () or places.dtype != np.int64 or places < 0:
            raise ValueError("that is no number of patches")
        if products.shape != (0,) or inputs.shape != (0,):
            _check(products.value(), inputs.value())
        return cls(products, inputs, int(places))

    def update(self, batch: FloatArray) -> None:
        """Takes in patches [groups, K, P]; P may be 0. Raises InputError on Inf or NaN, or if K changes."""
        largest = float(np.abs(batch).max(initial=0.0))
        if not np.isfinite(largest):
            raise InputError("the activations hold Inf or NaN")
        patches = batch if _SMALL < largest < _LARGE else batch.astype(np.float64)
        products = np.matmul(patches, np.swapaxes(patches, 1, 2))
        self._products.add(products.astype(np.float64))
        self._inputs.add(patches.sum(axis=2, dtype=np.float64))
        self._places += batch.shape[2]

    def merge(self, other: Self) -> None:
        """Takes in what `other` has seen. Raises InputError if their shapes differ."""
        self._products.merge(other._products)
        self._inputs.merge(other._inputs)
        self._places += other._places

    def arrays(self) -> dict[str, Array]:
        parts = {"products": self._products.arrays(), "inputs": self._inputs.arrays()}
        named = {f"{part}_{name}": array for part, arrays in parts.items() for name, array in arrays.items()}
        return {**named, "places": np.array(self._places, np.int64)}

    def moments(self) -> tuple[Float64Array, Float64Array]:
        """The mean products [groups, K, K] and the mean inputs [groups, K].

        Raises InputError if nothing was seen.
        """
        if not self._places:
            raise InputError("no values were seen")
        return self._products.value() / self._places, self._inputs.value() / self._places


def _check(products: Float64Array, inputs: Float64Array) -> None:
    """Raises ValueError for what are no sums over patches."""
    if products.ndim != 3 or products.shape[1] != products.shape[2] or products.shape[:2] != inputs.shape:
        raise ValueError("the sums are no square matrices")
    diagonal = np.einsum("gkk->gk", products)
    uneven = np.abs(products - np.swapaxes(products, 1, 2)).max(initial=0.0)
    if (diagonal < 0).any() or uneven > 1e-3 * diagonal.max(initial=0.0):
        raise ValueError("no patches have such sums")
