"""One array in .npy form out of a stream, with every size checked before memory is taken."""

from __future__ import annotations

import math
from typing import IO

import numpy as np

from qcli.types import Array

MAX_BYTES = 2 * 1024**3
"""No sample file may unpack to more than this (2 GiB): it would be a bomb, not a sample."""

_TENSOR_KINDS = "biufcUS"
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def read_array(stream: IO[bytes], size: int) -> Array:
    """The array in `stream`, which starts at 0 and holds `size` bytes. Never unpickles.

    Raises ValueError when the header does not describe exactly `size` bytes or describes more than MAX_BYTES,
    and for object and structured arrays.
    """
    version = np.lib.format.read_magic(stream)
    if version not in _HEADERS:
        raise ValueError(f"npy version {version[0]}.{version[1]} is not one of 1.0 and 2.0")
    shape, _, dtype = _HEADERS[version](stream)
    _check_dtype(dtype)
    _check_size(shape, dtype, size, stream.tell())
    stream.seek(0)
    array: Array = np.lib.format.read_array(stream, allow_pickle=False)
    return array.astype(dtype.newbyteorder("="), copy=False)


def _check_dtype(dtype: np.dtype[np.generic]) -> None:
    if dtype.hasobject:
        raise ValueError("holds pickled objects, which qcli never loads")
    if dtype.kind not in _TENSOR_KINDS or dtype.itemsize == 0:
        raise ValueError(f"{dtype} is not a tensor's dtype")


def _check_size(shape: tuple[int, ...], dtype: np.dtype[np.generic], size: int, header: int) -> None:
    declared = math.prod(shape) * dtype.itemsize
    if declared > MAX_BYTES:
        raise ValueError(f"declares {declared} bytes, more than the limit of {MAX_BYTES}")
    if min(shape, default=0) < 0 or header + declared != size:
        raise ValueError(f"the header declares {declared} bytes of data, the file holds {size - header}")
