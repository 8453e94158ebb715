from __future__ import annotations

import numpy as np

from qcli.metrics.max_abs import MaxAbs


def test_is_the_largest_of_all_batches() -> None:
    metric = MaxAbs()
    metric.update(np.array([1.0, -3.0]), np.array([1.5, -1.0]))
    metric.update(np.array([0.0]), np.array([0.25]))
    assert metric.value() == 2.0


def test_half_precision_differences_are_not_rounded() -> None:
    metric = MaxAbs()
    metric.update(np.array([60000], np.float16), np.array([-60000], np.float16))
    assert metric.value() == 120000.0


def test_differences_beyond_float32_stay_finite() -> None:
    metric = MaxAbs()
    metric.update(np.array([3e38], np.float32), np.array([-3e38], np.float32))
    assert metric.value() == MaxAbs.WORST
