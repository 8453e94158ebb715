"""The 65,536 fixed bins: the top 16 bits of a float32, which are its bfloat16.

A bin spans 1/128 of the power of two below its values, so every float is known to 0.4 % of itself with no
range chosen in advance, and two histograms merge by addition.
"""

from __future__ import annotations

import sys
from functools import cache

import numpy as np
import numpy.typing as npt

from qcli.types import FloatArray

BINS = 1 << 16

RESOLUTION = 2.0**-7
"""Width of a bin relative to the power of two at or below its values: bfloat16 stores 7 fraction bits."""

_TOP_HALF = 1 if sys.byteorder == "little" else 0


def bin_numbers(values: FloatArray) -> npt.NDArray[np.intp]:
    """The bin of each of `values` [n], as an array [n] that can index counts [65536]."""
    halves = np.ascontiguousarray(values, dtype=np.float32).view(np.uint16)
    return halves[_TOP_HALF::2].astype(np.intp)


@cache
def ascending() -> npt.NDArray[np.intp]:
    """The bin numbers in ascending order of the values that they hold."""
    negative = np.arange(BINS - 1, BINS // 2 - 1, -1)
    return np.concatenate([negative, np.arange(BINS // 2)]).astype(np.intp)


def middles(numbers: npt.NDArray[np.intp]) -> npt.NDArray[np.float64]:
    """The value that stands for each bin of `numbers`: its middle, or exactly 0 for zero and the denormals.

    Bins of Inf and NaN have no meaning here; they are never counted.
    """
    bits = (numbers.astype(np.uint32) << np.uint32(16)) | np.uint32(0x8000)
    tiny = (bits & np.uint32(0x7F800000)) == 0
    return np.where(tiny, 0.0, bits.view(np.float32).astype(np.float64))
