"""Every operator with weights that can be stored, in small models."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from models import Feeds, Shape, node, normal, proto_of
from onnx import TensorProto, helper

from qcli.types import Array


@dataclass(frozen=True)
class Case:
    """One operator with weights: its node, what it reads, and which operands are stored."""

    node: onnx.NodeProto
    data: dict[str, Shape]
    weights: dict[str, Array]
    stored: tuple[int, ...] = (1,)
    feeds: Feeds = field(default_factory=dict)
    axis: int | None = None

    def proto(self, opset: int = 17) -> onnx.ModelProto:
        proto = proto_of(
            [self.node], self.data, {name: None for name in self.node.output if name}, self.weights, opset=opset
        )
        for name, array in self.feeds.items():
            proto.graph.input.append(helper.make_tensor_value_info(name, TensorProto.INT64, array.shape))
        if self.node.domain:
            proto.opset_import.append(helper.make_opsetid(self.node.domain, 1))
        return proto

    def inputs(self, seed: int = 0) -> Feeds:
        shapes = {name: [size if isinstance(size, int) else 2 for size in shape] for name, shape in self.data.items()}
        return {**{name: normal(seed + at, *shape) for at, (name, shape) in enumerate(shapes.items())}, **self.feeds}


def recurrent(operator: str, gates: int, direction: str = "forward", extra: str = "", **attributes: Any) -> Case:
    """x [4, 2, 8], 8 units; `extra` are the inputs behind R."""
    count = 2 if direction == "bidirectional" else 1
    weights: dict[str, Array] = {
        "w": normal(1, count, gates * 8, 8) / 3,
        "r": normal(2, count, gates * 8, 8) / 3,
        "b": normal(3, count, 2 * gates * 8) / 3,
        "h0": normal(4, count, 2, 8) / 3,
        "c0": normal(5, count, 2, 8) / 3,
        "p": normal(6, count, 24) / 3,
    }
    used = set(extra.split())
    kept = {name: array for name, array in weights.items() if name in used | {"w", "r"}}
    outputs = "y yh yc" if operator == "LSTM" else "y yh"
    made = node(operator, f"x w r {extra}", outputs, hidden_size=8, direction=direction, **attributes)
    return Case(made, {"x": [4, 2, 8]}, kept, stored=(1, 2), axis=1)


MICROSOFT = "com.microsoft"

CASES: dict[str, Case] = {
    "Conv 1-D": Case(
        node("Conv", "x w b", "y"), {"x": [2, 8, 9]}, {"w": normal(0, 8, 8, 3), "b": normal(1, 8)}, axis=0
    ),
    "Conv 2-D": Case(node("Conv", "x w", "y"), {"x": [2, 8, 5, 5]}, {"w": normal(0, 6, 8, 3, 3)}, axis=0),
    "Conv 2-D in groups": Case(
        node("Conv", "x w", "y", group=2), {"x": [2, 8, 5, 5]}, {"w": normal(0, 6, 4, 3, 3)}, axis=0
    ),
    "Conv depthwise": Case(
        node("Conv", "x w", "y", group=16), {"x": [1, 16, 5, 5]}, {"w": normal(0, 16, 1, 5, 5)}, axis=0
    ),
    "Conv 3-D": Case(node("Conv", "x w", "y"), {"x": [1, 4, 4, 4, 4]}, {"w": normal(0, 8, 4, 2, 2, 2)}, axis=0),
    "ConvTranspose 1-D": Case(node("ConvTranspose", "x w", "y"), {"x": [1, 8, 5]}, {"w": normal(0, 8, 6, 4)}, axis=1),
    "ConvTranspose": Case(
        node("ConvTranspose", "x w b", "y", strides=[2, 2]),
        {"x": [1, 8, 3, 3]},
        {"w": normal(0, 8, 6, 3, 3), "b": normal(1, 6)},
        axis=1,
    ),
    "ConvTranspose in groups": Case(
        node("ConvTranspose", "x w", "y", group=2), {"x": [1, 8, 3, 3]}, {"w": normal(0, 8, 6, 3, 3)}, axis=1
    ),
    "Gemm": Case(node("Gemm", "x w b", "y"), {"x": [3, 16]}, {"w": normal(0, 16, 12), "b": normal(1, 12)}, axis=1),
    "Gemm transB": Case(node("Gemm", "x w", "y", transB=1), {"x": [3, 16]}, {"w": normal(0, 12, 16)}, axis=0),
    "Gemm alpha beta": Case(
        node("Gemm", "x w b", "y", alpha=0.5, beta=-2.0, transA=1, transB=1),
        {"x": [16, 3]},
        {"w": normal(0, 12, 16), "b": normal(1, 3, 12)},
        axis=0,
    ),
    "Gemm weight on the left": Case(
        node("Gemm", "w x", "y"), {"x": [16, 3]}, {"w": normal(0, 12, 16)}, stored=(0,), axis=0
    ),
    "Gemm weight on the left transA": Case(
        node("Gemm", "w x", "y", transA=1), {"x": [16, 3]}, {"w": normal(0, 16, 12)}, stored=(0,), axis=1
    ),
    "MatMul of a vector": Case(node("MatMul", "x w", "y"), {"x": [16]}, {"w": normal(0, 16, 12)}, axis=1),
    "MatMul 2-D": Case(node("MatMul", "x w", "y"), {"x": [3, 16]}, {"w": normal(0, 16, 12)}, axis=1),
    "MatMul 3-D": Case(node("MatMul", "x w", "y"), {"x": [2, 3, 16]}, {"w": normal(0, 16, 12)}, axis=1),
    "MatMul 4-D": Case(node("MatMul", "x w", "y"), {"x": [2, 1, 3, 16]}, {"w": normal(0, 16, 12)}, axis=1),
    "MatMul weight of 3-D": Case(node("MatMul", "x w", "y"), {"x": [2, 3, 16]}, {"w": normal(0, 2, 16, 12)}, axis=2),
    "MatMul weight of 4-D": Case(node("MatMul", "x w", "y"), {"x": [3, 16]}, {"w": normal(0, 2, 2, 16, 4)}, axis=3),
    "MatMul weight on the left": Case(
        node("MatMul", "w x", "y"), {"x": [16, 3]}, {"w": normal(0, 12, 16)}, stored=(0,), axis=0
    ),
    "MatMul weight of 3-D on the left": Case(
        node("MatMul", "w x", "y"), {"x": [2, 16, 3]}, {"w": normal(0, 2, 12, 16)}, stored=(0,), axis=1
    ),
    "Einsum": Case(
        node("Einsum", "x w", "y", equation="bij,jk->bik"), {"x": [2, 3, 16]}, {"w": normal(0, 16, 12)}, axis=1
    ),
    "Einsum with the channels first": Case(
        node("Einsum", "x w", "y", equation="bij, kj -> bik"), {"x": [2, 3, 16]}, {"w": normal(0, 12, 16)}, axis=0
    ),
    "Einsum weight on the left": Case(
        node("Einsum", "w x", "y", equation="hij,bhj->bhi"),
        {"x": [2, 3, 8]},
        {"w": normal(0, 3, 12, 8)},
        stored=(0,),
        axis=1,
    ),
    "Gather": Case(
        node("Gather", "w i", "y"), {}, {"w": normal(0, 32, 12)}, stored=(0,), feeds={"i": np.array([3, 0, -1])}, axis=1
    ),
    "Gather of one row": Case(
        node("Gather", "w i", "y"), {}, {"w": normal(0, 32, 12)}, stored=(0,), feeds={"i": np.array(3)}, axis=1
    ),
    "Gather by a matrix": Case(
        node("Gather", "w i", "y", axis=0),
        {},
        {"w": normal(0, 8, 4, 12)},
        stored=(0,),
        feeds={"i": np.array([[3, 1], [7, 7]])},
        axis=2,
    ),
    "Gather along another axis": Case(
        node("Gather", "w i", "y", axis=1), {}, {"w": normal(0, 12, 32)}, stored=(0,), feeds={"i": np.array([5, 2])}
    ),
    "Gather along the last axis": Case(
        node("Gather", "w i", "y", axis=-1), {}, {"w": normal(0, 12, 32)}, stored=(0,), feeds={"i": np.array([5, -2])}
    ),
    "GatherND": Case(
        node("GatherND", "w i", "y"), {}, {"w": normal(0, 12, 32)}, stored=(0,), feeds={"i": np.array([[5], [2]])}
    ),
    "PRelu": Case(node("PRelu", "x w", "y"), {"x": [2, 8, 6, 6]}, {"w": normal(0, 8, 6, 6)}),
    "LSTM": recurrent("LSTM", 4, extra="b"),
    "LSTM both ways with all inputs": recurrent("LSTM", 4, "bidirectional", "b - h0 c0 p"),
    "LSTM backwards": recurrent("LSTM", 4, "reverse"),
    "GRU": recurrent("GRU", 3, extra="b - h0"),
    "GRU linear before reset": recurrent("GRU", 3, "bidirectional", "b", linear_before_reset=1),
    "RNN": recurrent("RNN", 1, "bidirectional", "b"),
    "FusedConv": Case(
        node("FusedConv", "x w b", "y", domain=MICROSOFT, activation="Relu"),
        {"x": [2, 8, 5, 5]},
        {"w": normal(0, 6, 8, 3, 3), "b": normal(1, 6)},
        axis=0,
    ),
    "FusedMatMul": Case(
        node("FusedMatMul", "x w", "y", domain=MICROSOFT, transB=1, alpha=0.5),
        {"x": [2, 3, 16]},
        {"w": normal(0, 12, 16)},
        axis=0,
    ),
    "Attention": Case(
        node("Attention", "x w b", "y", domain=MICROSOFT, num_heads=2),
        {"x": [2, 3, 8]},
        {"w": normal(0, 8, 24) / 3, "b": normal(1, 24)},
        axis=1,
    ),
}  # fmt: skip
