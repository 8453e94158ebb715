from __future__ import annotations

import numpy as np
import pytest

from qcli.metrics.sqnr import Sqnr


def sqnr(reference: object, result: object) -> float:
    metric = Sqnr()
    metric.update(np.array(reference, np.float32), np.array(result, np.float32))
    return metric.value()


def test_is_the_ratio_of_powers_in_decibels() -> None:
    assert sqnr([3.0, 4.0], [3.0, 4.5]) == pytest.approx(10 * np.log10(25 / 0.25))


def test_a_tenth_of_the_error_is_twenty_decibels_more() -> None:
    assert sqnr([1.0], [1.125]) == pytest.approx(-20 * np.log10(0.125))
    assert sqnr([10.0], [10.125]) == pytest.approx(20 - 20 * np.log10(0.125))


def test_no_error_is_the_limit() -> None:
    assert sqnr([1.0, -2.0], [1.0, -2.0]) == Sqnr.LIMIT
    assert sqnr([0.0], [0.0]) == Sqnr.LIMIT


def test_an_error_where_the_reference_is_zero_is_the_lowest() -> None:
    assert sqnr([0.0, 0.0], [0.0, 1e-30]) == -Sqnr.LIMIT


def test_very_large_values_do_not_overflow() -> None:
    assert sqnr([3e38], [1.5e38]) == pytest.approx(20 * np.log10(2), abs=1e-4)


def test_half_precision_is_summed_in_float64() -> None:
    metric = Sqnr()
    metric.update(np.full(1000, 200, np.float16), np.full(1000, 201, np.float16))
    assert metric.value() == pytest.approx(20 * np.log10(200))


def test_samples_are_weighted_by_their_power_not_averaged() -> None:
    metric = Sqnr()
    metric.update(np.array([10.0]), np.array([9.0]))
    metric.update(np.array([0.0]), np.array([1.0]))
    assert metric.value() == pytest.approx(10 * np.log10(100 / 2))
