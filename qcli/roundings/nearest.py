"""`nearest`: each weight to the level next to it."""

from __future__ import annotations

from typing import ClassVar

import msgspec

from qcli.levels import nearest_codes
from qcli.plugins import create
from qcli.types import Array, FloatArray, Scale


class Nearest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Rounds every weight to its nearest level on its own, ties to even: fast, and needs no data.

    The format named by `scale.dtype` does the work, or the table of levels. Codes have the weight's shape.
    """

    elementwise: ClassVar[bool] = True

    def round(self, weight: FloatArray, scale: Scale) -> Array:
        """Codes of the scale's dtype and the weight's shape."""
        if scale.is_table:
            return nearest_codes(weight, scale)
        codes: Array = create("formats", scale.dtype).encode(weight, scale)
        return codes
