"""`adaround`: which way each weight is rounded is learned by gradient descent on the layer's output."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from qcli.errors import UsageError
from qcli.roundings._learned import LearnedRounding, Moments, SampledMoments
from qcli.roundings._objectives import Mixed, Objective, Quadratic, Sampled
from qcli.roundings._quadratic import compensate, descend
from qcli.roundings._relaxed import Schedule, relaxed
from qcli.roundings._rows import Float64Array, Rows

_SWEEPS = 8


class Adaround(LearnedRounding, frozen=True, kw_only=True):
    """Relaxes the choice between two neighbouring codes and anneals it, with the layer's own non-linearity in view.

    Begins and ends with what `coordinate` does; a row whose output gets no better keeps what it began with. Adam takes
    `iterations` steps with `learning_rate` on `batch` patches each; `regularization` weighs what drives the choices to
    either end. A layer that no Relu, LeakyRelu or Clip follows learns from the products of all patches instead.

    Source: Nagel et al. 2020, "Up or Down? Adaptive Rounding for Post-Training Quantization", equations 21 to 25.
    """

    statistic: ClassVar[str] = "patches"
    takes_tables: ClassVar[bool] = False

    iterations: int = 500
    learning_rate: float = 0.05
    regularization: float = 1.0
    batch: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.iterations <= 100_000:
            raise UsageError(f"iterations must be 0 to 100000, is {self.iterations}")
        if not 0 < self.learning_rate <= 1:
            raise UsageError(f"learning_rate must be above 0 and at most 1, is {self.learning_rate}")
        if not 0 <= self.regularization <= 100:
            raise UsageError(f"regularization must be 0 to 100, is {self.regularization}")
        if not 1 <= self.batch <= 1024:
            raise UsageError(f"batch must be 1 to 1024, is {self.batch}")

    def learn(self, rows: Rows, measured: Moments) -> Float64Array:
        """Codes [groups, R, K], zero points taken off."""
        products = self.products(measured)
        objective = _objective(rows, measured, products, self.batch)
        start = descend(compensate(rows, products), rows, products, _SWEEPS)
        schedule = Schedule(self.iterations, self.learning_rate, self.regularization)
        tried = relaxed(rows, start, objective, schedule)
        for codes in (tried, descend(tried, rows, products, _SWEEPS)):
            less = objective.error(codes) < objective.error(start)
            start = np.where(less[..., None], codes, start)
        return start


def _objective(rows: Rows, measured: Moments, products: Float64Array, batch: int) -> Objective:
    quadratic = Quadratic(rows, products)
    if rows.answer is None or not isinstance(measured, SampledMoments):
        return quadratic
    return Mixed(Sampled(rows, rows.answer, measured.sample, batch), quadratic)
