"""What of a model is quantized already."""

from __future__ import annotations

from collections.abc import Iterator

from qcli.errors import UnsupportedError
from qcli.graph import Model, Node, constant_of, is_packed

QUANTIZED_OPERATORS = (
    "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger",
    "MatMulInteger", "MatMulNBits", "MatMulBnb4", "QGemm", "DynamicQuantizeMatMul", "MatMulIntegerToFloat",
    "DynamicQuantizeLSTM", "QAttention", "QEmbedLayerNormalization", "GatherBlockQuantized", "QLinearAdd", "QLinearMul",
    "QLinearConcat", "QLinearAveragePool", "QLinearGlobalAveragePool", "QLinearSigmoid", "QLinearLeakyRelu",
    "QLinearSoftmax",
)  # fmt: skip


def refuse_quantized(model: Model) -> None:
    """Raises UnsupportedError for a model that holds quantized operators or weights stored as integers."""
    found = sorted(set(_found(model)))
    if found:
        hint = "start from the float model, or quantize only what is still float with --requantize-rest"
        raise UnsupportedError(f"the model is already quantized: it has {', '.join(found)}", hint)


def _found(model: Model) -> Iterator[str]:
    for node in model.nodes():
        if node.op_type in QUANTIZED_OPERATORS:
            yield node.op_type
        elif decodes(node):
            yield "weights stored as integers"


def decodes(node: Node) -> bool:
    """True for a Cast of a constant weight: of packed integers, or of others to float, as `weight_only` writes it."""
    codes = constant_of(node.inputs[0]) if node.op_type == "Cast" and "to" in node.attributes else None
    if codes is None or codes.ndim < 2:
        return False
    integers = codes.dtype.kind in "iu" and codes.dtype.itemsize <= _WIDEST
    return is_packed(codes) or (integers and node.attributes["to"].value in _FLOATS)


_WIDEST = 2
"""Bytes of a code. Wider integers are indices and the like."""


_FLOATS = (1, 10, 11, 16)
"""ONNX's numbers for float32, float16, float64 and bfloat16."""


def touches_quantized(node: Node) -> bool:
    """True for a node that stands next to a quantized operator, or is one: it has the precision it was given."""
    if node.op_type in QUANTIZED_OPERATORS:
        return True
    before = (value.producer() for value in node.inputs if value is not None)
    behind = (reader for value in node.outputs for reader, _ in value.uses())
    return any(other is not None and other.op_type in QUANTIZED_OPERATORS for other in (*before, *behind))
