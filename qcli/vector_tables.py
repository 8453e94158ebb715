"""Codewords for a weight: what they are learned from, and the scales that serve them best."""

from __future__ import annotations

from math import gcd

import msgspec
import numpy as np
import numpy.typing as npt

from qcli.blocks import parts_of, scale_of_part
from qcli.formats._words import VectorFormat
from qcli.types import FloatArray, Grid, Scale, Vectors
from qcli.vectors import cut, joined, placed, vector_codes

Float64Array = npt.NDArray[np.float64]

_SAMPLE = 1 << 16
"""Of the vectors that a table is learned from: about as many as that, evenly spread."""

_TURNS = 2


def vector_scale(
    weight: FloatArray, grid: Grid, number_format: VectorFormat, energies: Float64Array | None, rows: int
) -> Scale:
    """The codewords and scales of a weight whose rows lie along an axis; each element counts its energy, or once.

    Each scale begins as the root of the mean square of what it is for. In turn the best codewords for the scales, and
    the best scales for the codewords: sum of w q over sum of q**2.
    """
    axis = grid.axis if grid.granularity != "tensor" else None
    steps = _sizes(weight, axis)
    blank = np.zeros((number_format.entries(grid), number_format.weights_per_code), np.float32)
    vectors = Vectors(words=blank, rows=rows, shape=weight.shape)
    if energies is not None:
        vectors = msgspec.structs.replace(vectors, counts=_counts(energies, vectors))
    scale = Scale(
        scale=steps,
        zero_point=np.zeros(steps.shape, np.int64),
        axis=axis,
        lowest=0,
        highest=len(blank) - 1,
        dtype="uint8",
        vectors=vectors,
    )
    start: FloatArray | None = None
    for _ in range(_TURNS if axis is not None else 1):
        points, counts = _sample(weight, scale, vectors)
        start = number_format.words(points, counts, grid, start)
        vectors = msgspec.structs.replace(vectors, words=start)
        scale = msgspec.structs.replace(scale, vectors=vectors)
        if axis is not None:
            scale = msgspec.structs.replace(scale, scale=_steps(weight, scale, vectors, energies))
    return scale


def _sizes(weight: FloatArray, axis: int | None) -> FloatArray:
    """The root of the mean square of the weight, [1], or of each of its channels."""
    sums = np.zeros(1 if axis is None else weight.shape[axis])
    for part in parts_of(weight, axis or 0):
        squares = np.square(weight[part], dtype=np.float64).sum(axis=_others(weight, axis))
        sums[slice(None) if axis is None else part[axis]] += squares
    return np.sqrt(sums * (sums.size / weight.size)).astype(np.float32)


def _others(weight: FloatArray, axis: int | None) -> tuple[int, ...]:
    return tuple(at for at in range(weight.ndim) if at != axis)


def _counts(energies: Float64Array, vectors: Vectors) -> FloatArray:
    """Energies as vectors, over their mean in each row: rows of any size count alike. Rows that are alike are one."""
    moved = np.moveaxis(energies, vectors.rows, 0)
    rows = moved[:1] if (moved == moved[:1]).all() else moved
    means = rows.mean(axis=tuple(range(1, rows.ndim)), keepdims=True)
    fair = rows / np.maximum(means, np.finfo(np.float64).tiny)
    return np.asarray(cut(fair, 0, vectors.dimensions), np.float32)


def _sample(weight: FloatArray, scale: Scale, vectors: Vectors) -> tuple[FloatArray, FloatArray | None]:
    """Some of the vectors [N, D] in units of the scales, and what their elements count; None where all count alike."""
    rows, per_row = vectors.codes_shape
    every = -(-rows * per_row // _SAMPLE)
    while gcd(every, per_row) > 1:  # or some inputs would never be seen
        every += 1
    points, counts = [], []
    counted = vectors.counts
    if counted is None and vectors.row_size % vectors.dimensions:
        counted = cut(np.ones((1, vectors.row_size), np.float32), 0, vectors.dimensions)
    for part in parts_of(weight, vectors.rows):
        found = placed(weight[part], scale_of_part(scale, part, vectors.rows), vectors)
        points.append(found.reshape(-1, vectors.dimensions)[::every])
        if counted is not None:
            much = counted if len(counted) == 1 else counted[part[vectors.rows]]
            counts.append(np.broadcast_to(much, found.shape).reshape(-1, vectors.dimensions)[::every])
    return np.concatenate(points), np.concatenate(counts) if counts else None


def _steps(weight: FloatArray, scale: Scale, vectors: Vectors, energies: Float64Array | None) -> FloatArray:
    """The scale of each channel with the least squared error for the codewords next to its vectors; 0 for zeros."""
    above, below = (np.zeros(scale.scale.shape) for _ in range(2))
    for part in parts_of(weight, vectors.rows):
        exact, own = weight[part], scale_of_part(scale, part, vectors.rows)
        units = joined(vectors.words[vector_codes(exact, own)], vectors.rows, exact.shape).astype(np.float64)
        much = units if energies is None else units * energies[part]
        here = part[vectors.rows] if scale.axis == vectors.rows else slice(None)
        above[here] += (much * exact).sum(axis=_others(weight, scale.axis))
        below[here] += (much * units).sum(axis=_others(weight, scale.axis))
    sound = (above > 0) & (below > 0)
    return np.where(sound, np.divide(above, below, out=np.zeros_like(above), where=sound), scale.scale).astype(
        np.float32
    )
