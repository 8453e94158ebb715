"""`int8`: 256 signed levels, what weights and most targets use."""

from __future__ import annotations

from typing import ClassVar

from qcli.formats._integer import IntegerFormat


class Int8(IntegerFormat, frozen=True):
    """Signed 8-bit integers, -128 to 127 (`bits: 7` is -64 to 63). Symmetric grids have zero point 0."""

    dtype: ClassVar[str] = "int8"
    min_opset: ClassVar[int] = 10
