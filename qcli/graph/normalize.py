"""The normal form of a graph."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from qcli.graph.edit import add_initializer, constant_of
from qcli.graph.functions import inline_functions
from qcli.graph.infer import dimensions, infer_shapes
from qcli.graph.model import STANDARD, WEIGHTS_ALONE, Model
from qcli.graph.names import name_nodes, name_values
from qcli.graph.sharing import share_between_bodies


def normalize_graph(model: Model) -> int:
    """Brings a model into normal form, in place; the number of passes that changed something."""
    changed = inline_functions(model)
    passes = (
        common.TopologicalSortPass(),
        common.RemoveInitializersFromInputsPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.DeduplicateInitializersPass(),
    )
    changed += sum(bool(one(model.ir).modified) for one in passes)
    model.ir.ir_version = max(model.ir.ir_version or 0, WEIGHTS_ALONE)
    changed += share_between_bodies(model)
    changed += _remove_idle_nodes(model)
    changed += bool(common.RemoveUnusedNodesPass()(model.ir).modified)
    changed += name_values(model)
    changed += name_nodes(model)
    changed += _pad_all_axes(model)
    return changed


def _pad_all_axes(model: Model) -> int:
    """Pad over some axes becomes Pad over all: onnxruntime's layout changes forget to move the axes' names."""
    named = [
        node for node in model.graph if node.op_type == "Pad" and len(node.inputs) > 3 and node.inputs[3] is not None
    ]
    if named:
        infer_shapes(model)
    return sum(_pad_all(model, node) for node in named)


def _pad_all(model: Model, node: ir.Node) -> bool:
    pads, axes = constant_of(node.inputs[1]), constant_of(node.inputs[3])
    shape = dimensions(node.inputs[0]) if node.inputs[0] is not None else None
    if pads is None or axes is None or shape is None:
        return False
    full = np.zeros((2, len(shape)), np.int64)
    full[:, axes.reshape(-1)] = pads.reshape(2, -1)
    node.replace_input_with(1, add_initializer(model.graph, f"{node.name}_pads", full.reshape(-1)))
    node.resize_inputs(3)
    return True


def _remove_idle_nodes(model: Model) -> int:
    """Takes out Identity, and Dropout as it is at inference."""
    removed = 0
    for node in tuple(model.nodes()):
        source = node.inputs[0] if node.inputs else None
        if source is None or node.graph is None or not _is_idle(node):
            continue
        node.outputs[0].replace_all_uses_with(source)
        node.graph.remove(node, safe=True)
        removed += 1
    return removed


def _is_idle(node: ir.Node) -> bool:
    """True for a node whose first output is its first input and whose other results nobody reads."""
    if node.domain not in STANDARD or any(output.is_graph_output() for output in node.outputs):
        return False
    if node.op_type == "Dropout":
        return not _may_train(node) and not any(output.uses() for output in node.outputs[1:])
    return node.op_type == "Identity"


def _may_train(node: ir.Node) -> bool:
    """True for a Dropout whose third input is anything but a constant False."""
    switch = node.inputs[2] if len(node.inputs) > 2 else None
    known = constant_of(switch)
    return switch is not None and (known is None or bool(known.any()))
