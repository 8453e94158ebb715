"""What a model file may claim, checked before anything is computed or allocated because of it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from math import prod
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import Message

from qcli.errors import InputError, ResourceError, UnsupportedError
from qcli.graph.infer import dimensions, infer_shapes
from qcli.graph.model import STANDARD, Model

_MOST_AXES = 64
"""numpy has no arrays of more."""

_MOST_NODES = 1_000_000
"""Functions of functions that call each other twice are 2^n nodes, once they stand where they are called."""

_DEEPEST_CALL = 64

_PART = 4
"""No value may take more than this part of the memory: it is computed, copied and compared."""

_LONGEST_VECTOR = 1 << 20

_UNKNOWN_MEMORY = 16 << 30

_KINDS = {int(kind) for kind in ir.DataType} - {0}

_FIELDS: dict[str, tuple[str, ...]] = {
    "float_data": ("FLOAT", "COMPLEX64"),
    "double_data": ("DOUBLE", "COMPLEX128"),
    "int64_data": ("INT64",),
    "uint64_data": ("UINT32", "UINT64"),
    "string_data": ("STRING",),
}
_FIELD_OF = {name: field for field, names in _FIELDS.items() for name in names}


def check_claims(path: Path, proto: onnx.ModelProto) -> None:
    """Names are text, tensors hold what their dimensions say, and functions do not unfold without end.

    Raises InputError for what is damaged, UnsupportedError for what qcli does not look into.
    """
    if not _is_text(proto):
        raise InputError(f"model '{path}' is damaged: a name in it is not UTF-8", "export or download it again")
    for value in proto.graph.input:
        if value.type.HasField("tensor_type") and value.type.tensor_type.elem_type not in _KINDS:
            problem = f"model '{path}' is damaged: the input '{value.name}' has no known type"
            raise InputError(problem, "export or download it again")
    for tensor in _tensors(proto.graph):
        _check_tensor(path, tensor)
    for node in _nodes(proto.graph):
        _check_constant(path, node)
        _check_split(path, node)
    for function in proto.functions:
        for node in function.node:
            _check_constant(path, node)
            _check_split(path, node)
            for tensor in _tensors_of(node):
                if tensor.data_location == onnx.TensorProto.EXTERNAL:
                    problem = f"model '{path}': the function '{function.name}' has external data"
                    raise UnsupportedError(problem, "store the weights in the graph")
                _check_tensor(path, tensor)
    _check_functions(path, proto)


def check_sizes(model: Model) -> None:
    """Raises ResourceError if for the smallest sample a value, or all inputs together, would fill much of the memory.

    Shapes that the file states for intermediate values are not believed.
    """
    bound = model.copy()
    bound.forget_shapes()
    inputs = [value for value in bound.graph.inputs if not value.is_initializer()]
    for value in inputs:
        shape = dimensions(value)
        value.shape = ir.Shape([size if size is not None else 1 for size in shape]) if shape is not None else None
    limit = memory_bytes() // _PART
    together = sum(_bytes(value) for value in inputs)
    if together > limit:
        _refuse("its inputs take", together)
    for follow_data in (False, True):
        infer_shapes(bound, follow_data=follow_data)
        for node in bound.nodes():
            for value in node.outputs:
                if (size := _bytes(value)) > limit:
                    _refuse(f"'{value.name}' takes", size)
        _check_vectors(bound)


def _check_vectors(model: Model) -> None:
    """Refuses long vectors made of constants: inference follows their elements, one by one, if it is let."""
    computed: set[ir.Value] = set()
    for node in model.graph:
        inputs = [value for value in node.inputs if value is not None]
        if inputs and all(value in computed or value.const_value is not None for value in inputs):
            computed.update(node.outputs)
            for value in node.outputs:
                shape = dimensions(value)
                if shape is not None and len(shape) == 1 and (shape[0] or 0) > _LONGEST_VECTOR:
                    problem = f"'{value.name}' is computed from constants and has {shape[0]:,} elements"
                    raise UnsupportedError(problem, "export the model with its constants folded")


def _bytes(value: ir.Value) -> int:
    """The bytes of a value, an empty axis counted as one: numpy refuses what else is too long. 0 if unknown."""
    shape = dimensions(value)
    if shape is None or None in shape:
        return 0
    bits = value.dtype.bitwidth if value.dtype not in (None, *_WITHOUT_WIDTH) else 8
    return prod(max(size or 0, 1) for size in shape) * bits // 8


_WITHOUT_WIDTH = (ir.DataType.UNDEFINED, ir.DataType.STRING)


def memory_bytes() -> int:
    """The memory of this machine, or 16 GiB where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return _UNKNOWN_MEMORY


def _refuse(what: str, size: int) -> None:
    problem = f"the model cannot run here: {what} {size / 1e9:,.1f} GB, the machine has {memory_bytes() / 1e9:,.1f} GB"
    raise ResourceError(problem, "check the shapes that the model states, or use a machine with more memory")


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for body in _bodies(attribute):
                yield from _nodes(body)


def _check_constant(path: Path, node: onnx.NodeProto) -> None:
    if node.op_type != "Constant" or node.domain not in STANDARD:
        return
    if [_CONSTANTS.get(attribute.name) == attribute.type for attribute in node.attribute] != [True]:
        problem = f"model '{path}' is damaged: the Constant '{node.name}' does not hold one value"
        raise InputError(problem, "export or download it again")


_CONSTANTS = {
    "value": onnx.AttributeProto.TENSOR,
    "sparse_value": onnx.AttributeProto.SPARSE_TENSOR,
    "value_int": onnx.AttributeProto.INT,
    "value_ints": onnx.AttributeProto.INTS,
    "value_float": onnx.AttributeProto.FLOAT,
    "value_floats": onnx.AttributeProto.FLOATS,
    "value_string": onnx.AttributeProto.STRING,
    "value_strings": onnx.AttributeProto.STRINGS,
}


def _check_split(path: Path, node: onnx.NodeProto) -> None:
    """onnx's shape inference reads beyond the end of a list if there are more outputs than a Split says."""
    said = [item.i for item in node.attribute if item.name == "num_outputs"]
    if node.op_type == "Split" and said and said[0] != len(node.output):
        problem = f"model '{path}' is damaged: a Split into {said[0]} has {len(node.output)} outputs"
        raise InputError(problem, "export or download it again")


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        yield from _tensors_of(node)


def _tensors_of(node: onnx.NodeProto) -> Iterator[onnx.TensorProto]:
    for attribute in node.attribute:
        if attribute.HasField("t") or attribute.type == onnx.AttributeProto.TENSOR:
            yield attribute.t
        yield from attribute.tensors
        for sparse in [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []:
            yield from (sparse.values, sparse.indices)
        for body in _bodies(attribute):
            yield from _tensors(body)


def _bodies(attribute: onnx.AttributeProto) -> list[onnx.GraphProto]:
    return [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]


def _is_text(message: Message) -> bool:
    """False if a field of text, here or below, is none: protobuf hands such a field out as bytes."""
    if isinstance(message, onnx.TensorProto):  # whose data would be copied
        texts = (
            message.name,
            message.doc_string,
            *(text for item in message.external_data for text in (item.key, item.value)),
        )
        return all(isinstance(text, str) for text in texts)
    for field, value in message.ListFields():
        several = value if field.is_repeated else (value,)
        if field.type == field.TYPE_STRING and not all(isinstance(text, str) for text in several):
            return False
        if field.type == field.TYPE_MESSAGE and not all(_is_text(inner) for inner in several):
            return False
    return True


def _check_tensor(path: Path, tensor: onnx.TensorProto) -> None:
    where = f"model '{path}' is damaged: the tensor '{tensor.name}'"
    hint = "export or download it again"
    try:
        kind = ir.DataType(tensor.data_type)
        bits = 0 if kind in _WITHOUT_WIDTH else kind.bitwidth
    except (ValueError, TypeError) as error:
        raise InputError(f"{where} has the unknown type {tensor.data_type}", hint) from error
    if kind is ir.DataType.UNDEFINED:
        raise InputError(f"{where} has no type", hint)
    if min(tensor.dims, default=0) < 0 or len(tensor.dims) > _MOST_AXES:
        raise InputError(f"{where} has impossible dimensions", hint)
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        return  # checked against the file that it lies in
    held, needed = _held_and_needed(tensor, kind, bits)
    if held != needed:
        raise InputError(f"{where} should hold {needed} values or bytes and holds {held}", hint)


def _held_and_needed(tensor: onnx.TensorProto, kind: ir.DataType, bits: int) -> tuple[int, int]:
    """Bytes of raw data, or values in the field that the type has."""
    elements = prod(tensor.dims)
    if tensor.HasField("raw_data"):
        return len(tensor.raw_data), -(-elements * bits // 8)
    field = _FIELD_OF.get(kind.name, "int32_data")
    if kind.name.startswith("COMPLEX"):
        elements *= 2
    elif field == "int32_data" and bits < 8:
        elements = -(-elements * bits // 8)
    return len(getattr(tensor, field)), elements


def _check_functions(path: Path, proto: onnx.ModelProto) -> None:
    """Raises for functions that call themselves, or that come to more nodes than any model has."""
    if not proto.functions:
        return
    nodes, depth = _Calls(proto).unfolded(proto.graph.node, 0)
    if depth > _DEEPEST_CALL:
        problem = f"model '{path}': its functions call each other more than {_DEEPEST_CALL} deep, or in a circle"
        raise UnsupportedError(problem, "export it without functions")
    if nodes > _MOST_NODES:
        problem = f"model '{path}': its functions unfold to more than {_MOST_NODES:,} nodes"
        raise UnsupportedError(problem, "export it without functions")


class _Calls:
    """Which function calls which, each looked into once."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self._bodies = {(item.domain, item.name): item.node for item in proto.functions}
        self._known: dict[tuple[str, str], tuple[int, int]] = {}

    def unfolded(self, nodes: Iterable[onnx.NodeProto], level: int) -> tuple[int, int]:
        """How many nodes these are with every call replaced by its body, and how deep the calls go."""
        if level > _DEEPEST_CALL:
            return 0, level
        total = deepest = 0
        for node in nodes:
            count, depth = self._call((node.domain, node.op_type), level)
            total, deepest = total + count, max(deepest, depth)
            for body in (body for attribute in node.attribute for body in _bodies(attribute)):
                count, depth = self.unfolded(body.node, level)
                total, deepest = total + count, max(deepest, depth)
        return total, deepest

    def _call(self, name: tuple[str, str], level: int) -> tuple[int, int]:
        if name not in self._bodies:
            return 1, 0
        if name not in self._known:
            count, depth = self.unfolded(self._bodies[name], level + 1)
            self._known[name] = count, depth + 1
        return self._known[name]
