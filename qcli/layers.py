"""What an operator with weights looks like: which operand is the weight, which axis holds the output channels."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import numpy as np

from qcli.graph import Node, constant_of, dimensions, node_key
from qcli.types import Array

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators with multiply-accumulates that onnxruntime has integer kernels for, or may get."""


def output_channel_axis(node: Node) -> int | None:
    """The axis of the weight (operand 1) along which output channels lie, or None where there is no such axis.

    Conv [M, C/g, ...]: 0. ConvTranspose [C, M/g, ...]: 1, and channels repeat in each group. Gemm [K, N]: 1, or 0
    with transB. MatMul [..., K, N]: the last; a vector [K] has none.
    """
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1
    if node.op_type == "Gemm":
        return 0 if "transB" in node.attributes and node.attributes["transB"].as_int() else 1
    shape = dimensions(node.inputs[1]) if node.inputs[1] is not None else None
    return len(shape) - 1 if shape is not None and len(shape) >= 2 else None


RECURRENT = ("LSTM", "GRU", "RNN")


def weight_operands(node: Node) -> Iterator[tuple[int, int | None]]:
    """Where a node reads constants that are worth storing as integers: operand, and axis of the output channels.

    Biases, gains and whatever else has fewer than two dimensions larger than one are left out. Examples: Conv
    weight [M, C/g, ...]: (1, 0). LSTM W [2, 4H, I] and R [2, 4H, H]: (1, 1), (2, 1). Gather of rows [V, D]: (0, 1).
    """
    for operand in _WEIGHTS.get(node.op_type, ()):
        array = constant_of(node.inputs[operand]) if operand < len(node.inputs) else None
        if array is not None and array.dtype.kind == "f" and sum(size > 1 for size in array.shape) >= 2:
            yield operand, _channel_axis(node, operand, array.shape)


_WEIGHTS: dict[str, tuple[int, ...]] = {
    "Conv": (1,),
    "FusedConv": (1,),
    "DeformConv": (1,),
    "ConvTranspose": (1,),
    "Gemm": (0, 1),
    "FusedGemm": (0, 1),
    "MatMul": (0, 1),
    "FusedMatMul": (0, 1),
    "TransposeMatMul": (0, 1),
    "Gather": (0,),
    "GatherND": (0,),
    "GatherElements": (0,),
    "LSTM": (1, 2),
    "GRU": (1, 2),
    "RNN": (1, 2),
    "Attention": (1,),
    "EmbedLayerNormalization": (2, 3, 4),
    "Einsum": (0, 1, 2),
    "PRelu": (1,),
}
"""Operands that hold weights. What else is constant is a gain, a mask, a table of positions or of anchors: adding a
coordinate of eight bits moves a box by pixels, and beside -1e9 in a mask nothing is left of the rest."""


def _channel_axis(node: Node, operand: int, shape: tuple[int, ...]) -> int:
    """The axis along which a weight's channels differ most: that of the outputs, or the last one."""
    last = len(shape) - 1
    if node.op_type in ("Conv", "FusedConv", "DeformConv"):
        return 0
    if node.op_type in ("ConvTranspose", *RECURRENT):
        return 1
    if node.op_type in _PRODUCTS:
        transposed = _switch(node, "transB") if operand == 1 else _switch(node, "transA")
        return last - 1 if (operand == 0) is not transposed else last
    if node.op_type == "Einsum":
        return _einsum_axis(node, operand, last)
    return last


def input_axis(node: Node, operand: int, rank: int) -> int | None:
    """The axis of a weight of `rank` dimensions that its operator sums over; None where there is no such axis.

    Conv [M, C/g, ...]: 1. ConvTranspose [C, M/g, ...]: 0. MatMul [..., K, N]: the last but one. LSTM [2, 4H, I]: 2.
    A table, which nothing sums over, has its rows: Gather [V, D]: 1.
    """
    if node.op_type in ("Conv", "FusedConv", "DeformConv"):
        return 1
    if node.op_type in ("ConvTranspose", "Attention"):
        return 0
    if node.op_type in RECURRENT or (node.op_type == "Gather" and rank >= 2):
        return rank - 1
    if node.op_type in _PRODUCTS and rank >= 2:
        return 2 * rank - 3 - _channel_axis(node, operand, (0,) * rank)
    return None


def row_axis(node: Node, operand: int, shape: tuple[int, ...]) -> int:
    """The axis of a weight that numbers its rows, each of which is read as a whole.

    That of the output channels, whose rows are what one output reads; of a table what a Gather fetches by: 0.
    """
    return 0 if node.op_type in _TABLES else _channel_axis(node, operand, shape)


_TABLES = ("Gather", "GatherND", "GatherElements", "EmbedLayerNormalization")

_PRODUCTS = ("Gemm", "FusedGemm", "MatMul", "FusedMatMul", "TransposeMatMul")


def _einsum_axis(node: Node, operand: int, last: int) -> int:
    """The last axis whose letter is in the result: what is summed over has no channels."""
    terms, _, result = node.attributes["equation"].as_string().replace(" ", "").partition("->")
    term = terms.split(",")[operand]
    kept = [axis for axis, letter in enumerate(term) if letter in result]
    return kept[-1] if kept and "." not in term else last


def _switch(node: Node, key: str) -> bool:
    return key in node.attributes and bool(node.attributes[key].as_int())


def bias_layer(reader: Node, operand: int) -> Node | None:
    """The layer that a bias belongs to: its reader, or the MatMul in front of an Add; None if there is none."""
    if reader.op_type != "Add":
        return reader
    data = reader.inputs[1 - operand]
    return data.producer() if data is not None else None


def multiply_accumulates(node: Node, shapes: dict[str, tuple[int, ...]]) -> int:
    """The multiply-accumulates of a Conv, ConvTranspose, Gemm or MatMul for the given shapes; 0 if unknown."""
    names = [value.name if value is not None else None for value in (*node.inputs[:2], node.outputs[0])]
    found = [shapes.get(name or "") for name in names]
    if any(shape is None for shape in found):
        return 0
    data, weight, result = (shape or () for shape in found)
    if node.op_type == "Conv":
        return prod(result) * prod(weight[1:])
    if node.op_type == "ConvTranspose":
        return prod(data) * prod(weight[1:])
    if node.op_type == "Gemm":
        transposed = "transA" in node.attributes and node.attributes["transA"].as_int()
        return prod(result) * (data[0] if transposed else data[1])
    return prod(result) * data[-1] if data else 0


_BATCHNORM = "qcli.batchnorm"
"""Where a value keeps what the BatchNormalization that was folded into its layer says of it; never saved."""


def note_batchnorm(layer: Node, beta: Array, gamma: Array) -> None:
    """Notes the mean `beta` and the standard deviation |`gamma`| [channels] of a layer's result."""
    result = layer.outputs[0]
    result.meta[_BATCHNORM] = (
        node_key(layer),
        np.asarray(beta, np.float64),
        np.asarray(gamma, np.float64),
        _sums(layer),
    )


def batchnorm_of(node: Node) -> tuple[Array, Array] | None:
    """beta and gamma [channels] float64 of a node's result: its own, or those folded into it; None if it has none.

    What was folded counts as long as the layer's weight and bias are the same: a later step may have scaled them.
    """
    if node.op_type == "BatchNormalization":
        gamma, beta = (constant_of(value) for value in node.inputs[1:3])
        return None if gamma is None or beta is None else (np.asarray(beta, np.float64), np.asarray(gamma, np.float64))
    noted = node.outputs[0].meta.get(_BATCHNORM) if node.outputs else None
    if noted is None or noted[0] != node_key(node) or noted[3] != _sums(node):
        return None
    return noted[1], noted[2]


def _sums(layer: Node) -> tuple[float, ...]:
    """What tells apart a layer's constants before and after a change."""
    constants = [constant_of(value) for value in layer.inputs[1:3]]
    return tuple(float(np.abs(array, dtype=np.float64).sum()) for array in constants if array is not None)
