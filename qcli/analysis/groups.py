"""Layers put together: each for itself, by operator, or by block."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from qcli.analysis.nouns import GROUPINGS
from qcli.analysis.simulate import Layer
from qcli.errors import UsageError, did_you_mean
from qcli.graph import Model, Value, enclosing_node, is_constant, node_key

_FEWEST = 4
"""Names divide a model well if they make this many blocks."""


@dataclass(frozen=True)
class Group:
    """Layers that are switched together, in the order of the graph."""

    name: str
    layers: tuple[Layer, ...]

    @property
    def op(self) -> str:
        return ", ".join(dict.fromkeys(layer.op for layer in self.layers))

    def switches(self, part: str = "") -> frozenset[str]:
        """The switches of its weights or of its activations, or all of them."""
        parts = (part,) if part else ("weights", "activations")
        found = (getattr(layer, name) for layer in self.layers for name in parts)
        return frozenset(switch for switch in found if switch is not None)


def check_grouping(by: str) -> None:
    """Raises UsageError for anything but node, op and block."""
    if by not in GROUPINGS:
        raise UsageError(f"layers cannot be put together by '{by}'", did_you_mean(by, GROUPINGS))


def grouped(layers: tuple[Layer, ...], model: Model, by: str) -> tuple[Group, ...]:
    """The groups in the order of the graph; `model` is the prepared one, without switches."""
    if by == "node":
        return tuple(Group(layer.name, (layer,)) for layer in layers)
    if by == "op":
        return _together(layers, lambda layer: layer.op)
    return _blocks(layers, model)


def _together(layers: Iterable[Layer], name_of: Callable[[Layer], str]) -> tuple[Group, ...]:
    found: dict[str, list[Layer]] = {}
    for layer in layers:
        found.setdefault(name_of(layer), []).append(layer)
    return tuple(Group(name, tuple(members)) for name, members in found.items())


def _blocks(layers: tuple[Layer, ...], model: Model) -> tuple[Group, ...]:
    """By the shortest prefix of the names that makes four blocks or more, or by the shape of the graph.

    Names like `/features/features.3/conv/Conv` have parts between `/` and `.`; the last part is the node's own.
    Where names say nothing, a block lies between two values through which everything passes: a residual block, the
    branches up to a Concat, or a single layer.
    """
    for depth in range(1, max(len(_path(layer.name)) for layer in layers) + 1):
        prefixes = _prefixes(layers, depth)
        if len(set(prefixes.values())) >= _FEWEST:
            return _together(layers, lambda layer, prefixes=prefixes: prefixes[layer.key])  # type: ignore[misc]
    segments = _segments(model)
    outer = {node_key(node): node for node in model.nodes()}
    found = _together(layers, lambda layer: segments[node_key(enclosing_node(model.graph, outer[layer.key]))])
    return tuple(Group(_span(group.layers), group.layers) for group in found)


def _prefixes(layers: tuple[Layer, ...], depth: int) -> dict[str, str]:
    """The first parts of each name. A layer without any is alone, or without weights with the layer before it."""
    found: dict[str, str] = {}
    before = ""
    for layer in layers:
        prefix = "/".join(_path(layer.name)[:depth])
        before = prefix or (before if layer.weights is None and before else layer.name)
        found[layer.key] = before
    return found


def _path(name: str) -> list[str]:
    return [part for part in re.split(r"[/.]", name) if part][:-1]


def _span(layers: tuple[Layer, ...]) -> str:
    first, last = layers[0].name, layers[-1].name
    return first if first == last else f"{first} … {last}"


def _segments(model: Model) -> dict[str, str]:
    """For each node of the main graph, by key, the key of the first node of its segment.

    A segment ends where a single value is all that later nodes need.
    """
    nodes = tuple(model.graph)
    place = {node: index for index, node in enumerate(nodes)}
    last = {value: len(nodes) for value in model.graph.outputs}
    for inner in model.nodes():
        index = place[enclosing_node(model.graph, inner)]
        for value in inner.inputs:
            if value is not None and not is_constant(value):
                last[value] = max(last.get(value, 0), index)
    segments: dict[str, str] = {}
    live: set[Value] = {value for value in model.graph.inputs if value in last}
    first = ""
    for index, node in enumerate(nodes):
        first = first or node_key(node)
        segments[node_key(node)] = first
        live |= {value for value in node.outputs if value in last}
        live = {value for value in live if last[value] > index}
        if len(live) <= 1:
            first = ""
    return segments
