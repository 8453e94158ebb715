"""`patches`: what a layer reads, as sums of products and as a sample of the patches themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

from qcli.distribution import Distribution
from qcli.errors import InputError
from qcli.stats._exact import ExactSum
from qcli.stats._products import Products
from qcli.stats._sample import Sample
from qcli.types import Array, FloatArray


class Patches(Products):
    """What `gram` keeps of all patches, and up to 1,024 of them, chosen by their content.

    The products tell the error of a linear layer on all samples; what a non-linearity makes of it needs patches.
    """

    def __init__(self, products: ExactSum, inputs: ExactSum, places: int) -> None:
        super().__init__(products, inputs, places)
        self.sample = Sample()

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array]) -> Self:
        """What `arrays` gave. Raises KeyError or ValueError for anything else."""
        found = super().from_arrays(arrays)
        found.sample = Sample.from_arrays(arrays)
        groups, size, count = found.sample.patches.shape
        if count and found._inputs.shape != (groups, size):
            raise ValueError("the patches are not those of the sums")
        return found

    def update(self, batch: FloatArray) -> None:
        """Takes in patches [groups, K, P]; P may be 0. Raises InputError on Inf or NaN, or if K changes."""
        super().update(batch)
        self.sample.update(batch)

    def merge(self, other: Self) -> None:
        """Takes in what `other` has seen. Raises InputError if their shapes differ."""
        super().merge(other)
        self.sample.merge(other.sample)

    def arrays(self) -> dict[str, Array]:
        return {**super().arrays(), **self.sample.arrays()}

    def distribution(self) -> Distribution:
        """Raises InputError: patches overlap, and are only some."""
        raise InputError("a sample of patches does not tell which values occur")
