"""`float16`: half precision, 11 significant bits up to 65504."""

from __future__ import annotations

from typing import ClassVar

from qcli.formats._float import FloatFormat


class Float16(FloatFormat, frozen=True):
    """IEEE 754 binary16 without a scale: errors of at most 1/2048 of a number, from 6.1e-5 to 65504.

    Below, the error is at most 3e-8. A weight that reaches beyond stays float32.

    Source: IEEE 754-2019, section 3.6, table 3.5 (binary16).
    """

    dtype: ClassVar[str] = "float16"
    largest: ClassVar[float] = 65504.0
    smallest_normal: ClassVar[float] = 2.0**-14
    min_opset: ClassVar[int] = 6
