"""`additive_power_of_two`: sums of powers of two of both signs."""

from __future__ import annotations

from itertools import product

import numpy as np

from qcli.formats._signed import both_signs
from qcli.formats._table import TableFormat
from qcli.types import FloatArray, Grid

_CHOICES = 3
"""Powers that a term of two bits chooses from, beside zero."""


class AdditivePowerOfTwo(TableFormat, frozen=True):
    """Sums of a power of two or zero out of each of several sets, with a sign and a scale; `bits` from 2 to 8 (4).

    A magnitude has `bits` - 1 bits: each two of them choose from zero and three powers, an odd one from zero and one.
    The levels are dense around zero, and not as coarse at the ends as those of power_of_two. Hardware shifts and adds;
    onnxruntime decodes the weights. One code is not used. Source: Li et al. 2020, "Additive Powers-of-Two
    Quantization", equation 6 with k = 2, and the authors' layout of the powers where the number of bits is odd.
    """

    def entries(self, grid: Grid) -> int:
        """An odd number: zero has no sign."""
        return int(self.table(grid).size)

    def table(self, grid: Grid) -> FloatArray:
        """The levels [2**bits - 1], from -1 to 1."""
        sums = np.array([sum(choice) for choice in product(*_terms(self.bits(grid) - 1))])
        return both_signs(sums / sums.max())


def _terms(bits: int) -> list[list[float]]:
    """What each term of a magnitude chooses from. Powers are dealt out in turn; the odd bit gets its one third."""
    pairs: list[list[float]] = [[0.0] for _ in range(bits // 2)]
    odd: list[list[float]] = [[0.0]] if bits % 2 else []
    exponent = 1
    for turn in range(_CHOICES):
        for term in (*(odd if turn == _CHOICES - 1 else []), *pairs):
            term.append(2.0**-exponent)
            exponent += 1
    return [*pairs, *odd]
