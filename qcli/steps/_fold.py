"""Folding y = layer(x) * factor + offset into the layer's own weight and bias."""

from __future__ import annotations

import numpy as np

from qcli.graph import (
    Graph,
    Node,
    add_initializer,
    constant_of,
    dimensions,
    insert_after,
    make_node,
    remove_node,
    replace_value,
    set_constant,
)
from qcli.layers import output_channel_axis
from qcli.types import Array


def fold_affine_into(graph: Graph, layer: Node, follower: Node, factor: Array, offset: Array) -> bool:
    """Scales a layer's output channels, adds an offset, and removes `follower`, which did so.

    `factor` and `offset` are float64 [channels]. False, and nothing changed, if the layer's weight or bias is
    not constant or its channels are not those of the factor.
    """
    weight = constant_of(layer.inputs[1]) if layer.op_type in _FOLDERS and len(layer.inputs) > 1 else None
    if weight is None or not np.issubdtype(weight.dtype, np.floating):
        return False
    if layer.graph is not follower.graph:
        return False
    has_bias = len(layer.inputs) > 2 and layer.inputs[2] is not None
    bias = constant_of(layer.inputs[2]) if has_bias else np.zeros(1)
    if bias is None:
        return False
    if not (np.isfinite(factor).all() and np.isfinite(offset).all()):
        return False
    return _FOLDERS[layer.op_type](graph, layer, follower, (weight, bias, factor, offset))


_Terms = tuple[Array, Array, Array, Array]


def _fold_conv(graph: Graph, layer: Node, follower: Node, terms: _Terms) -> bool:
    weight, bias, factor, offset = terms
    group = layer.attributes["group"].as_int() if "group" in layer.attributes else 1
    channels = weight.shape[0] if layer.op_type == "Conv" else weight.shape[1] * group
    if channels != factor.size:
        return False
    if layer.op_type == "Conv":
        scaled = weight * factor.reshape(-1, *[1] * (weight.ndim - 1))
    else:
        blocks = weight.reshape(group, weight.shape[0] // group, *weight.shape[1:])
        scaled = (blocks * factor.reshape(group, 1, -1, *[1] * (weight.ndim - 2))).reshape(weight.shape)
    set_constant(graph, layer, 1, scaled.astype(weight.dtype))
    _set_bias(graph, layer, (bias * factor + offset).astype(weight.dtype))
    remove_node(graph, follower, layer.outputs[0])
    return True


def _fold_gemm(graph: Graph, layer: Node, follower: Node, terms: _Terms) -> bool:
    weight, bias, factor, offset = terms
    axis = output_channel_axis(layer)
    beta = layer.attributes["beta"].as_float() if "beta" in layer.attributes else 1.0
    if axis is None or weight.shape[axis] != factor.size or beta != 1.0 or (bias.ndim > 1 and bias.shape[0] != 1):
        return False
    scaled = weight * (factor.reshape(-1, 1) if axis == 0 else factor)
    set_constant(graph, layer, 1, scaled.astype(weight.dtype))
    _set_bias(graph, layer, (bias.reshape(-1) * factor + offset).astype(weight.dtype))
    remove_node(graph, follower, layer.outputs[0])
    return True


def _fold_matmul(graph: Graph, layer: Node, follower: Node, terms: _Terms) -> bool:
    """MatMul has no bias: the offset becomes an Add, along the last axis. Only a 2-D product has channels there."""
    weight, _, factor, offset = terms
    data = layer.inputs[0]
    if data is None or len(dimensions(data) or ()) != 2:
        return False
    if follower.op_type != "BatchNormalization" or weight.ndim != 2 or weight.shape[1] != factor.size:
        return False
    set_constant(graph, layer, 1, (weight * factor).astype(weight.dtype))
    bias = add_initializer(graph, f"{layer.name}_bias", offset.astype(weight.dtype))
    value = layer.outputs[0]
    add = make_node("Add", [value, bias], name=f"{layer.name}_bias_add", output=f"{value.name}_biased")
    replace_value(graph, follower.outputs[0], add.outputs[0])
    graph.remove(follower, safe=True)
    insert_after(value, add, graph)
    return True


def _set_bias(graph: Graph, layer: Node, bias: Array) -> None:
    if len(layer.inputs) > 2 and layer.inputs[2] is not None:
        set_constant(graph, layer, 2, bias)
        return
    layer.resize_inputs(3)
    layer.replace_input_with(2, add_initializer(graph, f"{layer.name}_bias", bias))


_FOLDERS = {"Conv": _fold_conv, "ConvTranspose": _fold_conv, "Gemm": _fold_gemm, "MatMul": _fold_matmul}
