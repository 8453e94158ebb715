"""`product`: one code for several weights, a place in a table of vectors."""

from __future__ import annotations

from typing import Annotated, ClassVar

import msgspec
import numpy as np

from qcli.formats._table import FLOAT_BITS
from qcli.formats._words import VectorFormat, best_words
from qcli.types import FloatArray, Grid


class Product(VectorFormat, frozen=True, kw_only=True):
    """Vectors of `dimensions` weights (2 to 8) in codes of `bits` (1 to 8, 8 if not said): bits / dimensions a weight.

    The weights that one output reads are cut into vectors, and each vector gets the place of the nearest of 2**`bits`
    codewords, which k-means finds for each weight. At equal size the error is below that of any table of levels, since
    codewords fill space better than the points of a lattice do. With the granularity `channel` rows are scaled alike
    before. Errors count by the energy of the input that a weight meets where the range is `{mse: {weighted: true}}`.
    Codewords are numbers of float16, and stored as such.

    Source: Jegou et al. 2011, "Product Quantization for Nearest Neighbor Search", with one table for all parts of a
    vector; for weights Gong et al. 2014, "Compressing Deep Convolutional Networks using Vector Quantization".
    """

    default_bits: ClassVar[int] = 8
    least_bits: ClassVar[int] = 1
    most_bits: ClassVar[int] = 8

    dimensions: Annotated[int, msgspec.Meta(ge=2, le=8)] = 4

    @property
    def min_opset(self) -> int:
        """Slice, which takes off what fills up a row, has had its ends as inputs since operator set 10."""
        return 10

    @property
    def weights_per_code(self) -> int:
        """A vector of them."""
        return self.dimensions

    def side_bits(self, grid: Grid, scales: int) -> int:
        """A table in float16, with the scales beside it where there are several."""
        table = FLOAT_BITS // 2 * self.entries(grid) * self.dimensions
        return table + (FLOAT_BITS * scales if grid.granularity != "tensor" else FLOAT_BITS)

    def words(
        self, points: FloatArray, counts: FloatArray | None, grid: Grid, start: FloatArray | None = None
    ) -> FloatArray:
        """The codewords float32 [2**bits, dimensions], each a number of float16."""
        found = best_words(points, counts, self.entries(grid), start)
        return found.clip(-_LARGEST, _LARGEST).astype(np.float16).astype(np.float32)


_LARGEST = float(np.finfo(np.float16).max)
