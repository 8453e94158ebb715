"""The parts of a network that are integer or not as a whole: what one kernel computes, and what meets what."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

from qcli.analysis.simulate import Simulation
from qcli.graph import Model, Node, Value, is_constant, node_key
from qcli.types import Plan, Role


@dataclass(frozen=True)
class Part:
    """A kernel's node, by `key`, and the nodes that it swallows. `names` are all of them."""

    key: str
    op: str
    names: tuple[str, ...]
    weights: str | None
    activations: str | None


@dataclass(frozen=True)
class Edge:
    """A value of `elements` numbers that one part gives and another reads; None stands for what is float anyway."""

    giver: int | None
    reader: int | None
    elements: int


@dataclass(frozen=True)
class Network:
    """The parts in the order of the graph, and the values between them."""

    parts: tuple[Part, ...]
    edges: tuple[Edge, ...]


def network_of(model: Model, plan: Plan, simulation: Simulation, shapes: Mapping[str, tuple[int, ...]]) -> Network:
    """The parts of a prepared model under a plan; `shapes` are those of all values for one sample."""
    nodes = {node_key(node): node for node in model.graph}
    layers = [layer for layer in simulation.layers if layer.key in nodes]
    own = {layer.key for layer in layers}
    carried = {entry.site.node for entry in plan.entries if entry.site.role is Role.OUTPUT} - own
    swallowed = {layer.key: tuple(_swallowed(nodes[layer.key], own, carried)) for layer in layers}
    parts = tuple(
        Part(layer.key, layer.op, (layer.key, *swallowed[layer.key]), layer.weights, layer.activations)
        for layer in layers
    )
    homes = {name: number for number, part in enumerate(parts) for name in part.names}
    return Network(parts, tuple(_edges(model, homes, carried, shapes)))


def _swallowed(node: Node, own: set[str], carried: set[str]) -> Iterator[str]:
    """The chain of nodes behind a layer up to the one whose result has the grid."""
    value, chain = node.outputs[0], []
    while len(uses := tuple(value.uses())) == 1 and not value.is_graph_output():
        reader = uses[0][0]
        key = node_key(reader)
        if reader.op_type not in _SWALLOWED or key in own or reader.graph is not node.graph:
            return
        chain.append(key)
        if key in carried:
            yield from chain
            return
        value = reader.outputs[0]


_SWALLOWED = ("Relu", "Clip", "Max", "Min", "Add")


def _edges(
    model: Model, homes: Mapping[str, int], carried: set[str], shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[Edge]:
    givers: dict[Value, int | None] = dict.fromkeys(model.graph.inputs)
    for node in model.graph:
        home = homes.get(node_key(node))
        read = [value for value in node.inputs if value is not None and not is_constant(value)]
        for value in read:
            giver = givers.get(value)
            if giver != home and (giver is not None or home is not None):
                yield Edge(giver, home, prod(shapes.get(value.name or "", (0,))))
        moved = home is None and node_key(node) in carried and read
        for value in node.outputs:
            givers[value] = givers.get(read[0]) if moved else home
            if value.is_graph_output() and givers[value] is not None:
                yield Edge(givers[value], None, prod(shapes.get(value.name or "", (0,))))
