"""Raising the operator set to what a plan needs."""

from __future__ import annotations

import onnx
from onnx import version_converter

from qcli.errors import UnsupportedError
from qcli.graph.functions import inline_functions
from qcli.graph.model import STANDARD, WEIGHTS_ALONE, Model, Node
from qcli.graph.weightless import rebuilt, weightless

_FAILURES = (
    RuntimeError,
    ValueError,
    onnx.checker.ValidationError,
    onnx.shape_inference.InferenceError,
    version_converter.ConvertError,
)


def raise_opset(model: Model, version: int) -> bool:
    """Converts a model to at least `version`, in place; False if it was there already.

    Only the graph passes through the converter: large weights are set aside as plain inputs and put back, so
    that their number does not count. Raises UnsupportedError naming what the converter could not convert.
    """
    if model.opset >= version:
        return False
    if not any(node.domain in STANDARD for node in model.nodes()):
        model.ir.opset_imports[""] = version  # nothing to convert, e.g. in a model of ai.onnx.ml alone
        return True
    inline_functions(model)  # the converter passes them over
    proto, aside = weightless(model.ir)
    proto.ir_version = max(proto.ir_version, WEIGHTS_ALONE)
    weights = _set_weights_aside(proto.graph, set(aside))
    try:
        converted = version_converter.convert_version(proto, version)
    except _FAILURES as error:
        reason = (str(error).strip().splitlines() or ["it gives no reason"])[-1]
        raise cannot_raise(model, version, reason) from error
    kept = [value for value in converted.graph.input if value.name not in aside]
    del converted.graph.input[:]
    converted.graph.input.extend(kept)
    converted.graph.initializer.extend(weights)
    if model.opset < _RESIZE_CHANGED:
        _keep_resizing(converted.graph)
    converted.ir_version = max(converted.ir_version, 7)
    model.ir = rebuilt(converted, aside, model.ir)
    return True


def file_version_with(opset: int) -> int:
    """The version of the file format that ONNX published with an operator set; the newest known for newer ones."""
    known = {
        number: version for (domain, number), version in onnx.helper.OP_SET_ID_VERSION_MAP.items() if not domain[7:]
    }
    return known[min(max(opset, min(known)), max(known))]


def cannot_raise(model: Model, version: int, reason: str) -> UnsupportedError:
    """The error for a model that does not survive the conversion; names the operators that stand in the way."""
    changed = sorted({node.op_type for node in model.nodes() if _differs(node, model.opset, version)})
    named = f"{', '.join(changed[:_NAMED])} changed in between" if changed else "its operators take the same in both"
    return UnsupportedError(
        f"the model cannot be raised from opset {model.opset} to {version}: {reason} ({named})",
        "export the model again with a newer opset",
    )


_NAMED = 5
"""Operators named in a message."""


def _differs(node: Node, old: int, new: int) -> bool:
    """True if the operator takes other inputs or attributes in the newer operator set; other types break nothing."""
    if node.domain not in STANDARD:
        return False
    try:
        return _signature(node.op_type, old) != _signature(node.op_type, new)
    except onnx.defs.SchemaError:
        return True


def _signature(operator: str, version: int) -> tuple[list[str], list[str]]:
    schema = onnx.defs.get_schema(operator, version, "")
    attributes = [f"{name} {item.default_value.SerializeToString()!r}" for name, item in schema.attributes.items()]
    return [item.name for item in schema.inputs], sorted(attributes)


_RESIZE_CHANGED = 11
"""From here on Resize has modes of coordinates, whose default is not what it did before."""


def _keep_resizing(graph: onnx.GraphProto) -> None:
    """The converter leaves out what Upsample and Resize meant before opset 11."""
    for node in graph.node:
        if node.op_type == "Resize":
            given = {attribute.name for attribute in node.attribute}
            wanted = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
            for name, value in wanted.items():
                if name not in given:
                    node.attribute.append(onnx.helper.make_attribute(name, value))
        for attribute in node.attribute:
            for body in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
                _keep_resizing(body)


def _set_weights_aside(graph: onnx.GraphProto, names: set[str]) -> list[onnx.TensorProto]:
    """Takes initializers, which are mere references, out of a graph and declares inputs in their place."""
    declared = {value.name for value in graph.input}
    weights = [
        onnx.TensorProto.FromString(item.SerializeToString()) for item in graph.initializer if item.name in names
    ]
    kept = [item for item in graph.initializer if item.name not in names]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    for tensor in weights:
        if tensor.name not in declared:
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    return weights
