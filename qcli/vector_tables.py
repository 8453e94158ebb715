"""Codewords for a weight: what they are learned from, and the scales that serve them best."""

from __future__ import annotations

from math import gcd

import msgspec
import numpy as np
import numpy.typing as npt

from qcli.blocks import parts_of
from qcli.contracts import along
from qcli.formats._words import VectorFormat
from qcli.types import FloatArray, Grid, Scale, Vectors
from qcli.vectors import counted, joined, placed, vector_codes

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
    sizes = _sizes(weight, axis)
    dimensions = number_format.weights_per_code
    blank = np.zeros((number_format.entries(grid), dimensions), np.float32)
    scale = Scale(
        scale=sizes.astype(np.float32),
        zero_point=np.zeros(sizes.shape, np.int64),
        axis=axis,
        lowest=0,
        highest=len(blank) - 1,
        dtype="uint8",
        vectors=Vectors(words=blank, rows=rows, shape=weight.shape),
    )
    start = None
    for _ in range(_TURNS if axis is not None else 1):
        start = number_format.words(*_sample(weight, scale, energies), grid, start)
        scale = with_words(scale, start)
        if axis is not None:
            scale = msgspec.structs.replace(scale, scale=_steps(weight, scale, energies))
    return scale


def with_words(scale: Scale, words: FloatArray) -> Scale:
    """The same scale with other codewords."""
    if scale.vectors is None:
        raise ValueError("the scale has no vectors")
    return msgspec.structs.replace(scale, vectors=msgspec.structs.replace(scale.vectors, words=words))


def _sizes(weight: FloatArray, axis: int | None) -> Float64Array:
    """The root of the mean square of the weight, [1], or of each of its channels."""
    others = tuple(at for at in range(weight.ndim) if at != axis) if axis is not None else None
    squares = np.einsum("...,...->...", weight, weight, dtype=np.float64) if weight.nbytes < _SMALL else None
    if squares is not None:
        return np.sqrt(squares.mean(axis=others)).reshape(-1)
    found = [np.square(weight[part], dtype=np.float64) for part in ()]
    return np.asarray(found)


_SMALL = 1 << 23


def _sample(weight: FloatArray, scale: Scale, energies: Float64Array | None) -> tuple[FloatArray, FloatArray | None]:
    """Some of the vectors [N, D] in units of the scales, and what their elements count; None where all count alike."""
    vectors = scale.vectors
    if vectors is None:
        raise ValueError("the scale has no vectors")
    every, size = 1, vectors.codes_shape[0] * vectors.codes_shape[1]
    every = -(-size // _SAMPLE)
    while gcd(every, vectors.codes_shape[1]) > 1:  # or some inputs would never be seen
        every += 1
    return _points(weight, scale, energies, every)
