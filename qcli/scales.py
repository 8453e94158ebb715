"""Scales and intervals beside each other: whether they are the same, and what covers both."""

from __future__ import annotations

import msgspec
import numpy as np

from qcli.types import Interval, Scale


def unsigned(scale: Scale, *, wanted: bool = True) -> Scale:
    """The same real numbers with unsigned codes of 8 bits, for which onnxruntime has more kernels, where `wanted`."""
    if scale.dtype != "int8" or not wanted:
        return scale
    shift = scale.highest + 1
    return msgspec.structs.replace(
        scale,
        zero_point=scale.zero_point + shift,
        lowest=scale.lowest + shift,
        highest=scale.highest + shift,
        dtype="uint8",
    )


def same_levels(first: Scale, second: Scale) -> bool:
    """True for as many codes, of one type."""
    ends = (first.dtype, first.lowest, first.highest)
    return ends == (second.dtype, second.lowest, second.highest)


def ends_of(scale: Scale) -> tuple[float, float]:
    """The lowest and the highest real number of a grid with one scale: beyond them everything saturates."""
    step, zero = float(scale.scale[0]), int(scale.zero_point[0])
    if scale.levels is not None:
        return float(scale.levels[0]) * step, float(scale.levels[-1]) * step
    return (scale.lowest - zero) * step, (scale.highest - zero) * step


def equal(first: Scale | None, second: Scale | None) -> bool:
    """True for scales by which codes stand for the same numbers."""
    if first is None or second is None:
        return False
    same = np.array_equal(first.scale, second.scale) and np.array_equal(first.zero_point, second.zero_point)
    return same and same_levels(first, second)


def union(intervals: list[Interval]) -> Interval:
    """The interval that covers all of them."""
    lower = np.min([interval.lower for interval in intervals], axis=0)
    return Interval(lower=lower, upper=np.max([interval.upper for interval in intervals], axis=0))
