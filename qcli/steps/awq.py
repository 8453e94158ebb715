"""Weights that meet large inputs get finer steps: channels are scaled before weights are quantized.

    x W  =  (x / s) (s W)           s_j = (E x_j^2)^(a / 2)

The division joins the constants in front of the product, as in `smooth`; where nothing there takes it, the layer
stays as it is, since a Div would take time at every run. All products of one input share one s.

Source: Lin et al. 2023, "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration", equations 4
and 5, with its search over a; what a weight loses is measured on the grid that it will get.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any

import msgspec
import numpy as np
import numpy.typing as npt

from qcli.blocks import interval_of
from qcli.errors import InputError
from qcli.granularity import check_layout
from qcli.graph import Model
from qcli.plugins import create
from qcli.scale_forms import as_stored
from qcli.statistics import Statistics
from qcli.steps._base import MeasuredStep
from qcli.steps._linear import Linear
from qcli.steps._scaling import ScalingSite, scale_channels, scaling_sites
from qcli.types import Array, FloatArray, Grid, Request, Spec
from qcli.windows import rows_of, window_of

Float64Array = npt.NDArray[np.float64]

_QUIETEST = 1e-3
"""Channels below this share of the root mean square of all count as that large: what sleeps here may wake elsewhere."""

_COLUMNS = 64
"""Outputs of a layer that errors are judged by."""

_LARGEST = 1024
"""Inputs of a layer that are taken to depend on each other, at most."""


class Awq(MeasuredStep, frozen=True, kw_only=True):
    """Multiplies rows of MatMul and Gemm weights by factors that the constants in front are divided by; exact in float.

    Of the `alphas` the one is taken whose weights, rounded to nearest on `grid`, change the outputs of the layers least
    on the samples; none if that gains less than `gain_db`. `grid` should be the one that the recipe gives the weights,
    `range` its range.
    """

    grid: Grid = Grid(format="uint4", symmetric=False, granularity="block", block=32)
    range: Spec = "minmax"
    alphas: tuple[Annotated[float, msgspec.Meta(gt=0, le=1)], ...] = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75)
    gain_db: float = 0.2

    def __post_init__(self) -> None:
        check_layout(self.grid, "step 'awq'")
        create("formats", self.grid.format)
        create("ranges", self.range)

    def requests(self, model: Model) -> tuple[Request, ...]:
        """The products of all pairs of the inputs of each layer that can be scaled."""
        wanted = (_request(reader) for site in _foldable(model) for reader in site.readers)
        return tuple(dict.fromkeys(request for request in wanted if request is not None))

    def run_measured(self, model: Model, statistics: Statistics) -> int:
        scaled = 0
        for site in _foldable(model):
            layers = [_Layer(self, reader, statistics) for reader in site.readers]
            if all(layer.products is not None for layer in layers):
                factors = self._factors(layers)
                if factors is not None:
                    scale_channels(model.graph, site, factors)
                    scaled += 1
        return scaled

    def _factors(self, layers: Sequence[_Layer]) -> Float64Array | None:
        """The best s, float64 [channels]; None if it gains too little."""
        energies = layers[0].energies()
        if not energies.max(initial=0.0) > 0:
            return None
        before = sum(layer.loss(np.ones(energies.size)) for layer in layers)
        tried = [_of_energies(energies, alpha) for alpha in self.alphas]
        losses = [sum(layer.loss(factors) for layer in layers) for factors in tried]
        best = int(np.argmin(losses))
        return tried[best] if losses[best] < before * 10 ** (-self.gain_db / 10) else None


class _Layer:
    """One product with what was measured of its input, and some of its outputs."""

    def __init__(self, step: Awq, reader: Linear, statistics: Statistics) -> None:
        self._step, self._reader, weight = step, reader, reader.weight
        outputs = 1 - reader.inner
        some = np.linspace(0, weight.shape[outputs] - 1, min(_COLUMNS, weight.shape[outputs])).astype(np.intp)
        self._weight: FloatArray = np.take(weight, some, outputs)
        self._request = _request(reader)
        self.products = _products(self._request, statistics)

    def energies(self) -> Float64Array:
        """The mean squares of the channels."""
        diagonal = np.einsum("gkk->gk", self._known()).reshape(-1)
        return np.asarray(diagonal[: self._reader.channels], np.float64)

    def loss(self, factors: Float64Array) -> float:
        """The squared error of the outputs over their power, with rows of the weight scaled by these factors."""
        along = factors.reshape(-1, 1) if self._reader.inner == 0 else factors
        exact = self._weight.astype(np.float64)
        wrong, power = (self._power(array) for array in (self._coded(exact * along) / along - exact, exact))
        return wrong / power if power > 0 else 0.0

    def _coded(self, weight: Float64Array) -> FloatArray:
        """The weight as it comes back from the grid."""
        single = weight.astype(np.float32)
        fits = (self._step.grid.block or 0) <= weight.shape[self._reader.inner]
        axis = self._reader.inner if self._step.grid.granularity == "block" else 1 - self._reader.inner
        grid = msgspec.structs.replace(self._step.grid, axis=axis if self._step.grid.granularity != "tensor" else None)
        if not fits:
            grid = Grid(
                format=grid.format, symmetric=grid.symmetric, granularity="channel", axis=1 - self._reader.inner
            )
        number = create("formats", grid.format)
        interval, _ = interval_of(single, grid, partial(create("ranges", self._step.range).interval, grid=grid))
        scale = as_stored(number.scale(interval, grid), grid.scales)
        return np.asarray(number.decode(number.encode(single, scale), scale), np.float32)

    def _power(self, array: Array) -> float:
        window = self._request.window if self._request is not None else None
        if window is None:
            raise ValueError("nothing was measured")
        rows = rows_of(self._reader.node, array, window)
        return float(np.einsum("grk,grk->", rows @ self._known(), rows))

    def _known(self) -> Float64Array:
        if self.products is None:
            raise ValueError("nothing was measured")
        return self.products


def _foldable(model: Model) -> list[ScalingSite]:
    return [site for site in scaling_sites(model) if site.changes is not None]


def _of_energies(energies: Float64Array, alpha: float) -> Float64Array:
    """Factors of geometric mean 1."""
    floor = _QUIETEST**2 * energies.mean()
    logs = 0.5 * alpha * np.log(np.maximum(energies, floor))
    return np.asarray(np.exp(logs - logs.mean()))


def _request(reader: Linear) -> Request | None:
    window = window_of(reader.node, _LARGEST)
    return Request(value=reader.data.name or "", statistic="gram", window=window) if window is not None else None


def _products(request: Request | None, statistics: Statistics) -> Float64Array | None:
    """The mean products of all pairs of the inputs [groups, K, K]; None if no sample got there."""
    if request is None:
        return None
    try:
        measured: Any = statistics.get(request)
        found: Float64Array = measured.moments()[0]
    except InputError:
        return None
    return found
