"""Several weights in one code: a weight cut into vectors, and which codeword is next to each of them."""

from __future__ import annotations

from math import prod

import numpy as np
import numpy.typing as npt

from qcli.contracts import along
from qcli.types import Array, FloatArray, Scale, Vectors

_AT_ONCE = 1 << 17
"""Distances that are computed in one go: what is looked at again stays in the cache."""


def cut(array: Array, rows: int, dimensions: int) -> Array:
    """Vectors [shape[rows], n, dimensions] of an array; the last one of a row is filled up with zeros."""
    moved = np.moveaxis(array, rows, 0).reshape(array.shape[rows], -1)
    missing = -moved.shape[1] % dimensions
    whole = np.pad(moved, ((0, 0), (0, missing))) if missing else moved
    return whole.reshape(len(whole), -1, dimensions)


def joined(vectors: Array, rows: int, shape: tuple[int, ...]) -> Array:
    """The array of `shape` that was cut into these vectors."""
    others = tuple(size for axis, size in enumerate(shape) if axis != rows)
    flat = vectors.reshape(shape[rows], -1)[:, : prod(others)]
    return np.moveaxis(flat.reshape(shape[rows], *others), 0, rows)


def nearest_words(points: Array, words: Array, counts: Array | None = None) -> npt.NDArray[np.intp]:
    """The number of the codeword [K, D] next to each of the points [N, D]; of several as near the first.

    With `counts` [N, D], a difference counts that much in each dimension. Where they are the same in all dimensions of
    a point they change nothing and should be left out, which takes half of the time.
    """
    found = np.empty(len(points), np.intp)
    near = words.astype(np.float32)
    table = np.concatenate([near.T, -0.5 * (near * near).T if counts is not None else _halves(near)])
    step = max(1, _AT_ONCE // len(words))
    for begin in range(0, len(points), step):
        some = points[begin : begin + step].astype(np.float32)
        if counts is None:
            factors = np.concatenate([some, np.ones((len(some), 1), np.float32)], axis=1)
        else:
            much = counts[begin : begin + step].astype(np.float32)
            factors = np.concatenate([much * some, much], axis=1)
        found[begin : begin + step] = np.argmax(factors @ table, axis=1)
    return found


def _halves(words: FloatArray) -> FloatArray:
    """Of |x - w|^2 / 2 what does not depend on the products x w, but for the sign: [1, K]."""
    return np.asarray(-0.5 * np.square(words).sum(axis=1)[None], np.float32)


def placed(values: Array, scale: Scale, vectors: Vectors) -> FloatArray:
    """The vectors [R, n, D] of a weight, or of some of its rows, in units of the scale; zero where that is zero."""
    steps, _ = along(scale, values.shape)
    units = np.where(steps > 0, steps, np.float32(1))  # what is all zero has the scale zero
    with np.errstate(over="ignore"):
        return np.asarray(cut(np.divide(values, units, dtype=np.float32), vectors.rows, vectors.dimensions))


def vector_codes(values: Array, scale: Scale) -> Array:
    """Codes [R, n] of a weight, or of some of its rows: the codeword next to each vector.

    Where the steps of a vector differ, it is the real weights that are near, not those in units of the steps.
    """
    vectors = _vectors_of(scale)
    points = placed(values, scale, vectors)
    counts = _counts(values, scale, vectors)
    flat = None if counts is None else counts.reshape(-1, vectors.dimensions)
    codes = nearest_words(points.reshape(-1, vectors.dimensions), vectors.words, flat)
    return codes.astype(scale.dtype).reshape(points.shape[:2])


def _counts(values: Array, scale: Scale, vectors: Vectors) -> Array | None:
    """What the elements of vectors [R, n, D] count, or None for all alike; what fills up a row counts nothing."""
    size = values.size // values.shape[vectors.rows]
    if scale.axis in (None, vectors.rows) and vectors.counts is None and size % vectors.dimensions == 0:
        return None
    much: Array = np.ones(())
    if scale.axis not in (None, vectors.rows):
        steps = along(scale, values.shape)[0]
        much = np.square(steps / max(float(steps.max()), _TINY))
    whole = cut(np.broadcast_to(much, values.shape), vectors.rows, vectors.dimensions)
    return whole if vectors.counts is None else whole * vectors.counts


_TINY = float(np.finfo(np.float32).tiny)


def vector_values(codes: Array, scale: Scale) -> FloatArray:
    """The real values of codes [R, n], float32, in the shape of the weight."""
    vectors = _vectors_of(scale)
    steps, _ = along(scale, vectors.shape)
    units = joined(vectors.words[codes], vectors.rows, vectors.shape)
    return np.asarray(np.multiply(units, steps, dtype=np.float32))


def _vectors_of(scale: Scale) -> Vectors:
    if scale.vectors is None:
        raise ValueError("the scale has no vectors")
    return scale.vectors
