"""What a layer reads in float beside what it reads after quantized layers."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from qcli.types import FloatArray

Float64Array = npt.NDArray[np.float64]


class Paired:
    """What a layer read on some samples: its inputs in float, x, and after the quantized layers before it, y.

    Their means, with `products` the mean products y y^T too, and some of the inputs themselves. Places where y lost
    an outlying value, which a clipped range does on purpose, count little.
    """

    def __init__(self, *, products: bool) -> None:
        self._products = products
        self._weight: Float64Array = np.zeros(0)
        self._sums: Float64Array = np.zeros(0)
        self._own: Float64Array = np.zeros(0)
        self.rows: list[tuple[FloatArray, FloatArray]] = []

    def add(self, exact: FloatArray, quantized: FloatArray) -> None:
        """Takes in patches [groups, K, P] of one sample; places at which something is not finite are left out."""
        if not (np.isfinite(exact).all() and np.isfinite(quantized).all()):
            return
        weights = _trust(exact - quantized)
        sums = np.stack([np.matmul(one, weights[:, :, None])[..., 0] for one in (exact, quantized)]).astype(np.float64)
        own = np.zeros(0)
        if self._products:
            own = np.matmul(quantized * weights[:, None], np.swapaxes(quantized, 1, 2)).astype(np.float64)
        self._take(weights.sum(axis=1, dtype=np.float64), sums, own)
        groups, inputs, places = exact.shape
        most = max(1, min(places, _ROWS, _ROW_VALUES // (groups * inputs)))
        chosen = np.linspace(0, places - 1, most).astype(np.intp)
        self.rows.append((exact[:, :, chosen], quantized[:, :, chosen]))

    def joined(self, other: Paired) -> Paired:
        """Both, without the rows."""
        both = Paired(products=self._products)
        for one in (self, other):
            both._take(one._weight, one._sums, one._own)
        return both

    @property
    def empty(self) -> bool:
        return not self._weight.size

    def means(self) -> tuple[Float64Array, Float64Array]:
        """E[x] and E[y], [groups, K]."""
        x, y = self._sums / self._weight[:, None]
        return x, y

    def products(self) -> Float64Array:
        """E[y y^T], [groups, K, K]."""
        return self._own / self._weight[:, None, None]

    def covariance(self) -> Float64Array:
        """cov(y, y), [groups, K, K]."""
        _, y = self.means()
        return np.asarray(self.products() - y[:, :, None] * y[:, None, :])

    def _take(self, weight: Float64Array, sums: Float64Array, own: Float64Array) -> None:
        first = self.empty
        self._weight = weight if first else self._weight + weight
        self._sums = sums if first else self._sums + sums
        self._own = own if first else self._own + own


_ROWS = 48
_ROW_VALUES = 1 << 17
"""Places of each sample at which the outputs are compared, and inputs there that are kept."""


def _trust(wrong: FloatArray) -> FloatArray:
    """The weight of each place [groups, P], less where the inputs [groups, K, P] err much more than elsewhere."""
    errors = np.einsum("gkp,gkp->gp", wrong, wrong)
    usual = 4 * np.median(errors, axis=1, keepdims=True)
    trust: FloatArray = np.divide(usual, usual + errors, out=np.ones_like(errors), where=errors > 0)
    return trust
