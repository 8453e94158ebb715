"""Integers on the disk, float in the kernel: for weights that have no integer kernel, or need no samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, Protocol

import msgspec
import numpy as np

from qcli.contracts import along
from qcli.encodings._in_blocks import dequantized_blocks, fetch_blocks
from qcli.encodings._steps import block_steps
from qcli.encodings._weights import Coded, Pool, block_numbers, dequantized, fetches_rows, home_of
from qcli.granularity import is_unscaled
from qcli.graph import (
    Node,
    Value,
    add_initializer,
    enclosing_node,
    graph_of,
    insert_before,
    make_node,
    packed_opset,
    replace_value,
)

_BYTE = 8
_FLOAT = 1
"""ONNX's number for float32, as Cast wants it."""


class _Step(Protocol):
    """Writes one node in front of the reader of a weight."""

    def __call__(
        self, operator: str, inputs: list[Value], suffix: str, attributes: Mapping[str, int] | None = None
    ) -> Value: ...


class WeightOnly(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Weights as integers or as floats of 16 bits; activations and arithmetic stay float.

    `decode: load` writes Cast and Mul, which onnxruntime computes once when it loads the model: the speed and the
    memory of the float model. `decode: run` writes DequantizeLinear, which onnxruntime never folds: it runs each time,
    the kernel finds no constant weight to pack, and memory holds the integers alone; of some MatMul it makes
    MatMulNBits. Rows that a Gather fetches are decoded behind it, in both cases. With `pack`, weights of two to four
    bits are stored as such; without, in 8 bits each. Scales of blocks are repeated by a Gather when the model is
    loaded, or by the `block_size` of DequantizeLinear, which then reads packed codes as they are; behind a Gather it is
    DequantizeLinear in both cases. Of float16 and bfloat16 a Cast makes float32 when the model is loaded, or behind the
    Gather.
    """

    decode: Literal["load", "run"] = "load"
    pack: bool = True
    calibrated: ClassVar[bool] = False
    multiplies: ClassVar[bool] = False

    def min_opset(self, bits: int, granularity: str) -> int:
        """DequantizeLinear came with operator set 10, its axis with 13, blocks and 16 bits with 21.

        Rows of tables in blocks have one with `decode: load` too.
        """
        blocks = granularity == "block"
        run = 21 if bits > _BYTE or blocks else 10 if granularity == "tensor" else 13
        return max(run if self.decode == "run" or blocks else 7, packed_opset(bits) if self.pack else 1)

    def write(self, weights: tuple[Coded, ...], pool: Pool) -> None:
        """Rewrites the operands of one node."""
        for coded in weights:
            if fetches_rows(coded):
                self._gather(coded, pool)
            else:
                key = (id(home_of(coded)), coded.name, id(coded.codes), self.decode)
                real = pool.once(key, lambda coded=coded: self._decoded(coded, pool))  # type: ignore[misc]
                coded.node.replace_input_with(coded.operand, real)

    def _decoded(self, coded: Coded, pool: Pool) -> Value:
        """The weight's real value, in the graph that holds the weight: bodies share it, and a Loop decodes once."""
        home = home_of(coded)
        reader = enclosing_node(home, coded.node)
        if self.decode == "run" and coded.scale.block is not None:
            return dequantized_blocks(coded, pool, reader, pack=self.pack)
        if self.decode == "run":
            return dequantized(coded, pool, reader, pack=self.pack)

        def step(operator: str, inputs: list[Value], suffix: str, attributes: Mapping[str, int] | None = None) -> Value:
            name = f"{coded.name}_{suffix}"
            node = make_node(operator, inputs, name=name, output=name, attributes=attributes)
            insert_before(reader, node, home)
            return node.outputs[0]

        if is_unscaled(coded.scale.dtype):
            return step("Cast", [pool.codes(coded)], "dq", _TO_FLOAT)
        levels = step("Cast", [pool.codes(coded, pack=self.pack)], "cast", _TO_FLOAT)
        if coded.scale.zero_point.any():
            levels = step("Sub", [levels, self._zero(coded, pool, step)], "sub")
        if coded.scale.block is None:
            return step("Mul", [levels, pool.steps(coded, spread=True)], "dq")
        axis = {"axis": coded.scale.axis or 0}
        steps = step("Gather", [block_steps(coded, pool), block_numbers(coded)], "steps", axis)
        return step("Mul", [levels, steps], "dq")

    def _zero(self, coded: Coded, pool: Pool, step: _Step) -> Value:
        """The zero points as floats that broadcast against the codes; those of blocks are stored as codes are."""
        home = home_of(coded)
        if coded.scale.block is None:
            _, zero = along(coded.scale, coded.codes.shape)
            return add_initializer(home, f"{coded.name}_zero", np.asarray(zero, np.float32))
        floats = step("Cast", [pool.zeros(coded, pack=self.pack)], "zero_cast", _TO_FLOAT)
        return step("Gather", [floats, block_numbers(coded)], "zeros", {"axis": coded.scale.axis or 0})

    def _gather(self, coded: Coded, pool: Pool) -> None:
        """y = decode(Gather(codes)): only the rows that are fetched are decoded, at every run."""
        if coded.scale.block is not None:
            fetch_blocks(coded, pool, pack=self.pack)
            return
        node, graph = coded.node, graph_of(coded.node)
        out = node.outputs[0]
        node.replace_input_with(coded.operand, pool.codes(coded, pack=self.pack))
        rows = make_node(
            "Gather", node.inputs, name=f"{node.name}_codes", output=f"{out.name}_codes", attributes={"axis": 0}
        )
        insert_before(node, rows, graph)
        cast = make_node(
            "Cast", [rows.outputs[0]], name=f"{node.name}_cast", output=f"{out.name}_cast", attributes=_TO_FLOAT
        )
        insert_before(node, cast, graph)
        last = cast if is_unscaled(coded.scale.dtype) else _scaled(coded, cast, pool)
        last.name = node.name
        replace_value(graph, out, last.outputs[0])
        graph.remove(node, safe=True)


_TO_FLOAT = {"to": _FLOAT}


def _scaled(coded: Coded, rows: Node, pool: Pool) -> Node:
    """The rows that were fetched times their steps."""
    operands, name = [rows.outputs[0], pool.steps(coded)], f"{coded.node.outputs[0].name}_dq"
    scale = make_node("Mul", operands, name=f"{coded.name}_decode", output=name)
    insert_before(coded.node, scale, graph_of(coded.node))
    return scale
