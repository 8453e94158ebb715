"""Which forms of an operator have an integer kernel: the checks that a target's table of operators cannot hold."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qcli.granularity import is_unscaled
from qcli.graph import Node, constant_of, dimensions, is_constant, is_finite
from qcli.levels import is_uniform, native_of
from qcli.plugins import choice_of, create
from qcli.targets._support import Support
from qcli.types import Entry, Grid


def illegal(node: Node, support: Support) -> str | None:
    """Why this node has no integer kernel, although its operator has one; None if it has."""
    first = node.inputs[0] if node.inputs else None
    if first is None or first.dtype is None or first.dtype.numpy().name != "float32":
        return "its data is not float32"
    if support.weight is not None:
        weight = node.inputs[support.weight]
        if weight is None or constant_of(weight) is None:
            return (
                "integers do not pay between two activations"
                if node.op_type == "MatMul"
                else "its weight is not constant"
            )
        if node.op_type == "MatMul" and len(dimensions(weight) or ()) != 2:
            return "its weight is not a matrix"
    bias = node.inputs[support.bias] if support.bias is not None and len(node.inputs) > support.bias else None
    if bias is not None and constant_of(bias) is None:
        return "its bias is not constant"
    if not all(is_finite(value) for value in node.inputs):
        return "one of its constants holds Inf or NaN"
    check = _CHECKS.get(node.op_type)
    return check(node) if check is not None else None


def no_form(entry: Entry, node: Node, operands: Sequence[int]) -> str | None:
    """Why a node that reads weights at these operands cannot have the encoding of `entry`, or None if it can.

    Encodings that any node takes have none of it; levels that are not evenly spaced are decoded through a table.
    """
    name = choice_of(entry.encoding).name
    if not is_uniform(entry.grid):
        written = name == TABLE or (name == "qdq" and native_of(entry.grid) is not None and entry.grid.block is None)
        return None if written else f"{UNEVEN} multiplies {choice_of(entry.grid.format).name}"
    if name == TABLE:
        return f"{choice_of(entry.grid.format).name} needs no table: its levels are evenly spaced"
    if name == "dynamic":
        return not_dynamic(node, operands, entry.grid)
    if name == "matmul_nbits":
        inside = "it lies in the body of another node" if entry.site.graph else None
        return inside or _not_in_nbits(node, operands, entry.grid)
    return None


def not_as_numbers(entry: Entry) -> str | None:
    """Why a weight in a format without a scale cannot have the encoding of `entry`, or None.

    Rows that a Gather fetches are the ones that are decoded as the model runs.
    """
    encoding = choice_of(entry.encoding)
    if not is_unscaled(entry.grid.format):
        return None
    if encoding.name != "weight_only":
        return f"{entry.grid.format} is for weights alone, with the encoding weight_only"
    runs = encoding.options.get("decode") == "run" and entry.site.op != "Gather"
    return "onnxruntime computes its Cast when it loads the model, whatever the file says" if runs else None


TABLE = "lookup_table"
"""The encoding of levels that are not evenly spaced, and of no others."""

UNEVEN = "no integer kernel"
"""What is said of such a format, with what that does not do."""


def not_dynamic(node: Node, operands: Sequence[int], grid: Grid) -> str | None:
    """Why a node that reads weights at these operands, on this grid, has no dynamic form, or None."""
    data = node.inputs[0] if node.inputs else None
    if data is None or data.dtype is None or data.dtype.numpy().name != "float32":
        return "its data is not float32"
    if grid.block is not None:
        return "no dynamic kernel takes weights in blocks"
    if not is_uniform(grid):
        return f"{UNEVEN} multiplies {choice_of(grid.format).name}"
    if is_unscaled(grid.format) or np.iinfo(create("formats", grid.format).dtype).bits > _BYTE:
        return f"no dynamic kernel takes {choice_of(grid.format).name} weights"
    if node.op_type == "Attention" and node.domain == "com.microsoft":
        return _attention(node, operands)
    if node.domain not in ("", "ai.onnx"):
        return f"operators of the domain '{node.domain}' have no dynamic form"
    if node.op_type == "LSTM":
        if set(operands) != {1, 2} or _int(node, "layout"):
            return "a weight is not constant, or its layout is 1"
        return None if grid.symmetric else "DynamicQuantizeLSTM takes symmetric weights only"
    if node.op_type not in ("MatMul", "Gemm"):
        return f"{node.op_type} has no dynamic form"
    weight = dimensions(node.inputs[1]) if node.inputs[1] is not None else None
    if list(operands) != [1] or weight is None or len(weight) != 2:
        return "its weight is not a matrix on the right"
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    plain = bias is None or node.op_type == "MatMul" or _float(node, "beta", 1.0) == 1.0
    return None if plain or constant_of(bias) is not None else "its bias is not constant"


def _attention(node: Node, operands: Sequence[int]) -> str | None:
    """QAttention reads data [batch, tokens, K], a weight [K, 3 N], a bias and a mask, and has one result."""
    given = [index for index, value in enumerate(node.inputs) if value is not None]
    if list(operands) != [1] or max(given) > _MASK or len(dimensions(node.inputs[0]) or ()) != 3:  # type: ignore[arg-type]
        return "it reads more than data, a weight, a bias and a mask"
    if len(node.outputs) > 1 or set(node.attributes) - {"num_heads", "scale", "mask_filter_value", "unidirectional"}:
        return "QAttention has no second result, and queries, keys and values of one size"
    return None if 2 not in given or constant_of(node.inputs[2]) is not None else "its bias is not constant"


_MASK = 3
"""The last operand of Attention that QAttention has too."""

_BYTE = 8


def _not_in_nbits(node: Node, operands: Sequence[int], grid: Grid) -> str | None:
    """Why a node that reads weights at these operands, on this grid, cannot become MatMulNBits, or None."""
    if node.op_type == "Gather":
        return _not_fetched_in_blocks(node, grid)
    data = node.inputs[0] if node.inputs else None
    if data is None or data.dtype is None or data.dtype.numpy().name != "float32":
        return "its data is not float32"
    if not _is_product(node):
        return f"{node.op_type} is no product that MatMulNBits computes"
    weight = node.inputs[1]
    if list(operands) != [1] or weight is None or len(dimensions(weight) or ()) != _MATRIX:
        return "its weight is not a matrix on the right"
    if grid.block not in _NBITS_BLOCKS:
        return f"MatMulNBits takes weights in blocks of {', '.join(map(str, _NBITS_BLOCKS))}"
    if int(create("formats", grid.format).bits(grid)) > _BYTE:
        return f"MatMulNBits takes no {choice_of(grid.format).name} weights"
    others = any(not _is_product(reader) or operand != 1 for reader, operand in weight.uses())
    if others or weight.is_graph_output():
        return "something else than a product reads its weight too"
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    plain = bias is None or _float(node, "beta", 1.0) == 1.0 or constant_of(bias) is not None
    return None if plain else "its bias is not constant"


def _not_fetched_in_blocks(node: Node, grid: Grid) -> str | None:
    """Why a Gather cannot become GatherBlockQuantized, or None."""
    table = node.inputs[0]
    shape = dimensions(table) or () if table is not None else ()
    if table is None or len(shape) != _MATRIX or _int(node, "axis"):
        return "it does not fetch rows of a matrix"
    if grid.block not in _NBITS_BLOCKS or (shape[-1] or 0) % (grid.block or 1):
        return f"GatherBlockQuantized takes whole blocks of {', '.join(map(str, _NBITS_BLOCKS))}"
    bits = int(create("formats", grid.format).bits(grid))
    if not _NIBBLE // 2 < bits <= _BYTE:
        return f"GatherBlockQuantized takes no {choice_of(grid.format).name} weights"
    others = any(reader.op_type != "Gather" or operand or _int(reader, "axis") for reader, operand in table.uses())
    return "something else fetches its table or multiplies by it too" if others or table.is_graph_output() else None


_NIBBLE = 4


def _is_product(node: Node) -> bool:
    return node.op_type in ("MatMul", "Gemm") and node.domain in ("", "ai.onnx")


_MATRIX = 2
_NBITS_BLOCKS = (16, 32, 64, 128, 256)
"""Blocks that the kernels of onnxruntime 1.31.1 take."""


def _gemm(node: Node) -> str | None:
    plain = _float(node, "alpha", 1.0) == 1.0 and _float(node, "beta", 1.0) == 1.0 and not _int(node, "transA")
    return None if plain else "integer Gemm has no alpha, beta or transA"


def _pad(node: Node) -> str | None:
    mode = node.attributes["mode"].as_string() if "mode" in node.attributes else "constant"
    value = constant_of(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else None
    fixed = len(node.inputs) < 3 or node.inputs[2] is None or value is not None
    zero = value is None or not value.any()
    return None if mode != "constant" or (fixed and zero) else "it pads with something else than zero"


def _resize(node: Node) -> str | None:
    mode = node.attributes["mode"].as_string() if "mode" in node.attributes else "nearest"
    return None if mode == "nearest" else "it interpolates"


def _pool(node: Node) -> str | None:
    return "it also gives indices" if len(node.outputs) > 1 else None


def _average_pool(node: Node) -> str | None:
    dilated = "dilations" in node.attributes and any(step != 1 for step in node.attributes["dilations"].as_ints())
    if dilated:
        return "its integer kernel has no dilations"
    return (
        "its integer kernel counts padding otherwise"
        if _int(node, "ceil_mode") and _int(node, "count_include_pad")
        else None
    )


def _elementwise(node: Node) -> str | None:
    if sum(value is not None and is_constant(value) for value in node.inputs) == len(node.inputs):
        return "it reads no activation"
    return None


_CHECKS = {
    "Gemm": _gemm,
    "Pad": _pad,
    "Resize": _resize,
    "MaxPool": _pool,
    "AveragePool": _average_pool,
    "Add": _elementwise,
    "Mul": _elementwise,
}


def _float(node: Node, key: str, default: float) -> float:
    return node.attributes[key].as_float() if key in node.attributes else default


def _int(node: Node, key: str) -> int:
    return node.attributes[key].as_int() if key in node.attributes else 0
