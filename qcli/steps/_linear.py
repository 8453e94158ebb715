"""Layers that multiply the channels of their input by constants: MatMul, Gemm and Conv."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np

from qcli.graph import Graph, Node, Value, constant_of, dimensions, is_constant
from qcli.types import Array, Request

_STANDARD = ("", "ai.onnx")


@dataclass(frozen=True)
class Linear:
    """A MatMul, Gemm or Conv of one group, and the axis along which the channels of its data lie.

    `inner` is the axis of the weight along which they lie there: MatMul [K, N] and Gemm [K, N]: 0, Gemm with transB
    [N, K] and Conv [M, C, ...]: 1.
    """

    node: Node
    data: Value
    axis: int
    inner: int

    @property
    def weight(self) -> Array:
        """The constant as it is now, in its own shape."""
        return np.asarray(constant_of(self.node.inputs[1]))

    @property
    def channels(self) -> int:
        """How many channels the data has."""
        weight = self.node.inputs[1]
        return int((dimensions(weight) or ())[self.inner] or 0) if weight is not None else 0

    def request(self) -> Request:
        """Some rows of the data."""
        return Request(value=self.data.name or "", statistic="reservoir", axis=self.axis)


def linears(graph: Graph) -> Iterator[Linear]:
    """The layers of a graph whose weight is a float32 constant that multiplies every channel of its data.

    Those in bodies are not among them: a value leaves a body as a vector, whose channels are lost.
    """
    for node in graph:
        inner = _inner_axis(node) if node.domain in _STANDARD else None
        data = node.inputs[0] if inner is not None else None
        if inner is not None and data is not None and data.name and not is_constant(data):
            yield Linear(node, data, 1 if node.op_type == "Conv" else -1, inner)


def comes_in_codes(value: Value, readers: Collection[Node]) -> bool:
    """True if integer kernels may have written a value with a grid of its own, whatever float node reads it then.

    That is so behind a Conv, and behind any layer where others than `readers` read it too. What stands in front of it
    is followed through all operators that pass integers on.
    """
    others = value.is_graph_output() or any(reader not in readers for reader, _ in value.uses())
    sources = _LAYERS if others else ("Conv",)
    return any(node.op_type in sources for node in _behind_layers(value))


def may_be_integer(value: Value) -> bool:
    """True if a Mul of a value might become an integer kernel: a layer writes it, or what passes integers on."""
    return any(node.op_type in _LAYERS for node in _behind_layers(value))


def _behind_layers(value: Value) -> Iterator[Node]:
    """The layers that a value comes from by way of operators with integer kernels."""
    waiting: list[Value | None] = [value]
    known: set[Node] = set()
    while waiting:
        current = waiting.pop()
        node = current.producer() if current is not None else None
        if node is None or node in known or node.domain not in _STANDARD:
            continue
        known.add(node)
        if node.op_type in _LAYERS and any(is_constant(item) for item in node.inputs):
            yield node
        elif node.op_type in _PASSES:
            waiting.extend(node.inputs)


_LAYERS = ("Conv", "Gemm", "MatMul")
_PASSES = (
    "Add", "Mul", "Relu", "Clip", "Max", "Min", "Concat", "Sigmoid", "LeakyRelu", "AveragePool",
    "GlobalAveragePool", "MaxPool", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Split", "Pad",
    "DepthToSpace", "Resize",
)  # fmt: skip


def _inner_axis(node: Node) -> int | None:
    """The axis of the weight that belongs to the data's channels, or None if that is not how the node computes."""
    rule = _INNER.get(node.op_type)
    weight = constant_of(node.inputs[1]) if rule is not None and len(node.inputs) > 1 else None
    if rule is None or weight is None or weight.dtype != np.float32 or not weight.size:
        return None
    return rule(node, weight)


def _of_matmul(node: Node, weight: Array) -> int | None:
    return 0 if weight.ndim == 2 else None


def _of_gemm(node: Node, weight: Array) -> int | None:
    if _number(node, "transA", 0) or _number(node, "alpha", 1) != 1:
        return None
    return 1 if _number(node, "transB", 0) else 0


def _of_conv(node: Node, weight: Array) -> int | None:
    return 1 if _number(node, "group", 1) == 1 else None


_INNER = {"MatMul": _of_matmul, "Gemm": _of_gemm, "Conv": _of_conv}


def _number(node: Node, key: str, default: float) -> float:
    return float(node.attributes[key].value) if key in node.attributes else default
