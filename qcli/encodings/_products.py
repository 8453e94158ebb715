"""What encodings share that replace a MatMul or Gemm: its attributes, and nodes in front of it and in its place."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from qcli.encodings._weights import Pool
from qcli.graph import (
    Graph,
    Node,
    Value,
    add_initializer,
    constant_of,
    graph_of,
    insert_before,
    make_node,
    replace_value,
)


def transposed(reader: Node, graph: Graph, source: Value, pool: Pool) -> Value:
    """A matrix turned, once for all of its readers in `graph`."""

    def make() -> Value:
        return before(reader, "Transpose", [source], f"{source.name}_transposed", {"perm": [1, 0]})

    return pool.once((id(graph), source.name, "transposed"), make)


def scaled(graph: Graph, bias: Value, beta: float) -> Value:
    """A bias [N] (or what broadcasts like it) times beta, where it is constant."""
    array = constant_of(bias)
    if beta == 1.0 or array is None:
        return bias
    return add_initializer(graph, f"{bias.name}_beta", (array * np.float32(beta)).astype(array.dtype))


def before(
    reader: Node, operator: str, inputs: list[Value], name: str, attributes: Mapping[str, object] | None = None
) -> Value:
    """One node in front of another; its result."""
    made = make_node(operator, inputs, name=name, output=name, attributes=attributes)
    insert_before(reader, made, graph_of(reader))
    return made.outputs[0]


def take_place(graph: Graph, node: Node, result: Value, name: str | None = None) -> None:
    """The result gets the place and the name of the node's; what makes it is called `name`, or like the node."""
    producer, given, old = result.producer(), name or node.name, node.outputs[0]
    output_name = old.name
    replace_value(graph, old, result)
    old.name, result.name = f"{output_name}_float", output_name
    graph.remove(node, safe=True)
    if producer is not None:
        producer.name = given


def number(node: Node, key: str, default: float) -> float:
    """A number among the attributes of a node."""
    return float(node.attributes[key].value) if key in node.attributes else default
