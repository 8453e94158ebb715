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
    """True for a Cast of a constant weight, as `weight_only` and `lookup_table` write it.

    Of packed integers or small floats, of others to float, or of bytes to places in a table.
    """
    codes = constant_of(node.inputs[0]) if node.op_type == "Cast" and "to" in node.attributes else None
    if codes is None or codes.ndim < 1:
        return False
    target = node.attributes["to"].value
    if codes.dtype.name == "uint8" and target == _PLACES and codes.size >= _FEWEST_PLACES:
        return True
    integers = codes.dtype.kind in "iu" and codes.dtype.itemsize <= _WIDEST
    small = is_packed(codes) or codes.dtype.name.startswith("float8")
    return codes.ndim > 1 and (small or (integers and target in _FLOATS))


_WIDEST = 2
"""Bytes of a code. Wider integers are indices and the like."""


_PLACES = 6
"""ONNX's number for int32, which Gather wants."""

_FEWEST_PLACES = 32
"""Bytes that are cast to int32 and are fewer are shapes and the like."""

_FLOATS = (1, 10, 11, 16)
"""ONNX's numbers for float32, float16, float64 and bfloat16."""


def touches_quantized(node: Node) -> bool:
    """True for a node that stands next to a quantized operator, or is one: it has the precision it was given."""
    if node.op_type in QUANTIZED_OPERATORS:
        return True
    before = (value.producer() for value in node.inputs if value is not None)
    behind = (reader for value in node.outputs for reader, _ in value.uses())
    return any(other is not None and other.op_type in QUANTIZED_OPERATORS for other in (*before, *behind))
