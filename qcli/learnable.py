"""Layers whose codes and biases may still learn once a solution is there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qcli.graph import Model, Node, Value, constant_of, node_key, sole_consumer
from qcli.layers import bias_layer
from qcli.learn import Problem, learners, rounding_of
from qcli.levels import is_uniform
from qcli.plugins import choice_of
from qcli.roundings._learned import LearnedRounding
from qcli.scales import ends_of
from qcli.solve import Solution, site_key
from qcli.types import Array, Entry, Plan, Role, Window
from qcli.windows import window_of

Float64Array = npt.NDArray[np.float64]

_LARGEST = 2048
"""A layer with more inputs keeps its codes: a matrix of this size is held for each half of the samples."""

_INT32 = 2**31 - 1


@dataclass(frozen=True)
class Learnable:
    """A layer that learns: its codes by `rounding` unless None, its `bias`, whose float values are `constant`.

    Outputs beyond `bounds` saturate, whatever they are.
    """

    node: Node
    weight: Entry
    rounding: LearnedRounding | None
    bias: Entry | None
    constant: Array | None
    window: Window
    bounds: tuple[float, float]


def learnable(model: Model, plan: Plan, solution: Solution, *, biases: bool) -> Iterator[Learnable]:
    """The layers of the main graph with a sequential rounding, and with `biases` all that have a bias of their own."""
    nodes = {node_key(node): node for node in model.graph}
    own_biases = _bias_entries(plan, nodes)
    entries = learners(plan, model) if not model.large else []
    sequential = {entry.site.node for entry in entries if rounding_of(entry).sequential}
    results = {entry.site.value: entry for entry in plan.entries if entry.site.role is Role.OUTPUT}
    for entry in plan.entries:
        node = nodes.get(entry.site.node)
        if node is None or not _is_coded(entry, solution):
            continue
        window = window_of(node, _UNLIMITED)
        if window is None:
            continue
        rounding = rounding_of(entry) if entry.site.node in sequential and _may_round(node) else None
        bias = own_biases.get(entry.site.node) if biases or rounding is not None else None
        if rounding is not None or bias is not None:
            constant = constant_of(nodes[bias.site.node].inputs[bias.site.operand]) if bias is not None else None
            yield Learnable(node, entry, rounding, bias, constant, window, _bounds(node, results, solution))


_UNLIMITED = 1 << 62


def _is_coded(entry: Entry, solution: Solution) -> bool:
    """True for the weight of a layer that multiplies codes of both operands, on evenly spaced levels."""
    weight = entry.site.role is Role.WEIGHT and entry.site.operand == 1 and is_uniform(entry.grid)
    return weight and choice_of(entry.encoding).name == "qdq" and site_key(entry) in solution.codes


def _may_round(node: Node) -> bool:
    """True for a weight that no other node reads and that is not too large."""
    value, window = node.inputs[1], window_of(node, _LARGEST)
    return value is not None and len(tuple(value.uses())) == 1 and window is not None and window.blocks == 1


def _bounds(node: Node, results: Mapping[str, Entry], solution: Solution) -> tuple[float, float]:
    """What the grid behind a layer, its bias and its activation can hold; infinite if its result stays float."""
    value: Value | None = node.outputs[0]
    while value is not None and value.name not in results:
        reader = sole_consumer(value)
        value = reader.outputs[0] if reader is not None and reader.op_type in _PASSED else None
    if value is None:
        return -np.inf, np.inf
    return ends_of(solution.scales[site_key(results[value.name or ""])])


_PASSED = ("Relu", "Clip")
"""Behind a layer, these do no more than the grid that follows, which saturates where they end."""


def _bias_entries(plan: Plan, nodes: Mapping[str, Node]) -> dict[str, Entry]:
    """Bias entries by the layer that they belong to; those that several readers share are left out."""
    found: dict[str, Entry] = {}
    for entry in plan.entries:
        reader = nodes.get(entry.site.node)
        if entry.site.role is not Role.BIAS or reader is None:
            continue
        layer, value = bias_layer(reader, entry.site.operand), reader.inputs[entry.site.operand]
        if layer is not None and value is not None and len(tuple(value.uses())) == 1:
            found[node_key(layer)] = entry
    return found


class LayerRows:
    """One layer in rows [groups, R, K]: `exact` float weights, the codes so far, the `steps` of the codes."""

    def __init__(self, layer: Learnable, solution: Solution) -> None:
        self._layer = layer
        self.scale = solution.scales[site_key(layer.weight)]
        self.problem = Problem(layer.node, np.asarray(constant_of(layer.node.inputs[1]), np.float64), layer.window)
        self.exact = self.problem.weight
        self.codes = self.problem.stored(np.asarray(solution.codes[site_key(layer.weight)]), self.scale)
        self.steps = self.problem.steps(self.scale)
        self.bias, self.stored_bias = self._biases(solution)

    def corrected(self, codes: Float64Array, x: Float64Array, y: Float64Array) -> Float64Array:
        """c = b + W E[x] - V E[y], [groups, R], for means [groups, K]."""
        wanted = np.einsum("grk,gk->gr", self.exact, x) - np.einsum("grk,gk->gr", codes * self.steps, y)
        return np.asarray(self.bias + wanted)

    def keep_bias(self, bias: Float64Array, changed: npt.NDArray[np.bool_], solution: Solution) -> None:
        """Stores `bias` [groups, R] where it is `changed`."""
        if self._layer.bias is None:
            return
        key = site_key(self._layer.bias)
        known = np.asarray(solution.codes[key])
        steps = solution.scales[key].scale.astype(np.float64)
        chosen = np.rint(bias.reshape(-1) / steps).clip(-_INT32 - 1, _INT32).astype(np.int32).reshape(known.shape)
        solution.codes[key] = np.where(changed.reshape(known.shape), chosen, known)

    def _biases(self, solution: Solution) -> tuple[Float64Array, Float64Array]:
        """The bias in float and as it is stored now, [groups, R]; zeros where it is no part of the plan."""
        shape = self.exact.shape[:2]
        entry = self._layer.bias
        if entry is None:
            return np.zeros(shape), np.zeros(shape)
        key = site_key(entry)
        stored = np.asarray(solution.codes[key], np.float64).reshape(-1)
        exact = np.asarray(self._layer.constant, np.float64).reshape(-1)
        return exact.reshape(shape), (stored * solution.scales[key].scale.astype(np.float64)).reshape(shape)
