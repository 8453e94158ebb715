"""Self-attention that was exported in fifteen operators runs in one, with an integer form in onnxruntime.

    softmax(scale Q K' + mask) V        with Q, K, V = x W + b

becomes com.microsoft's Attention, which computes Q, K and V head by head: no Split, Reshape or Transpose passes over
the tensors. The encoding `dynamic` makes QAttention of it. Both are onnxruntime's own, so the step is for the target
`ort_cpu`. Masks are taken where they are of BERT's form, (1 - m) c with an integer m of zeros and ones.
Source: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np

from qcli.graph import (
    Model,
    Node,
    Value,
    add_initializer,
    graph_of,
    infer_shapes,
    insert_after,
    insert_before,
    make_node,
    node_key,
    original_name,
    remove_node,
    share_initializer,
)
from qcli.steps._attention import Found, Padding, Projection, find, padding, projection, same_size
from qcli.steps._base import Step
from qcli.types import Array

_MICROSOFT = "com.microsoft"
_INT32 = 6
_SAME = 1e-6
_LAST_BY_DEFAULT = 13
"""The operator set from which a Softmax without an axis is one over the last."""
_SHAPE_PARTS = 15
"""The operator set from which Shape can give the first sizes alone."""


class FuseAttention(Step, frozen=True, kw_only=True):
    """Projections to queries, keys and values [batch, tokens, heads * size] and their attention become Attention."""

    domain: ClassVar[str] = _MICROSOFT
    looks_for: ClassVar[tuple[str, ...]] = ("Softmax",)

    def run(self, model: Model) -> int:
        infer_shapes(model)
        masks: dict[Value, Value] = {}
        softmaxes = [node for graph in model.graphs() for node in graph if node.op_type == "Softmax"]
        found = [find(node, default_axis=-1 if model.opset >= _LAST_BY_DEFAULT else 1) for node in softmaxes]
        fused = sum(_fuse(item, masks) for item in found if item and (item.mask is None or model.opset >= _SHAPE_PARTS))
        if fused:
            model.import_domains()
            model.remove_unused()
        return fused


def _fuse(found: Found, masks: dict[Value, Value]) -> bool:
    made = [projection(heads) for heads in found.parts]
    projections = [item for item in made if item is not None]
    data = projections[0].data if len(projections) == len(found.parts) else None
    masked = padding(found.mask) if found.mask is not None else None
    if data is None or any(item.data is not data for item in projections) or (found.mask and masked is None):
        return False
    joined = _joined(found, projections)
    if joined is None:
        return False
    _write(found, projections[0].node, [data, *joined], masked, masks)
    return True


def _joined(found: Found, projections: list[Projection]) -> list[Value | None] | None:
    """Weight [inputs, 3 * heads * size] and bias [3 * heads * size] of queries, keys and values, in this order."""
    width = found.queries.heads * found.queries.size
    order = [heads.part for heads in found.parts]
    one = projections[0]
    graph = graph_of(one.node)
    if len({id(item.node) for item in projections}) == 1 and sorted(part or 0 for part in order) == [0, 1, 2]:
        columns = np.concatenate([np.arange(width) + width * (part or 0) for part in order])
        weight, bias = one.weight, one.bias
        if order != [0, 1, 2]:
            weight, bias = weight[:, columns], bias[columns] if bias is not None else None
    elif order == [None] * 3 and len({id(item.node) for item in projections}) == 3:
        weight = np.concatenate([item.weight for item in projections], axis=1)
        bias = np.concatenate([_bias(item) for item in projections])
    else:
        return None
    if weight.shape[1] != 3 * width:
        return None
    source = one.node.inputs[1]
    name = source.name if source is not None else "weight"
    factor = source if weight is one.weight else add_initializer(graph, f"{name}_qkv", weight)
    if bias is None:  # the CPU's kernel reads one, though the operator's schema says that it need not
        return [factor, share_initializer(graph, f"no_bias_{3 * width}", np.zeros(3 * width, np.float32))]
    return [factor, add_initializer(graph, f"{name}_qkv_bias", bias)]


def _bias(item: Projection) -> Array:
    return item.bias if item.bias is not None else np.zeros(item.weight.shape[1], np.float32)


def _write(
    found: Found, layer: Node, inputs: list[Value | None], masked: Padding | None, masks: dict[Value, Value]
) -> None:
    """Attention in front of the last Reshape. It is named after the layer, since that is what recipes name."""
    attributes: dict[str, object] = {"num_heads": found.queries.heads}
    if not math.isclose(found.scale, found.queries.size**-0.5, rel_tol=_SAME):
        attributes["scale"] = found.scale
    if masked is not None:
        attributes["mask_filter_value"] = masked.filtered
        inputs = [*inputs, _expanded(_as_int32(masked.mask, found.last, masks), layer)]
    name, result = original_name(layer) or node_key(layer), found.last.outputs[0]
    kept = result.name or f"{name}_attention"
    graph = graph_of(found.last)
    made = make_node("Attention", inputs, name=name, output=kept, attributes=attributes, domain=_MICROSOFT)
    insert_before(found.last, made, graph)
    made.outputs[0].type, made.outputs[0].shape = result.type, result.shape
    result.name = f"{kept}_reshaped"
    remove_node(graph, found.last, made.outputs[0])
    made.outputs[0].name = kept


def _as_int32(mask: Value, reader: Node, masks: dict[Value, Value]) -> Value:
    """The mask as the kernel reads it, made once for all layers."""
    if mask not in masks:
        name = f"{mask.name}_int32"
        cast = make_node("Cast", [mask], name=name, output=name, attributes={"to": _INT32})
        insert_after(mask, cast, graph_of(reader))
        masks[mask], cast.outputs[0].shape = cast.outputs[0], mask.shape
    return masks[mask]


def _expanded(mask: Value, layer: Node) -> Value:
    """The mask [batch, tokens], of which one value may stand for all, made as large as the layer's data."""
    data = layer.inputs[0]
    if data is None or same_size(mask, data, 2):
        return mask
    name = f"{data.name}_mask"
    shape = make_node("Shape", [data], name=f"{name}_shape", output=f"{name}_shape", attributes={"start": 0, "end": 2})
    expand = make_node("Expand", [mask, shape.outputs[0]], name=name, output=name)
    for node in (shape, expand):
        insert_before(layer, node, graph_of(layer))
    return expand.outputs[0]
