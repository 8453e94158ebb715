"""`cross_entropy`: for logits, the range that changes the answer of the classifier least."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import msgspec
import numpy as np

from qcli.contracts import Format
from qcli.distribution import Distribution, Rows
from qcli.errors import UsageError
from qcli.plugins import create
from qcli.ranges._interval import Float64Array
from qcli.ranges._search import least
from qcli.types import Grid, Interval, Scale

_CLASSES = 2


class CrossEntropy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Clips logits v [N, classes] where the cross-entropy of what softmax makes of them is smallest:

        mean over samples of H(softmax(v), softmax(q(v)))        H(p, r) = -sum of p * log(r)

    The largest logits decide the answer and the small ones hardly matter, so those are what is clipped; the squared
    error of the logits, and with it the SQNR, may grow. Candidates are those of `mse`, each measured on the very grid
    that the format would make of it, over the rows that the statistic `rows` keeps: never worse there than minmax.

    Source: Nagel et al. 2021, "A White Paper on Neural Network Quantization", section 3.1, "Cross entropy".
    """

    statistic: ClassVar[str] = "rows"

    def interval(self, distribution: Distribution, grid: Grid) -> Interval:
        """The best interval [1] for `grid`. Raises UsageError for values that are no rows of two classes or more."""
        rows = distribution.rows
        if rows is None and not distribution.counts.any():  # of logits that no sample reached
            return Interval(lower=np.zeros(1), upper=np.zeros(1))
        if rows is None or rows.values.shape[1] < _CLASSES:
            problem = "the range 'cross_entropy' needs whole rows of logits, of two classes or more"
            raise UsageError(problem, "use mse for other values")
        number_format: Format = create("formats", grid.format)
        return least(partial(_entropies, rows, number_format, grid), distribution, grid)


def _entropies(rows: Rows, number_format: Format, grid: Grid, lows: Float64Array, highs: Float64Array) -> Float64Array:
    """The mean cross-entropies [1, candidates] of the grids that span -lows to highs [1, candidates]."""
    scale = number_format.scale(Interval(lower=-lows.ravel(), upper=highs.ravel()), grid)
    values = rows.values.astype(np.float64)
    wanted = np.exp(_log_softmax(values)) * (rows.counts / rows.counts.sum())[:, None]
    found = [-float((wanted * _log_softmax(_quantized(values, scale, at))).sum()) for at in range(lows.size)]
    return np.array(found)[None]


def _quantized(values: Float64Array, scale: Scale, at: int) -> Float64Array:
    """What the grid of one candidate makes of values of any shape."""
    step, zero = float(scale.scale[at]), int(scale.zero_point[at])
    codes = np.rint(values / step).clip(scale.lowest - zero, scale.highest - zero)
    return np.asarray(codes * step)


def _log_softmax(logits: Float64Array) -> Float64Array:
    """The logarithms of the probabilities [n, classes]."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))
