"""Which operands and results of an operator can have 16 bits, as ONNX's own schemas say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import NamedTuple

import onnx
import onnx_ir as ir

from qcli.graph.model import STANDARD, Model

_FLOAT = ir.DataType.FLOAT

_SET_BY_ATTRIBUTE = ("dtype", "output_dtype", "output_datatype")


class Halves(NamedTuple):
    """The operands and the results of a node that change their type from float32 to 16 bits."""

    operands: tuple[int, ...]
    results: tuple[int, ...]


@cache
def operator_names() -> frozenset[str]:
    """All standard operators."""
    return frozenset(schema.name for schema in onnx.defs.get_all_schemas() if not schema.domain)


def halves_of(node: ir.Node, opset: int, to: str) -> Halves | str:
    """What of a node changes when it computes in `to`, or why it cannot.

    Example: of Resize the image and the result change, `scales` stays float32, as its schema wants it.
    """
    if node.domain not in STANDARD:
        return f"the types of operators of the domain '{node.domain}' are not known"
    if any(value is not None and value.type is None for value in (*node.inputs, *node.outputs)):
        return "its types are not known"
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, "")
    except onnx.defs.SchemaError:
        return f"operator set {opset} has no {node.op_type}"
    if node.op_type == "Cast":
        return _of_cast(node)
    if any(name in schema.attributes for name in _SET_BY_ATTRIBUTE):
        return "an attribute says which type it has"
    changing = _changing(schema, to)
    operands = tuple(index for index, value in _read(node) if _is_float(value) and _type(schema, index) in changing)
    results = tuple(
        index
        for index, value in enumerate(node.outputs)
        if _is_float(value) and _formal(schema.outputs, index) in changing
    )
    if not operands:
        return f"{node.op_type} of operator set {opset} takes no {to}"
    return Halves(operands, results)


def computes_in_float(node: ir.Node) -> bool:
    """True for a node that reads or gives float32."""
    return any(_is_float(value) for value in (*(value for _, value in _read(node)), *node.outputs))


def _of_cast(node: ir.Node) -> Halves:
    operands = (0,) if _is_float(node.inputs[0]) else ()
    return Halves(operands, (0,) if _is_float(node.outputs[0]) else ())


def _changing(schema: onnx.defs.OpSchema, to: str) -> set[str]:
    """The type variables that can stand for `to` and that operands have: what else a result has is set elsewhere."""
    wanted = f"tensor({to})"
    can = {one.type_param_str for one in schema.type_constraints if wanted in one.allowed_type_strs}
    return can & {formal.type_str for formal in schema.inputs}


def _type(schema: onnx.defs.OpSchema, index: int) -> str:
    return _formal(schema.inputs, index)


def _formal(formals: Sequence[onnx.defs.OpSchema.FormalParameter], index: int) -> str:
    """The type of an operand; the last one that is declared stands for all that follow."""
    return formals[min(index, len(formals) - 1)].type_str if formals else ""


def _read(node: ir.Node) -> Iterator[tuple[int, ir.Value]]:
    for index, value in enumerate(node.inputs):
        if value is not None:
            yield index, value


def _is_float(value: ir.Value | None) -> bool:
    return value is not None and isinstance(value.type, ir.TensorType) and value.type.dtype == _FLOAT


def weight_floats(model: Model) -> frozenset[str]:
    """The types of the float constants that have two dimensions or more, such as `float32`."""
    floats = (_FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
    kinds = (tensor.dtype for tensor in model.constants() if len(tensor.shape) > 1)
    return frozenset(kind.numpy().name for kind in kinds if kind in floats)
