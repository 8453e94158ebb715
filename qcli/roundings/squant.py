"""Rounding a kernel so that its errors cancel, without data."""

from __future__ import annotations

import msgspec
import numpy as np
import numpy.typing as npt

from qcli.contracts import along
from qcli.levels import nearest_codes
from qcli.types import Array, FloatArray, Scale

_CHUNK = 1 << 22


class Squant(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Rounds convolution weights to nearest, then turns as few as possible the other way so that errors cancel.

    Neighbouring activations are alike, so what counts is the sum of the errors in each kernel, then in each output
    channel. First every kernel's sum is brought within half a step, then every channel's (which may cost a kernel half
    a step more), each time by turning the elements nearest to the middle between two levels. Matrices have no kernels,
    and in blocks the elements of a kernel have no step in common: they are rounded to nearest, and so are
    codes of a table, whose levels are not evenly spaced.

    Source: Guo et al. 2022, "SQuant: On-the-Fly Data-Free Quantization via Diagonal Hessian Approximation", its
    kernel-wise and its channel-wise term.
    """

    def round(self, weight: FloatArray, scale: Scale) -> Array:
        """Codes of the scale's dtype in the shape of `weight` [M, C, k...] (ConvTranspose: channels along axis 1)."""
        if scale.is_table:
            return nearest_codes(weight, scale)
        exact = _exact(weight, scale)
        if weight.ndim < 3 or scale.block is not None:
            return np.rint(exact).clip(scale.lowest, scale.highest).astype(scale.dtype)
        axis = scale.axis or 0
        moved = np.moveaxis(exact, axis, 0)
        rows = moved.reshape(moved.shape[0], moved.shape[1], -1)
        size = max(1, _CHUNK // (rows.shape[1] * rows.shape[2]))
        blocks = [_round_block(rows[at : at + size], scale) for at in range(0, rows.shape[0], size)]
        codes = np.concatenate(blocks).reshape(moved.shape)
        return np.ascontiguousarray(np.moveaxis(codes, 0, axis)).astype(scale.dtype)


def _exact(weight: FloatArray, scale: Scale) -> npt.NDArray[np.float64]:
    """Where each weight lies between the codes, float64."""
    steps, zero = along(scale, weight.shape)
    return np.asarray(weight / steps.astype(np.float64) + zero.astype(np.float64), np.float64)


def _round_block(exact: npt.NDArray[np.float64], scale: Scale) -> npt.NDArray[np.float64]:
    """Codes for [channels, kernels, elements]."""
    clipped = exact.clip(scale.lowest, scale.highest)
    codes = np.rint(clipped)
    codes = _cancel(codes, clipped)
    channels, _, elements = codes.shape
    flat = _cancel(codes.reshape(channels, 1, -1), clipped.reshape(channels, 1, -1), spread=elements)
    return flat.reshape(codes.shape)


def _cancel(codes: npt.NDArray[np.float64], exact: npt.NDArray[np.float64], spread: int = 0) -> npt.NDArray[np.float64]:
    """Turns elements along the last axis until the sum of the errors is within half a step.

    An element may only go to the other one of its two neighbouring levels. With `spread`, at most one element of
    each run of that many (a kernel) is turned, and only in kernels that err to the same side, so that no kernel's sum
    exceeds one step.
    """
    error = codes - exact
    total = error.sum(axis=-1, keepdims=True)
    direction = np.sign(total)
    turns = np.rint(np.abs(total))
    gain = error * direction
    turnable = gain > 0
    if spread > 1:
        turnable &= _best_of_run(np.where(turnable, gain, -1.0), spread) & _run_leans(gain, spread)
    ranked = np.argsort(np.where(turnable, -gain, 1.0), axis=-1, kind="stable")
    rank = np.empty_like(ranked)
    np.put_along_axis(rank, ranked, np.broadcast_to(np.arange(codes.shape[-1]), codes.shape), axis=-1)
    return np.asarray(codes - direction * ((rank < turns) & turnable), np.float64)


def _best_of_run(gain: npt.NDArray[np.float64], length: int) -> npt.NDArray[np.bool_]:
    """True for the largest element of each run of `length` along the last axis."""
    runs = gain.reshape(*gain.shape[:-1], -1, length)
    best = np.zeros(runs.shape, bool)
    np.put_along_axis(best, runs.argmax(axis=-1, keepdims=True), True, axis=-1)
    return best.reshape(gain.shape)


def _run_leans(gain: npt.NDArray[np.float64], length: int) -> npt.NDArray[np.bool_]:
    """True for the elements of each run of `length` whose sum is positive."""
    leans = gain.reshape(*gain.shape[:-1], -1, length).sum(axis=-1) > 0
    return np.repeat(leans, length, axis=-1)
