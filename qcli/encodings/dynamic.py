"""Activations quantized while the model runs, by the range that each tensor has right then: no calibration."""

from __future__ import annotations

from typing import ClassVar

import msgspec
import numpy as np

from qcli.encodings._products import before, number, scaled, take_place, transposed
from qcli.encodings._weights import Coded, Pool, constant_codes, home_of
from qcli.graph import (
    Graph,
    Node,
    Value,
    add_initializer,
    graph_of,
    insert_before,
    make_node,
    packed_opset,
    replace_value,
    share_initializer,
)
from qcli.types import Array

_MICROSOFT = "com.microsoft"


class Dynamic(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """MatMulInteger for MatMul and Gemm, DynamicQuantizeLSTM for LSTM, QAttention for Attention.

    The nodes stand in the pattern that onnxruntime joins into one kernel (DynamicQuantizeMatMul; MatMulIntegerToFloat
    where several products share their input). DynamicQuantizeLinear makes the codes of activations: uint8 with one
    scale for each tensor. With `pack`, weights of two to four bits are stored as such, behind a Cast to 8 bits that
    onnxruntime computes once.
    """

    pack: bool = True
    calibrated: ClassVar[bool] = False
    multiplies: ClassVar[bool] = True

    def min_opset(self, bits: int, granularity: str) -> int:
        """DynamicQuantizeLinear came with operator set 11."""
        return max(11, packed_opset(bits) if self.pack else 1)

    def write(self, weights: tuple[Coded, ...], pool: Pool) -> None:
        """Replaces one node."""
        node = weights[0].node
        if node.op_type == "LSTM":
            _lstm(node, {coded.operand: coded for coded in weights}, pool, pack=self.pack)
        elif node.op_type == "Attention":
            _attention(weights[0], pool, pack=self.pack)
        else:
            _product(weights[0], pool, pack=self.pack)


def _product(coded: Coded, pool: Pool, *, pack: bool) -> None:
    """MatMul [.., K] x [K, N], or Gemm with alpha, beta, transA and transB."""
    node, graph, name = coded.node, graph_of(coded.node), coded.node.name or coded.name
    codes, zero, data, scale_x, zero_x = _quantized(coded, pool, pack=pack)
    integers = before(node, "MatMulInteger", [data, codes, zero_x, zero], f"{name}_integers")
    floats = before(node, "Cast", [integers], f"{name}_cast", {"to": 1})
    scale_w = _steps(coded, pool, number(node, "alpha", 1.0))
    scale = before(node, "Mul", [scale_x, scale_w], f"{name}_scales")
    result = before(node, "Mul", [floats, scale], f"{name}_product")
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None:
        result = before(node, "Add", [result, scaled(graph, bias, number(node, "beta", 1.0))], f"{name}_sum")
    take_place(graph, node, result)


def _steps(coded: Coded, pool: Pool, factor: float = 1.0) -> Value:
    """The scale of a matrix [K, N]: [N], or one number."""
    steps = coded.scale.scale * np.float32(factor)
    steps = steps.reshape(()) if coded.scale.axis is None else steps
    return pool.once(
        (coded.name, id(coded.scale), "dynamic", float(steps.flat[0])),
        lambda: add_initializer(home_of(coded), f"{coded.name}_scale", steps),
    )


def _attention(coded: Coded, pool: Pool, *, pack: bool) -> None:
    """Attention of data [batch, tokens, K] and a weight [K, 3 N] to QAttention; its products stay float."""
    node, graph = coded.node, graph_of(coded.node)
    codes, zero, data, scale_x, zero_x = _quantized(coded, pool, pack=pack)
    bias, mask = (*node.inputs[2:4], None, None)[:2]
    if bias is None:
        bias = share_initializer(home_of(coded), "no_bias", np.zeros(coded.codes.shape[1], np.float32))
    made = make_node(
        "QAttention",
        [data, codes, bias, scale_x, _steps(coded, pool), mask, zero_x, zero],
        name=f"{node.name}_quantized",
        output=f"{node.outputs[0].name}_quantized",
        attributes={key: item.value for key, item in node.attributes.items()},
        domain=_MICROSOFT,
    )
    insert_before(node, made, graph)
    take_place(graph, node, made.outputs[0])


def _quantized(coded: Coded, pool: Pool, *, pack: bool) -> tuple[Value, Value, Value, Value, Value]:
    """Codes and zero point of the weight [K, N]; codes, scale and zero point of the data [.., K]."""
    node, graph = coded.node, graph_of(coded.node)
    source = node.inputs[0]
    if source is None:
        raise ValueError(f"{node.name} reads no data")
    if node.op_type == "Gemm" and number(node, "transA", 0):
        source = transposed(node, graph, source, pool)
    turned = node.op_type == "Gemm" and bool(number(node, "transB", 0))
    matrix = np.ascontiguousarray(coded.codes.T) if turned else coded.codes
    home = home_of(coded)
    codes = pool.once((coded.name, id(coded.codes), "matrix", turned), lambda: constant_codes(coded, matrix, pack=pack))
    zeros = coded.scale.zero_point.astype(coded.scale.dtype)
    zeros = zeros.reshape(()) if coded.scale.axis is None else zeros
    zero = pool.once((coded.name, id(coded.scale), "zero"), lambda: add_initializer(home, f"{coded.name}_zero", zeros))
    key = (id(graph), source.name, "dynamic")
    data = pool.once(key, lambda: _quantize(node, graph, source))
    producer = data.producer()
    if producer is None:
        raise ValueError(f"nothing quantizes {source.name}")
    return codes, zero, data, producer.outputs[1], producer.outputs[2]


def _quantize(reader: Node, graph: Graph, source: Value) -> Value:
    name = f"{source.name}_dynamic"
    node = make_node("DynamicQuantizeLinear", [source], name=name, output=f"{name}_q", outputs=3)
    for output, suffix in zip(node.outputs[1:], ("scale", "zero"), strict=True):
        output.name = f"{name}_{suffix}"
    insert_before(reader, node, graph)
    return node.outputs[0]


def _lstm(node: Node, weights: dict[int, Coded], pool: Pool, *, pack: bool) -> None:
    """LSTM to DynamicQuantizeLSTM, whose weights are [directions, inputs, 4 * hidden]."""
    graph = graph_of(node)
    w, r = weights[1], weights[2]
    given = [*node.inputs, *[None] * 8][:8]
    given[1], given[2] = _turned(w, pool, pack=pack), _turned(r, pool, pack=pack)
    extra = [item for one in (w, r) for item in _spread(one, pool)]
    attributes = {key: item.value for key, item in node.attributes.items() if key != "layout"}
    joined = make_node(
        "DynamicQuantizeLSTM",
        [*given, *extra],
        name=f"{node.name}",
        output=f"{node.outputs[0].name}_quantized",
        attributes=attributes,
        domain=_MICROSOFT,
        outputs=len(node.outputs),
    )
    insert_before(node, joined, graph)
    for old, new in zip(node.outputs, joined.outputs, strict=True):
        name = old.name
        if old.uses() or old.is_graph_output():
            replace_value(graph, old, new)
        if name and new.name != name:
            old.name, new.name = f"{name}_float", name
        if not name:
            new.name = ""
    graph.remove(node, safe=True)


def _turned(coded: Coded, pool: Pool, *, pack: bool) -> Value:
    """Codes [directions, inputs, 4 * hidden]."""

    def make() -> Value:
        return constant_codes(coded, np.ascontiguousarray(np.swapaxes(coded.codes, 1, 2)), pack=pack)

    return pool.once((coded.name, id(coded.codes), "turned"), make)


def _spread(coded: Coded, pool: Pool) -> tuple[Value, Value]:
    """Scale and zero point for each direction, [directions, 4 * hidden] or [directions]."""
    directions, home = coded.codes.shape[0], home_of(coded)

    def repeated(vector: Array, name: str) -> Value:
        array = np.tile(vector, (directions, 1)) if coded.scale.axis is not None else np.repeat(vector, directions)
        key = (coded.name, id(coded.scale), name)
        return pool.once(key, lambda: add_initializer(home, f"{coded.name}_{name}", array))

    return repeated(coded.scale.scale, "scale"), repeated(coded.scale.zero_point.astype(coded.scale.dtype), "zero")
