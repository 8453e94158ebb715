"""A model of one node in one mode, its inputs in the type that the kernel takes."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np

from qcli.costs.nouns import INTEGER_INPUT, KernelKey, Mode, Operand
from qcli.encodings._weights import Coded, Pool
from qcli.encodings.dynamic import Dynamic
from qcli.encodings.weight_only import WeightOnly
from qcli.errors import UnsupportedError
from qcli.graph import Model, Node, Value, add_initializer, concrete_shapes, dimensions, make_node
from qcli.graph.blank import add_input, add_output, blank_model
from qcli.layers import LAYERS, input_axis, multiply_accumulates, weight_operands
from qcli.types import Array, Scale

_MOST_BYTES = 1 << 29
"""Of all values of a model together."""

_MOST_WORK = 1 << 37
"""Multiply-accumulates, or elements that a window passes over: seconds on one core."""

_STEP = np.float32(0.05)
_ZERO = np.uint8(128)
_WEIGHT_STEP = 0.01
_NOISE = 4099
"""A prime: repeated noise does not fall into step with rows and channels."""


def build(key: KernelKey) -> tuple[Model, dict[str, Array]]:
    """The model and a sample for it. Raises UnsupportedError for what is too large to be measured, or unknown."""
    _check_bytes(key.inputs)
    if dict(key.attributes).get("num_outputs", key.outputs) != key.outputs:  # onnx's inference would abort the process
        raise UnsupportedError("it has another number of outputs than it says", "export the model again")
    model = blank_model(key.opset)
    feeds: dict[str, Array] = {}
    values = [None if item is None else _value(model, key, index, feeds) for index, item in enumerate(key.inputs)]
    node = _compute(model, key, values)
    _check_results(model, node, feeds)
    if key.mode in (Mode.DYNAMIC, Mode.WEIGHT_ONLY):
        _encode(node, key)
        model.sort()
    return model, feeds


def _compute(model: Model, key: KernelKey, values: list[Value | None]) -> Node:
    """The node itself, the bias behind it, and the way back to codes."""
    bias = values.pop() if key.op == "MatMul" and len(values) == _WITH_BIAS else None
    if key.mode in (Mode.QUANTIZE, Mode.DEQUANTIZE):
        values += _constants(model)
    node = make_node(
        key.op,
        values,
        name="kernel",
        output="y0",
        attributes=dict(key.attributes),
        domain=key.domain,
        outputs=key.outputs,
    )
    for index, value in enumerate(node.outputs):
        value.name = f"y{index}"
    model.graph.append(node)
    results = list(node.outputs)
    if bias is not None:
        results = [_append(model, "Add", [results[0], bias], "sum")]
    if between_convolutions(key):
        results = [_requantized(model, value) if key.mode is Mode.STATIC else value for value in results]
        results = [_convolved(model, key, value, _result_channels(key)) for value in results[:1]]
    if key.mode is Mode.STATIC:
        steps = _constants(model)
        results = [_append(model, "QuantizeLinear", [value, *steps], f"{value.name}_q") for value in results]
    for value in results:
        add_output(model, value)
    return node


_WITH_BIAS = 3


def _value(model: Model, key: KernelKey, index: int, feeds: dict[str, Array]) -> Value:
    """What the node reads: an input of the model or a constant, behind DequantizeLinear where it is in codes."""
    operand = key.inputs[index]
    if operand is None:
        raise ValueError(f"operand {index} of {key.op} is empty")
    name = f"x{index}"
    if operand.constant:
        value = add_initializer(model.graph, name, _content(operand))
    else:
        feeds[name] = _content(operand)
        value = add_input(model, name, operand.type, _declared(key, operand))
    if key.mode in INTEGER_INPUT and operand.values is None:
        value = _decoded(model, key, index, value)
    inside = between_convolutions(key) and operand.values is None
    return _convolved(model, key, value, operand.shape[1]) if inside else value


def between_convolutions(key: KernelKey) -> bool:
    """True for what is measured between two convolutions, since only there onnxruntime lays its data out as theirs."""
    data = [item for item in key.inputs if item is not None and item.values is None]
    images = all(len(item.shape) == _IMAGE and not item.constant for item in data)
    return key.mode in (Mode.FLOAT, Mode.STATIC) and key.op in _AMONG_CONVOLUTIONS and not key.domain and images


_AMONG_CONVOLUTIONS = ("MaxPool", "AveragePool", "GlobalAveragePool", "Concat", "Resize")
_IMAGE = 4


def _convolved(model: Model, key: KernelKey, value: Value, channels: int) -> Value:
    """The least that a convolution can do: each channel times one number."""
    name, static = f"{value.name}_conv", key.mode is Mode.STATIC
    weight = add_initializer(model.graph, f"{name}_w", np.ones((channels, 1, 1, 1), np.int8 if static else np.float32))
    if static:
        steps = add_initializer(model.graph, f"{name}_scale", np.full(channels, _WEIGHT_STEP, np.float32))
        weight = _append(model, "DequantizeLinear", [weight, steps], f"{name}_real", {"axis": 0})
    result = _append(model, "Conv", [value, weight], name, {"group": channels, "kernel_shape": [1, 1]})
    return _requantized(model, result) if static else result


def _requantized(model: Model, value: Value) -> Value:
    codes = _append(model, "QuantizeLinear", [value, *_constants(model)], f"{value.name}_codes")
    return _append(model, "DequantizeLinear", [codes, *_constants(model)], f"{value.name}_back")


def _result_channels(key: KernelKey) -> int:
    """The channels of what stands between two convolutions."""
    joined = key.op == "Concat" and dict(key.attributes).get("axis") in (1, -3)
    counts = [item.shape[1] for item in key.inputs if item is not None and item.values is None]
    return sum(counts) if joined else counts[0]


def _declared(key: KernelKey, operand: Operand) -> tuple[int | None, ...]:
    """The shape to declare. A bias in float stays apart from its MatMul only where the data's rows are free."""
    bias = key.inputs[-1] if key.op == "MatMul" and len(key.inputs) == _WITH_BIAS else None
    free = bias is not None and bias.type == "float32" and key.mode in INTEGER_INPUT
    return (None,) * (len(operand.shape) - 1) + operand.shape[-1:] if free else operand.shape


def _decoded(model: Model, key: KernelKey, index: int, value: Value) -> Value:
    """DequantizeLinear behind codes; what is no code stays as it is."""
    operand = key.inputs[index]
    kind = operand.type if operand is not None else ""
    if kind == "uint8":
        return _append(model, "DequantizeLinear", [value, *_constants(model)], f"{value.name}_real")
    if operand is None or not operand.constant or kind not in ("int8", "int32"):
        return value
    axis = _channels(key) if kind == "int8" else 0
    step = _WEIGHT_STEP if kind == "int8" else _WEIGHT_STEP * float(_STEP)
    single = key.op == "ConvTranspose"
    steps = np.full(() if single else operand.shape[axis], step, np.float32)
    inputs = [value, add_initializer(model.graph, f"{value.name}_scale", steps)]
    if kind == "int8" and len(operand.shape) == _MATRIX:  # as the encoding qdq writes it
        inputs.append(add_initializer(model.graph, f"{value.name}_zero", np.zeros(steps.shape, np.int8)))
    attributes = {} if single else {"axis": axis}
    return _append(model, "DequantizeLinear", inputs, f"{value.name}_real", attributes)


_MATRIX = 2


def _channels(key: KernelKey) -> int:
    """The axis of a constant weight that holds its output channels."""
    weight = key.inputs[1]
    rank = len(weight.shape) if weight is not None else 0
    if key.op == "Gemm":
        return 0 if dict(key.attributes).get("transB") else 1
    return 0 if key.op == "Conv" else max(rank - 1, 0)


def _constants(model: Model) -> list[Value]:
    """The scale and the zero point that all activations have, so that what moves codes needs no rescaling."""
    known = model.graph.initializers
    scale = known.get("scale") or add_initializer(model.graph, "scale", np.array(_STEP))
    zero = known.get("zero") or add_initializer(model.graph, "zero", np.array(_ZERO))
    return [scale, zero]


def _append(
    model: Model, operator: str, inputs: list[Value], name: str, attributes: Mapping[str, Any] | None = None
) -> Value:
    node = make_node(operator, inputs, name=name, output=name, attributes=attributes)
    model.graph.append(node)
    return node.outputs[0]


def _content(operand: Operand) -> Array:
    """The same noise for every run; zeros for integers that are no codes, since they may be indices."""
    dtype = np.dtype(operand.type)
    if operand.values is not None:
        return np.array(operand.values).astype(dtype).reshape(operand.shape)
    generator = np.random.default_rng(0)
    if dtype.kind == "f":
        return np.resize(generator.standard_normal(_NOISE).astype(dtype), operand.shape)
    if dtype.itemsize == 1 and dtype.kind in "iu":
        info = np.iinfo(dtype)
        return np.resize(generator.integers(info.min // 2, info.max // 2, _NOISE).astype(dtype), operand.shape)
    return np.zeros(operand.shape, dtype)


def _encode(node: Node, key: KernelKey) -> None:
    """Stores the node's weights as its mode does."""
    coded = tuple(_coded(node, key, operand, axis) for operand, axis in weight_operands(node))
    writer = Dynamic() if key.mode is Mode.DYNAMIC else WeightOnly(decode=key.weights.decode)
    writer.write(coded, Pool())


def _coded(node: Node, key: KernelKey, operand: int, axis: int | None) -> Coded:
    """A weight in noise, of the bits and the blocks that the key asks for."""
    value = node.inputs[operand]
    shape = tuple(size or 0 for size in (dimensions(value) if value is not None else None) or ())
    bits, block = key.weights.bits, key.weights.block
    highest = 2 ** (bits - 1) - 1
    noise = np.random.default_rng(operand).integers(-highest, highest + 1, _NOISE)
    along = input_axis(node, operand, len(shape)) if block is not None else axis
    counts: tuple[int, ...] = (1,) if along is None else (shape[along],)
    if block is not None and along is not None:
        counts = tuple(-(-size // block) if index == along else size for index, size in enumerate(shape))
    scale = Scale(
        scale=np.full(counts, _WEIGHT_STEP, np.float32),
        zero_point=np.zeros(counts, np.int64),
        axis=along,
        block=block if along is not None else None,
        lowest=-highest - 1,
        highest=highest,
        dtype="int8",
    )
    return Coded(node=node, operand=operand, codes=np.resize(noise.astype(np.int8), shape), scale=scale)


def _check_bytes(operands: tuple[Operand | None, ...]) -> None:
    """Before anything is made of what a file says."""
    total = sum(prod(item.shape) * np.dtype(item.type).itemsize for item in operands if item is not None)
    if total > _MOST_BYTES:
        raise UnsupportedError(f"its inputs take {total:,} bytes", "it is too large to be measured")


def _check_results(model: Model, node: Node, feeds: Mapping[str, Array]) -> None:
    """Refuses results of unknown or excessive size, and windows that pass over too much."""
    shapes = concrete_shapes(model, feeds)
    results = [shapes.get(value.name or "") for value in node.outputs]
    if any(shape is None for shape in results):
        raise UnsupportedError("the size of its result is not known", "it cannot be measured alone")
    elements = sum(prod(shape) for shape in results if shape is not None)
    window = node.attributes["kernel_shape"].as_ints() if "kernel_shape" in node.attributes else ()
    work = elements * prod(window)
    if node.op_type in LAYERS:
        work = max(work, multiply_accumulates(node, shapes))
    if 4 * elements > _MOST_BYTES or work > _MOST_WORK:
        raise UnsupportedError(f"its result has {elements:,} elements", "it is too large to be measured")
