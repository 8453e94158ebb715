"""What the roundings share that learn from samples which level serves a layer's output best."""

from __future__ import annotations

import threading
from typing import ClassVar, Protocol, runtime_checkable

import msgspec
import numpy as np
import numpy.typing as npt

from qcli.contracts import along
from qcli.errors import UsageError
from qcli.levels import nearest_codes
from qcli.roundings._quadratic import Factor, compensate, damped, factor_of
from qcli.roundings._rows import Float64Array, Rows
from qcli.types import Array, FloatArray, Scale


class Moments(Protocol):
    """A statistic of a layer's inputs that knows their mean products [groups, K, K] and means [groups, K]."""

    def moments(self) -> tuple[Float64Array, Float64Array]: ...


class PatchSample(Protocol):
    """Patches float32 [groups, K, n], and how often each was seen, int64 [n]."""

    @property
    def patches(self) -> FloatArray: ...

    @property
    def counts(self) -> npt.NDArray[np.int64]: ...


class Kept:
    """Moments of inputs that several weights share, or several parts of one: what follows from them is kept."""

    def __init__(self, measured: Moments) -> None:
        self._measured = measured
        self._products: dict[float, Float64Array] = {}
        self._factors: dict[float, Factor] = {}
        self._lock = threading.RLock()

    def moments(self) -> tuple[Float64Array, Float64Array]:
        return self._measured.moments()

    def products(self, damp: float) -> Float64Array:
        """The products [groups, K, K], damped so much."""
        with self._lock:
            if damp not in self._products:
                self._products[damp] = damped(self.moments()[0], damp)
            return self._products[damp]

    def factor(self, damp: float) -> Factor:
        """That of the damped products."""
        with self._lock:
            if damp not in self._factors:
                self._factors[damp] = factor_of(self.products(damp))
            return self._factors[damp]


def kept(measured: Moments) -> Moments:
    """The same, kept where nothing but its moments is known."""
    return measured if isinstance(measured, (Kept, SampledMoments)) else Kept(measured)


@runtime_checkable
class SampledMoments(Moments, Protocol):
    """A statistic that keeps some of the patches too."""

    @property
    def sample(self) -> PatchSample: ...


class LearnedRounding(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Chooses the codes of a layer by the error of its output on the calibration samples.

    `damp` is added to the diagonal of the inputs' products, relative to its mean. `refit` times, the scale of each
    channel or block is fitted to the codes by least squares and the codes are chosen again. With `sequential`, a layer
    learns from the inputs that the quantized layers before it give, not from those of the float model.
    """

    statistic: ClassVar[str]
    takes_tables: ClassVar[bool] = True
    """False for one that knows no levels but evenly spaced ones."""
    takes_vectors: ClassVar[bool] = False
    """True for one that also chooses one code for several weights."""

    damp: float = 0.01
    refit: int = 0
    sequential: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.damp <= 1:
            raise UsageError(f"damp must be above 0 and at most 1, is {self.damp}")
        if not 0 <= self.refit <= 20:
            raise UsageError(f"refit must be 0 to 20, is {self.refit}")

    def round(self, weight: FloatArray, scale: Scale) -> Array:
        """Codes of the scale's dtype in the shape of `weight`, to nearest: for weights that no sample speaks of."""
        if scale.is_table:
            return nearest_codes(weight, scale)
        steps, zero = along(scale, weight.shape)
        exact = weight / steps.astype(np.float64) + zero.astype(np.float64)
        return np.rint(exact).clip(scale.lowest, scale.highest).astype(scale.dtype)

    def learn(self, rows: Rows, measured: Moments) -> Float64Array:
        """Codes [groups, R, K], zero points taken off, for a layer whose inputs were measured."""
        raise NotImplementedError

    def products(self, measured: Moments) -> Float64Array:
        """The damped products of the inputs [groups, K, K]."""
        if isinstance(measured, Kept):
            return measured.products(self.damp)
        return damped(measured.moments()[0], self.damp)

    def compensated(self, rows: Rows, measured: Moments) -> Float64Array:
        """Codes [groups, R, K] that make up for each other's errors."""
        factor = measured.factor(self.damp) if isinstance(measured, Kept) else None
        return compensate(rows, self.products(measured), factor)
