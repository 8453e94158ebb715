"""Numbers of a float type of eight bits that ONNX has: stored as such, and activations that take its values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np

from qcli.encodings._weights import Coded, Pool, home_of
from qcli.graph import (
    DataType,
    Graph,
    Value,
    add_initializer,
    graph_of,
    insert_after,
    insert_before,
    make_node,
    native_type,
)
from qcli.types import Array, Deferred, Scale


def type_of(scale: Scale) -> DataType:
    """ONNX's type of which the levels are the numbers. Raises ValueError for levels that are no type's."""
    if scale.native is None:
        raise ValueError("the levels are those of no type")
    return native_type(scale.native)


def as_numbers(codes: Array | Deferred, scale: Scale) -> Array | Deferred:
    """The codes, places in the table of levels, as numbers of the type."""
    known = np.asarray(scale.levels).astype(type_of(scale).numpy())
    if not isinstance(codes, Deferred):
        return np.asarray(known[codes])
    make = codes.make
    return Deferred(codes.shape, known.dtype.name, lambda: np.asarray(known[make()]))


Decode = Literal["run", "shielded", "load"]
"""How weights become real numbers: DequantizeLinear, this and a Sum of one operand, or a Cast and a Mul."""


def decoded_numbers(coded: Coded, pool: Pool, decode: Decode) -> Value:
    """A constant of the type as real numbers in front of its reader."""
    scale, name, home = coded.scale, coded.name, home_of(coded)

    def store() -> Value:
        return add_initializer(home, f"{name}_q", as_numbers(coded.codes, scale), type_of(scale))

    stored = pool.once((name, id(coded.codes), "numbers"), store)
    if decode == "load":
        floats = _written(coded, "Cast", [stored], "cast", {"to": DataType.FLOAT.value})
        return _written(coded, "Mul", [floats, pool.steps(coded, spread=True)], "dq")
    along_axis = {} if scale.axis is None else {"axis": scale.axis}
    real = _written(coded, "DequantizeLinear", [stored, pool.steps(coded)], "dq", along_axis)
    return _written(coded, "Sum", [real], "kept_float") if decode == "shielded" else real


def _written(
    coded: Coded, operator: str, inputs: list[Value], suffix: str, attributes: Mapping[str, int] | None = None
) -> Value:
    name = f"{coded.name}_{suffix}"
    node = make_node(operator, inputs, name=name, output=name, attributes=attributes)
    insert_before(coded.node, node, graph_of(coded.node))
    return node.outputs[0]


def through_type(graph: Graph, source: Value, name: str, scale: Scale) -> Value:
    """`source` as numbers of the type times its scale: QuantizeLinear, which saturates, and DequantizeLinear.

    The attribute `output_dtype` says the type, and no zero point. With a zero point onnxruntime 1.31.1 takes a Relu in
    front for superfluous and drops it, and does not load a model with a Clip, a MaxPool or a Slice there.
    """
    steps = add_initializer(graph, f"{name}_scale", scale.scale.reshape(()))
    typed = {"output_dtype": type_of(scale).value}
    quantize = make_node("QuantizeLinear", [source, steps], name=f"{name}_q", output=f"{name}_q", attributes=typed)
    insert_after(source, quantize, graph)
    codes = quantize.outputs[0]
    back = make_node("DequantizeLinear", [codes, steps], name=f"{name}_dq", output=f"{name}_dq")
    insert_after(codes, back, graph)
    return back.outputs[0]


NATIVE_OPSET = 21
"""The operator set in which QuantizeLinear has `output_dtype`; that of the types is 19."""
