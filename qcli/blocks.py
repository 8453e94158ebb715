"""Large weights, some channels at a time: what is known of each channel does not depend on the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec
import numpy as np

from qcli.distribution import Distribution, Float64Array, from_weights
from qcli.types import Array, FloatArray, Interval, Scale

_BLOCK_BYTES = 1 << 23
"""Weights up to this size are worked on as a whole; finding their ranges takes some thirty times as much."""


_TAIL = 64
_MIDDLE = 512


def interval_of(
    weight: FloatArray,
    axis: int | None,
    find: Callable[[Distribution], Interval],
    *,
    thin: bool = False,
    energies: Float64Array | None = None,
) -> tuple[Interval, Array]:
    """The interval of each channel, and which channels are all zero.

    With `thin`, long channels are known by their ends and by some of what lies between: a tenth of the time. With
    `energies`, of the weight's shape, each element counts that much instead of once.
    """
    found: list[tuple[Interval, Array]] = []
    for part in _parts(weight, axis):
        distribution = from_weights(weight[part], axis, None if energies is None else energies[part])
        dead = (distribution.lower == 0) & (distribution.upper == 0)
        found.append((find(_thinned(distribution) if thin else distribution), dead))
    lower = np.concatenate([interval.lower for interval, _ in found])
    upper = np.concatenate([interval.upper for interval, _ in found])
    return Interval(lower=lower, upper=upper), np.concatenate([dead for _, dead in found])


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


def rounded(weight: FloatArray, scale: Scale, encode: Callable[[FloatArray, Scale], Array]) -> Array:
    """The codes of a weight. Roundings treat each output channel by itself."""
    axis = scale.axis or 0
    parts = tuple(_parts(weight, axis if weight.ndim else None))
    if len(parts) == 1:
        return encode(weight, scale)
    codes = np.empty(weight.shape, scale.dtype)
    for part in parts:
        codes[part] = encode(weight[part], _scale_of(scale, part[axis]))
    return codes


def _parts(weight: Array, axis: int | None) -> Iterator[tuple[slice, ...]]:
    """Slices along an axis that cover the weight; a single one where it is small or there is no axis."""
    everything = (slice(None),) * weight.ndim
    if axis is None or weight.nbytes <= _BLOCK_BYTES:
        yield everything
        return
    channels = weight.shape[axis]
    step = max(1, channels * _BLOCK_BYTES // weight.nbytes)
    for begin in range(0, channels, step):
        yield (*everything[:axis], slice(begin, begin + step), *everything[axis + 1 :])


def _scale_of(scale: Scale, channels: slice) -> Scale:
    if scale.axis is None:
        return scale
    return msgspec.structs.replace(scale, scale=scale.scale[channels], zero_point=scale.zero_point[channels])
