"""A Mul or Add by constants, one for each channel, becomes part of the layer in front of it.

(W x + b) * f + a:   W' = W * f,   b' = b * f + a
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from qcli.graph import Graph, Model, Node, Value, constant_of, dimensions, infer_shapes, sole_consumer
from qcli.steps._base import Step
from qcli.steps._fold import fold_affine_into
from qcli.types import Array

_OPERATORS = ("Add", "Sub", "Mul", "Div")
_LAYERS = ("Conv", "ConvTranspose")


class FoldAffine(Step, frozen=True, kw_only=True):
    """Folds Add, Sub, Mul and Div by a constant per channel into the Conv or ConvTranspose that feeds them."""

    looks_for: ClassVar[tuple[str, ...]] = ("Conv", "ConvTranspose")

    def run(self, model: Model) -> int:
        if all(node.op_type not in _LAYERS for node in model.nodes()):
            return 0
        infer_shapes(model)
        return sum(
            _fold(graph, node) for graph in model.graphs() for node in tuple(graph) if node.op_type in _OPERATORS
        )


def _fold(graph: Graph, node: Node) -> bool:
    """Refused unless one operand is constant and varies along the channel axis (axis 1) at most."""
    for operand in (0, 1):
        source, constant = node.inputs[operand], constant_of(node.inputs[1 - operand])
        layer = source.producer() if source is not None else None
        if source is None or constant is None or layer is None or sole_consumer(source) is not node:
            continue
        if layer.op_type not in _LAYERS or (operand == 1 and node.op_type == "Div"):
            continue
        channels = _per_channel(source, constant)
        if channels is not None and (node.op_type != "Div" or channels.all()):
            return fold_affine_into(graph, layer, node, *_terms(node.op_type, operand, channels))
    return False


def _per_channel(source: Value, constant: Array) -> Array | None:
    """The constant as a float64 vector over channels, or None if it varies elsewhere or changes the shape."""
    shape = dimensions(source)
    if shape is None or len(shape) < 2 or shape[1] is None or constant.ndim > len(shape):
        return None
    aligned = constant.reshape((1,) * (len(shape) - constant.ndim) + constant.shape)
    if any(size != 1 for axis, size in enumerate(aligned.shape) if axis != 1):
        return None
    if aligned.shape[1] not in (1, shape[1]):
        return None
    return np.broadcast_to(aligned.reshape(-1), (shape[1],)).astype(np.float64)


def _terms(operator: str, operand: int, constant: Array) -> tuple[Array, Array]:
    """(factor, offset) so that the node computes x * factor + offset."""
    one, zero = np.ones_like(constant), np.zeros_like(constant)
    if operator == "Sub" and operand == 1:
        return -one, constant
    table = {"Add": (one, constant), "Sub": (one, -constant), "Mul": (constant, zero), "Div": (one / constant, zero)}
    return table[operator]
