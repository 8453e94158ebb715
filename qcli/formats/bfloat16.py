"""`bfloat16`: the upper half of a float32, 8 significant bits and float32's range."""

from __future__ import annotations

from typing import ClassVar

import ml_dtypes  # noqa: F401 - from then on numpy knows the type by its name

from qcli.formats._float import FloatFormat


class BFloat16(FloatFormat, frozen=True):
    """The upper 16 bits of float32 without a scale: errors of at most 1/256 of a number, from 1.2e-38 to 3.39e38.

    Source: Kalamkar et al. 2019, "A Study of BFLOAT16 for Deep Learning Training", section 3.
    """

    dtype: ClassVar[str] = "bfloat16"
    largest: ClassVar[float] = (2 - 2.0**-7) * 2.0**127
    smallest_normal: ClassVar[float] = 2.0**-126
    min_opset: ClassVar[int] = 13
