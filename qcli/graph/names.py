"""Names that are unique in the whole model, the bodies of If, Loop and Scan included.

ONNX lets values of sibling bodies share a name, and exporters use that. qcli knows a node by the name of its
first output, so here every value gets a name of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import onnx_ir as ir

from qcli.graph.edit import forget_names
from qcli.graph.model import Model

ORIGINAL_NAME = "qcli.original_name"
"""Key of a node's metadata that holds the name it had in the file, where that had to change."""


def original_name(node: ir.Node) -> str:
    """The name that a node had in the user's file."""
    return node.metadata_props.get(ORIGINAL_NAME, node.name or "")


def name_nodes(model: Model) -> int:
    """Unique names: an empty one becomes the name of the first output, a repeated one gets a number."""
    taken: set[str] = set()
    renamed = 0
    for node in model.nodes():
        original = node.name or ""
        name = _free(original or (node.outputs[0].name if node.outputs else "") or node.op_type, taken)
        taken.add(name)
        if name != original:
            node.metadata_props[ORIGINAL_NAME] = original
            node.name = name
            renamed += 1
    return renamed


def name_values(model: Model) -> int:
    """Unique names for all values; those of the model's inputs, outputs and weights stay, whatever else gives way."""
    graph = model.graph
    fixed = dict.fromkeys((*graph.inputs, *graph.outputs, *graph.initializers.values()))
    taken = {value.name or "" for value in fixed}
    renamed = 0
    for value in _inner_values(model):
        if value in fixed or (not value.name and not _needs_name(value)):
            continue
        name = _free(value.name or _after_its_node(value), taken)
        taken.add(name)
        if name != value.name:
            value.name = name
            renamed += 1
    forget_names(graph)
    return renamed


def _inner_values(model: Model) -> Iterator[ir.Value]:
    """The values that may be renamed, main graph first, each body in the order of its node."""
    yield from (value for node in model.graph for value in node.outputs)
    for body in model.graph.subgraphs():
        yield from body.inputs
        yield from tuple(body.initializers.values())
        yield from (value for node in body for value in node.outputs)


def _needs_name(value: ir.Value) -> bool:
    """An optional output that is left out has no name, but a node is known by its first one."""
    return bool(value.uses()) or value.is_graph_output() or value.index() == 0 or value.producer() is None


def _after_its_node(value: ir.Value) -> str:
    node = value.producer()
    return f"{node.name or node.op_type}_output" if node is not None else "value"


def _free(name: str, taken: set[str]) -> str:
    """`name`, or the first of name_1, name_2, … that is free."""
    if name not in taken:
        return name
    return next(free for number in count(1) if (free := f"{name}_{number}") not in taken)
