"""A Clip whose channels have bounds of their own, for channels that are scaled by factors of their own.

f * Clip(x, a, b) = Clip(f x, f a, f b)          for f > 0
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from qcli.channels import Clipped
from qcli.graph import Graph, Value, add_initializer, graph_of, insert_before, make_node, replace_value
from qcli.types import Array


def bound_each(graph: Graph, clip: Clipped, factors: Array) -> None:
    """Puts a Clip to the widest bounds in place of a Clip, with a Max and a Min by constants [channels, 1, ...] behind.

    `factors` float64 [channels]: how much larger each channel is by now. The wide Clip keeps the grid of the layer in
    front as narrow as that of the result. The result takes the name and the place of the old one's. Nothing happens if
    the Clip has no bounds.
    """
    node = clip.value.producer()
    source = node.inputs[0] if node is not None else None
    if node is None or source is None or np.isinf([clip.lower, clip.upper]).all():
        return
    result = _widest(graph, clip, source, factors.max(keepdims=True))
    if np.isfinite(clip.lower) and clip.lower:
        result = _before(clip.value, "Max", [result, _bound(graph, clip, clip.lower * factors)])
    if np.isfinite(clip.upper):
        result = _before(clip.value, "Min", [result, _bound(graph, clip, clip.upper * factors)])
    name, shape = clip.value.name, clip.value.shape
    replace_value(graph, clip.value, result)
    clip.value.name, result.name, result.shape = f"{name}_clipped", name, shape
    last = result.producer()
    if last is not None:
        last.name = node.name
    graph.remove(node, safe=True)


def _widest(graph: Graph, clip: Clipped, source: Value, factor: Array) -> Value:
    ends = {"min": clip.lower, "max": clip.upper}
    node = clip.value.producer()
    if node is not None and any(key in node.attributes for key in ends):  # as before operator set 11
        attributes = {key: float(end * factor[0]) for key, end in ends.items() if np.isfinite(end)}
        return _before(clip.value, "Clip", [source], attributes)
    bounds = [_bound(graph, clip, end * factor) if np.isfinite(end) else None for end in ends.values()]
    return _before(clip.value, "Clip", [source, *bounds])


def _before(
    old: Value, operator: str, inputs: Sequence[Value | None], attributes: Mapping[str, float] | None = None
) -> Value:
    node = old.producer()
    if node is None:
        raise ValueError(f"nothing computes {old.name}")
    name = f"{node.name}_{operator}"
    made = make_node(operator, inputs, name=name, output=f"{old.name}_{operator}", attributes=attributes)
    insert_before(node, made, graph_of(node))
    made.outputs[0].type, made.outputs[0].shape = old.type, old.shape
    return made.outputs[0]


def _bound(graph: Graph, clip: Clipped, bounds: Array) -> Value:
    kind = clip.value.dtype.numpy() if clip.value.dtype is not None else np.float32
    along = bounds.reshape(-1, *[1] * (-clip.track.axis - 1)) if bounds.size > 1 else bounds.reshape(())
    return add_initializer(graph, f"{clip.value.name}_bounds", along.astype(kind))
