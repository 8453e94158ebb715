"""`minmax`: the extrema, and zero."""

from __future__ import annotations

import numpy as np
import pytest

from qcli.distribution import from_weights
from qcli.ranges.minmax import MinMax
from qcli.types import Grid


@pytest.mark.parametrize(
    ("values", "lower", "upper"),
    [([-2.0, 3.0], -2.0, 3.0), ([1.0, 3.0], 0.0, 3.0), ([-3.0, -1.0], -3.0, 0.0), ([0.0, 0.0], 0.0, 0.0)],
)
def test_extrema_extended_to_zero(values: list[float], lower: float, upper: float) -> None:
    found = MinMax().interval(from_weights(np.array(values, np.float32), None), Grid())
    assert (found.lower.tolist(), found.upper.tolist()) == ([lower], [upper])
