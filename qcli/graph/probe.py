"""Tiny models that ask the runtime a question."""

from __future__ import annotations

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
