"""One model in which every quantizer of a plan can be switched on and off, so that one session runs any part of it.

    y = If(switch, DequantizeLinear(QuantizeLinear(x)), x)        an activation
    w = If(switch, (codes - zero_point) * scale, w)               a weight, a bias or another constant

Scales and codes are those of the whole plan, whatever is on. The operators between the quantizers are the float ones,
and nothing is optimized, since onnxruntime would make integer kernels of float operators between two grids: what is
said to be float is float. Noise enters a model at its quantizers alone, so this computes what the integer kernels do,
up to their rounding. What a kernel quantizes by itself is quantized at its input; the state inside of a dynamic LSTM
stays float. Results of nodes that only move codes, such as MaxPool, have no quantizer of their own: it would add
nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from qcli.contracts import along
from qcli.graph import (
    Graph,
    Model,
    Node,
    Value,
    add_initializer,
    add_switch,
    choose_operand,
    choose_result,
    constant_of,
    make_node,
    node_key,
    original_name,
    passed_on,
)
from qcli.layers import bias_layer
from qcli.measured import quantizes_as_it_runs
from qcli.plugins import create
from qcli.solve import SiteKey, Solution, site_key
from qcli.types import Array, Deferred, Entry, Plan, Role, Scale


@dataclass
class Layer:
    """A node with all quantizers that belong to it: its constants, the operands that it alone quantizes, its result.

    `key` is the node's first output, `weights` and `activations` are the switches of its constants and of the rest,
    None where it has none. `values` are the activations that it quantizes, `output` is the value to compare.
    """

    key: str
    name: str
    op: str
    graph: str = ""
    weights: str | None = None
    activations: str | None = None
    values: list[str] = field(default_factory=list)
    output: str = ""

    def switches(self) -> tuple[str, ...]:
        return tuple(switch for switch in (self.weights, self.activations) if switch is not None)


@dataclass(frozen=True)
class Simulation:
    """The model with switches, one boolean input each, and the layers in the order of the graph."""

    model: Model
    layers: tuple[Layer, ...]

    def feeds(self, on: frozenset[str]) -> dict[str, Array]:
        """What to feed beside a sample, so that the switches `on` are on and no others."""
        return {switch: np.array(switch in on) for layer in self.layers for switch in layer.switches()}


def simulate(model: Model, plan: Plan, solution: Solution) -> Simulation:
    """The prepared `model`, which stays as it is, with the quantizers of `plan` to be switched on."""
    return _Simulator(model, plan, solution).run()


class _Simulator:
    def __init__(self, model: Model, plan: Plan, solution: Solution) -> None:
        self._model = model.copy()
        self._plan = plan
        self._solution = solution
        self._nodes = {node_key(node): node for node in self._model.nodes()}
        self._homes = {site_key(entry): self._layer_of(entry) for entry in plan.entries}
        self._layers: dict[str, Layer] = {}
        self._switches: dict[tuple[str, str], Value] = {}
        self._outputs = {key: _first(node) for key, node in self._nodes.items()}
        self._decoded: dict[tuple[str, int], Value] = {}

    def run(self) -> Simulation:
        constants = [entry for entry in self._plan.entries if site_key(entry) in self._solution.codes]
        moved = set(_moved(self._plan))
        others = [
            entry
            for entry in self._plan.entries
            if site_key(entry) not in self._solution.codes and site_key(entry) not in moved
        ]
        for entry in constants:
            self._constant(entry)
        for entry in sorted(others, key=lambda entry: entry.site.role is not Role.OUTPUT):  # results come first
            self._activation(entry)
        for key in dict.fromkeys(entry.site.node for entry in self._plan.entries if quantizes_as_it_runs(entry)):
            choose_operand(self._switch(self._layer(key), "activations"), self._nodes[key], 0, self._as_it_runs(key))
        self._model.sort()
        self._model.forget_shapes()
        self._model.fix_names()
        return Simulation(self._model, tuple(self._finished()))

    def _finished(self) -> Iterator[Layer]:
        for key in self._nodes:
            if key not in self._layers:
                continue
            layer = self._layers[key]
            layer.output = self._outputs[key].name or ""
            for part in ("weights", "activations"):
                switch = self._switches.get((key, part))
                setattr(layer, part, switch.name if switch is not None else None)
            yield layer

    def _constant(self, entry: Entry) -> None:
        node, key = self._nodes[entry.site.node], site_key(entry)
        known = (entry.site.value, id(self._solution.codes[key]))
        if known not in self._decoded:
            real = decoded(entry, self._solution)
            self._decoded[known] = add_initializer(self._model.graph, f"{entry.site.value}_decoded", real)
        switch = self._switch(self._layer(self._homes[key]), "weights")
        choose_operand(switch, node, entry.site.operand, passed_on(self._decoded[known]))

    def _activation(self, entry: Entry) -> None:
        node, site, home = self._nodes[entry.site.node], entry.site, self._homes[site_key(entry)]
        layer = self._layer(home)
        layer.values.append(site.value)
        switch = self._switch(layer, "activations")
        if site.role is Role.OUTPUT:
            value = node.outputs[site.operand]
            chosen = choose_result(switch, value, self._through(entry, value))
            self._outputs[home] = chosen
        else:
            read = node.inputs[site.operand]
            if read is not None:
                choose_operand(switch, node, site.operand, self._through(entry, read))

    def _through(self, entry: Entry, value: Value) -> Callable[[Graph], Value]:
        """The value through the grid of an entry."""
        encoding, scale = create("encodings", entry.encoding), self._solution.scales[site_key(entry)]

        def build(body: Graph) -> Value:
            result: Value = encoding.activation(body, value, f"{value.name}_grid", scale)
            return result

        return build

    def _as_it_runs(self, key: str) -> Callable[[Graph], Value]:
        """The data of a node whose kernel finds its range in the data itself."""
        data = self._nodes[key].inputs[0]
        if data is None:
            raise ValueError(f"{key} reads no data")
        self._layer(key).values.append(data.name or "")
        name = f"{data.name}_grid"

        def build(body: Graph) -> Value:
            grid = make_node("DynamicQuantizeLinear", [data], name=f"{name}_q", output=f"{name}_q", outputs=3)
            for output, suffix in zip(grid.outputs[1:], ("scale", "zero"), strict=True):
                output.name = f"{name}_{suffix}"
            back = make_node("DequantizeLinear", list(grid.outputs), name=f"{name}_dq", output=f"{name}_dq")
            body.append(grid)
            body.append(back)
            return back.outputs[0]

        return build

    def _layer(self, key: str) -> Layer:
        if key not in self._layers:
            node = self._nodes[key]
            paths = [entry.site.graph for entry in self._plan.entries if self._homes[site_key(entry)] == key]
            self._layers[key] = Layer(key, original_name(node) or key, node.op_type, paths[0])
        return self._layers[key]

    def _switch(self, layer: Layer, part: str) -> Value:
        known = (layer.key, part)
        if known not in self._switches:
            self._switches[known] = add_switch(self._model.graph, f"qcli_{part}_{len(self._switches)}")
        return self._switches[known]

    def _layer_of(self, entry: Entry) -> str:
        """The node whose kernel does the work: in front of a Relu, a Clip or the Add of a bias that it swallows."""
        node = self._nodes[entry.site.node]
        if entry.site.role is Role.BIAS:
            return node_key(bias_layer(node, entry.site.operand) or node)
        layer: Node | None = node
        while entry.site.role is Role.OUTPUT and layer is not None and layer.op_type != entry.site.op:
            layer = next(
                (item.producer() for item in layer.inputs if item is not None and constant_of(item) is None), None
            )
        return node_key(layer or node)


def _first(node: Node) -> Value:
    """The first output that has a name, after which the node is called."""
    return next((value for value in node.outputs if value.name), node.outputs[0])


def _moved(plan: Plan) -> Iterator[SiteKey]:
    """The results whose values are on their grid already, since the node ties them to operands that are."""
    results = {(entry.site.node, entry.site.value): entry for entry in plan.entries if entry.site.role is Role.OUTPUT}
    written = {value for _, value in results}
    edges = {(entry.site.node, entry.site.value) for entry in plan.entries if entry.site.role is Role.INPUT}
    for tie in plan.ties:
        operands = [value for value in tie.values if (tie.node, value) not in results]
        if operands and all(value in written or (tie.node, value) in edges for value in operands):
            yield from (site_key(results[tie.node, value]) for value in tie.values if (tie.node, value) in results)


def decoded(entry: Entry, solution: Solution) -> Array | Deferred:
    """The real values, float32, that the codes of a constant stand for; computed anew each time for a large model."""
    key = site_key(entry)
    codes, scale = solution.codes[key], solution.scales[key]
    decode = _bias if entry.site.role is Role.BIAS else create("formats", entry.grid.format).decode
    if isinstance(codes, Deferred):
        shape = codes.shape if scale.vectors is None else scale.vectors.shape
        return Deferred(shape, "float32", lambda: decode(np.asarray(codes), scale))
    real: Array = decode(codes, scale)
    return real


def _bias(codes: Array, scale: Scale) -> Array:
    steps, _ = along(scale, codes.shape)
    return np.asarray(codes.astype(np.float32) * steps, np.float32)
