"""QuantizeLinear and DequantizeLinear around float operators, which the runtime fuses into integer kernels."""

from __future__ import annotations

import msgspec

from qcli.graph import (
    Graph,
    Node,
    Value,
    add_initializer,
    insert_after,
    insert_before,
    make_node,
    share_initializer,
)
from qcli.types import Array, Scale


class Qdq(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Static quantization in standard ONNX: any conforming runtime computes the same."""

    def constant(self, graph: Graph, reader: Node, value: Value, codes: Array, scale: Scale) -> Value:
        """A constant stored as `codes` behind a DequantizeLinear in front of `reader`; its real value.

        A zero point of zero is left out where onnxruntime does without: for biases and for kernels. Those of matrices
        are written, and each on its own, since `session.x64quantprecision` rewrites them one by one.
        """
        name = f"{value.name}_dq"
        inputs = [add_initializer(graph, f"{value.name}_q", codes), _steps(graph, value.name or "", scale)]
        if scale.zero_point.any() or (scale.dtype != "int32" and codes.ndim < _KERNEL_RANK):
            zero = scale.zero_point.astype(scale.dtype)
            inputs.append(
                add_initializer(graph, f"{value.name}_zero", zero.reshape(()) if scale.axis is None else zero)
            )
        attributes = {} if scale.axis is None else {"axis": scale.axis}
        node = make_node("DequantizeLinear", inputs, name=name, output=name, attributes=attributes)
        insert_before(reader, node, graph)
        return node.outputs[0]

    def activation(self, graph: Graph, source: Value, name: str, scale: Scale) -> Value:
        """QuantizeLinear and DequantizeLinear behind `source`; what comes out of them, which nobody reads yet."""
        steps, zero = _steps(graph, name, scale), _zero(graph, scale)
        quantize = make_node("QuantizeLinear", [source, steps, zero], name=f"{name}_q", output=f"{name}_q")
        codes = quantize.outputs[0]
        back = make_node("DequantizeLinear", [codes, steps, zero], name=f"{name}_dq", output=f"{name}_dq")
        insert_after(source, quantize, graph)
        insert_after(codes, back, graph)
        return back.outputs[0]


_KERNEL_RANK = 3
"""Weights of convolutions have at least this many dimensions."""


def _steps(graph: Graph, name: str, scale: Scale) -> Value:
    return add_initializer(graph, f"{name}_scale", scale.scale.reshape(()) if scale.axis is None else scale.scale)


def _zero(graph: Graph, scale: Scale) -> Value:
    """The zero point of an activation, of which a network needs but a few different ones."""
    zero = scale.zero_point.astype(scale.dtype).reshape(())
    return share_initializer(graph, f"zero_{scale.dtype}_{int(zero)}", zero)
