"""QuantizeLinear and DequantizeLinear around float operators, which the runtime fuses into integer kernels."""

from __future__ import annotations

from typing import ClassVar

import msgspec

from qcli.encodings._weights import Coded, Pool, dequantized
from qcli.graph import Graph, Value, add_initializer, graph_of, insert_after, make_node, share_initializer
from qcli.types import Scale


class Qdq(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Static quantization in standard ONNX: any conforming runtime computes the same."""

    calibrated: ClassVar[bool] = True
    multiplies: ClassVar[bool] = True

    def min_opset(self) -> int:
        """QuantizeLinear came with operator set 10; an axis needs 13."""
        return 13

    def write(self, weights: tuple[Coded, ...], pool: Pool) -> None:
        """Constants of one node stored as codes behind DequantizeLinear nodes."""
        for coded in weights:
            key = (id(graph_of(coded.node)), coded.name, id(coded.codes), "run")
            real = pool.once(key, lambda coded=coded: dequantized(coded, pool, coded.node))  # type: ignore[misc]
            coded.node.replace_input_with(coded.operand, real)

    def activation(self, graph: Graph, source: Value, name: str, scale: Scale) -> Value:
        """QuantizeLinear and DequantizeLinear behind `source`; what comes out of them, which nobody reads yet."""
        steps, zero = _steps(graph, name, scale), _zero(graph, scale)
        quantize = make_node("QuantizeLinear", [source, steps, zero], name=f"{name}_q", output=f"{name}_q")
        codes = quantize.outputs[0]
        back = make_node("DequantizeLinear", [codes, steps, zero], name=f"{name}_dq", output=f"{name}_dq")
        insert_after(source, quantize, graph)
        insert_after(codes, back, graph)
        return back.outputs[0]


def _steps(graph: Graph, name: str, scale: Scale) -> Value:
    return add_initializer(graph, f"{name}_scale", scale.scale.reshape(()) if scale.axis is None else scale.scale)


def _zero(graph: Graph, scale: Scale) -> Value:
    """The zero point of an activation, of which a network needs but a few different ones."""
    zero = scale.zero_point.astype(scale.dtype).reshape(())
    return share_initializer(graph, f"zero_{scale.dtype}_{int(zero)}", zero)
