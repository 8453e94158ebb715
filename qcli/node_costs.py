"""What each node of a model costs in several forms of it: profiles side by side, by the nodes of the source graph."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from qcli.graph import Model, Node, node_key, normalize_graph, original_name
from qcli.origins import main_of
from qcli.profile import NodeTime, profiles
from qcli.types import Array, Noun

_SHOWN = 3
"""How many of the nodes that got slower a warning names."""

_LEAST_LOSS = 0.01
"""A node that loses less than this share of the first model's time is not to blame: clocks are not finer."""


class NodeCost(Noun, frozen=True, kw_only=True):
    """One node of the source graph, with what onnxruntime fuses with it in one model or another.

    `node` is its name in the user's file (the output's where it has none), `output` its key, `sources` are the keys of
    all nodes that are counted here. `ms` holds a time for each model, with the conversions (whatever was put in)
    beside the node, whose part is `conversions_ms`: one between two nodes counts half to each. `ratios` are first /
    each: above 1 is faster than the first, None where a model spends no time here. What could not be traced is a node
    "" of operator "".
    """

    node: str
    output: str
    op: str
    ms: tuple[float, ...]
    conversions_ms: tuple[float, ...]
    ratios: tuple[float | None, ...]
    sources: tuple[str, ...] = ()


def compare_nodes(
    models: Sequence[Path | bytes], source: Model, feeds: Mapping[str, Array], *, threads: int = 1, rounds: int = 15
) -> tuple[NodeCost, ...]:
    """What each node of `source` takes in each of the models, that of the longest time first."""
    return side_by_side(profiles(models, source, feeds, threads=threads, rounds=rounds), source)


def side_by_side(measured: Sequence[Sequence[NodeTime]], source: Model) -> tuple[NodeCost, ...]:
    """Profiles of models that were made from `source`, joined: together they hold all of the time that was measured."""
    normal = source.copy()
    normalize_graph(normal)
    nodes = {node_key(node): node for node in normal.nodes()}
    groups = _Groups(nodes, (row for rows in measured for row in rows))
    times = {number: ([0.0] * len(measured), [0.0] * len(measured)) for number in groups.members}
    for model, rows in enumerate(measured):
        for row in rows:
            owners = groups.owners(row)
            for owner in owners:
                every, conversions = times[owner]
                every[model] += row.ms / len(owners)
                conversions[model] += row.ms / len(owners) if row.beside else 0.0
    found = [_cost([nodes[key] for key in groups.members[number]], *both) for number, both in times.items()]
    kept = (cost for cost in found if cost.sources or any(cost.ms))
    return tuple(sorted(kept, key=lambda cost: -max(cost.ms)))


def dearer(costs: Sequence[NodeCost]) -> tuple[NodeCost, ...]:
    """The nodes that lose the most time from the first model to the second, at most three."""
    least = _LEAST_LOSS * sum(cost.ms[0] for cost in costs)
    slower = [cost for cost in costs if cost.node and cost.ms[1] - cost.ms[0] > least]
    return tuple(sorted(slower, key=lambda cost: cost.ms[0] - cost.ms[1])[:_SHOWN])


def in_words(costs: Iterable[NodeCost]) -> str:
    """Nodes and their times in two models, as in `/add (Add, 0.010 → 0.043 ms)`."""
    return ", ".join(f"{cost.node} ({cost.op}, {cost.ms[0]:.3f} → {cost.ms[1]:.3f} ms)" for cost in costs)


def _cost(nodes: list[Node], every: list[float], conversions: list[float]) -> NodeCost:
    main = main_of(nodes)
    key = node_key(main) if main is not None else ""
    return NodeCost(
        node=(original_name(main) or key) if main is not None else "",
        output=key,
        op=main.op_type if main is not None else "",
        ms=tuple(every),
        conversions_ms=tuple(conversions),
        ratios=tuple(every[0] / ms if ms and every[0] else None for ms in every),
        sources=tuple(map(node_key, nodes)),
    )


class _Groups:
    """Source nodes that one node of some optimized graph comes from, joined: in another graph they may be apart.

    `members` are their keys by the number of the group, in the order of the graph; group -1 is for what is left over.
    """

    def __init__(self, keys: Iterable[str], rows: Iterable[NodeTime]) -> None:
        self._parents: dict[str, str] = {key: key for key in keys}
        for row in rows:
            for other in row.sources[1:]:
                self._parents[self._root(other)] = self._root(row.sources[0])
        numbers: dict[str, int] = {}
        self.members: dict[int, list[str]] = {}
        for key in self._parents:
            number = numbers.setdefault(self._root(key), len(numbers))
            self.members.setdefault(number, []).append(key)
        self._number = {key: number for number, group in self.members.items() for key in group}
        self.members[-1] = []

    def owners(self, row: NodeTime) -> list[int]:
        """The group that a row counts to; for a conversion those on both sides of it."""
        keys: Iterator[str] = iter(row.sources[:1] or row.beside)
        return list(dict.fromkeys(self._number[key] for key in keys)) or [-1]

    def _root(self, key: str) -> str:
        while self._parents[key] != key:
            self._parents[key] = key = self._parents[self._parents[key]]
        return key
