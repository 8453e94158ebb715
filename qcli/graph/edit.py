"""Small edits that keep a graph valid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from qcli.graph.on_disk import StoredTensor, TurnedTensor, tensor_of
from qcli.types import Array, Deferred


def is_constant(value: ir.Value | None) -> bool:
    """True for an initializer that no caller can override."""
    return value is not None and value.const_value is not None and not value.is_graph_input()


def constant_of(value: ir.Value | None) -> Array | None:
    """The array behind a constant value, or None."""
    if value is None or value.const_value is None or value.is_graph_input():
        return None
    return value.const_value.numpy()


def node_key(node: ir.Node) -> str:
    """What identifies a node, since its own name may be empty or repeat: the first of its outputs' names."""
    return next((value.name for value in node.outputs if value.name), "")


def graph_of(node: ir.Node) -> ir.Graph:
    """The graph that a node stands in."""
    if not isinstance(node.graph, ir.Graph):
        raise ValueError(f"{node.name} lies in no graph")
    return node.graph


def data_consumers(value: ir.Value) -> tuple[ir.Node, ...]:
    """The nodes that read a value, each once, in a stable order."""
    return tuple(dict.fromkeys(node for node, _ in value.uses()))


def sole_consumer(value: ir.Value) -> ir.Node | None:
    """The only reader of a value that is not a graph output, or None."""
    uses = tuple(value.uses())
    if len(uses) != 1 or value.is_graph_output():
        return None
    return uses[0][0]


def add_initializer(graph: ir.Graph, name: str, array: Array | Deferred, dtype: ir.DataType | None = None) -> ir.Value:
    """A new constant under a name that is free; `name` gets a number if it is taken."""
    unique = free_name(graph, name)
    tensor = tensor_of(graph, array, dtype)
    tensor.name = unique
    value = ir.Value(name=unique, const_value=tensor, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype))
    graph.register_initializer(value)
    return value


def add_turned(graph: ir.Graph, old: ir.Value, constant: ir.Value, axes: tuple[int, ...]) -> ir.Value | None:
    """The transpose of a constant that stays in its file, as a constant that takes no room and the name of `old`.

    None for any other constant.
    """
    source = constant.const_value
    if not isinstance(source, StoredTensor) or constant.is_graph_input():
        return None
    name = old.name or "constant"
    old.name = f"{name}_folded"
    unique = free_name(graph, name)
    tensor = TurnedTensor(source, axes)
    tensor.name = unique
    value = ir.Value(name=unique, const_value=tensor, shape=tensor.shape, type=ir.TensorType(tensor.dtype))
    graph.register_initializer(value)
    return value


def share_initializer(graph: ir.Graph, name: str, array: Array) -> ir.Value:
    """A constant that is stored once: an initializer of this name and content is used again."""
    known = graph.initializers.get(name)
    content = constant_of(known)
    if known is not None and content is not None and content.dtype == array.dtype and np.array_equal(content, array):
        return known
    return add_initializer(graph, name, array)


def set_constant(graph: ir.Graph, node: ir.Node, operand: int, array: Array) -> None:
    """Gives one operand of a node a new constant; other readers keep the old one."""
    old = node.inputs[operand]
    if old is None:
        raise ValueError(f"operand {operand} of {node.name} is empty")
    alone = len(tuple(old.uses())) == 1 and old.name in graph.initializers and not old.is_graph_output()
    if alone:
        graph.initializers.pop(old.name or "")
        graph.meta.get(_NAMES, set()).discard(old.name)
    node.replace_input_with(operand, add_initializer(graph, old.name or "constant", array))


def make_node(
    operator: str,
    inputs: Sequence[ir.Value | None],
    *,
    name: str,
    output: str,
    attributes: Mapping[str, Any] | None = None,
    domain: str = "",
    outputs: int = 1,
) -> ir.Node:
    """A node, not yet placed in a graph; `output` names the first of its outputs."""
    node = ir.node(
        operator, list(inputs), attributes=dict(attributes or {}), domain=domain, name=name, num_outputs=outputs
    )
    node.outputs[0].name = output
    return node


def insert_after(value: ir.Value, node: ir.Node, graph: ir.Graph) -> None:
    """Places a node behind the producer of a value, or first in the graph where that lies outside of it."""
    producer = value.producer()
    if producer is not None and producer.graph is graph:
        graph.insert_after(producer, node)
    elif len(graph):
        graph.insert_before(graph[0], node)
    else:
        graph.append(node)


def insert_before(reader: ir.Node, node: ir.Node, graph: ir.Graph) -> None:
    """Places a node in front of another one."""
    graph.insert_before(reader, node)


def enclosing_node(graph: ir.Graph, node: ir.Node) -> ir.Node:
    """The node of `graph` in whose bodies `node` lies, at any depth; `node` itself if it stands in `graph`."""
    if node.graph is graph:
        return node
    for outer in graph:
        for attribute in outer.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                body = attribute.as_graph()
                if node.graph is body or any(node.graph is deeper for deeper in body.subgraphs()):
                    return outer
    raise ValueError(f"{node.name} does not lie inside of the graph {graph.name}")


def replace_value(graph: ir.Graph, old: ir.Value, new: ir.Value) -> None:
    """Every reader of `old` reads `new`; if `old` was a graph output, `new` takes its place and its name."""
    if old.is_graph_output():
        old_name, old_shape, old_type = old.name, old.shape, old.type
        old.name = f"{old_name}_replaced"
        new.name, new.shape, new.type = old_name, old_shape, old_type
        for index, output in enumerate(graph.outputs):
            if output is old:
                graph.outputs[index] = new
    old.replace_all_uses_with(new)


def remove_node(graph: ir.Graph, node: ir.Node, replacement: ir.Value) -> None:
    """Takes a one-output node out of the graph; its readers read `replacement`."""
    replace_value(graph, node.outputs[0], replacement)
    graph.remove(node, safe=True)


def free_name(graph: ir.Graph, name: str) -> str:
    """`name`, or the first of name_1, name_2, … that is free in the graph and its bodies; it is then taken."""
    if _NAMES not in graph.meta:
        graph.meta[_NAMES] = _names_in(graph)
    taken: set[str | None] = graph.meta[_NAMES]
    unique = name
    number = 0
    while unique in taken or unique in graph.initializers:
        number += 1
        unique = f"{name}_{number}"
    taken.add(unique)
    return unique


_NAMES = "qcli.names"
"""Where a graph keeps the names that were ever taken in it."""


def forget_names(graph: ir.Graph) -> None:
    """To be called after values were renamed: which names are taken is then looked up again."""
    graph.meta.pop(_NAMES, None)


def _names_in(graph: ir.Graph) -> set[str | None]:
    names: set[str | None] = set()
    for one in (graph, *graph.subgraphs()):
        names.update(one.initializers)
        names.update(value.name for value in one.inputs)
        names.update(value.name for node in one for value in node.outputs)
    return names
