"""`uint8`: 256 unsigned levels, what activations on x86 kernels use."""

from __future__ import annotations

from typing import ClassVar

from qcli.formats._integer import IntegerFormat


class UInt8(IntegerFormat, frozen=True):
    """Unsigned 8-bit integers, 0 to 255 (`bits: 7` is 0 to 127). Symmetric grids have zero point 128."""

    dtype: ClassVar[str] = "uint8"
    min_opset: ClassVar[int] = 10
