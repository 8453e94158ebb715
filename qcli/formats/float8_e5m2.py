"""`float8_e5m2`: floats of 8 bits, 5 of them for the exponent and 2 for the fraction."""

from __future__ import annotations

from typing import ClassVar

from qcli.formats._small_float import SmallFloat


class Float8E5M2(SmallFloat, frozen=True, kw_only=True):
    """Numbers up to 57344 with steps of a quarter of their power of two; stored as ONNX's FLOAT8E5M2."""

    default_bits: ClassVar[int] = 8
    least_bits: ClassVar[int] = 8
    most_bits: ClassVar[int] = 8
    native: ClassVar[str | None] = "FLOAT8E5M2"
    exponent_bits: ClassVar[int] = 5
    mantissa_bits: ClassVar[int] = 2
    bias: ClassVar[int] = 15
    largest: ClassVar[float] = 57344.0
