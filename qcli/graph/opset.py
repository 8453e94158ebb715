"""Raising the operator set to what a plan needs."""

from __future__ import annotations

import onnx
import onnx_ir as ir
from onnx import version_converter

from qcli.errors import UnsupportedError
from qcli.graph.model import Model

_SMALL_BYTES = 1024
"""Constants up to this size travel with the graph, since the converter reads shapes, axes and bounds from them."""


def raise_opset(model: Model, version: int) -> bool:
    """Converts a model to at least `version`, in place; False if it was there already.

    Only the graph passes through the converter: large weights are set aside as plain inputs and put back, so
    that their number does not count. Raises UnsupportedError naming what the converter could not convert.
    """
    if model.opset >= version:
        return False
    proto = model.proto()
    aside = _set_weights_aside(proto)
    try:
        converted = version_converter.convert_version(proto, version)
    except (RuntimeError, ValueError, onnx.checker.ValidationError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise UnsupportedError(
            f"the model cannot be raised from opset {model.opset} to {version}: {reason}",
            "export the model again with a newer opset",
        ) from error
    kept = [value for value in converted.graph.input if value.name not in aside]
    del converted.graph.input[:]
    converted.graph.input.extend(kept)
    converted.graph.initializer.extend(aside.values())
    converted.ir_version = max(converted.ir_version, 7)
    model.ir = ir.from_proto(converted)
    return True


def _set_weights_aside(proto: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """Moves large initializers out of a graph and declares inputs of their types in their place."""
    graph = proto.graph
    declared = {value.name for value in graph.input}
    aside = {tensor.name: tensor for tensor in graph.initializer if tensor.ByteSize() > _SMALL_BYTES}
    aside = {name: onnx.TensorProto.FromString(tensor.SerializeToString()) for name, tensor in aside.items()}
    kept = [tensor for tensor in graph.initializer if tensor.name not in aside]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    for name, tensor in aside.items():
        if name not in declared:
            graph.input.append(onnx.helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims)))
    return aside
