"""Large weights some rows at a time, on several threads: what is computed of a piece stays in the cache.

Rows are those of the first axis, one behind the other in the file. Where blocks lie along that axis, pieces hold whole
blocks. The pieces do not depend on the number of threads, so neither does anything that is computed of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import lcm, prod

import msgspec
import numpy as np

from qcli.parallel import in_order
from qcli.types import Array, FloatArray, Scale

_ELEMENTS = 1 << 20
"""Elements of a piece, about."""

_EVEN = 8
"""Rows that pieces hold a multiple of, so that packed codes of each begin with a byte of their own."""


def row_slices(shape: tuple[int, ...], axis: int | None, block: int | None) -> list[slice]:
    """Slices of the first axis that cover a weight of `shape`, with blocks of a size along `axis`, if any."""
    if not shape or not prod(shape):
        return [slice(None)]
    unit = lcm(_EVEN, block or 1) if axis == 0 else _EVEN
    step = max(1, _ELEMENTS // prod(shape[1:]) // unit) * unit
    return [slice(begin, begin + step) for begin in range(0, shape[0], step)]


def coded_pieces(
    read: Callable[[], FloatArray],
    scale: Scale,
    encode: Callable[[FloatArray, Scale], Array],
    threads: int,
    then: Callable[[Array], Array],
) -> Iterator[Array]:
    """What `then` makes of the codes of a weight, some rows at a time, where each element is rounded by itself."""
    weight = read()
    if not weight.ndim:
        yield then(encode(weight, scale))
        return

    def work(rows: slice) -> Array:
        return then(encode(np.ascontiguousarray(weight[rows]), scale_of_rows(scale, rows)))

    yield from in_order(work, row_slices(weight.shape, scale.axis, scale.block), threads)


def scale_of_rows(scale: Scale, rows: slice) -> Scale:
    """The scale of some rows, which hold whole blocks."""
    if scale.axis is None or (scale.axis != 0 and scale.block is None):
        return scale
    if scale.axis == 0 and scale.block is not None and rows.start is not None:
        rows = slice(rows.start // scale.block, -(-rows.stop // scale.block))
    own = scale.levels is not None and scale.levels.ndim > 1
    return msgspec.structs.replace(
        scale,
        scale=scale.scale[rows],
        zero_point=scale.zero_point[rows],
        levels=scale.levels[rows] if own and scale.levels is not None else scale.levels,
    )
