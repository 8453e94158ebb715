"""`gram`: the products of all pairs of inputs of a layer, summed over what it reads."""

from __future__ import annotations

from qcli.distribution import Distribution
from qcli.errors import InputError
from qcli.stats._products import Products


class Gram(Products):
    """The matrix X X^T of a layer's inputs X [K, patches] for each group, with the sums of the inputs beside.

    The error of a linear layer with weights W that became V is quadratic in them, (W - V) X X^T (W - V)^T summed over
    its diagonal, so this matrix is all that a rounding needs to know of the samples.
    """

    def distribution(self) -> Distribution:
        """Raises InputError: which values occur is not known."""
        raise InputError("a gram matrix does not tell which values occur")
