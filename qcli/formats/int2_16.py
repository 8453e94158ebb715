"""`int2` to `int16`: signed integers of any width, what weights use."""

from __future__ import annotations

from typing import ClassVar

from qcli.formats._integer import IntegerFormat


class Int(IntegerFormat, frozen=True):
    """Signed integers, -8 to 7 for `int4`. Symmetric grids have zero point 0."""

    signed: ClassVar[bool] = True
