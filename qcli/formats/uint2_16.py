"""`uint2` to `uint16`: unsigned integers of any width, what activations on x86 kernels use."""

from __future__ import annotations

from typing import ClassVar

from qcli.formats._integer import IntegerFormat


class UInt(IntegerFormat, frozen=True):
    """Unsigned integers, 0 to 15 for `uint4`. Symmetric grids have their zero point in the middle, 8 for `uint4`."""

    signed: ClassVar[bool] = False
