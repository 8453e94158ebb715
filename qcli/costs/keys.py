"""From nodes to keys: shapes of one sample, the attributes that matter, the types of a mode."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import isfinite, prod
from typing import Any

import msgspec
import numpy as np

from qcli.costs.nouns import EIGHT_BITS, INTEGER_INPUT, KernelKey, Mode, Operand, WeightForm
from qcli.graph import Node, Value, constant_of, is_constant, sole_consumer
from qcli.layers import LAYERS, weight_operands
from qcli.tails import bias_operand, joins_bias
from qcli.targets.ort_cpu import OrtCpu

Shapes = Mapping[str, tuple[int, ...]]

OPSET = 21
"""The operator set that a kernel is measured with where the form of its operator has not changed since long."""

_UNCHANGED = (
    *LAYERS, "Add", "Mul", "Sub", "Div", "Pow", "Sqrt", "Exp", "Erf", "Abs", "Neg", "Concat", "Sigmoid", "LeakyRelu",
    "Relu", "Tanh", "HardSigmoid", "AveragePool", "GlobalAveragePool", "MaxPool", "Transpose", "Flatten", "Reshape",
    "LSTM", "GRU", "Gather",
)  # fmt: skip

_PRODUCTS = ("MatMul", "Gemm")
_DOMAINS = ("", "ai.onnx", "com.microsoft")
_STANDARD = ("", "ai.onnx")
_TYPES = ("bool", *(f"{sign}int{bits}" for bits in (8, 16, 32, 64) for sign in ("", "u")), "float32", "float64")
_DECIDING = ("Resize", "Upsample", "Pad", "Clip", "OneHot", "Range", "Trilu", "ConstantOfShape", "Dropout")
"""Operators whose constants in float are read like attributes."""

_MOST_VALUES = 64
_MOST_TEXT = 200
_EFFECTLESS: dict[str, tuple[Any, ...]] = {
    "group": (1,),
    "auto_pad": ("NOTSET",),
    "ceil_mode": (0,),
    "count_include_pad": (0,),
    "storage_order": (0,),
    "transA": (0,),
    "transB": (0,),
    "beta": (1.0,),
    "allowzero": (0,),
}
"""What an attribute says that could as well be left out, whatever operator has it."""


_WITHOUT_EFFECT = ("epsilon", "momentum", "spatial", "consumed_inputs")
"""Attributes that no kernel is faster or slower for."""


def key_of(node: Node, mode: Mode, shapes: Shapes, threads: int, weights: WeightForm = EIGHT_BITS) -> KernelKey | None:
    """The kernel of a node in one mode, for the shapes of one sample (`concrete_shapes`).

    None for what has no such mode, has bodies, or reads what cannot be made up: values of unknown shape, text,
    sequences. QUANTIZE and DEQUANTIZE are no modes of nodes: see `conversion_key`.
    """
    if mode not in modes_of(node):
        return None
    operands, attributes, opset = _operands(node, mode, shapes), _attributes(node), _opset(node)
    if operands is None or attributes is None or opset is None:
        return None
    if mode in INTEGER_INPUT and not any(item is not None and item.type == "uint8" for item in operands):
        return None  # it computes on integers of its own
    key = KernelKey(
        op=node.op_type,
        domain="" if node.domain in _STANDARD else node.domain,
        mode=mode,
        inputs=operands,
        attributes=attributes,
        outputs=max((index + 1 for index, value in enumerate(node.outputs) if value.name), default=1),
        opset=opset,
        weights=weights if mode is Mode.WEIGHT_ONLY else EIGHT_BITS,
        threads=threads,
    )
    return key if _is_sound(key) else None


def _is_sound(key: KernelKey) -> bool:
    """True if a table may hold it: what a model file says has no bounds. What reads nothing is no kernel."""
    try:
        msgspec.convert(msgspec.to_builtins(key), KernelKey)
    except msgspec.ValidationError:
        return False
    return any(item is not None and not item.constant for item in key.inputs)


_WITH_WEIGHTS = (*LAYERS, "Gather", "LSTM", "GRU", "RNN")


def conversion_key(mode: Mode, shape: tuple[int, ...], threads: int) -> KernelKey:
    """The conversion of a tensor to codes (QUANTIZE), or of its codes to floats (DEQUANTIZE)."""
    if mode not in (Mode.QUANTIZE, Mode.DEQUANTIZE):
        raise ValueError(f"{mode} is no conversion")
    to_codes = mode is Mode.QUANTIZE
    return KernelKey(
        op="QuantizeLinear" if to_codes else "DequantizeLinear",
        mode=mode,
        inputs=(Operand(shape=shape, type="float32" if to_codes else "uint8"),),
        opset=OPSET,
        threads=threads,
    )


def modes_of(node: Node) -> tuple[Mode, ...]:
    """How a node can compute: in float, and with integers where placement may choose so."""
    if node.domain not in _DOMAINS:
        return ()
    modes = [Mode.FLOAT]
    if node.domain not in _STANDARD:
        return tuple(modes)
    weights = {operand for operand, _ in weight_operands(node)} if node.op_type in _WITH_WEIGHTS else set()
    if OrtCpu().support(node.op_type, "") is not None or node.op_type == "ConvTranspose":
        modes.append(Mode.STATIC)
    if node.op_type in _PRODUCTS and 1 in weights:
        modes += [Mode.STATIC_FLOAT_RESULT, Mode.DYNAMIC]
    if node.op_type == "LSTM" and {1, 2} <= weights:
        modes.append(Mode.DYNAMIC)
    return (*modes, Mode.WEIGHT_ONLY) if weights else tuple(modes)


def bias_node(node: Node) -> tuple[Node, int] | None:
    """The Add behind a MatMul that its kernel swallows, and the operand that holds the bias."""
    if node.op_type != "MatMul" or not node.outputs:
        return None
    follower = sole_consumer(node.outputs[0])
    operand = bias_operand(node, follower) if follower is not None and follower.graph is node.graph else None
    return (follower, operand) if follower is not None and operand is not None else None


def _operands(node: Node, mode: Mode, shapes: Shapes) -> tuple[Operand | None, ...] | None:
    """The operands as the mode takes them; None if one of them is unknown."""
    found: list[Operand | None] = []
    for index, value in enumerate(node.inputs):
        operand = _operand(value, shapes, node.op_type) if value is not None else None
        if operand is None and value is not None:
            return None
        found.append(operand and _coded(operand, node, index, mode))
    while found and found[-1] is None:
        found.pop()
    return (*found, *_bias(node, mode)) if found else None


def _bias(node: Node, mode: Mode) -> Iterator[Operand]:
    """The bias behind a MatMul: int32 where onnxruntime joins the two into a Gemm."""
    added = bias_node(node)
    if added is not None:
        array = constant_of(added[0].inputs[added[1]])
        if array is not None:
            kind = "int32" if mode in INTEGER_INPUT and joins_bias(node) else "float32"
            yield Operand(shape=(array.size,), type=kind, constant=True)


def _operand(value: Value, shapes: Shapes, op: str) -> Operand | None:
    constant = is_constant(value)
    shape = tuple(value.const_value.shape.numpy()) if value.const_value is not None else shapes.get(value.name or "")
    kind = _type_name(value)
    if shape is None or kind not in _TYPES:
        return None
    values: tuple[int | float, ...] | None = None
    if constant and prod(shape) <= _MOST_VALUES and (kind[:5] != "float" or op in _DECIDING):
        array = constant_of(value)
        if array is not None:
            if not np.isfinite(array).all():
                return None
            values = tuple((array.astype(np.uint8) if kind == "bool" else array).reshape(-1).tolist())
    return Operand(shape=shape, type=kind, constant=constant, values=values)


def _type_name(value: Value) -> str:
    kind = value.const_value.dtype if value.const_value is not None else value.dtype
    return _NAMES.get(str(kind), "")


_NAMES = {name.upper(): name for name in _TYPES} | {"FLOAT": "float32", "DOUBLE": "float64"}


def _coded(operand: Operand, node: Node, index: int, mode: Mode) -> Operand:
    """An operand with the type that it has in integer kernels."""
    if mode not in INTEGER_INPUT or operand.type != "float32" or operand.values is not None:
        return operand
    kind = "uint8"
    if node.op_type in LAYERS and operand.constant:
        kind = "int8" if index < _BIAS else "int32"
    return Operand(shape=operand.shape, type=kind, constant=operand.constant)


_BIAS = 2


def _attributes(node: Node) -> tuple[tuple[str, Any], ...] | None:
    """Names and values, sorted; None if one of them is no number, text or list of these."""
    found: dict[str, Any] = {}
    for name, attribute in node.attributes.items():
        if name in _WITHOUT_EFFECT:
            continue
        value = attribute.value
        if isinstance(value, (list, tuple)):
            value = tuple(value)
        if not all(_is_plain(one) for one in (value if isinstance(value, tuple) else (value,))):
            return None
        if isinstance(value, tuple) and len(value) > _MOST_VALUES:
            return None
        if not _says_nothing(node.op_type, name, value):
            found[name] = value
    return tuple(sorted(found.items()))


def _is_plain(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) <= _MOST_TEXT
    return isinstance(value, (int, float)) and isfinite(value)


def _says_nothing(op: str, name: str, value: Any) -> bool:
    if name in ("strides", "dilations", "pads", "output_padding"):
        return all(one == (1 if name in ("strides", "dilations") else 0) for one in value)
    if name == "kernel_shape":
        return op in ("Conv", "ConvTranspose")  # the weight says it
    if name == "alpha":
        return op == "Gemm" and value == 1.0
    return value in _EFFECTLESS.get(name, ())


def _opset(node: Node) -> int | None:
    if node.domain not in _STANDARD or node.op_type in _UNCHANGED:
        return OPSET
    versions = getattr(node.graph, "opset_imports", {})
    known = [versions[name] for name in _STANDARD if name in versions]
    return known[0] if known else None
