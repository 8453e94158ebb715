"""`float4_e2m1`: floats of 4 bits, 2 of them for the exponent and 1 for the fraction."""

from __future__ import annotations

from typing import ClassVar

from qcli.formats._small_float import SmallFloat


class Float4E2M1(SmallFloat, frozen=True, kw_only=True):
    """0, 0.5, 1, 1.5, 2, 3, 4 and 6 with both signs: fifteen levels, stored in four bits as places in a table.

    ONNX has the type, but onnxruntime 1.31.1 has no kernel on the CPU that reads it.
    """

    default_bits: ClassVar[int] = 4
    least_bits: ClassVar[int] = 4
    most_bits: ClassVar[int] = 4
    native: ClassVar[str | None] = None
    exponent_bits: ClassVar[int] = 2
    mantissa_bits: ClassVar[int] = 1
    bias: ClassVar[int] = 1
    largest: ClassVar[float] = 6.0
