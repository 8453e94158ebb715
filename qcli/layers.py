"""What an operator with weights looks like: which operand is the weight, which axis holds the output channels."""

from __future__ import annotations

from math import prod

from qcli.graph import Node, dimensions

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
