"""`float8_e4m3fn`: floats of 8 bits, 4 of them for the exponent and 3 for the fraction."""

from __future__ import annotations

from typing import ClassVar

from qcli.formats._small_float import SmallFloat


class Float8E4M3FN(SmallFloat, frozen=True, kw_only=True):
    """Numbers up to 448 with steps of an eighth of their power of two, no infinity; stored as ONNX's FLOAT8E4M3FN."""

    default_bits: ClassVar[int] = 8
    least_bits: ClassVar[int] = 8
    most_bits: ClassVar[int] = 8
    native: ClassVar[str | None] = "FLOAT8E4M3FN"
    exponent_bits: ClassVar[int] = 4
    mantissa_bits: ClassVar[int] = 3
    bias: ClassVar[int] = 7
    largest: ClassVar[float] = 448.0
