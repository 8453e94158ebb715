"""Biases corrected without samples: by the means that BatchNormalization foretells of what each layer reads.

    c = b + (W - V) E[x]        V: quantized weights

Padding counts: near the borders of a small image, part of a kernel reads zeros.

Source: Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.2.1,
there for a Relu behind a BatchNormalization; here for whatever `expectation.py` can follow.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import numpy as np
import numpy.typing as npt

from qcli.expectation import Expectations
from qcli.graph import Model, Node, dimensions
from qcli.learnable import LayerRows, Learnable, learnable
from qcli.solve import Solution
from qcli.types import Plan
from qcli.windows import patches_of

Float64Array = npt.NDArray[np.float64]

_SIGMAS = 6.0

_ASSUMED_SIZE = 64
"""Of an image whose size is not known."""


def correct_as_foretold(
    model: Model, plan: Plan, solution: Solution, inputs: Mapping[str, tuple[float, float]]
) -> Solution:
    """A solution with corrected biases; the solution given where nothing is known of any layer's input.

    `inputs` are the ends of the model's inputs, those that are known; nothing is assumed of the others.
    """
    layers = [layer for layer in learnable(model, plan, solution, biases=True) if layer.bias is not None]
    if not layers:
        return solution
    known = Expectations(model.graph, _SIGMAS, inputs, assume=False)
    better = Solution(dict(solution.scales), dict(solution.codes))
    found = [_correct(layer, known, better) for layer in layers]
    return better if any(found) else solution


def _correct(layer: Learnable, known: Expectations, solution: Solution) -> bool:
    value = layer.node.inputs[0]
    expected = known.get(value.name or "") if value is not None else None
    rows = LayerRows(layer, solution)
    mean = _read_mean(layer, expected.mean, rows.exact.shape) if expected is not None else None
    if mean is None:
        return False
    bias = rows.corrected(rows.codes, mean, mean)
    rows.keep_bias(bias, np.ones(bias.shape, np.bool_), solution)
    return True


def _read_mean(layer: Learnable, mean: Float64Array, shape: tuple[int, ...]) -> Float64Array | None:
    """The mean of what the rows [groups, R, K] read, [groups, K], for a mean of each channel."""
    groups, _, reads = shape
    kernel = layer.window.kernel
    share = _share(layer.node, layer) if kernel else np.ones(1)
    if share is None or mean.size * share.size != groups * reads:
        return None
    if not kernel and len(_sizes(layer.node)) != 2:  # channels would not lie along the axis that is read
        return None
    return np.asarray((mean[:, None] * share).reshape(groups, reads))


def _share(node: Node, layer: Learnable) -> Float64Array | None:
    """How much of the time each element of the kernel reads the image and not the zeros around and between."""
    sizes = [size or _ASSUMED_SIZE for size in _sizes(node)[2:]]
    if 0 in sizes:
        return None
    window = msgspec.structs.replace(layer.window, groups=1)
    patches = patches_of(np.ones((1, 1, *sizes), np.float32), window)
    return np.asarray(patches[0].mean(axis=1, dtype=np.float64))


def _sizes(node: Node) -> tuple[int | None, ...]:
    return (dimensions(node.inputs[0]) if node.inputs[0] is not None else None) or ()
