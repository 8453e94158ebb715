"""Values whose channels can be divided by factors, while the products that read them multiply their weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from qcli.graph import Graph, Model, Node, Value, add_initializer, infer_shapes, insert_after, make_node, set_constant
from qcli.steps._linear import Linear, comes_in_codes, linears
from qcli.steps._rescale import Change, changes_for, rescale
from qcli.types import Array


@dataclass(frozen=True)
class ScalingSite:
    """A value, the products that read it, and the constants in front that can divide it; None if it takes a Div."""

    value: Value
    readers: tuple[Linear, ...]
    changes: list[Change] | None


def scaling_sites(model: Model) -> Iterator[ScalingSite]:
    """The inputs of products whose channels can be scaled; all weights that multiply one belong to it alone."""
    infer_shapes(model)
    groups: dict[Value, list[Linear]] = {}
    for layer in linears(model.graph):
        if layer.node.op_type != "Conv" and _owns_weight(layer.node):
            groups.setdefault(layer.data, []).append(layer)
    for value, readers in groups.items():
        if len({reader.channels for reader in readers}) > 1:
            continue
        alone = len(tuple(value.uses())) == len(readers) and not value.is_graph_output()
        changes = changes_for(value, readers[0].channels) if alone else None
        if changes is not None or not comes_in_codes(value, [reader.node for reader in readers]):
            yield ScalingSite(value, tuple(readers), changes)


def _owns_weight(node: Node) -> bool:
    """One that several nodes read would be copied, and its size with it."""
    weight = node.inputs[1]
    return weight is not None and len(tuple(weight.uses())) == 1 and not weight.is_graph_output()


def scale_channels(graph: Graph, site: ScalingSite, factors: Array) -> None:
    """Divides the channels of a value by `factors` [channels] and multiplies the weights of its readers with them."""
    if site.changes is not None:
        rescale(graph, site.changes, 1 / factors)
    else:
        _divide(graph, site, factors)
    for reader in site.readers:
        weight = reader.weight
        along = factors.reshape(-1, 1) if reader.inner == 0 else factors
        set_constant(graph, reader.node, 1, (weight.astype(np.float64) * along).astype(weight.dtype))


def _divide(graph: Graph, site: ScalingSite, factors: Array) -> None:
    """A Div in front of the readers. A Mul might become an integer kernel, whose input is as hard to quantize."""
    name = site.value.name or "data"
    divisor = add_initializer(graph, f"{name}_smoothing", factors.astype(np.float32))
    made = make_node("Div", [site.value, divisor], name=f"{name}_smoothed", output=f"{name}_smoothed")
    made.outputs[0].type, made.outputs[0].shape = site.value.type, site.value.shape
    insert_after(site.value, made, graph)
    for reader in site.readers:
        reader.node.replace_input_with(0, made.outputs[0])
