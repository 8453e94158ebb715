"""How far a ratio over samples is due to the choice of samples."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite, log, sqrt

from qcli.metrics.sqnr import Sqnr


class Spread:
    """Signal and noise of each output, sample by sample."""

    def __init__(self) -> None:
        self._outputs: dict[str, list[Sqnr]] = {}

    def update(self, one_sample: Mapping[str, Sqnr]) -> None:
        for name, one in one_sample.items():
            self._outputs.setdefault(name, []).append(one)

    def error_db(self) -> float:
        """The standard error of the worst output's ratio in dB; 0 without noise, or with one sample.

        That of a ratio of sums, to the first order: R = sum N / sum S has the variance
        n / (n - 1) * sum (N_i - R S_i)^2 / (sum S)^2. Source: Cochran 1977, "Sampling Techniques", section 2.11.
        """
        worst = min(self._outputs.values(), key=lambda ones: _whole(ones).value(), default=[])
        whole = _whole(worst)
        if len(worst) < 2 or not 0 < whole.noise < float("inf") or not whole.signal:
            return 0.0
        ratio = whole.noise / whole.signal
        apart = [one.noise - ratio * one.signal for one in worst]
        squares = sum(one * one for one in apart)  # which becomes Inf where a power would raise
        error = sqrt(len(worst) / (len(worst) - 1) * squares) / whole.noise
        return 10 / log(10) * error if isfinite(error) else 0.0


def _whole(ones: list[Sqnr]) -> Sqnr:
    whole = Sqnr()
    for one in ones:
        whole.merge(one)
    return whole
