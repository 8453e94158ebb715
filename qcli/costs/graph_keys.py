"""The keys of whole graphs: of a model, and of a set of operators that stands for many models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from qcli.costs.keys import Shapes, bias_node, conversion_key, key_of, modes_of
from qcli.costs.nouns import INTEGER_INPUT, KernelKey, Mode
from qcli.graph import Model, Node, add_initializer, infer_shapes, make_node
from qcli.graph.blank import add_input, add_output, blank_model
from qcli.types import Array

_OPSET = 17

NodeKeys = dict[Node, dict[Mode, KernelKey]]


def keys_of_graph(model: Model, shapes: Shapes, threads: int) -> NodeKeys:
    """Each node of the main graph in all its modes; without those that have none, or are swallowed as a bias.

    The types of values must be noted, as `infer_shapes` does.
    """
    added = {found[0] for node in model.graph if (found := bias_node(node)) is not None}
    keys: NodeKeys = {}
    for node in model.graph:
        modes = modes_of(node) if node not in added and _is_float(node) else ()
        found_keys = {mode: key for mode in modes if (key := key_of(node, mode, shapes, threads)) is not None}
        if found_keys:
            keys[node] = found_keys
    return keys


def conversions_of(keys: NodeKeys, shapes: Shapes, threads: int) -> tuple[KernelKey, ...]:
    """The conversions that the nodes with integer modes may need: of what they read, and of their results."""
    sizes: dict[tuple[int, ...], None] = {}
    for node, modes in keys.items():
        if not any(mode in INTEGER_INPUT for mode in modes):
            continue
        values = [value for value in (*node.inputs, *node.outputs) if value is not None and value.const_value is None]
        known = [shapes.get(value.name or "") for value in values if _is_float_value(value)]
        sizes |= {shape: None for shape in known if shape is not None}
    both = (Mode.QUANTIZE, Mode.DEQUANTIZE)
    return tuple(conversion_key(mode, shape, threads) for shape in sizes for mode in both)


def _is_float(node: Node) -> bool:
    return any(_is_float_value(value) for value in node.outputs)


def _is_float_value(value: Any) -> bool:
    return value.dtype is not None and value.dtype.numpy().kind == "f"


def standard_model() -> tuple[Model, Mapping[str, Array]]:
    """Common operators in common shapes, and a sample; those of docs/placement.md among them."""
    model = blank_model(_OPSET)
    feeds: dict[str, Array] = {}
    for number, (op, data, weights, attributes) in enumerate(_STANDARD):
        inputs = []
        for index, shape in enumerate(data):
            name = f"x{number}_{index}"
            feeds[name] = np.zeros(shape, np.float32)
            inputs.append(add_input(model, name, "float32", shape))
        for index, shape in enumerate(weights):
            inputs.append(add_initializer(model.graph, f"w{number}_{index}", np.ones(shape, np.float32)))
        node = make_node(op, inputs, name=f"n{number}", output=f"y{number}", attributes=attributes)
        model.graph.append(node)
        add_output(model, node.outputs[0])
    infer_shapes(model)
    return model, feeds


_IMAGE = (1, 64, 56, 56)
_TOKENS = (1, 128, 384)
_SAME: dict[str, Any] = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
_HALF: dict[str, Any] = {"kernel_shape": [2, 2], "strides": [2, 2]}

_STANDARD: tuple[tuple[str, tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...], dict[str, Any]], ...] = (
    ("Conv", ((1, 3, 224, 224),), ((32, 3, 3, 3), (32,)), _SAME | {"strides": [2, 2]}),
    ("Conv", (_IMAGE,), ((64, 64, 3, 3), (64,)), _SAME),
    ("Conv", (_IMAGE,), ((128, 64, 1, 1), (128,)), {"kernel_shape": [1, 1]}),
    ("Conv", (_IMAGE,), ((64, 1, 3, 3), (64,)), _SAME | {"group": 64}),
    ("Conv", ((1, 256, 14, 14),), ((256, 256, 3, 3), (256,)), _SAME),
    ("Conv", ((1, 64, 1000),), ((64, 64, 5), (64,)), {"kernel_shape": [5], "pads": [2, 2]}),
    ("ConvTranspose", ((1, 64, 28, 28),), ((64, 32, 2, 2), (32,)), _HALF),
    ("Gemm", ((64, 512),), ((512, 1000), (1000,)), {}),
    ("MatMul", ((128, 384),), ((384, 384),), {}),
    ("MatMul", (_TOKENS,), ((384, 1536),), {}),
    ("MatMul", ((1, 12, 128, 64), (1, 12, 64, 128)), (), {}),
    ("Add", (_IMAGE, _IMAGE), (), {}),
    ("Mul", (_IMAGE, _IMAGE), (), {}),
    ("Concat", (_IMAGE, _IMAGE), (), {"axis": 1}),
    ("Relu", (_IMAGE,), (), {}),
    ("Sigmoid", (_IMAGE,), (), {}),
    ("HardSigmoid", (_IMAGE,), (), {}),
    ("LeakyRelu", (_IMAGE,), (), {}),
    ("Tanh", (_IMAGE,), (), {}),
    ("MaxPool", (_IMAGE,), (), _HALF),
    ("AveragePool", (_IMAGE,), (), _HALF),
    ("GlobalAveragePool", (_IMAGE,), (), {}),
    ("Transpose", ((1, 128, 12, 32),), (), {"perm": [0, 2, 1, 3]}),
    ("Softmax", ((1, 12, 128, 128),), (), {"axis": -1}),
    ("LayerNormalization", (_TOKENS,), ((384,), (384,)), {}),
)
"""Operator, shapes of data and of constants, attributes."""
