"""Multiplying the channels of a value, its last axis, by constants that it comes from: free when the model runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from qcli.graph import Graph, Node, Value, constant_of, dimensions, set_constant, sole_consumer
from qcli.types import Array

_MOST_NODES = 16
"""How far up a chain may go."""


class Change(NamedTuple):
    """One constant that takes part: operand `operand` of `node` is multiplied along `axis`, or divided."""

    node: Node
    operand: int
    axis: int = -1
    inverse: bool = False


def changes_for(value: Value, channels: int) -> list[Change] | None:
    """The constants that multiply each channel of `value` when they are multiplied; None if there are no such.

    Whoever reads `value` reads other numbers then. Case by case, for f > 0 of shape [channels]:

    * LayerNormalization(x) * g + b, and its relatives without b: g f, b f.
    * x * c: c f.  c / x: c f.  x / c: c / f.  x + c, x - c: (x f) and c f.
    * x * y, x / y: (x f), or (y f) for the product.
    * Relu(x), LeakyRelu(x): (x f).
    * MatMul(x, W): columns of W times f. Gemm(x, W, b): those, and b f.

    Every value on the way belongs to this chain alone, and matrices to one node.
    """
    return _up(value, channels, _MOST_NODES)


def rescale(graph: Graph, changes: list[Change], factors: Array) -> None:
    """Does so, for `factors` float64 [channels]."""
    for node, operand, axis, inverse in changes:
        old = np.asarray(constant_of(node.inputs[operand]))
        vector = 1 / factors if inverse else factors
        along = vector if axis == -1 else vector.reshape(-1, *[1] * (-axis - 1))
        set_constant(graph, node, operand, (old.astype(np.float64) * along).astype(old.dtype))


def _up(value: Value, channels: int, left: int) -> list[Change] | None:
    node = value.producer()
    if node is None or not left or node.graph is not value.graph or (dimensions(value) or (None,))[-1] != channels:
        return None
    if value is not node.outputs[0] or value.is_graph_output():
        return None
    found = _RULES.get((node.domain.removeprefix("ai.onnx"), node.op_type))
    return found(node, channels, left - 1) if found is not None else None


def _through(value: Value | None, channels: int, left: int) -> list[Change] | None:
    """The same for a value in the chain, which nobody else may read."""
    return _up(value, channels, left) if value is not None and sole_consumer(value) is not None else None


def _vector(node: Node, operand: int, channels: int) -> bool:
    """True if an operand is a constant with a number for each channel.

    A scalar, such as the half in a Gelu that is written out, has to stay one: runtimes fuse by it.
    """
    array = constant_of(node.inputs[operand]) if operand < len(node.inputs) else None
    return array is not None and array.dtype == np.float32 and array.ndim > 0 and array.shape[-1] == channels


def _normalization(node: Node, channels: int, left: int, operands: tuple[int, ...] = (1, 2)) -> list[Change] | None:
    given = [index for index in operands if index < len(node.inputs) and node.inputs[index] is not None]
    rank = len(dimensions(node.outputs[0]) or ())
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else -1
    good = axis in (-1, rank - 1) and given and all(_vector(node, index, channels) for index in given)
    return [Change(node, index) for index in given] if good else None


def _skip_normalization(node: Node, channels: int, left: int) -> list[Change] | None:
    return _normalization(node, channels, left, (2, 3) if node.op_type == "SkipLayerNormalization" else (2,))


def _product(node: Node, channels: int, left: int) -> list[Change] | None:
    for operand in (0, 1):
        if _vector(node, operand, channels):
            return [Change(node, operand)]
    for value in node.inputs:
        found = _through(value, channels, left)
        if found is not None:
            return found
    return None


def _quotient(node: Node, channels: int, left: int) -> list[Change] | None:
    for operand in (0, 1):
        if _vector(node, operand, channels):
            return [Change(node, operand, inverse=operand == 1)]
    return _through(node.inputs[0], channels, left)


def _sum(node: Node, channels: int, left: int) -> list[Change] | None:
    for operand in (0, 1):
        if _vector(node, operand, channels):
            found = _through(node.inputs[1 - operand], channels, left)
            return [*found, Change(node, operand)] if found is not None else None
    return None


def _same(node: Node, channels: int, left: int) -> list[Change] | None:
    return _through(node.inputs[0], channels, left)


def _matrix(node: Node, channels: int, left: int) -> list[Change] | None:
    weight = node.inputs[1]
    array = constant_of(weight)
    turned = "transB" in node.attributes and bool(node.attributes["transB"].as_int())
    if weight is None or array is None or array.ndim != 2 or array.dtype != np.float32 or len(tuple(weight.uses())) > 1:
        return None
    if array.shape[0 if turned else 1] != channels or weight.is_graph_output():
        return None
    changes = [Change(node, 1, -2 if turned else -1)]
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        return [*changes, Change(node, 2)] if _vector(node, 2, channels) else None
    return changes


_RULES: dict[tuple[str, str], Callable[[Node, int, int], list[Change] | None]] = {
    ("", "LayerNormalization"): _normalization,
    ("", "RMSNormalization"): _normalization,
    ("", "SimplifiedLayerNormalization"): _normalization,
    ("com.microsoft", "SkipLayerNormalization"): _skip_normalization,
    ("com.microsoft", "SkipSimplifiedLayerNormalization"): _skip_normalization,
    ("", "Mul"): _product,
    ("", "Div"): _quotient,
    ("", "Add"): _sum,
    ("", "Sub"): _sum,
    ("", "Relu"): _same,
    ("", "LeakyRelu"): _same,
    ("", "MatMul"): _matrix,
    ("", "Gemm"): _matrix,
}
