"""`energy`: the mean square of each input of a layer."""

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


class Energy:
    """Sums of squares [groups, K] over patches X [groups, K, P], and the number of patches: the diagonal of `gram`.

    It tells how much each weight of a layer matters for its output where inputs are taken to be independent, in memory
    that grows with K and not with its square.
    """

    def __init__(self, squares: ExactSum, places: int) -> None:
        self._squares = squares
        self._places = places

    @classmethod
    def empty(cls) -> Self:
        return cls(ExactSum.empty(), 0)

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array]) -> Self:
        """What `arrays` gave. Raises KeyError or ValueError for anything else."""
        squares = ExactSum.from_arrays({name: arrays[f"squares_{name}"] for name in ("level", "high", "low")})
        places = arrays["places"]
        if places.shape != () or places.dtype != np.int64 or places < 0:
            raise ValueError("that is no number of patches")
        if squares.shape != (0,) and (len(squares.shape) != 2 or (squares.value() < 0).any()):
            raise ValueError("no patches have such sums")
        return cls(squares, int(places))

    def update(self, batch: FloatArray) -> None:
        """Takes in patches [groups, K, P]; P may be 0. Raises InputError on Inf or NaN, or if K changes."""
        if not np.isfinite(batch).all():
            raise InputError("the activations hold Inf or NaN")
        exact = batch.astype(np.float64)
        self._squares.add(np.einsum("gkp,gkp->gk", exact, exact))
        self._places += batch.shape[2]

    def merge(self, other: Self) -> None:
        """Takes in what `other` has seen. Raises InputError if their shapes differ."""
        self._squares.merge(other._squares)
        self._places += other._places

    def arrays(self) -> dict[str, Array]:
        named = {f"squares_{name}": array for name, array in self._squares.arrays().items()}
        return {**named, "places": np.array(self._places, np.int64)}

    def energies(self) -> Float64Array:
        """The mean squares [groups, K]. Raises InputError if nothing was seen."""
        if not self._places:
            raise InputError("no values were seen")
        return self._squares.value() / self._places

    def distribution(self) -> Distribution:
        """Raises InputError: which values occur is not known."""
        raise InputError("mean squares do not tell which values occur")
