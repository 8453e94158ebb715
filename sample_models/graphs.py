"""The four ONNX graphs, written node by node from a trained network's weights.

A node's name is its place in the network (`/residual/expand/conv`), a value's is its node's and `_output`, an
initializer's is the parameter's in torch. Batch normalization stays a node, as training leaves it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Weights = Mapping[str, NDArray[np.float32]]

OPSET = 17
IR_VERSION = 8
CLASSES = 10


class Graph:
    """Collects nodes and initializers; every method that adds a node returns the value it makes."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}

    def constant(self, name: str, value: Any, dtype: type[np.generic] = np.float32) -> str:
        """The initializer `name`, added the first time it is asked for."""
        array = np.array(value, dtype=dtype, order="C")
        self.initializers.setdefault(name, numpy_helper.from_array(array, name))
        return name

    def weight(self, name: str) -> str:
        return self.constant(name, self.weights[name])

    def node(self, op: str, name: str, *inputs: str, outputs: Sequence[str] = (), **attributes: Any) -> str:
        made = list(outputs) or [f"/{name}_output"]
        self.nodes.append(helper.make_node(op, inputs, made, name=f"/{name}", **attributes))
        return made[-1]

    def gemm(self, name: str, x: str, output: str = "") -> str:
        parameters = self.weight(f"{name}.weight"), self.weight(f"{name}.bias")
        return self.node("Gemm", name, x, *parameters, outputs=[output] if output else (), transB=1)

    def matmul_add(self, name: str, x: str) -> str:
        """A linear layer on a tensor of any rank: the matrix as `[in, out]`, the bias on its own."""
        path = name.replace(".", "/")
        matrix = self.constant(f"{name}.weight", self.weights[f"{name}.weight"].T)
        product = self.node("MatMul", f"{path}/matmul", x, matrix)
        return self.node("Add", f"{path}/bias", product, self.weight(f"{name}.bias"))

    def model(self, name: str, source: tuple[str, Sequence[int | str]]) -> onnx.ModelProto:
        """The checked model from the input `source` (its name and shape) to `logits`."""
        graph = helper.make_graph(
            self.nodes,
            name,
            [helper.make_tensor_value_info(source[0], TensorProto.FLOAT, source[1])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])],
            list(self.initializers.values()),
        )
        versions = {"opset_imports": [helper.make_opsetid("", OPSET)], "ir_version": IR_VERSION}
        model = helper.make_model(graph, producer_name="qcli-samples", **versions)
        onnx.checker.check_model(model, full_check=True)
        return model


def cnn(weights: Weights) -> onnx.ModelProto:
    g = Graph(weights)
    x = _relu(g, "stem", _conv_norm(g, "stem", "image"))
    x = _max_pool(g, "stem/pool", x)
    x = _inverted_residual(g, "residual", x)
    x = _branches(g, "branches", x)
    x = _max_pool(g, "branches/pool", x)
    x = _relu(g, "mix", _conv_norm(g, "mix", x))
    x = g.node("GlobalAveragePool", "pool", x)
    x = g.node("Flatten", "flatten", x, axis=1)
    g.gemm("head", x, "logits")
    return g.model("cnn", ("image", ["batch", 1, 16, 16]))


def _conv_norm(g: Graph, name: str, x: str) -> str:
    """A convolution that keeps height and width, depthwise where its filters have depth one, and its norm."""
    path, kernel = name.replace(".", "/"), g.weight(f"{name}.conv.weight")
    features, depth, height, _ = g.weights[kernel].shape
    group = features if depth == 1 and name != "stem" else 1
    sides: dict[str, Any] = {"kernel_shape": [height] * 2, "pads": [height // 2] * 4, "group": group}
    x = g.node("Conv", f"{path}/conv", x, kernel, **sides)
    statistics = ("weight", "bias", "running_mean", "running_var")
    parameters = [g.weight(f"{name}.norm.{part}") for part in statistics]
    return g.node("BatchNormalization", f"{path}/norm", x, *parameters, epsilon=1e-5)


def _relu(g: Graph, path: str, x: str) -> str:
    return g.node("Relu", f"{path}/relu", x)


def _relu6(g: Graph, path: str, x: str) -> str:
    return g.node("Clip", f"{path}/relu6", x, g.constant("zero", 0.0), g.constant("six", 6.0))


def _max_pool(g: Graph, path: str, x: str) -> str:
    return g.node("MaxPool", path, x, kernel_shape=[2, 2], strides=[2, 2])


def _inverted_residual(g: Graph, name: str, x: str) -> str:
    hidden = _relu6(g, f"{name}/expand", _conv_norm(g, f"{name}.expand", x))
    hidden = _relu6(g, f"{name}/depthwise", _conv_norm(g, f"{name}.depthwise", hidden))
    return g.node("Add", f"{name}/add", x, _conv_norm(g, f"{name}.project", hidden))


def _branches(g: Graph, name: str, x: str) -> str:
    views = [_relu(g, f"{name}/{side}", _conv_norm(g, f"{name}.{side}", x)) for side in ("narrow", "wide")]
    return g.node("Concat", f"{name}/concat", *views, axis=1)


def transformer(weights: Weights, heads: int) -> onnx.ModelProto:
    g = Graph(weights)
    depth = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("layers."))
    x = _with_class_token(g, g.matmul_add("embed", "rows"))
    x = g.node("Add", "position", x, g.weight("position"))
    for index in range(depth):
        x = _encoder_layer(g, f"layers.{index}", x, heads)
    x = _layer_norm(g, "norm", x)
    x = g.node("Gather", "class", x, g.constant("first", 0, np.int64), axis=1)
    g.gemm("head", x, "logits")
    return g.model("transformer", ("rows", ["batch", 8, 8]))


def _with_class_token(g: Graph, x: str) -> str:
    """The learned token, once for each member of a batch whose size only the run knows, before the rest."""
    token = g.weight("class_token")
    batch = g.node("Shape", "class_token/batch", x, start=0, end=1)
    tail = g.constant("class_token.tail", g.weights[token].shape[1:], np.int64)
    shape = g.node("Concat", "class_token/shape", batch, tail, axis=0)
    tokens = g.node("Expand", "class_token/expand", token, shape)
    return g.node("Concat", "class_token/concat", tokens, x, axis=1)


def _encoder_layer(g: Graph, name: str, x: str, heads: int) -> str:
    path = name.replace(".", "/")
    attended = _attention(g, name, _layer_norm(g, f"{name}.attention_norm", x), heads)
    x = g.node("Add", f"{path}/attention_add", x, attended)
    hidden = g.matmul_add(f"{name}.up", _layer_norm(g, f"{name}.feedforward_norm", x))
    hidden = g.matmul_add(f"{name}.down", _gelu(g, f"{path}/gelu", hidden))
    return g.node("Add", f"{path}/feedforward_add", x, hidden)


def _layer_norm(g: Graph, name: str, x: str) -> str:
    parameters = g.weight(f"{name}.weight"), g.weight(f"{name}.bias")
    return g.node("LayerNormalization", name.replace(".", "/"), x, *parameters, axis=-1, epsilon=1e-5)


def _attention(g: Graph, name: str, x: str, heads: int) -> str:
    path = f"{name.replace('.', '/')}/attention"
    width = len(g.weights[f"{name}.projection.bias"])
    queries, keys, values = _heads(g, path, g.matmul_add(f"{name}.qkv", x), (heads, width // heads))
    scores = g.node("MatMul", f"{path}/scores", queries, keys)
    scale = g.constant("attention.scale", 1 / math.sqrt(width // heads))
    scores = g.node("Mul", f"{path}/scale", scores, scale)
    shares = g.node("Softmax", f"{path}/softmax", scores, axis=-1)
    mixed = g.node("MatMul", f"{path}/mix", shares, values)
    mixed = g.node("Transpose", f"{path}/tokens_first", mixed, perm=[0, 2, 1, 3])
    shape = g.constant("attention.merged_shape", (0, 0, width), np.int64)
    return g.matmul_add(f"{name}.projection", g.node("Reshape", f"{path}/merge", mixed, shape))


def _heads(g: Graph, path: str, qkv: str, sizes: tuple[int, int]) -> list[str]:
    """Queries and values as `[batch, head, token, channel]`, keys with the last two the other way round."""
    parts = ("queries", "keys", "values")
    split = [f"/{path}/split_{part}" for part in parts]
    lengths = g.constant("attention.split_sizes", [math.prod(sizes)] * 3, np.int64)
    g.node("Split", f"{path}/split", qkv, lengths, outputs=split, axis=2)
    shape = g.constant("attention.heads_shape", (0, 0, *sizes), np.int64)
    made = []
    for part, value in zip(parts, split, strict=True):
        parted = g.node("Reshape", f"{path}/{part}/reshape", value, shape)
        order = [0, 2, 3, 1] if part == "keys" else [0, 2, 1, 3]
        made.append(g.node("Transpose", f"{path}/{part}/transpose", parted, perm=order))
    return made


def _gelu(g: Graph, path: str, x: str) -> str:
    """`x * (1 + erf(x / sqrt(2))) / 2`, in the five nodes that exporters write it in before opset 20."""
    scaled = g.node("Div", f"{path}/div", x, g.constant("gelu.sqrt_two", math.sqrt(2)))
    curve = g.node("Erf", f"{path}/erf", scaled)
    share = g.node("Add", f"{path}/add", curve, g.constant("gelu.one", 1.0))
    doubled = g.node("Mul", f"{path}/mul", x, share)
    return g.node("Mul", f"{path}/half", doubled, g.constant("gelu.half", 0.5))


def gru(weights: Weights) -> onnx.ModelProto:
    g = Graph(weights)
    x = g.node("Transpose", "rows_first", "rows", perm=[1, 0, 2])
    parameters = [
        g.constant("gru.weight_ih_l0", _gru_gates(weights["gru.weight_ih_l0"])),
        g.constant("gru.weight_hh_l0", _gru_gates(weights["gru.weight_hh_l0"])),
        g.constant("gru.bias_l0", _gru_biases(weights)),
    ]
    sizes: dict[str, Any] = {"hidden_size": weights["gru.weight_hh_l0"].shape[1], "linear_before_reset": 1}
    x = g.node("GRU", "gru", x, *parameters, outputs=("", "/gru_output_last"), **sizes)
    x = g.node("Squeeze", "last", x, g.constant("direction", [0], np.int64))
    g.gemm("head", x, "logits")
    return g.model("gru", ("rows", ["batch", 8, 8]))


def _gru_gates(stacked: NDArray[np.float32]) -> NDArray[np.float32]:
    """torch stacks the gates as reset, update, new; ONNX wants update, reset, new behind a direction axis."""
    reset, update, new = np.split(stacked, 3)
    return np.concatenate((update, reset, new))[np.newaxis]


def _gru_biases(weights: Weights) -> NDArray[np.float32]:
    """The input's and the state's bias in one row, each in the order of ONNX's gates."""
    halves = [_gru_gates(weights[f"gru.bias_{part}_l0"]) for part in ("ih", "hh")]
    return np.concatenate(halves, axis=1)


def mlp(weights: Weights) -> onnx.ModelProto:
    """The first layer as MatMul and Add, the others as Gemm: exporters write both."""
    g = Graph(weights)
    x = _relu(g, "first", g.matmul_add("first", "pixels"))
    x = _relu(g, "second", g.gemm("second", x))
    g.gemm("head", x, "logits")
    return g.model("mlp", ("pixels", ["batch", 64]))
