"""Scales of blocks as a file holds them: float32, float16, or integers with one float for a group of them."""

from __future__ import annotations

import msgspec
import numpy as np

from qcli.types import Array, FloatArray, Grid, Scale, ScaleCodes, ScaleForm

_FLOAT_BITS = {"float32": 32, "float16": 16}

_TINIEST = np.float32(np.finfo(np.float16).smallest_subnormal)
_LARGEST = float(np.finfo(np.float16).max)


def as_stored(scale: Scale, form: ScaleForm) -> Scale:
    """The scale with the numbers that come back from a file which stores them in this form.

    Codes of weights are to be found for these. Scales that lie beyond float16 stay float32, and so do those that are
    not of blocks.
    """
    if scale.block is None or form == "float32":
        return scale
    if isinstance(form, ScaleCodes):
        return _coded(scale, form)
    if scale.scale.max(initial=0.0) > _LARGEST:
        return scale
    halves = np.maximum(scale.scale, _TINIEST).astype(np.float16).astype(np.float32)
    return msgspec.structs.replace(scale, scale=halves, form=form)


def scale_codes(scale: Scale) -> Array:
    """The uint8 codes of a scale that is stored as such, in its shape."""
    return np.asarray(np.rint(scale.scale / _spread_units(scale)), np.uint8)


def group_numbers(scale: Scale) -> Array:
    """The number of the group that each block along the axis belongs to, int32."""
    if not isinstance(scale.form, ScaleCodes):
        raise ValueError("the scale has no codes")
    return (np.arange(scale.scale.shape[scale.axis or 0]) // scale.form.group).astype(np.int32)


def scale_bits(form: ScaleForm) -> float:
    """The bits that each scale takes in the file; those of the last group of a row may be a few more."""
    return form.bits + _FLOAT_BITS["float32"] / form.group if isinstance(form, ScaleCodes) else _FLOAT_BITS[form]


def form_of(grid: Grid) -> ScaleForm:
    """The form that the scales of a grid have: only those of blocks have a choice."""
    return grid.scales if grid.granularity == "block" else "float32"


def _coded(scale: Scale, form: ScaleCodes) -> Scale:
    """The largest scale of each group gets the highest code, and none the code 0."""
    axis, highest = scale.axis or 0, (1 << form.bits) - 1
    starts = np.arange(0, scale.scale.shape[axis], form.group)
    units = (np.maximum.reduceat(scale.scale, starts, axis) / np.float32(highest)).astype(np.float32)
    units = np.maximum(units, np.finfo(np.float32).tiny)
    numbered = msgspec.structs.replace(scale, form=form, units=units)
    codes = np.rint(scale.scale / _spread_units(numbered)).clip(1, highest).astype(np.float32)
    return msgspec.structs.replace(numbered, scale=np.multiply(codes, _spread_units(numbered), dtype=np.float32))


def _spread_units(scale: Scale) -> FloatArray:
    """The unit of each block, in the shape of the scale."""
    if scale.units is None:
        raise ValueError("the scale has no codes")
    return np.take(scale.units, group_numbers(scale), axis=scale.axis or 0)
