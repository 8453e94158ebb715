"""Rounding as a soft choice between two neighbouring codes, which gradient descent makes a hard one.

    V = base + h(v),   h(v) = clip(sigmoid(v) (zeta - gamma) + gamma, 0, 1)                      (equations 22 and 23)
    f_reg(v) = sum of 1 - |2 h(v) - 1|^beta, with beta falling from high to low                  (equation 24)

Source: Nagel et al. 2020, "Up or Down? Adaptive Rounding for Post-Training Quantization"; Adam is that of Kingma and Ba
2015, "Adam: A Method for Stochastic Optimization", algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qcli.roundings._objectives import Objective
from qcli.roundings._rows import Float64Array, Rows
from qcli.types import FloatArray

_ZETA, _GAMMA = 1.1, -0.1
_WARM_UP = 0.2
"""The share of the steps without the regularizer."""
_BETA_FIRST, _BETA_LAST = 20.0, 2.0
_DECAYS = 0.9, 0.999


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to descend, and how much the regularizer weighs."""

    iterations: int
    learning_rate: float
    regularization: float

    def beta(self, step: int) -> float:
        """The exponent of the regularizer, 0 while it does not count."""
        begin = self.iterations * _WARM_UP
        if step < begin:
            return 0.0
        share = (step - begin) / max(1.0, self.iterations - begin)
        return _BETA_LAST + (_BETA_FIRST - _BETA_LAST) * 0.5 * (1 + float(np.cos(share * np.pi)))


def relaxed(rows: Rows, start: Float64Array, objective: Objective, schedule: Schedule) -> Float64Array:
    """Codes [groups, R, K], each `start` or its neighbour on the side of the exact position.

    Descent begins half way between `start` and the exact position.
    """
    base = np.where(start <= rows.exact, start, start - 1)
    fixed = (base < rows.lowest) | (base >= rows.highest)
    base = np.where(fixed, start, base)
    share = np.where(fixed, 0.0, (rows.exact - base).clip(0, 1) + (start - base)) / 2
    choice = _Choice(share.astype(np.float32), ~fixed)
    wrong = (base - rows.exact).astype(np.float32)
    for step in range(schedule.iterations):
        gradient = objective.gradient(wrong + choice.soft(), step)
        choice.descend(gradient, schedule, step)
    codes: Float64Array = base + np.where(fixed, 0.0, choice.hard())
    return codes


class _Choice:
    """The variables v of all weights, and what Adam remembers of them."""

    def __init__(self, share: FloatArray, free: npt.NDArray[np.bool_]) -> None:
        sigmoid = ((share - _GAMMA) / (_ZETA - _GAMMA)).clip(0.01, 0.99)
        self._v = np.log(sigmoid / (1 - sigmoid)).astype(np.float32)
        self._free = free
        self._mean = np.zeros_like(self._v)
        self._square = np.zeros_like(self._v)
        self._sigmoid = sigmoid.astype(np.float32)

    def soft(self) -> FloatArray:
        """h(v) [groups, R, K]; 0 for weights without a choice."""
        self._sigmoid = 1 / (1 + np.exp(-self._v))
        return np.asarray(self._stretched().clip(0, 1) * self._free, np.float32)

    def hard(self) -> Float64Array:
        return np.asarray(self._v >= 0, np.float64)

    def _stretched(self) -> FloatArray:
        return np.asarray(self._sigmoid * np.float32(_ZETA - _GAMMA) + np.float32(_GAMMA), np.float32)

    def descend(self, gradient: FloatArray, schedule: Schedule, step: int) -> None:
        """One step of Adam down `gradient`, that of h, and the regularizer."""
        stretched = self._stretched()
        beta = schedule.beta(step)
        if beta:
            far = (2 * stretched - 1).clip(-1, 1)
            push = np.sign(far) * np.abs(far) ** np.float32(beta - 1)
            gradient = gradient - np.float32(2 * beta * schedule.regularization) * push
        inside = (stretched > 0) & (stretched < 1)
        gradient = gradient * (np.float32(_ZETA - _GAMMA) * self._sigmoid * (1 - self._sigmoid) * inside)
        first, second = _DECAYS
        self._mean += np.float32(1 - first) * (gradient - self._mean)
        self._square += np.float32(1 - second) * (gradient * gradient - self._square)
        mean = self._mean / np.float32(1 - first ** (step + 1))
        square = self._square / np.float32(1 - second ** (step + 1))
        self._v -= np.float32(schedule.learning_rate) * mean / (np.sqrt(square) + np.float32(1e-8))
