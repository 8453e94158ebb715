"""Shapes: what the file declares, what inference finds, what they are for one sample."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from qcli.errors import InputError
from qcli.types import Array

if TYPE_CHECKING:
    from qcli.graph.model import Model


def dimensions(value: ir.Value) -> tuple[int | None, ...] | None:
    """The shape with None for each free dimension; None if even the rank is unknown."""
    if value.shape is None:
        return None
    return tuple(size if isinstance(size, int) and size >= 0 else None for size in value.shape)


def infer_shapes(model: Model, *, follow_data: bool = True) -> None:
    """Fills in the types and shapes of intermediate values, in place. Nothing else changes, not even an order.

    `follow_data` also computes shapes that the graph computes, which takes time for long vectors of constants.
    """
    order = tuple(model.graph.initializers)
    ShapeInferencePass(check_type=False, strict_mode=False, data_prop=follow_data)(model.ir)
    _forget_sequences(model)
    if set(order) - set(model.graph.initializers):  # it broke off while they were set aside
        raise InputError("the model is damaged: its graph cannot be written", "export or download it again")
    for name in order:  # the pass takes large weights out and puts them back at the end
        model.graph.initializers[name] = model.graph.initializers.pop(name)


def _forget_sequences(model: Model) -> None:
    """onnx_ir notes a sequence or an optional as a tensor, which no runtime would load."""
    wrong: set[ir.Value] = set()
    for node in model.graph.all_nodes():
        passed_on = node.op_type in _PASSING and any(value in wrong for value in node.inputs if value is not None)
        if node.op_type in _NO_TENSORS or passed_on:
            wrong.update(node.outputs)
    for value in wrong:
        if not value.is_graph_output():
            value.type = value.shape = None


_NO_TENSORS = (
    "SequenceConstruct", "SequenceEmpty", "SequenceInsert", "SequenceErase", "SequenceMap", "SplitToSequence",
    "Optional",
)  # fmt: skip
_PASSING = ("Identity", "If", "Loop", "Scan")


def untyped(model: Model) -> tuple[str, ...]:
    """The values of the main graph whose type no inference knows."""
    values = (value for node in model.graph for value in node.outputs)
    return tuple(value.name for value in values if value.type is None and value.name)


def note_types(model: Model, arrays: Mapping[str, Any]) -> None:
    """Notes types and ranks that were seen in a run, and what follows from them; sequences stay untyped."""
    for node in model.graph:
        for value in node.outputs:
            found = arrays.get(value.name or "")
            if value.type is None and isinstance(found, np.ndarray) and found.dtype.kind in _NUMERIC:
                value.type = ir.TensorType(ir.DataType.from_numpy(found.dtype))
                value.shape = value.shape or ir.Shape([None] * found.ndim)
    infer_shapes(model)


_NUMERIC = "biuf"


def concrete_shapes(model: Model, feeds: Mapping[str, Array]) -> dict[str, tuple[int, ...]]:
    """The shapes of all values when the inputs have the shapes of `feeds`, where inference can tell."""
    bound = model.copy()
    for value in bound.graph.inputs:
        if isinstance(feed := feeds.get(value.name or ""), np.ndarray):
            value.shape = ir.Shape(feed.shape)
    for node in bound.graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = None
    for value in bound.graph.outputs:
        value.shape = None
    infer_shapes(bound)
    shapes: dict[str, tuple[int, ...]] = {}
    values = [*bound.graph.inputs, *bound.graph.initializers.values()]
    values += [value for node in bound.graph for value in node.outputs]
    for value in values:
        known = dimensions(value)
        if value.name and known is not None and None not in known:
            shapes[value.name] = tuple(size for size in known if size is not None)
    return shapes
