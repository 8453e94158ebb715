"""The Kullback-Leibler divergence between a distribution and what each of many ranges leaves of it."""

from __future__ import annotations

from typing import Self

import numpy as np

from qcli.distribution import Distribution
from qcli.ranges._interval import Float64Array
from qcli.types import Noun

_LEAST_WIDTH = 2.0**-20
_SMOOTHING = 1e-6


class Shape(Noun, frozen=True, kw_only=True):
    """One channel's values that are not zero, on a fixed partition with the edges `edges` [cells + 1].

    Running totals up to each edge: `mass` (0 to 1), `filled`, the width of the cells that hold mass, and
    `information`, the integral of p * log(p) over the density p. `values` is how many values there are;
    `folded` says that magnitudes were taken for values.
    """

    edges: Float64Array
    mass: Float64Array
    filled: Float64Array
    information: Float64Array
    values: float
    folded: bool

    @classmethod
    def of(cls, distribution: Distribution, edges: Float64Array, *, folded: bool) -> Self:
        """The shape of a distribution of one channel."""
        starts, ends = (edge[0] for edge in distribution.edges(_LEAST_WIDTH))
        counts = np.where(distribution.points[0] == 0, 0.0, distribution.counts[0])
        values = counts.sum()
        positions = np.maximum.accumulate(np.stack([starts, ends], axis=1).ravel())
        reached = np.repeat(np.concatenate([[0.0], np.cumsum(counts)]) / values, 2)[1:-1]
        below = np.interp(edges, positions, reached)
        if folded:
            below = below - np.interp(-edges, positions, reached)
        mass, widths = np.diff(below), np.diff(edges)
        density = np.divide(mass, widths, out=np.ones_like(mass), where=mass > 0)
        return cls(
            edges=edges,
            mass=_running_total(mass),
            filled=_running_total(np.where(mass > 0, widths, 0.0)),
            information=_running_total(mass * np.log(density)),
            values=float(values),
            folded=folded,
        )


def partition(typical: Float64Array, below: Float64Array, above: Float64Array, bins: int, folded: bool) -> Float64Array:
    """Edges from -below to above, or from 0 if `folded`: linear up to `typical`, logarithmic beyond."""
    first, last = (np.zeros(1), np.maximum(below, above)) if folded else (-below, above)
    sides = 1 if folded else 2
    places = np.linspace(np.arcsinh(first / typical), np.arcsinh(last / typical), sides * bins + 1)[:, 0]
    edges: Float64Array = typical * np.sinh(places)
    edges[0], edges[-1] = first[0], last[0]
    return edges


def _running_total(terms: Float64Array) -> Float64Array:
    return np.concatenate([[0.0], np.cumsum(terms)])


def divergences(shape: Shape, levels: int, bins: int, lows: Float64Array, highs: Float64Array) -> Float64Array:
    """The divergences [candidates] of the ranges from -lows to highs, or up to the larger one if folded.

    Migacz 2017: KL(P || Q) = sum of P * log(P / Q).
    """
    lows, highs = np.broadcast_arrays(lows, highs)
    first = np.zeros_like(lows) if shape.folded else -lows
    last = np.maximum(lows, highs) if shape.folded else highs
    cuts = first[:, None] + (last - first)[:, None] * np.linspace(0.0, 1.0, levels + 1)
    reached = np.interp(cuts, shape.edges, shape.mass)
    mass, filled = np.diff(reached, axis=1), np.diff(np.interp(cuts, shape.edges, shape.filled), axis=1)
    inside = np.maximum(mass.sum(axis=1), _SMOOTHING)
    held = (mass > 0) & (filled > 0)
    density = np.divide(mass / inside[:, None], filled, out=np.ones_like(mass), where=held)
    information = np.diff(np.interp(cuts[:, [0, -1]], shape.edges, shape.information), axis=1)[:, 0]
    divergence = information - (mass * np.log(density)).sum(axis=1) + held.sum(axis=1) / (2 * shape.values)
    inner = np.interp(np.stack([first, last], 1) + np.outer((last - first) / bins, [1, -1]), shape.edges, shape.mass)
    clipped = np.stack([reached[:, 0], 1.0 - reached[:, -1]], axis=1)
    end_bins = np.abs(inner - reached[:, [0, -1]])
    spread = mass[:, [0, -1]] * (levels / bins / inside[:, None])
    return np.asarray(divergence + _clipping(clipped, end_bins, (1 - _SMOOTHING) * spread + _SMOOTHING / bins))


def _clipping(clipped: Float64Array, end_bins: Float64Array, quantized: Float64Array) -> Float64Array:
    """What it adds to the divergences that P has the `clipped` mass in its end bins too, all [candidates, 2].

    `end_bins` is the mass of P there without it, `quantized` that of Q.
    """
    after = end_bins + np.maximum(clipped, 0.0)
    before = end_bins * np.log(np.where(end_bins > 0, end_bins, 1.0) / quantized)
    difference = after * np.log(np.where(after > 0, after, 1.0) / quantized) - before
    return np.asarray(difference.sum(axis=1))
