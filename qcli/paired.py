"""What a layer reads in float beside what it reads after quantized layers."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from qcli.types import FloatArray

Float64Array = npt.NDArray[np.float64]


class Paired:
    """What a layer read on some samples: its inputs in float, x, and after the quantized layers before it, y.

    Mean products y y^T and x y^T of inputs with a one behind them, [groups, K + 1, K + 1], and some of the inputs
    themselves. Places where y lost an outlying value, which a clipped range does on purpose, count little.
    """

    def __init__(self) -> None:
        self._weight: Float64Array = np.zeros(0)
        self._own: Float64Array = np.zeros(0)
        self._cross: Float64Array = np.zeros(0)
        self.rows: list[tuple[FloatArray, FloatArray]] = []

    def add(self, exact: FloatArray, quantized: FloatArray) -> None:
        """Takes in patches [groups, K, P] of one sample."""
        x, y = (_with_ones(patches) for patches in (exact, quantized))
        weights = _trust(exact - quantized)
        weighed = np.swapaxes(y * weights[:, None], 1, 2)
        own, cross = (np.matmul(one, weighed).astype(np.float64) for one in (y, x))
        total = weights.sum(axis=1, dtype=np.float64)
        first = self.empty
        self._own, self._cross = (own, cross) if first else (self._own + own, self._cross + cross)
        self._weight = total if first else self._weight + total
        chosen = np.linspace(0, x.shape[2] - 1, min(x.shape[2], _ROWS)).astype(np.intp)
        self.rows.append((exact[:, :, chosen], quantized[:, :, chosen]))

    def joined(self, other: Paired) -> Paired:
        both = Paired()
        both._weight, both._own, both._cross = (
            self._weight + other._weight,
            self._own + other._own,
            self._cross + other._cross,
        )
        return both

    @property
    def empty(self) -> bool:
        return not self._weight.size

    @property
    def own(self) -> Float64Array:
        return self._own / self._weight[:, None, None]

    @property
    def cross(self) -> Float64Array:
        return self._cross / self._weight[:, None, None]

    def means(self) -> tuple[Float64Array, Float64Array]:
        """E[x] and E[y], [groups, K]."""
        return self.cross[:, :-1, -1], self.own[:, :-1, -1]

    def covariances(self) -> tuple[Float64Array, Float64Array]:
        """cov(y, y) and cov(x, y), [groups, K, K]."""
        x, y = self.means()
        return (
            self.own[:, :-1, :-1] - y[:, :, None] * y[:, None, :],
            self.cross[:, :-1, :-1] - x[:, :, None] * y[:, None, :],
        )


_ROWS = 48
"""Places of each sample at which the outputs are compared."""


def _with_ones(patches: FloatArray) -> FloatArray:
    return np.concatenate([patches, np.ones((len(patches), 1, patches.shape[2]), np.float32)], axis=1)


def _trust(wrong: FloatArray) -> FloatArray:
    """The weight of each place [groups, P], less where the inputs [groups, K, P] err much more than elsewhere."""
    errors = np.einsum("gkp,gkp->gp", wrong, wrong)
    usual = 4 * np.median(errors, axis=1, keepdims=True)
    trust: FloatArray = np.divide(usual, usual + errors, out=np.ones_like(errors), where=errors > 0)
    return trust
