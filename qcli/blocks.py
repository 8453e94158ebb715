"""Weights, some channels at a time where they are large: what is known of each does not depend on the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import msgspec
import numpy as np

from qcli.contracts import ScaleFitting
from qcli.distribution import Distribution, Float64Array, from_weights
from qcli.types import Array, FloatArray, Grid, Interval, Scale

_BLOCK_BYTES = 1 << 23
"""Weights up to this size are worked on as a whole; finding their ranges takes some thirty times as much."""


_TAIL = 64
_MIDDLE = 512


def interval_of(
    weight: FloatArray,
    grid: Grid,
    find: Callable[[Distribution], Interval],
    *,
    thin: bool = False,
    energies: Float64Array | None = None,
) -> tuple[Interval, Array]:
    """The interval of each channel or block, and which of them are all zero, in the shape of the scale.

    With `thin`, long channels are known by their ends and by some of what lies between: a tenth of the time. With
    `energies`, of the weight's shape, each element counts that much instead of once.
    """

    def ends(rows: FloatArray, along: int | None, counts: Float64Array | None) -> _Ends:
        distribution = from_weights(rows, along, counts)
        interval = find(_thinned(distribution) if thin else distribution)
        return _Ends(interval.lower, interval.upper, (distribution.lower == 0) & (distribution.upper == 0))

    if grid.block is None:
        joined = 0
        found = [ends(weight[part], grid.axis, _of(energies, part)) for part in parts_of(weight, grid.axis)]
    else:
        joined = across(grid.axis, weight.ndim)
        found = [_block_ends(weight[part], _of(energies, part), grid, ends) for part in parts_of(weight, joined)]
    return _joined(found, joined)


def _joined(found: list[_Ends], axis: int) -> tuple[Interval, Array]:
    lower, upper, dead = (np.concatenate(parts, axis=axis) for parts in zip(*found, strict=True))
    return Interval(lower=lower, upper=upper), dead


class _Ends(NamedTuple):
    """The lower and the upper ends of intervals, and which of them stand for zeros alone."""

    lower: Array
    upper: Array
    dead: Array


_Find = Callable[[FloatArray, int | None, Float64Array | None], _Ends]


def _block_ends(weight: FloatArray, energies: Float64Array | None, grid: Grid, ends: _Find) -> _Ends:
    """In the shape of the weight but for the axis of the blocks, along which each of them has one number."""
    axis, block = grid.axis or 0, grid.block or 1
    moved = np.moveaxis(weight, axis, -1)
    counts = None if energies is None else np.moveaxis(energies, axis, -1)
    whole = moved.shape[-1] // block * block
    found = []
    for run, size in ((np.s_[..., :whole], block), (np.s_[..., whole:], moved.shape[-1] - whole)):
        if moved[run].size:
            rows = None if counts is None else counts[run].reshape(-1, size)
            blocks = ends(moved[run].reshape(-1, size), 0, rows)
            found.append([array.reshape(*moved.shape[:-1], -1) for array in blocks])
    return _Ends(*(np.moveaxis(np.concatenate(parts, axis=-1), -1, axis) for parts in zip(*found, strict=True)))


def _of(energies: Float64Array | None, part: tuple[slice, ...]) -> Float64Array | None:
    return None if energies is None else energies[part]


def across(axis: int | None, rank: int) -> int:
    """An axis that a weight can be cut along without cutting blocks, which lie along `axis`."""
    return 0 if axis != 0 or rank < 2 else rank - 1


def _thinned(whole: Distribution) -> Distribution:
    """The lowest and the highest values of each channel one by one, and every so many of the others for them all."""
    values = whole.points.shape[1]
    step = (values - 2 * _TAIL) // _MIDDLE
    if step < 2 or whole.resolution:
        return whole
    middle = np.arange(_TAIL, values - _TAIL)
    runs = np.array_split(middle, -(-middle.size // step))
    kept = np.concatenate([np.arange(_TAIL), [run[len(run) // 2] for run in runs], np.arange(values - _TAIL, values)])
    counts = np.concatenate([np.ones(_TAIL), [len(run) for run in runs], np.ones(_TAIL)]).astype(np.float64)
    points = np.ascontiguousarray(whole.points[:, kept])
    return msgspec.structs.replace(whole, points=points, counts=np.broadcast_to(counts, points.shape))


def fitted(weight: FloatArray, scale: Scale, rounding: object, floor: Array | None) -> Scale:
    """The scale that a rounding makes of it for this weight; no step is below `floor`, which has its shape, if any."""
    if not isinstance(rounding, ScaleFitting):
        return scale
    axis = across(scale.axis, weight.ndim) if scale.block is not None else scale.axis
    found = [
        rounding.fitted(weight[part], scale_of_part(scale, part, axis or 0))
        for part in parts_of(weight, axis if weight.ndim else None)
    ]
    joined = 0 if scale.block is None else axis or 0
    steps, zeros = (
        np.concatenate(arrays, axis=joined)
        for arrays in zip(*((one.scale, one.zero_point) for one in found), strict=True)
    )
    least = steps if floor is None else np.maximum(steps, floor)
    return msgspec.structs.replace(scale, scale=least.astype(np.float32), zero_point=zeros)


def rounded(weight: FloatArray, scale: Scale, encode: Callable[[FloatArray, Scale], Array]) -> Array:
    """The codes of a weight. Roundings treat each output channel by itself, or each row of vectors."""
    axis = across(scale.axis, weight.ndim) if scale.block is not None else scale.axis or 0
    axis = axis if scale.vectors is None else scale.vectors.rows
    parts = tuple(parts_of(weight, axis if weight.ndim else None))
    if len(parts) == 1:
        return encode(weight, scale)
    codes = np.empty(scale.codes_shape(weight.shape), scale.dtype)
    for part in parts:
        codes[part if scale.vectors is None else part[axis]] = encode(weight[part], scale_of_part(scale, part, axis))
    return codes


def parts_of(weight: Array, axis: int | None) -> Iterator[tuple[slice, ...]]:
    """Slices along an axis that cover the weight; a single one where it is small or there is no axis."""
    everything = (slice(None),) * weight.ndim
    if axis is None or weight.nbytes <= _BLOCK_BYTES:
        yield everything
        return
    channels = weight.shape[axis]
    step = max(1, channels * _BLOCK_BYTES // weight.nbytes)
    for begin in range(0, channels, step):
        yield (*everything[:axis], slice(begin, begin + step), *everything[axis + 1 :])


def scale_of_part(scale: Scale, part: tuple[slice, ...], axis: int) -> Scale:
    """The scale of some channels of a weight, which was cut along `axis`; with vectors, of some of its rows."""
    counts = None if scale.vectors is None else scale.vectors.counts
    if scale.vectors is not None and counts is not None and len(counts) > 1:
        vectors = msgspec.structs.replace(scale.vectors, counts=counts[part[axis]])
        scale = msgspec.structs.replace(scale, vectors=vectors)
    if scale.axis is None or (scale.block is None and scale.axis != axis):
        return scale
    channels = part if scale.block is not None else part[axis]
    own = scale.levels is not None and scale.levels.ndim > 1
    return msgspec.structs.replace(
        scale,
        scale=scale.scale[channels],
        zero_point=scale.zero_point[channels],
        levels=scale.levels[channels] if own and scale.levels is not None else scale.levels,
    )
