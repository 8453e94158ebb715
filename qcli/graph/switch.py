"""Values that are chosen anew at each run: what is off costs nothing, since an If computes the branch taken alone."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from qcli.graph.edit import free_name, graph_of, insert_after, insert_before, make_node

Build = Callable[[ir.Graph], ir.Value]
"""Puts nodes into an empty body and returns their result."""


def add_switch(graph: ir.Graph, name: str) -> ir.Value:
    """A new input of the model, one boolean, which the bodies below `graph` see too."""
    switch = ir.Value(name=free_name(graph, name), shape=ir.Shape(()), type=ir.TensorType(ir.DataType.BOOL))
    graph.inputs.append(switch)
    return switch


def choose_result(switch: ir.Value, value: ir.Value, build: Build) -> ir.Value:
    """What all readers of a node's result read from now on: `build`'s value while `switch` is on, else `value`.

    A graph output keeps its name.
    """
    producer = value.producer()
    if producer is None:
        raise ValueError(f"no node produces {value.name}")
    readers, output, graph = tuple(value.uses()), value.is_graph_output(), graph_of(producer)
    choice = _choice(switch, value, build)
    insert_after(value, choice, graph)
    chosen = choice.outputs[0]
    for reader, operand in readers:
        reader.replace_input_with(operand, chosen)
    if output:
        value.name, chosen.name = chosen.name, value.name
        chosen.shape, chosen.type = value.shape, value.type
        graph.outputs[list(graph.outputs).index(value)] = chosen
    return chosen


def choose_operand(switch: ir.Value, node: ir.Node, operand: int, build: Build) -> None:
    """What one node reads: `build`'s value while `switch` is on, else what it reads now. Others see no change."""
    value = node.inputs[operand]
    if value is None:
        raise ValueError(f"operand {operand} of {node.name} is empty")
    choice = _choice(switch, value, build)
    insert_before(node, choice, graph_of(node))
    node.replace_input_with(operand, choice.outputs[0])


def passed_on(value: ir.Value) -> Build:
    """A body that gives the value as it is."""

    def build(body: ir.Graph) -> ir.Value:
        node = make_node("Identity", [value], name=f"{value.name}_same", output=f"{value.name}_same")
        body.append(node)
        return node.outputs[0]

    return build


def _choice(switch: ir.Value, plain: ir.Value, build: Build) -> ir.Node:
    name = f"{plain.name}_chosen"
    branches = {"then_branch": _body(f"{name}_on", build), "else_branch": _body(f"{name}_off", passed_on(plain))}
    return make_node("If", [switch], name=name, output=name, attributes=branches)


def _body(name: str, build: Build) -> ir.Graph:
    body = ir.Graph([], [], nodes=[], name=name)
    body.outputs.append(build(body))
    return body
