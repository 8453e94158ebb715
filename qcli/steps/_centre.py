"""Shifts that come near to what each tensor wants, and that biases can give."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from qcli.shifts import NO_TERM, Float64Array, Numbers, Shifts, Track

_NOTHING = 1e-9
"""Singular values below this share of the largest one are 0."""


@dataclass(frozen=True)
class Wish:
    """What a tensor's channels should be shifted by [channels]; a miss counts by `weight`."""

    track: Track
    target: Float64Array
    weight: float


@dataclass(frozen=True)
class Bound:
    """Between what a tensor's channels may be shifted; `lower` is at most 0 and `upper` at least, both [channels]."""

    track: Track
    lower: Float64Array
    upper: Float64Array

    def closed(self) -> Track:
        """What may not be shifted at all; the other channels have no terms."""
        kept = (self.lower >= 0) & (self.upper <= 0)
        return Track(self.track.axis, np.where(kept, self.track.numbers, NO_TERM), self.track.signs * kept)


def free_terms(found: Shifts, fixed: Iterable[Track] = ()) -> npt.NDArray[np.bool_]:
    """Which terms something may be chosen for: those that do not stand alone in a channel that must stay."""
    free = np.ones(found.count, bool)
    free[NO_TERM] = False
    tracks = [*found.fixed, *fixed]
    while True:
        before = free.sum()
        for track in tracks:
            left = free[track.numbers]
            free[track.numbers[left & (left.sum(axis=0) == 1)]] = False
        if free.sum() == before:
            return free


def terms_for(found: Shifts, wishes: Sequence[Wish], bounds: Sequence[Bound]) -> Float64Array:
    """A value for each term: the least squared misses, with 0 where the graph needs it, then shrunk into the bounds."""
    fixed = [*found.fixed, *(bound.closed() for bound in bounds)]
    free = free_terms(found, fixed)
    labels = _labels(found, fixed, free)
    rows: dict[int, list[_Row]] = {}
    for wish in wishes:
        _gather(rows, labels, free, wish)
    for track in fixed:
        _gather(rows, labels, free, Wish(track, np.zeros(track.channels), np.inf))
    terms = np.zeros(found.count)
    for members in rows.values():
        _solve(terms, members)
    for bound in bounds:
        _shrink(terms, labels, free, bound)
    return terms


class _Row(NamedTuple):
    """One channel of one tensor: which of its terms are free, their signs, and what they should add up to."""

    numbers: Numbers
    signs: Float64Array
    target: float
    weight: float


def _labels(found: Shifts, fixed: Sequence[Track], free: npt.NDArray[np.bool_]) -> Numbers:
    """For each term the lowest one that depends on it through channels that both shift."""
    labels = np.arange(found.count)
    tracks = [*found.tracks.values(), *fixed]
    while True:
        before = labels.copy()
        for track in tracks:
            used = free[track.numbers]
            least = np.where(used, labels[track.numbers], labels.size).min(axis=0)
            np.minimum.at(labels, track.numbers[used], np.broadcast_to(least, used.shape)[used])
        if np.array_equal(before, labels):
            return labels


def _gather(rows: dict[int, list[_Row]], labels: Numbers, free: npt.NDArray[np.bool_], wish: Wish) -> None:
    track, used = wish.track, free[wish.track.numbers]
    for channel in np.flatnonzero(used.any(axis=0)).tolist():
        mine = used[:, channel]
        numbers = track.numbers[mine, channel]
        row = _Row(numbers, track.signs[mine, channel], float(wish.target[channel]), wish.weight)
        rows.setdefault(int(labels[numbers[0]]), []).append(row)


def _solve(terms: Float64Array, rows: Sequence[_Row]) -> None:
    """Least squares over the terms for which all rows of infinite weight are met."""
    numbers = np.unique(np.concatenate([row.numbers for row in rows]))
    matrix = np.zeros((len(rows), numbers.size))
    for line, row in zip(matrix, rows, strict=True):
        np.add.at(line, np.searchsorted(numbers, row.numbers), row.signs)
    target, weight = (np.array([getattr(row, key) for row in rows]) for key in ("target", "weight"))
    hard = np.isinf(weight)
    basis = np.eye(numbers.size)
    if hard.any():
        _, sizes, turned = np.linalg.svd(matrix[hard])
        basis = turned[int((sizes > _NOTHING * sizes.max()).sum()) :].T
    if basis.size and not hard.all():
        lines, wanted = matrix[~hard] @ basis * weight[~hard, None], target[~hard] * weight[~hard]
        terms[numbers] = basis @ np.linalg.lstsq(lines, wanted, rcond=_NOTHING)[0]


def _shrink(terms: Float64Array, labels: Numbers, free: npt.NDArray[np.bool_], bound: Bound) -> None:
    """Scales what depends on a shift out of bounds; what added up to 0 still does."""
    found = bound.track.shift(terms)
    for channel in np.flatnonzero((found < bound.lower) | (found > bound.upper)).tolist():
        numbers = bound.track.numbers[:, channel]
        allowed = bound.upper[channel] if found[channel] > 0 else bound.lower[channel]
        left = free[numbers]
        if left.any():
            terms[labels == labels[numbers[left][0]]] *= min(1.0, allowed / bound.track.shift(terms)[channel])
