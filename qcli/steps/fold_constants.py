"""What depends on no input is computed once."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np

from qcli.existing import decodes
from qcli.graph import (
    Graph,
    Model,
    Node,
    Value,
    add_initializer,
    add_turned,
    dimensions,
    infer_shapes,
    is_constant,
    share_between_bodies,
)
from qcli.runtime import Session
from qcli.steps._base import Step

_RANDOM = ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli")
_GROWING = ("ConstantOfShape", "Expand", "Tile", "Range", "Resize", "Upsample", "Pad", "OneHot")
"""How large their results are depends on the elements of an input."""

_MOST_ELEMENTS = 1 << 28
"""Of a constant that is computed at all."""

_LARGE = 1 << 20
_KEPT = (*_RANDOM, "If", "Loop", "Scan", "SequenceMap", "DequantizeLinear", "QuantizeLinear")


class FoldConstants(Step, frozen=True, kw_only=True):
    """Replaces every node whose inputs are constant by its result, which onnxruntime itself computes.

    `Shape` of a value with a fixed shape counts as constant. Results larger than `limit_bytes` that would make
    the file grow (Expand, Tile, ConstantOfShape) stay as they are.
    """

    limit_bytes: int = 1 << 20

    def run(self, model: Model) -> int:
        folded = 0
        while True:
            infer_shapes(model)
            once = sum(_fold_shapes(graph) + _turn_stored(graph) for graph in model.graphs())
            once += sum(self._fold_computed(model, graph) for graph in model.graphs())
            if not once:
                share_between_bodies(model)
                return folded
            folded += once

    def _fold_computed(self, model: Model, graph: Graph) -> int:
        folded = 0
        for nodes, wanted in _parts(graph, one_by_one=model.large):
            names = tuple(value.name or "" for value in wanted)
            results = Session(model.constant_part(nodes, names), optimize=False).run({}, names)
            folded += sum(self._replace(graph, value, results.pop(value.name or "")) for value in wanted)
        if folded:
            model.remove_unused()
        return folded

    def _replace(self, graph: Graph, value: Value, array: Any) -> bool:
        if not hasattr(array, "nbytes") or array.dtype == object or array.nbytes > self._allowed(value):
            return False
        name = value.name or "constant"
        value.name = f"{name}_folded"
        value.replace_all_uses_with(add_initializer(graph, name, array))
        return True

    def _allowed(self, value: Value) -> int:
        node = value.producer()
        inputs = [item.const_value.nbytes for item in (node.inputs if node else ()) if item and item.const_value]
        return max(self.limit_bytes, *inputs, 0)


def _parts(graph: Graph, *, one_by_one: bool) -> Iterator[tuple[list[Node], list[Value]]]:
    """The constant nodes and the values wanted of them, all together; `one_by_one` those that read large constants."""
    nodes = _constant_nodes(graph)
    wanted = [value for node in nodes for value in node.outputs if _leaves(value, set(nodes))]
    if not one_by_one:
        if wanted:
            yield nodes, wanted
        return
    cones = {value: _cone(value, nodes) for value in wanted}
    together = [value for value in wanted if _read_bytes(cones[value]) < _LARGE]
    if together:
        needed = set().union(*(cones[value] for value in together))
        yield [node for node in nodes if node in needed], together
    for value in wanted:
        if value not in together:
            yield [node for node in nodes if node in cones[value]], [value]


def _cone(value: Value, nodes: list[Node]) -> set[Node]:
    """The nodes that a value is computed by."""
    inside, found, waiting = set(nodes), set[Node](), [value.producer()]
    while waiting:
        node = waiting.pop()
        if node is not None and node in inside and node not in found:
            found.add(node)
            waiting += [item.producer() for item in node.inputs if item is not None]
    return found


def _read_bytes(nodes: set[Node]) -> int:
    """The bytes of the constants that nodes read."""
    read = {item for node in nodes for item in node.inputs if item is not None and item.const_value is not None}
    return sum(item.const_value.nbytes for item in read if item.const_value is not None)


def _constant_nodes(graph: Graph) -> list[Node]:
    """The nodes that depend on constants alone, in order."""
    found: list[Node] = []
    constant: set[Value] = set()
    for node in graph:
        inputs = [value for value in node.inputs if value is not None]
        pure = node.op_type not in _KEPT and not decodes(node) and node.domain in ("", "ai.onnx")
        if pure and inputs and all(value in constant or is_constant(value) for value in inputs):
            if any(_may_fill_memory(node, value) for value in node.outputs):
                continue
            found.append(node)
            constant.update(node.outputs)
    return found


def _may_fill_memory(node: Node, value: Value) -> bool:
    """What decides over an unknown size is folded first, and the size is known in the next round."""
    known = dimensions(value)
    if known is None or None in known:
        return node.op_type in _GROWING
    return prod(size for size in known if size is not None) > _MOST_ELEMENTS


def _leaves(value: Value, nodes: set[Node]) -> bool:
    """True if a node outside the constant part reads the value. Graph outputs keep their producer."""
    return not value.is_graph_output() and any(node not in nodes for node, _ in value.uses())


def _turn_stored(graph: Graph) -> int:
    """Reads weights that stay in their files transposed, instead of writing them down a second time."""
    folded = 0
    for node in tuple(graph):
        source, out = node.inputs[0] if node.op_type == "Transpose" else None, node.outputs[0]
        if source is None or source.const_value is None or out.is_graph_output():
            continue
        backwards = tuple(reversed(range(len(source.const_value.shape))))
        axes = tuple(node.attributes["perm"].as_ints()) if "perm" in node.attributes else backwards
        turned = add_turned(graph, out, source, axes) if sorted(axes) == sorted(backwards) else None
        if turned is not None:
            out.replace_all_uses_with(turned)
            graph.remove(node, safe=True)
            folded += 1
    return folded


def _fold_shapes(graph: Graph) -> int:
    """Replaces Shape of a value whose whole shape is fixed."""
    folded = 0
    for node in tuple(graph):
        if node.op_type != "Shape" or node.inputs[0] is None or node.outputs[0].is_graph_output():
            continue
        known = dimensions(node.inputs[0])
        if known is None or None in known or node.attributes:
            continue
        name = node.outputs[0].name or "shape"
        node.outputs[0].name = f"{name}_folded"
        constant = add_initializer(graph, name, np.array(known, np.int64))
        node.outputs[0].replace_all_uses_with(constant)
        graph.remove(node, safe=True)
        folded += 1
    return folded
