"""QuantizeLinear and DequantizeLinear around float operators, which the runtime fuses into integer kernels."""

from __future__ import annotations

from typing import ClassVar

import msgspec
import numpy as np

from qcli.encodings._native import Decode, decoded_numbers, through_type
from qcli.encodings._weights import Coded, Pool, dequantized
from qcli.graph import Graph, Value, add_initializer, graph_of, insert_after, make_node, packed_opset, share_initializer
from qcli.types import Array, Scale


class Qdq(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Static quantization in standard ONNX: any conforming runtime computes the same.

    With `pack`, weights of two to four bits are stored as such, behind a Cast to 8 bits that onnxruntime computes once;
    without, in 8 bits each, for runtimes that do not fold it. `decode` is about
    weights in floats of eight bits: `run` writes DequantizeLinear, as compilers for hardware that multiplies them look
    for it; `shielded` a Sum of one operand behind it, without which onnxruntime takes a MatMul of two DequantizeLinear
    for one of integers and does not load it; `load` a Cast and a Mul, which onnxruntime computes once.
    """

    pack: bool = True
    decode: Decode = "run"
    calibrated: ClassVar[bool] = True
    multiplies: ClassVar[bool] = True

    def min_opset(self, bits: int, granularity: str) -> int:
        """QuantizeLinear came with operator set 10, its axis with 13, 16 bits with 21."""
        run = 21 if bits > _BYTE else 10 if granularity == "tensor" else 13
        return max(run, packed_opset(bits) if self.pack else 1)

    def write(self, weights: tuple[Coded, ...], pool: Pool) -> None:
        """Constants of one node stored as codes behind DequantizeLinear nodes."""
        for coded in weights:
            key = (id(graph_of(coded.node)), coded.name, id(coded.codes), "run")
            real = pool.once(key, lambda coded=coded: self._real(coded, pool))  # type: ignore[misc]
            coded.node.replace_input_with(coded.operand, real)

    def _real(self, coded: Coded, pool: Pool) -> Value:
        if coded.scale.native is not None:
            return decoded_numbers(coded, pool, self.decode)
        return dequantized(coded, pool, coded.node, pack=self.pack)

    def activation(self, graph: Graph, source: Value, name: str, scale: Scale) -> Value:
        """QuantizeLinear and DequantizeLinear behind `source`; what comes out of them, which nobody reads yet.

        QuantizeLinear saturates at the ends of its type. Where the grid has fewer levels a Clip does: of the codes, so
        that integer kernels still stand on both sides of it, or of the values where the codes have 16 bits, for which
        onnxruntime has no Clip. Floats of eight bits saturate at their largest numbers.
        """
        if scale.native is not None:
            return through_type(graph, source, name, scale)
        info, steps, zero = np.iinfo(scale.dtype), _steps(graph, name, scale), _zero(graph, scale)
        clips = (scale.lowest, scale.highest) != (info.min, info.max)
        if clips and info.bits > _BYTE:
            levels = np.array([scale.lowest, scale.highest], np.int64) - scale.zero_point
            source = _clipped(graph, source, f"{name}_clip", levels.astype(np.float32) * scale.scale)
        quantize = make_node("QuantizeLinear", [source, steps, zero], name=f"{name}_q", output=f"{name}_q")
        insert_after(source, quantize, graph)
        codes = quantize.outputs[0]
        if clips and info.bits <= _BYTE:
            codes = _clipped(graph, codes, f"{name}_clip", np.array([scale.lowest, scale.highest], scale.dtype))
        back = make_node("DequantizeLinear", [codes, steps, zero], name=f"{name}_dq", output=f"{name}_dq")
        insert_after(codes, back, graph)
        return back.outputs[0]


_BYTE = 8


def _clipped(graph: Graph, source: Value, name: str, bounds: Array) -> Value:
    """`source` between two bounds, which have its type."""
    given = [share_initializer(graph, f"bound_{bound.dtype}_{bound}", bound.reshape(())) for bound in bounds]
    node = make_node("Clip", [source, *given], name=name, output=name)
    insert_after(source, node, graph)
    return node.outputs[0]


def _steps(graph: Graph, name: str, scale: Scale) -> Value:
    return add_initializer(graph, f"{name}_scale", scale.scale.reshape(()) if scale.axis is None else scale.scale)


def _zero(graph: Graph, scale: Scale) -> Value:
    """The zero point of an activation, of which a network needs but a few different ones."""
    zero = scale.zero_point.astype(scale.dtype).reshape(())
    return share_initializer(graph, f"zero_{scale.dtype}_{int(zero)}", zero)
