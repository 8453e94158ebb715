"""Matrices in blocks, each with a scale of its own, multiplied by a kernel that reads the codes packed; and tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, ClassVar

import msgspec
import numpy as np

from qcli.encodings._gather_blocks import gather_blocks
from qcli.encodings._packed import BYTE, bits_of, packed, unsigned_shift
from qcli.encodings._products import before, number, scaled, take_place, transposed
from qcli.encodings._steps import Layout, block_steps
from qcli.encodings._weights import Coded, Pool, home_of
from qcli.graph import (
    Node,
    Value,
    add_initializer,
    constant_of,
    dimensions,
    graph_of,
    insert_before,
    make_node,
    sole_consumer,
)
from qcli.types import Array, Deferred

_MICROSOFT = "com.microsoft"

_INT8 = 4
"""The accuracy_level at which activations are quantized as the model runs, each block of a row for itself."""


class MatmulNbits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """MatMulNBits of onnxruntime for MatMul and Gemm: y = x B, with B [K, N] in blocks along K.

    `accuracy_level` says in what the kernel multiplies: 0 leaves it to onnxruntime, which takes float32 as with 1;
    2 and 3 stand for float16 and bfloat16, which its CPU kernels do in float32; 4 is int8 for both factors. Codes of
    three bits are stored in four, those of five to seven in eight. A bias [N], also one that an Add behind a MatMul
    adds, becomes the operator's own. Of a Gather of rows it is GatherBlockQuantized, which decodes what is fetched.

    Source: onnxruntime, docs/ContribOperators.md, com.microsoft.MatMulNBits version 1.
    """

    accuracy_level: Annotated[int, msgspec.Meta(ge=0, le=4)] = 0
    calibrated: ClassVar[bool] = False

    @property
    def multiplies(self) -> bool:
        """Below level 4 the kernel decodes the weights and multiplies floats."""
        return self.accuracy_level == _INT8

    def min_opset(self, bits: int, granularity: str) -> int:
        """The operator is one of onnxruntime's own and stands beside any operator set of ONNX."""
        return 7

    def write(self, weights: tuple[Coded, ...], pool: Pool) -> None:
        """Replaces a MatMul [.., K] x [K, N], a Gemm with alpha, beta, transA and transB, or a Gather of rows."""
        coded = weights[0]
        if coded.node.op_type == "Gather":
            gather_blocks(coded, pool)
            return
        node, graph = coded.node, graph_of(coded.node)
        data = node.inputs[0]
        if data is None:
            raise ValueError(f"{node.name} reads no data")
        if number(node, "transA", 0):
            data = transposed(node, graph, data, pool)
        matrix = _Matrix(coded)
        bias, last = _bias(node)
        own = _as_vector(node, bias, matrix.columns, pool)
        result = self._product(node, [data, *matrix.constants(pool), None, own], matrix)
        if bias is not None and own is None:
            result = before(node, "Add", [result, bias], f"{node.name or coded.name}_sum")
        take_place(graph, last, result, node.name)
        if last is not node:
            graph.remove(node, safe=True)

    def _product(self, node: Node, inputs: list[Value | None], matrix: _Matrix) -> Value:
        while inputs[-1] is None:
            inputs.pop()
        attributes = {"K": matrix.rows, "N": matrix.columns, "bits": matrix.bits, "block_size": matrix.block}
        if self.accuracy_level:
            attributes["accuracy_level"] = self.accuracy_level
        name = f"{node.name or node.outputs[0].name}_nbits"
        made = make_node("MatMulNBits", inputs, name=name, output=name, attributes=attributes, domain=_MICROSOFT)
        insert_before(node, made, graph_of(node))
        return made.outputs[0]


class _Matrix:
    """A weight [K, N], or [N, K] for a Gemm with transB, as the operator wants it: unsigned codes, packed."""

    def __init__(self, coded: Coded) -> None:
        scale = coded.scale
        if scale.block is None:
            raise ValueError(f"{coded.name} has no blocks")
        self._coded, self.block = coded, scale.block
        self._turned = coded.node.op_type == "Gemm" and bool(number(coded.node, "transB", 0))
        shape: tuple[int, ...] = coded.codes.shape
        self.rows, self.columns = shape[::-1] if self._turned else shape
        self.bits = bits_of(scale)
        self._blocks = -(-self.rows // self.block)
        self._shift, self._default = unsigned_shift(scale, self.bits)

    def constants(self, pool: Pool) -> list[Value | None]:
        """Codes [N, blocks, bytes of a block]; scales [N, blocks]; zero points [N * bytes of a row], or None.

        Without zero points the operator takes the middle of its levels.
        """
        layout = Layout(turned=not self._turned, factor=number(self._coded.node, "alpha", 1.0))
        zero = None if self._default else self._once(pool, "zero", self._zeros)
        return [self._once(pool, "nbits", self._stored), block_steps(self._coded, pool, layout), zero]

    def _once(self, pool: Pool, kind: str, make: Callable[[], Array | Deferred]) -> Value:
        coded, kept = self._coded, self._coded.codes if kind == "nbits" else self._coded.scale
        key = (coded.name, id(kept), "matmul_nbits", kind, self._turned)
        return pool.once(key, lambda: add_initializer(home_of(coded), f"{coded.name}_{kind}", make()))

    def _stored(self) -> Array | Deferred:
        shape = (self.columns, self._blocks, self.block * self.bits // BYTE)
        if isinstance(self._coded.codes, Deferred):
            return Deferred(shape, "uint8", lambda: self._packed().reshape(shape))
        return self._packed().reshape(shape)

    def _packed(self) -> Array:
        codes = (self._by_column(np.asarray(self._coded.codes)).astype(np.int16) + self._shift).astype(np.uint8)
        return packed(np.pad(codes, ((0, 0), (0, self._blocks * self.block - self.rows))), self.bits)

    def _zeros(self) -> Array:
        zeros = self._by_column(self._coded.scale.zero_point) + self._shift
        return packed(zeros.astype(np.uint8), self.bits).reshape(-1)

    def _by_column(self, array: Array) -> Array:
        return array if self._turned else array.T


def _bias(node: Node) -> tuple[Value | None, Node]:
    """What is added to a product, and the node that does it: a Gemm itself, or the Add of a vector behind a MatMul."""
    if node.op_type == "Gemm":
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        return (scaled(graph_of(node), bias, number(node, "beta", 1.0)) if bias is not None else None), node
    weight, follower = node.inputs[1], sole_consumer(node.outputs[0])
    if follower is None or follower.op_type != "Add" or follower.graph is not node.graph or weight is None:
        return None, node
    columns = (dimensions(weight) or ())[-1:]
    constants = [(value, constant_of(value)) for value in follower.inputs]
    added = [value for value, array in constants if array is not None and array.shape == columns]
    return (added[0], follower) if added else (None, node)


def _as_vector(node: Node, bias: Value | None, columns: int, pool: Pool) -> Value | None:
    """A constant bias of one number for each column, [N]; None for one of another shape."""
    array = constant_of(bias)
    if bias is None or array is None or array.shape not in ((columns,), (1, columns)):
        return None
    if array.ndim == 1:
        return bias
    name, graph = f"{bias.name}_vector", graph_of(node)
    return pool.once((id(graph), name), lambda: add_initializer(graph, name, array.reshape(-1)))
