"""Scales that a float of eight bits holds: a byte each in the file."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from qcli.graph import DataType
from qcli.types import Array, FloatArray

_FEWEST = 256
"""Fewer scales do not pay for the nodes that decode them."""

_KINDS = ((DataType.FLOAT8E5M2, 15), (DataType.FLOAT8E4M3FN, 8))
"""Types, with the exponent of their largest numbers."""


class Coarse(NamedTuple):
    """Scales as numbers of an ONNX type, and the power of two that they are multiplied by."""

    numbers: Array
    kind: DataType
    factor: float


def coarse(steps: FloatArray) -> Coarse | None:
    """The steps in a type of eight bits that holds each of them exactly; None if there is none, or it does not pay."""
    if steps.size < _FEWEST or not (steps > 0).all():
        return None
    largest = int(np.floor(np.log2(float(steps.max()))))
    for kind, top in _KINDS:
        factor = 2.0 ** (largest - top)
        numbers = (steps / np.float32(factor)).astype(kind.numpy())
        if np.array_equal(numbers.astype(np.float32) * np.float32(factor), steps):
            return Coarse(numbers, kind, factor)
    return None
