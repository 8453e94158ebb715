"""Codes of vectors as nodes: the codewords that they stand for, laid out as the weight."""

from __future__ import annotations

from math import prod

import numpy as np

from qcli.encodings._lines import Lines
from qcli.encodings._weights import Coded
from qcli.graph import DataType, Value, dimensions
from qcli.types import Vectors


def whole_weight(coded: Coded, places: Value, lines: Lines) -> Value:
    """The weight but for its scale, from codes [R, n]: Gather, Reshape, and a Transpose unless its rows come first."""
    vectors = _vectors_of(coded)
    found = _found(vectors, places, lines)
    count, others = vectors.shape[vectors.rows], [size for at, size in enumerate(vectors.shape) if at != vectors.rows]
    real = _shaped(vectors, found, [count], others, lines)
    if vectors.rows == 0:
        return real
    order = list(range(1, len(vectors.shape)))
    order.insert(vectors.rows, 0)
    return lines.add("Transpose", [real], "turned", {"perm": order})


def fetched_rows(coded: Coded, places: Value, lines: Lines) -> Value:
    """Rows of a table but for their scale, from the codes [..., n] that a Gather fetched by known many indices."""
    vectors = _vectors_of(coded)
    found = _found(vectors, places, lines)
    return _shaped(vectors, found, [0] * (_rank(coded) or 0), list(vectors.shape[1:]), lines)


def can_fetch(coded: Coded) -> bool:
    """False for vectors whose rows would be fetched in a shape that is not known, or that are not what is fetched."""
    return coded.scale.vectors is None or (_rank(coded) is not None and coded.scale.vectors.rows == 0)


def _rank(coded: Coded) -> int | None:
    """How many dimensions the indices of a Gather have."""
    indices = coded.node.inputs[1]
    shape = dimensions(indices) if indices is not None else None
    return None if shape is None else len(shape)


def _found(vectors: Vectors, places: Value, lines: Lines) -> Value:
    """The codewords [..., n, D] at these places."""
    numbers = lines.add("Cast", [places], "indices", {"to": DataType.INT32.value})
    words = lines.constant("words", vectors.words.astype(np.float16))
    table = lines.add("Cast", [words], "table", {"to": DataType.FLOAT.value})
    return lines.add("Gather", [table, numbers], "vectors", {"axis": 0})


def _shaped(vectors: Vectors, found: Value, leading: list[int], others: list[int], lines: Lines) -> Value:
    """Codewords [*leading, n, D] as rows [*leading, *others], without what filled up their last vectors.

    A leading 0 keeps what is there, as in Reshape.
    """
    filled = vectors.codes_shape[1] * vectors.dimensions
    if filled == vectors.row_size:
        return _reshaped(found, [*leading, *others], "rows", lines)
    flat = _reshaped(found, [*leading, filled], "filled", lines)
    ends = [lines.shared(f"at_{at}", np.array([at], np.int64)) for at in (0, prod(others), len(leading))]
    cut = lines.add("Slice", [flat, *ends], "rows")
    return cut if len(others) == 1 else _reshaped(cut, [*leading, *others], "shaped", lines)


def _reshaped(value: Value, shape: list[int], suffix: str, lines: Lines) -> Value:
    return lines.add("Reshape", [value, lines.constant(f"{suffix}_shape", np.array(shape, np.int64))], suffix)


def _vectors_of(coded: Coded) -> Vectors:
    if coded.scale.vectors is None:
        raise ValueError(f"{coded.name} has no vectors")
    return coded.scale.vectors
