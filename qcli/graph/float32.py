"""Float16, bfloat16 and float64 models computed in float32, the type that has integer kernels.

The inputs and outputs keep their types, by Casts at the borders. Inside, every weight, attribute and noted type
becomes float32, in the bodies of If, Loop and Scan too.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from qcli.graph.edit import free_name, make_node
from qcli.graph.functions import inline_functions
from qcli.graph.infer import infer_shapes
from qcli.graph.model import Model
from qcli.graph.on_disk import tensor_of
from qcli.types import Array

_OTHERS = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)

_TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype", "output_datatype", "precision", "softmax_precision", "stash_type")
"""Integer attributes of standard operators that hold an element type."""

_KNOWN_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")
_ON_BITS = ("BitCast",)
"""Operators to which the type is more than a precision."""


def other_floats(model: Model) -> tuple[str, ...]:
    """The names of the float types besides float32 that a model computes in, coarsest first."""
    found = {_element(value.type) for value in _values(model)}
    for node in model.nodes():
        found.update(ir.DataType(code) for _, code in _type_attributes(node))
        found.update(tensor.dtype for tensor in _attribute_tensors(node))
    order = (ir.DataType.BFLOAT16, ir.DataType.FLOAT16, ir.DataType.DOUBLE)
    return tuple(kind.numpy().name for kind in order if kind in found)


def compute_in_float32(model: Model) -> int:
    """Turns all other floats into float32, in place; the number of values and attributes that changed.

    0, and nothing changed, if a custom operator or one on bits works on such a float, or if a sequence of them
    is an input or output: no Cast leads there.
    """
    if not other_floats(model) or _is_bound_to_its_types(model):
        return 0
    graph = model.graph
    inputs = [value for value in graph.inputs if _is_other(value)]
    outputs = {index: value for index, value in enumerate(graph.outputs) if _is_other(value)}
    kinds = {index: value.dtype for index, value in outputs.items()}
    kept = {*inputs, *(value for value in outputs.values() if value.is_graph_input())}
    changed = sum(_retype(value) for value in _values(model) if value not in kept)
    changed += sum(_retype_attributes(node) for node in model.nodes())
    for value in inputs:
        _cast_input(graph, value)
    for index, value in outputs.items():
        if not value.is_graph_input():
            _cast_output(graph, index, value, kinds[index])
    _remove_idle_casts(model)
    return changed + len(inputs) + len(outputs)


def float32_form(model: Model) -> Model | None:
    """A copy that computes in float32, for models in types that a runtime lacks; None if there is nothing to change."""
    form = model.copy()
    inline_functions(form)
    infer_shapes(form)
    return form if compute_in_float32(form) else None


def _values(model: Model) -> Iterator[ir.Value]:
    """All values of all graphs, each once."""
    for graph in (model.graph, *model.graph.subgraphs()):
        yield from graph.inputs
        yield from (value for value in graph.initializers.values() if not value.is_graph_input())
        for node in graph:
            yield from node.outputs


def _element(kind: ir.TypeProtocol | None) -> ir.DataType | None:
    """The type of the elements, however deep in sequences and optionals."""
    return kind.dtype if kind is not None else None


def _is_other(value: ir.Value) -> bool:
    return _element(value.type) in _OTHERS


def _is_bound_to_its_types(model: Model) -> bool:
    ends = (*model.graph.inputs, *model.graph.outputs)
    if any(_is_other(value) and not isinstance(value.type, ir.TensorType) for value in ends):
        return True
    for node in model.nodes():
        values = [value for value in (*node.inputs, *node.outputs) if value is not None]
        custom = node.domain not in _KNOWN_DOMAINS or node.op_type in _ON_BITS
        if custom and any(_is_other(value) or value.type is None for value in values):
            return True
    return False


def _retype(value: ir.Value) -> bool:
    if not _is_other(value) or value.type is None:
        return False
    value.type = _in_float32(value.type)
    if value.const_value is not None:
        name = value.const_value.name
        value.const_value = tensor_of(value.graph, _to_float32(value.const_value.numpy()))
        value.const_value.name = name
    return True


def _in_float32(kind: ir.TypeProtocol) -> ir.TypeProtocol:
    if isinstance(kind, (ir.SequenceType, ir.OptionalType)):
        return type(kind)(_in_float32(kind.elem_type))
    return ir.TensorType(ir.DataType.FLOAT)


def _to_float32(array: Array) -> Array:
    """A float64 beyond float32's range becomes its end: masks are written with the lowest number there is."""
    largest = np.finfo(np.float32).max
    if array.dtype == np.float64:
        array = np.where(np.isfinite(array), np.clip(array, -largest, largest), array)
    return np.asarray(array, np.float32)


def _type_attributes(node: ir.Node) -> Iterator[tuple[str, int]]:
    for key in _TYPE_ATTRIBUTES:
        attribute = node.attributes.get(key)
        if attribute is not None and attribute.type == ir.AttributeType.INT and attribute.value in _OTHERS:
            yield key, attribute.as_int()


def _attribute_tensors(node: ir.Node) -> Iterator[ir.TensorProtocol]:
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.TENSOR:
            yield attribute.as_tensor()
        elif attribute.type == ir.AttributeType.TENSORS:
            yield from attribute.as_tensors()


def _retype_attributes(node: ir.Node) -> int:
    changed = 0
    for key, _ in tuple(_type_attributes(node)):
        node.attributes[key] = ir.AttrInt64(key, int(ir.DataType.FLOAT))
        changed += 1
    for key, attribute in tuple(node.attributes.items()):
        if attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype in _OTHERS:
            node.attributes[key] = ir.AttrTensor(key, ir.tensor(_to_float32(attribute.as_tensor().numpy())))
            changed += 1
        elif attribute.type == ir.AttributeType.TYPE_PROTO and _element(attribute.value.type) in _OTHERS:
            held = ir.TypeAndShape(_in_float32(attribute.value.type), attribute.value.shape)
            node.attributes[key] = ir.AttrTypeProto(key, held)
            changed += 1
    return changed


def _cast_input(graph: ir.Graph, value: ir.Value) -> None:
    uses = tuple(value.uses())
    if not uses:
        return
    cast = _cast(graph, value, ir.DataType.FLOAT, free_name(graph, f"{value.name}_float32"))
    for node, operand in uses:
        node.replace_input_with(operand, cast.outputs[0])
    for body in graph.subgraphs():
        for index, output in enumerate(body.outputs):
            if output is value:
                body.outputs[index] = cast.outputs[0]
    _insert_first(graph, cast)


def _cast_output(graph: ir.Graph, index: int, value: ir.Value, kind: ir.DataType | None) -> None:
    """The output keeps its name and its type; what computes it gets another name."""
    name = value.name or ""
    value.name = free_name(graph, f"{name}_float32")
    cast = _cast(graph, value, kind or ir.DataType.FLOAT, name)
    cast.outputs[0].shape = value.shape
    graph.outputs[index] = cast.outputs[0]
    graph.append(cast)


def _cast(graph: ir.Graph, value: ir.Value, kind: ir.DataType, output: str) -> ir.Node:
    cast = make_node("Cast", [value], name=free_name(graph, f"{output}_cast"), output=output, attributes={"to": kind})
    cast.outputs[0].type = ir.TensorType(kind)
    cast.outputs[0].shape = value.shape
    return cast


def _insert_first(graph: ir.Graph, node: ir.Node) -> None:
    if len(graph):
        graph.insert_before(graph[0], node)
    else:
        graph.append(node)


def _remove_idle_casts(model: Model) -> None:
    """Takes out the Casts from float32 to float32 that are left where types were mixed."""
    borders = set(model.graph.outputs)
    for node in tuple(model.nodes()):
        source = node.inputs[0] if node.op_type == "Cast" and node.inputs else None
        if source is None or node.graph is None or source.dtype != ir.DataType.FLOAT:
            continue
        target = node.attributes["to"].as_int() if "to" in node.attributes else 0
        result = node.outputs[0]
        if target != ir.DataType.FLOAT or result in borders or result.is_graph_output():
            continue
        result.replace_all_uses_with(source)
        node.graph.remove(node, safe=True)
