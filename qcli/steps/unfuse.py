"""Operators that onnxruntime's optimizer made of several become the several again, which have integer kernels.

A model that was saved after optimization holds FusedConv, FusedGemm and FusedMatMul. Written out they are ordinary
layers; onnxruntime fuses them again when it loads the result. The factors of a Gemm join its constants.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from qcli.graph import (
    Graph,
    Model,
    Node,
    Value,
    add_initializer,
    constant_of,
    graph_of,
    insert_before,
    make_node,
    replace_value,
    set_constant,
)
from qcli.steps._base import Step

_MICROSOFT = "com.microsoft"


class Unfuse(Step, frozen=True, kw_only=True):
    """FusedConv and FusedGemm to layer and activation, FusedMatMul to MatMul, Gemm to alpha = beta = 1."""

    def run(self, model: Model) -> int:
        return sum(_rewrite(graph, node) for graph in model.graphs() for node in tuple(graph))


def _rewrite(graph: Graph, node: Node) -> bool:
    if node.domain == _MICROSOFT and node.op_type in _WRITTEN_OUT:
        return _WRITTEN_OUT[node.op_type](graph, node)
    return node.op_type == "Gemm" and node.domain in ("", "ai.onnx") and _plain_gemm(graph, node)


def _fused_conv(graph: Graph, node: Node) -> bool:
    """Conv, then the sum with a fourth input, then the activation."""
    added = node.inputs[3] if len(node.inputs) > 3 else None
    activation = _activation(graph, node)
    if activation is None:
        return False
    value = _layer(graph, node, "Conv", node.inputs[:3], ("activation", "activation_params"))
    if added is not None:
        value = _before(node, "Add", [value, added], f"{node.name}_sum", {})
    return _finish(graph, node, activation(value))


def _fused_gemm(graph: Graph, node: Node) -> bool:
    activation = _activation(graph, node)
    if activation is None:
        return False
    ours = ("activation", "activation_alpha", "activation_beta", "activation_gamma")
    return _finish(graph, node, activation(_layer(graph, node, "Gemm", node.inputs, ours)))


def _fused_matmul(graph: Graph, node: Node) -> bool:
    """alpha * A B with a constant matrix B, transposed or not, and A as it is."""
    weight = constant_of(node.inputs[1])
    batched = any(_number(node, key, 0) for key in ("transA", "transBatchA", "transBatchB"))
    if weight is None or weight.ndim != 2 or batched or weight.dtype.kind != "f":
        return False
    matrix = weight.T if _number(node, "transB", 0) else weight
    scaled = np.ascontiguousarray(matrix * np.asarray(_number(node, "alpha", 1.0), matrix.dtype))
    factor = add_initializer(graph, f"{node.name}_weight", scaled)
    return _finish(graph, node, _before(node, "MatMul", [node.inputs[0], factor], f"{node.name}_product", {}))


def _plain_gemm(graph: Graph, node: Node) -> bool:
    """alpha joins the weight, beta the bias, where both are constant."""
    alpha, beta = _number(node, "alpha", 1.0), _number(node, "beta", 1.0)
    weight = constant_of(node.inputs[1])
    bias_value = node.inputs[2] if len(node.inputs) > 2 else None
    bias = constant_of(bias_value)
    if (alpha, beta) == (1.0, 1.0) or weight is None or weight.dtype.kind != "f" or (bias_value and bias is None):
        return False
    if alpha != 1.0:
        set_constant(graph, node, 1, weight * np.asarray(alpha, weight.dtype))
    if bias is not None and beta != 1.0:
        set_constant(graph, node, 2, bias * np.asarray(beta, bias.dtype))
    for key in ("alpha", "beta"):
        node.attributes.pop(key, None)
    return True


_WRITTEN_OUT: dict[str, Callable[[Graph, Node], bool]] = {
    "FusedConv": _fused_conv,
    "FusedGemm": _fused_gemm,
    "FusedMatMul": _fused_matmul,
    "TransposeMatMul": _fused_matmul,
}


def _activation(graph: Graph, node: Node) -> Callable[[Value], Value] | None:
    """What applies the activation that a fused node names; None for one that is not known."""
    name = node.attributes["activation"].as_string() if "activation" in node.attributes else ""
    if not name:
        return lambda value: value
    if name not in _PARAMETERS:
        return None
    given = _given_parameters(node, len(_PARAMETERS[name]))
    attributes: dict[str, Any] = dict(zip(_PARAMETERS[name], given, strict=False))

    def apply(value: Value) -> Value:
        if name != "Clip":
            return _before(node, name, [value], f"{node.name}_activation", attributes)
        kind = node.inputs[1].dtype.numpy() if node.inputs[1] is not None and node.inputs[1].dtype else np.float32
        bounds = [add_initializer(graph, f"{node.name}_bound", np.asarray(bound, kind)) for bound in given]
        return _before(node, "Clip", [value, *bounds], f"{node.name}_activation", {})

    return apply


_PARAMETERS: dict[str, tuple[str, ...]] = {
    "Relu": (),
    "Tanh": (),
    "Sigmoid": (),
    "LeakyRelu": ("alpha",),
    "HardSigmoid": ("alpha", "beta"),
    "Clip": ("min", "max"),
}
"""Activations and their parameters, in the order in which fused nodes list them."""


def _given_parameters(node: Node, count: int) -> list[float]:
    if "activation_params" in node.attributes:
        return list(node.attributes["activation_params"].as_floats())[:count]
    keys = ("activation_alpha", "activation_beta", "activation_gamma")[:count]
    return [node.attributes[key].as_float() for key in keys if key in node.attributes]


def _layer(graph: Graph, node: Node, operator: str, inputs: Any, ours: tuple[str, ...]) -> Value:
    kept = {key: item.value for key, item in node.attributes.items() if key not in ours}
    return _before(node, operator, list(inputs), f"{node.name}_layer", kept)


def _before(node: Node, operator: str, inputs: list[Value | None], name: str, attributes: Any) -> Value:
    made = make_node(operator, inputs, name=name, output=name, attributes=attributes)
    insert_before(node, made, graph_of(node))
    made.outputs[0].type = node.outputs[0].type
    return made.outputs[0]


def _finish(graph: Graph, node: Node, result: Value) -> bool:
    """The result takes the name and the place of the fused node's."""
    old = node.outputs[0]
    name, shape = old.name, old.shape
    replace_value(graph, old, result)
    old.name, result.name, result.shape = f"{name}_fused", name, shape
    producer = result.producer()
    if producer is not None:
        producer.name = node.name
    graph.remove(node, safe=True)
    return True


def _number(node: Node, key: str, default: float) -> float:
    return float(node.attributes[key].value) if key in node.attributes else default
