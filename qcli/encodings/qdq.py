"""QuantizeLinear and DequantizeLinear around float operators, which the runtime fuses into integer kernels."""

from __future__ import annotations

import msgspec
import numpy as np

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
        """A constant stored as `codes` behind a DequantizeLinear in front of `reader`; its real value."""
        stored = add_initializer(graph, f"{value.name}_q", codes)
        steps, zero = self._parameters(graph, value.name or "", scale)
        attributes = {} if scale.axis is None else {"axis": scale.axis}
        inputs = [stored, steps] if scale.dtype == "int32" else [stored, steps, zero]
        name = f"{value.name}_dq"
        node = make_node("DequantizeLinear", inputs, name=name, output=name, attributes=attributes)
        insert_before(reader, node, graph)
        return node.outputs[0]

    def activation(self, graph: Graph, source: Value, name: str, scale: Scale) -> Value:
        """QuantizeLinear and DequantizeLinear behind `source`; what comes out of them, which nobody reads yet."""
        steps, zero = self._parameters(graph, name, scale)
        quantize = make_node("QuantizeLinear", [source, steps, zero], name=f"{name}_q", output=f"{name}_q")
        codes = quantize.outputs[0]
        back = make_node("DequantizeLinear", [codes, steps, zero], name=f"{name}_dq", output=f"{name}_dq")
        insert_after(source, quantize, graph)
        insert_after(codes, back, graph)
        return back.outputs[0]

    def _parameters(self, graph: Graph, name: str, scale: Scale) -> tuple[Value, Value]:
        """The scale, and the zero point, of which a network needs but a few different ones."""
        steps = scale.scale.reshape(()) if scale.axis is None else scale.scale
        zero = scale.zero_point.astype(scale.dtype)
        if scale.axis is None:
            shared = share_initializer(graph, f"zero_{scale.dtype}_{int(zero[0])}", zero.reshape(()))
        elif not zero.any():
            shared = share_initializer(graph, f"zeros_{scale.dtype}_{zero.size}", zero)
        else:
            shared = add_initializer(graph, f"{name}_zero", zero)
        return add_initializer(graph, f"{name}_scale", np.asarray(steps)), shared
