"""BatchNormalization becomes part of the layer in front of it.

BN(W x + b) = gamma / sqrt(var + eps) * (W x + b - mean) + beta
W' = W * factor          factor = gamma / sqrt(var + eps), along the output channels of W
b' = (b - mean) * factor + beta
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from qcli.graph import Graph, Model, Node, constant_of, infer_shapes, sole_consumer
from qcli.layers import note_batchnorm
from qcli.steps._base import Step
from qcli.steps._fold import fold_affine_into
from qcli.types import Array


class FoldBatchnorm(Step, frozen=True, kw_only=True):
    """Folds BatchNormalization into the Conv, ConvTranspose, Gemm or MatMul that feeds it and nothing else."""

    looks_for: ClassVar[tuple[str, ...]] = ("BatchNormalization",)

    def run(self, model: Model) -> int:
        found = [(graph, node) for graph in model.graphs() for node in graph if node.op_type == "BatchNormalization"]
        if found:
            infer_shapes(model)
        return sum(_fold(graph, node) for graph, node in found)


def _fold(graph: Graph, node: Node) -> bool:
    """Refused while training, with weights that are not constant, or behind a value with other readers."""
    terms = _affine(node)
    source = node.inputs[0]
    layer = source.producer() if source is not None else None
    if terms is None or source is None or layer is None or sole_consumer(source) is not node:
        return False
    beta, gamma = constant_of(node.inputs[2]), constant_of(node.inputs[1])
    folded = fold_affine_into(graph, layer, node, *terms)
    if folded and layer.op_type != "MatMul":  # whose offset is a node of its own
        note_batchnorm(layer, np.asarray(beta), np.asarray(gamma))
    return folded


def _affine(node: Node) -> tuple[Array, Array] | None:
    """The factor and the offset per channel in float64, or None if they are not fixed."""
    training = node.attributes.get("training_mode")
    if (training is not None and training.as_int()) or len([out for out in node.outputs if out.uses()]) > 1:
        return None
    constants = [constant_of(value) for value in node.inputs[1:5]]
    if len(constants) < 4 or any(array is None for array in constants):
        return None
    gamma, beta, mean, variance = (np.asarray(array, np.float64) for array in constants)
    epsilon = node.attributes.get("epsilon")
    widened = variance + (epsilon.as_float() if epsilon is not None else 1e-5)
    if not (widened > 0).all():
        return None
    factor = gamma / np.sqrt(widened)
    return factor, beta - mean * factor
