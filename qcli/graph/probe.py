"""Tiny models that ask the runtime a question."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def saturation_probe(size: int) -> bytes:
    """y = x @ w with x uint8 [16, size] and w int8 [size, size] full of 127, accumulated in int32."""
    weight = numpy_helper.from_array(np.full((size, size), 127, np.int8), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["x", "w"], ["y"])],
        "saturation",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [16, size])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, [16, size])],
        [weight],
    )
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    return model.SerializeToString()


PROBED = (
    "Conv", "ConvTranspose", "MatMul", "Gemm", "Add", "Mul", "Concat", "Sigmoid", "LeakyRelu", "Softmax",
    "AveragePool", "GlobalAveragePool", "MaxPool", "Resize", "LayerNormalization", "Tanh", "Gelu",
)  # fmt: skip
"""Operators that a runtime can be asked about with `kernel_probe`."""

_OPSET = 20

_WEIGHTS: dict[str, tuple[int, ...]] = {
    "Conv": (8, 8, 3, 3),
    "ConvTranspose": (8, 8, 3, 3),
    "MatMul": (8, 8),
    "Gemm": (8, 8),
}

_ATTRIBUTES: dict[str, dict[str, Any]] = {
    "Concat": {"axis": 1},
    "AveragePool": {"kernel_shape": [2, 2]},
    "MaxPool": {"kernel_shape": [2, 2]},
    "Resize": {"mode": "nearest"},
}

_FLAT = ("MatMul", "Gemm", "LayerNormalization", "Softmax")


def kernel_probe(op: str) -> bytes:
    """One operator between QuantizeLinear and DequantizeLinear, uint8 in and out, its weight int8 per tensor.

    A runtime with an integer kernel for it leaves no DequantizeLinear in front of the operator.
    """
    size = [4, 8] if op in _FLAT else [1, 8, 8, 8]
    constants = [_constant("scale", 0.05, np.float32), _constant("zero", 128, np.uint8)]
    constants += [_constant("w_scale", 0.01, np.float32), _constant("w_zero", 0, np.int8)]
    nodes = [helper.make_node("DequantizeLinear", ["x", "scale", "zero"], ["x_real"], name="dequantize")]
    reads = ["x_real"]
    if op in ("Add", "Mul", "Concat"):
        nodes.append(helper.make_node("DequantizeLinear", ["x2", "scale", "zero"], ["x2_real"]))
        reads.append("x2_real")
    if op in _WEIGHTS:
        codes = np.arange(np.prod(_WEIGHTS[op])).reshape(_WEIGHTS[op]) % 7
        constants.append(numpy_helper.from_array(codes.astype(np.int8), "w"))
        nodes.append(helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["w_real"]))
        reads.append("w_real")
    if op == "Resize":
        constants.append(numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "sizes"))
        reads += ["", "sizes"]
    if op == "LayerNormalization":
        constants.append(numpy_helper.from_array(np.ones(8, np.float32), "gain"))
        reads.append("gain")
    nodes.append(helper.make_node(op, reads, ["y_real"], name=op, **_ATTRIBUTES.get(op, {})))
    nodes.append(helper.make_node("QuantizeLinear", ["y_real", "scale", "zero"], ["y"]))
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.UINT8, size) for name in ("x", "x2")[: 1 + ("x2_real" in reads)]
    ]
    result = helper.make_tensor_value_info("y", TensorProto.UINT8, [None] * len(size))
    graph = helper.make_graph(nodes, "probe", inputs, [result], constants)
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=9)
    return model.SerializeToString()


def _constant(name: str, value: float, dtype: Any) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(value, dtype), name)
