"""A layer to be rounded: its weight as rows in units of their steps."""

from __future__ import annotations

import msgspec
import numpy as np
import numpy.typing as npt

from qcli.levels import middles, nearest_in

Float64Array = npt.NDArray[np.float64]

_ALIKE = np.ones((1, 1, 1))


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What becomes of a row's product z before anything else reads it: f(z + bias), in the row's unit.

    f clips to `lower` and `upper` after it multiplies what lies below zero by `slope`. All but the slope are float64
    [groups, R].
    """

    bias: Float64Array
    lower: Float64Array
    upper: Float64Array
    slope: float


class Rows(msgspec.Struct, frozen=True, kw_only=True):
    """A layer's weight in units of its steps: where each element lies between the codes, zero points taken off.

    `exact` float64 [groups, R, K]; `lowest` and `highest` are the codes that there are, `sizes` the steps in the unit
    of their row, all float64 [groups, R, K] or 1 in place of any of these. Where a row has one step, `sizes` is 1 and
    the step is the unit. With a `table`, float64 [1, 1, L] or [groups, R, L], the codes are its numbers, ascending, and
    no integers between the lowest and the highest. With `words`, float64 [W, D], the codes of D inputs in a row are one
    of these codewords, and sizes are 1. `answer` is None where nothing but linear operators is known to read the
    product, or where it is only a part of it.
    """

    exact: Float64Array
    lowest: Float64Array
    highest: Float64Array
    sizes: Float64Array = _ALIKE
    table: Float64Array | None = None
    words: Float64Array | None = None
    answer: Answer | None = None

    @property
    def target(self) -> Float64Array:
        """The weight in the units of the rows, [groups, R, K]."""
        return np.asarray(self.exact * self.sizes)

    def target_of(self, some: slice) -> Float64Array:
        """The target of some rows."""
        sizes = self.sizes[:, some] if self.sizes.shape[1] > 1 else self.sizes
        return np.asarray(self.exact[:, some] * sizes)

    def nearest(self, exact: Float64Array, some: slice | int) -> Float64Array:
        """The codes next to where some inputs lie: [groups, R, K], or [groups, R] of a single input."""
        if self.table is None:
            lowest, highest, _ = self.columns(some)
            return np.asarray(np.rint(exact).clip(lowest, highest), np.float64)
        table = self.table.reshape(-1, self.table.shape[-1])
        if len(table) == 1:
            return np.asarray(table[0][np.searchsorted(middles(table[0]), exact)], np.float64)
        numbers = np.arange(len(table)).reshape(*self.table.shape[:2], *(1,) * (exact.ndim - 2))
        return np.asarray(table[numbers, nearest_in(table, numbers, exact)], np.float64)

    def some(self, block: slice) -> Rows:
        """The rows of some inputs alone."""
        exact, lowest, highest, sizes = (
            column_of(array, block) for array in (self.exact, self.lowest, self.highest, self.sizes)
        )
        return msgspec.structs.replace(self, exact=exact, lowest=lowest, highest=highest, sizes=sizes)

    def grid(self) -> tuple[Float64Array, Float64Array, Float64Array]:
        """The lowest codes, the highest and the sizes of the steps, each for all inputs or one for all."""
        return self.lowest, self.highest, self.sizes

    def columns(self, some: slice | int) -> tuple[Float64Array, Float64Array, Float64Array]:
        """The lowest codes, the highest and the sizes of some inputs; of all where they are the same for all."""
        return column_of(self.lowest, some), column_of(self.highest, some), column_of(self.sizes, some)


def column_of(array: Float64Array, some: slice | int) -> Float64Array:
    """Some columns of an array [groups, R, K]; of one that has a single column for all of them, this one."""
    if array.shape[-1] > 1:
        return array[..., some]
    return array if isinstance(some, slice) else array[..., 0]
