"""What stands behind a layer and is done by its kernel: the Add of a bias, and clips that a grid replaces."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from qcli.graph import Node, Value, constant_of, dimensions, is_constant, sole_consumer
from qcli.targets._support import Support
from qcli.types import Array


def tail_of(
    node: Node, support: Support, refused: Callable[[Node], str | None]
) -> tuple[tuple[Node, ...], tuple[Node, int] | None]:
    """The nodes behind an integer kernel that it swallows, and where its bias is read."""
    tail: list[Node] = []
    bias: tuple[Node, int] | None = None
    if support.bias is not None and len(node.inputs) > support.bias and node.inputs[support.bias] is not None:
        bias = (node, support.bias)
    value = node.outputs[0]
    while (follower := sole_consumer(value)) is not None and len(tail) < 3 and refused(follower) is None:
        if follower.graph is not node.graph:
            break
        if node.op_type == "MatMul" and not tail and (operand := bias_operand(node, follower)) is not None:
            bias = (follower, operand) if joins_bias(node) and not support.float_bias else None
        elif not _clips(follower, value) or support.tied:
            break
        tail.append(follower)
        value = follower.outputs[0]
    return tuple(tail), bias


def bias_operand(layer: Node, follower: Node) -> int | None:
    """The operand of an Add that holds a constant vector over the layer's output channels."""
    weight = dimensions(layer.inputs[1]) if layer.inputs[1] is not None else None
    if follower.op_type != "Add" or weight is None:
        return None
    for operand, value in enumerate(follower.inputs):
        if value is not None and is_constant(value) and dimensions(value) in ((weight[-1],), (1, weight[-1])):
            return operand
    return None


def joins_bias(layer: Node) -> bool:
    """True if the runtime joins a MatMul and the Add behind it into a Gemm: for matrices and for fixed shapes.

    That Gemm is integer only if its bias is. Where the two stay apart, a bias in float is cheaper and exact.
    """
    data = dimensions(layer.inputs[0]) if layer.inputs[0] is not None else None
    return data is not None and (len(data) == 2 or None not in data)


def _clips(node: Node, value: Value) -> bool:
    """True for Relu, and for Clip, Max and Min with constant scalars: a saturating grid does their work."""
    if node.op_type == "Relu":
        return True
    if node.op_type not in ("Clip", "Max", "Min") or node.inputs.count(value) != 1:
        return False
    rank = len(dimensions(value) or ())
    bounds = [constant_of(item) for item in node.inputs if item is not None and item is not value]
    return all(array is not None and array.size == 1 and array.ndim <= rank for array in bounds)


def float_bias(layer: Node) -> Array | None:
    """The constant that a layer, or the Add behind a MatMul, adds to the products.

    Where the plan leaves it float, onnxruntime 1.31.1 stores it as int32 with the scale s_x * s_w when it loads the
    model (WeightBiasQuantization), whether it fits or not.
    """
    if layer.op_type in ("Conv", "ConvTranspose", "Gemm"):
        return constant_of(layer.inputs[2]) if len(layer.inputs) > 2 else None
    follower = sole_consumer(layer.outputs[0]) if layer.op_type == "MatMul" else None
    operand = bias_operand(layer, follower) if follower is not None else None
    return None if follower is None or operand is None else constant_of(follower.inputs[operand])


def bias_floor(bias: Array, channels: int) -> Array:
    """The smallest s_x * s_w with which a bias [channels] or [rows, channels] fits, float64 [channels]; [] of one."""
    columns = np.abs(bias.astype(np.float64)).reshape(-1, bias.shape[-1] if bias.ndim else 1).max(axis=0)
    largest = columns if columns.size == channels else columns.max(initial=0.0)
    return np.asarray(largest / _BIAS_LEVELS)


_BIAS_LEVELS = 2**30
"""A bias uses at most half of int32, which leaves room for the sum that it is added to."""
