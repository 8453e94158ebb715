from __future__ import annotations

import numpy as np
import pytest

from qcli.metrics.cosine import Cosine


def cosine(reference: object, result: object) -> float:
    metric = Cosine()
    metric.update(np.array(reference, np.float32), np.array(result, np.float32))
    return metric.value()


@pytest.mark.parametrize(
    ("reference", "result", "expected"),
    [
        ([1, 0], [0, 1], 0.0),
        ([1, 1], [-1, -1], -1.0),
        ([1, 2], [2, 4], 1.0),
        ([1, 0], [1, 1], 2**-0.5),
        ([0, 0], [0, 0], 1.0),
        ([0, 0], [1, 0], 0.0),
        ([1, 0], [0, 0], 0.0),
    ],
)
def test_angles(reference: object, result: object, expected: float) -> None:
    assert cosine(reference, result) == pytest.approx(expected)


def test_never_leaves_its_range() -> None:
    values = np.full(1000, 0.1, np.float32)
    assert -1.0 <= cosine(values, values) <= 1.0


def test_large_values_do_not_overflow() -> None:
    assert cosine([3e38, 3e38], [3e38, 3e38]) == pytest.approx(1.0)
