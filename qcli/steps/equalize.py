"""Channels that share a tensor get similar ranges, so that one scale serves them all.

    y = W2 f(W1 x + b1) + b2  =  (W2 / s) f((s W1) x + s b1) + b2          for f(s z) = s f(z), s > 0

The factors s, one for each channel, belong to *classes* of channels (`qcli/channels.py`): Add, Relu, pooling and
Concat tie channels of several tensors to each other. A residual stream, which pairwise equalization has to leave
alone, is scaled as a whole. Where a Clip ends a tensor, such as Relu6, its channels grow at most up to the bound that
they kept to on all samples, so that the Clip need not change; or each of its channels gets bounds of its own.

Source: Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.1, there
for pairs of layers and from weight ranges; here for all tied tensors at once, and from activation ranges.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from qcli.channels import Channels, Clipped, Linear, Track, channels_of, rescale
from qcli.errors import InputError, UsageError
from qcli.graph import Model, Value, constant_of, dimensions
from qcli.statistics import Statistics
from qcli.steps._base import MeasuredStep
from qcli.steps._clips import bound_each
from qcli.types import Array, Request

Float64Array = npt.NDArray[np.float64]

_VALUES_PER_FACTOR = 100

_ROUNDS = 20
"""Of equalizing weights: each factor changes what its neighbours see. Converges in a few."""


class Equalize(MeasuredStep, frozen=True, kw_only=True):
    """Rescales the channels between layers to similar ranges; exact in float.

    `by: activations` brings the ranges of tied activations together: `strength` 1 makes them equal, 0 does nothing; in
    between, weights of the layers behind keep more of their own balance. Where only depthwise layers read a channel,
    whose weights have a scale for each channel anyway, `depthwise` is the strength. `by: weights` makes each channel's
    largest weights on both sides equal (Nagel et al., equation 11), which is what one scale for a whole weight needs,
    and looks at samples only where a Clip bounds the factors. `limit` bounds each factor, and so does a hundredth of
    the number of values seen of a channel: what is rarely active may be ten times as large in the next sample.

    `clip: keep` leaves every Clip as it is, and scales what it bounds no further than that allows. With `per_channel`
    factors are free; a Clip that would cut something else then gets the widest of the bounds, and a Max and a Min by
    constants for each channel behind it. Each of those is a pass of its own over the tensor when the model runs, where
    a Clip costs nothing. Only `by: weights` makes use of that: `activations` never shrinks what reaches a bound.
    """

    worth_db: ClassVar[float | None] = 0.2
    looks_for: ClassVar[tuple[str, ...]] = ("Conv", "ConvTranspose", "Gemm", "MatMul")

    by: Literal["activations", "weights"] = "activations"
    strength: float = 0.5
    depthwise: float = 1.0
    limit: float = 64.0
    clip: Literal["keep", "per_channel"] = "keep"

    def __post_init__(self) -> None:
        if not (0 <= self.strength <= 1 and 0 <= self.depthwise <= 1):
            raise UsageError("equalize: strength and depthwise must be 0 to 1")
        if not self.limit >= 1:
            raise UsageError("equalize: limit must be 1 or more")

    def requests(self, model: Model) -> tuple[Request, ...]:
        """The extrema of each channel of each value that could be scaled."""
        found = channels_of(model)
        free = found.resolved() > 0
        return tuple(_request(value, track) for value, track in found.tracks.items() if free[track.classes].any())

    def works_blindly(self) -> bool:
        return self.by == "weights"

    def run(self, model: Model) -> int:
        """Without samples: by weights, with all channels that a Clip bounds left as they are, if it has to stay."""
        return self._run(model, None)

    def run_measured(self, model: Model, statistics: Statistics) -> int:
        return self._run(model, statistics)

    def _run(self, model: Model, statistics: Statistics | None) -> int:
        found = channels_of(model)
        classes = _Classes(found, statistics, keeps_clips=self.clip == "keep")
        if self.by == "weights":
            wanted = _by_weights(found, classes)
        else:
            wanted = _by_activations(classes, np.where(classes.gentle, self.strength, self.depthwise))
        factors = np.ones(wanted.shape)
        scaled = (classes.root > 0) & np.isfinite(wanted) & classes.live
        limits = np.minimum(self.limit, classes.trusted)
        factors[scaled] = np.clip(wanted, 1 / limits, limits)[scaled]
        factors = _within(factors, classes.most)
        rescale(model.graph, found, factors[classes.root])
        for clip, room in classes.clips:
            along = factors[classes.root[clip.track.classes]]
            if not np.array_equal(along, _within(along, room)):
                bound_each(model.graph, clip, along)
        return int((factors != 1).any())


class _Classes:
    """What is known of each class; arrays are indexed by the class."""

    def __init__(self, found: Channels, statistics: Statistics | None, *, keeps_clips: bool) -> None:
        self.root = found.resolved()
        size = self.root.size
        self.ranges = np.zeros(size)
        """The largest magnitude in any tensor that will have a grid."""
        self.most = np.full(size, np.inf)
        """The factor that a Clip allows; infinite without one."""
        self.gentle = np.zeros(size, bool)
        """True where a layer reads the channel whose weights share a scale among inputs."""
        self.streams = self.root.copy()
        """The lowest of the classes that share tensors with a class."""
        for layer in found.layers:
            if not layer.depthwise:
                self.gentle[self.root[layer.columns]] = True
        for value, track in found.tracks.items():
            self._include(value, track, statistics)
        self.clips = [(clip, _most(clip, statistics)) for clip in found.clips]
        """Each Clip with the factors [channels] up to which it need not change."""
        for clip, room in self.clips if keeps_clips else ():
            np.minimum.at(self.most, self.root[clip.track.classes], room)
        self.trusted = np.full(size, np.inf)
        """The factor that the number of values seen allows."""
        if statistics is not None:
            for value, track in found.tracks.items():
                most = max(1.0, statistics.header.samples * _places(value, track) / _VALUES_PER_FACTOR)
                np.minimum.at(self.trusted, self.root[track.classes], most)
        self.live = self.ranges > 0 if statistics is not None else np.ones(size, bool)
        self.most[self.root == 0] = 1.0

    def _include(self, value: Value, track: Track, statistics: Statistics | None) -> None:
        classes = self.root[track.classes]
        joined = np.unique(self.streams[classes[classes > 0]])
        if joined.size:
            self.streams[np.isin(self.streams, joined)] = joined[0]
        known = _extrema(value, track, statistics)
        if known is not None and not _is_passed_on(value):
            np.maximum.at(self.ranges, classes, np.maximum(-known[0], known[1]))


def _most(clip: Clipped, statistics: Statistics | None) -> Float64Array:
    """A channel that stays within the bounds may grow up to them; one that reaches them may not be scaled."""
    known = _extrema(clip.value, clip.track, statistics)
    if known is None:
        return np.ones(clip.track.classes.size)
    room = [_room(reached, bound) for reached, bound in zip(known, (clip.lower, clip.upper), strict=True)]
    return np.asarray(np.min(room, axis=0).clip(min=1.0))


def _places(value: Value, track: Track) -> int:
    """Values of one channel in a sample; an axis of unknown size counts as 16."""
    shape = dimensions(value) or ()
    sizes = [16 if size is None else size for size in shape]
    inner = [size for axis, size in enumerate(sizes) if axis > 0 and axis - len(sizes) != track.axis]
    return int(np.prod(inner))


def _room(reached: Float64Array, bound: float) -> Float64Array:
    """By how much channels may grow until they reach a bound of their own sign."""
    ahead = reached * np.sign(bound) if bound else np.zeros_like(reached)
    return np.divide(abs(bound), ahead, out=np.full(ahead.shape, np.inf), where=ahead > 0)


def _by_activations(classes: _Classes, strength: Float64Array) -> Float64Array:
    """s = (largest range of the stream / range of the channel) ** strength."""
    largest = np.zeros(classes.ranges.shape)
    np.maximum.at(largest, classes.streams, classes.ranges)
    ranges = np.where(classes.live, classes.ranges, 1.0)
    return np.where(classes.live, np.maximum(largest[classes.streams], ranges) / ranges, 1.0) ** strength


def _by_weights(found: Channels, classes: _Classes) -> Float64Array:
    """s = sqrt(r2 / r1), where r1 and r2 are the largest weights that write and that read a channel."""
    factors = np.ones(classes.root.size)
    for _ in range(_ROUNDS):
        written, read = np.zeros(factors.size), np.zeros(factors.size)
        for layer in found.layers:
            rows, columns = classes.root[layer.rows], classes.root[layer.columns]
            sizes = np.abs(_weight(layer)) * factors[rows] / factors[columns]
            np.maximum.at(written, np.broadcast_to(rows, sizes.shape), sizes)
            np.maximum.at(read, np.broadcast_to(columns, sizes.shape), sizes)
        both = (written > 0) & (read > 0)
        before = factors.copy()
        factors[both] *= np.sqrt(read[both] / written[both])
        factors = _within(factors, classes.most)
        change = factors / before
        if np.abs(np.log(change)).max() < 1e-3:
            break
    return factors


def _within(factors: Float64Array, most: Float64Array) -> Float64Array:
    """Channels that a Clip bounds cannot shrink either, since what it cut off would come back."""
    return np.where(np.isfinite(most), np.clip(factors, 1.0, most), factors)


def _weight(layer: Linear) -> Array:
    return np.asarray(constant_of(layer.node.inputs[1]), np.float64)


def _request(value: Value, track: Track) -> Request:
    return Request(value=value.name or "", statistic="extrema", axis=track.axis)


def _extrema(value: Value, track: Track, statistics: Statistics | None) -> tuple[Float64Array, Float64Array] | None:
    """The smallest and the largest value of each channel; None if they were not measured or nothing was there."""
    if statistics is None:
        return None
    try:
        known = statistics.get(_request(value, track)).distribution()
    except (InputError, UsageError):
        return None
    return known.lower, known.upper


def _is_passed_on(value: Value) -> bool:
    """True for what only a Relu or a Clip reads, which becomes part of the layer before it."""
    uses = tuple(value.uses())
    return len(uses) == 1 and uses[0][0].op_type in ("Relu", "Clip")
