"""Which nodes of the source graph each node of the optimized graph comes from: all nodes, not the compute nodes alone.

`tracing` leads the compute nodes back. Every other node is known by the value that it makes, by its own name, or by
the longest known name that one of these begins with. What onnxruntime fused away counts to the node that swallowed
it: what lies between the inputs of a fused node and its output, else the node before it, else the one behind it.
What was put in, above all conversions between grids and layouts, belongs to no source node; it lies beside those that
it was made for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

from qcli.graph import Model, Node, node_key, normalize_graph
from qcli.graph.optimized import OptimizedGraph, RuntimeNode
from qcli.tracing import FAMILY_OF, longest_beginning, match_nodes
from qcli.types import Noun

CONVERSIONS = (
    "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "Transpose", "Cast", "ReorderInput", "ReorderOutput",
)  # fmt: skip
"""Operators that only change how numbers are written. The source graph can hold them too."""

_FOLLOWERS = ("BatchNormalization", "Relu", "LeakyRelu", "Clip", "Sigmoid", "HardSigmoid", "Tanh", "Identity")
"""What is fused into the node before it, where both are possible."""

_SUMS = ("Add", "Sum")
"""Fused into a convolution or product before them, never into one behind."""


class Origin(Noun, frozen=True, kw_only=True):
    """Keys of the source nodes that a node comes from, in the order of the graph, and of those that it lies between.

    `beside` is for nodes that were put in: these have no `sources`. `main` is the source node that does most of the
    work, "" without any.
    """

    sources: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    main: str = ""


def origins(optimized: OptimizedGraph, source: Model) -> tuple[Origin, ...]:
    """One for each node of the optimized graph, in its order."""
    normal = source.copy()
    normalize_graph(normal)
    claims = _Claims(optimized, normal)
    owned: list[list[Node]] = [[] for _ in optimized.nodes]
    for node in normal.nodes():
        for index in claims.of.get(node, ()):
            owned[index].append(node)
    found = [_origin(nodes) for nodes in owned]
    neighbours = _Neighbours(optimized, found)
    return tuple(
        origin if origin.sources else Origin(beside=neighbours.of(index)) for index, origin in enumerate(found)
    )


def _origin(nodes: list[Node]) -> Origin:
    main = main_of(nodes)
    return Origin(sources=tuple(map(node_key, nodes)), main=node_key(main) if main is not None else "")


def main_of(nodes: Sequence[Node]) -> Node | None:
    """The node that does most of the work: the first that computes, else the last that does more than pass on."""
    computing = (node for node in nodes if node.op_type in FAMILY_OF)
    busy = (node for node in reversed(nodes) if node.op_type != "Identity")
    return next(chain(computing, busy, nodes), None)


class _Claims:
    """Which nodes of the optimized graph claim each source node, by number."""

    def __init__(self, optimized: OptimizedGraph, model: Model) -> None:
        self.of: dict[Node, list[int]] = {}
        self._names: dict[str, Node] = {}
        self._values: dict[str, Node] = {}
        for node in model.nodes():
            self._names.setdefault(node.name or "", node)
            self._values.update({value.name or "": node for value in node.outputs})
        for known in (self._names, self._values):
            known.pop("", None)
        ends = list(self._certain(optimized, model))
        for last, index in ends:
            if last.op_type in FAMILY_OF or not _is_form_of(optimized.nodes[index].op, last.op_type):
                for node in self._between(last):
                    self._claim(node, index)
        self._leftovers(list(model.nodes()))

    def _certain(self, optimized: OptimizedGraph, model: Model) -> Iterator[tuple[Node, int]]:
        """Claims the source nodes that nodes are known by; the last one of each, with the number of who claims it."""
        numbers = {id(item): index for index, item in enumerate(optimized.nodes)}
        matches = match_nodes([item for item in optimized.nodes if item.op in FAMILY_OF], model, optimized)
        traced = {numbers[id(item)]: node for node, items in matches.pairs.items() for item in items}
        for index, item in enumerate(optimized.nodes):
            known = self._known(item, index in traced)
            for node in dict.fromkeys(node for node in (traced.get(index), known) if node is not None):
                self._claim(node, index)
                yield node, index

    def _known(self, item: RuntimeNode, traced: bool) -> Node | None:
        """The source node that makes the same value, or whose name the node carries."""
        both = {**self._values, **self._names}
        candidates = [self._values.get(output) for output in item.outputs]
        candidates.append(self._names.get(item.name))
        if item.op in CONVERSIONS:
            return next((node for node in candidates if node is not None and node.op_type == item.op), None)
        candidates += [longest_beginning(both, name) for name in (item.name, *item.outputs)]
        wanted = (node for node in candidates if node is not None and not (traced and node.op_type in FAMILY_OF))
        return next(wanted, None)

    def _claim(self, node: Node, index: int) -> None:
        claimants = self.of.setdefault(node, [])
        if index not in claimants:
            claimants.append(index)

    def _between(self, last: Node) -> list[Node]:
        """The unclaimed nodes that lead to `last`, without those at the far end that belong to what is before them."""
        inside: dict[Node, None] = {}
        waiting = [last]
        while waiting:
            for node in _before(waiting.pop()):
                if node not in self.of and node not in inside:
                    inside[node] = None
                    waiting.append(node)
        followers = (*_FOLLOWERS, *_SUMS) if last.op_type in FAMILY_OF else _FOLLOWERS
        for node in list(reversed(inside)):
            if node.op_type in followers and not any(other in inside for other in _before(node)):
                del inside[node]
        return list(inside)

    def _leftovers(self, nodes: list[Node]) -> None:
        """Unclaimed nodes go to the node before them, or, where there is none, to the one behind."""
        for node in nodes:
            if node not in self.of:
                self._inherit(node, _before(node))
        for node in reversed(nodes):
            if node not in self.of:
                self._inherit(node, (use.node for value in node.outputs for use in value.uses()))

    def _inherit(self, node: Node, others: Iterator[Node]) -> None:
        claimants = max((self.of[other] for other in others if other in self.of), key=max, default=None)
        if claimants is not None:
            self.of[node] = list(claimants)


def _is_form_of(running: str, op: str) -> bool:
    """True for the same operator in another layout or on another grid: it swallowed no other."""
    return running.removeprefix("QLinear").removeprefix("Nhwc") == op


def _before(node: Node) -> Iterator[Node]:
    for value in node.inputs:
        producer = value.producer() if value is not None else None
        if producer is not None:
            yield producer


class _Neighbours:
    """The source nodes next to one that was put in, on both sides, others that were put in skipped."""

    def __init__(self, optimized: OptimizedGraph, found: list[Origin]) -> None:
        self._nodes, self._found = optimized.nodes, found
        self._makers: dict[str, list[int]] = {}
        self._readers: dict[str, list[int]] = {}
        for index, item in enumerate(optimized.nodes):
            for names, table in ((item.outputs, self._makers), (item.inputs, self._readers)):
                for name in filter(None, names):
                    table.setdefault(name, []).append(index)

    def of(self, index: int) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self._side(index, back=True), *self._side(index, back=False))))

    def _side(self, index: int, *, back: bool) -> Iterator[str]:
        seen, waiting = {index}, [index]
        while waiting:
            item = self._nodes[waiting.pop()]
            names, table = (item.inputs, self._makers) if back else (item.outputs, self._readers)
            for other in (other for name in names for other in table.get(name, ())):
                if other in seen:
                    continue
                seen.add(other)
                if self._found[other].main:
                    yield self._found[other].main
                else:
                    waiting.append(other)
