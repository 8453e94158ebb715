"""Graphs of a few nodes, with their shapes."""

from __future__ import annotations

from typing import Any

import numpy as np

from qcli.costs.keys import Shapes
from qcli.graph import Model, Node, add_initializer, concrete_shapes, infer_shapes, make_node
from qcli.graph.blank import add_input, add_output, blank_model

Shape = tuple[int, ...]


def graph(
    op: str, data: tuple[Shape, ...], weights: tuple[Shape, ...] = (), opset: int = 21, **attributes: Any
) -> tuple[Node, Shapes]:
    """A node that reads inputs and constants in float, and the shapes of its values."""
    model = blank_model(opset)
    inputs = [add_input(model, f"x{index}", "float32", shape) for index, shape in enumerate(data)]
    inputs += [add_initializer(model.graph, f"w{index}", noise(shape)) for index, shape in enumerate(weights)]
    node = make_node(op, inputs, name="node", output="y", attributes=attributes)
    model.graph.append(node)
    return finished(model, node, data)


def with_bias(data: Shape, declared: tuple[int | None, ...], weight: Shape) -> tuple[Model, Node, Shapes]:
    """A MatMul and an Add of a constant vector behind it: the model, the MatMul, and the shapes of all values."""
    model = blank_model(21)
    source = add_input(model, "x0", "float32", declared)
    product = make_node("MatMul", [source, add_initializer(model.graph, "w", noise(weight))], name="p", output="p")
    bias = add_initializer(model.graph, "b", noise(weight[-1:]))
    model.graph.append(product)
    model.graph.append(make_node("Add", [product.outputs[0], bias], name="s", output="s"))
    return (model, *finished(model, product, (data,)))


def finished(model: Model, node: Node, data: tuple[Shape, ...]) -> tuple[Node, Shapes]:
    """The node, with the shapes that its model has for such data."""
    add_output(model, tuple(model.graph)[-1].outputs[0])
    infer_shapes(model)
    feeds = {f"x{index}": np.zeros(shape, np.float32) for index, shape in enumerate(data)}
    return node, concrete_shapes(model, feeds)


def noise(shape: Shape) -> Any:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def conv(**changes: Any) -> tuple[Node, Shapes]:
    """A 3x3 convolution of 8 channels."""
    attributes = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], **changes}
    return graph("Conv", ((1, 8, 12, 12),), ((8, 8 // attributes.get("group", 1), 3, 3), (8,)), **attributes)
