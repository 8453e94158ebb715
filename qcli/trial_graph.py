"""What each of several grids of one value would do to the layers that read it, as outputs of the float model.

For a value x, candidates x_1 … x_K behind QuantizeLinear and DequantizeLinear, and a layer W that reads x, maybe
through operators P such as Relu, pooling or Concat:

    noise_k  = sum of (W (P(x_k) - P(x)))^2          signal = sum of (W P(x) + b)^2

W is linear, so one copy of the layer, without its bias, takes the differences of all candidates as one batch; only P is
copied for each of them. Where no layer follows, W is left out: the noise is that of P's result, or of x itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from qcli.graph import (
    Graph,
    Model,
    Node,
    Value,
    add_initializer,
    dimensions,
    make_node,
    node_key,
)
from qcli.layers import LAYERS
from qcli.types import Scale

_THROUGH = (
    "Relu", "Clip", "LeakyRelu", "PRelu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Identity", "Max", "Min",
    "MaxPool", "AveragePool", "GlobalAveragePool", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice",
    "Pad", "DepthToSpace", "SpaceToDepth", "Resize", "Concat", "Mul", "Add", "Sub", "Div",
)  # fmt: skip
"""Operators that are looked through on the way to the next layer."""

_MOST_STEPS = 4
_MOST_ENDS = 6
"""How far, and to how many layers, a value is followed."""


@dataclass(frozen=True)
class Trial:
    """One value of the main graph with the grids to try, and the operands (node, number) that read it through them."""

    value: str
    scales: tuple[Scale, ...]
    readers: tuple[tuple[str, int], ...]


class Measured(NamedTuple):
    """Outputs of the model with trials: `noise` float32 [K] of a trial at one place, and the `signal` [] there."""

    noise: str
    signal: str


@dataclass(frozen=True)
class _End:
    """A place where noise is measured: behind `path`, nodes with the operand each reads, in the output of `layer`."""

    path: tuple[tuple[Node, int], ...] = ()
    layer: tuple[Node, int] | None = None

    @property
    def arrives(self) -> Value | None:
        """The value behind the path; None where there is no path."""
        return self.path[-1][0].outputs[0] if self.path else None


def with_trials(model: Model, trials: Sequence[Trial]) -> tuple[Model, list[tuple[Measured, ...]]]:
    """A copy of the model with the trials inside, and the outputs for each: of its value, then of what reads it."""
    changed = model.copy()
    surgeon = _Surgeon(changed)
    return changed, [tuple(surgeon.measure(trial)) for trial in trials]


def laid_out(model: Model, trials: Sequence[Trial]) -> Iterator[list[str]]:
    """For each trial the names of what there is one of for each candidate, and of the layers' weights."""
    nodes = {node_key(node): node for node in model.graph}
    for trial in trials:
        names = [trial.value]
        for end in _ends(nodes, trial):
            names += [node.outputs[0].name or "" for node, _ in end.path]
            if end.layer is not None:
                node = end.layer[0]
                names += [value.name or "" for value in (*node.outputs[:1], node.inputs[1]) if value is not None]
        yield names


def _ends(nodes: dict[str, Node], trial: Trial) -> list[_End]:
    """The places where the noise of a trial shows, without repetition."""
    ends: dict[tuple[int, ...], _End] = {}
    for key, operand in trial.readers:
        for end in _follow(nodes[key], operand, ()):
            steps = (*end.path, *([end.layer] if end.layer is not None else []))
            ends.setdefault(tuple(part for node, place in steps for part in (id(node), place)), end)
    return list(ends.values())[:_MOST_ENDS]


def _follow(reader: Node, operand: int, path: tuple[tuple[Node, int], ...]) -> Iterator[_End]:
    if reader.op_type in LAYERS and _linear(reader, operand):
        yield _End(path, (reader, operand))
        return
    adds = sum(node.op_type == "Add" for node, _ in path)
    if reader.op_type not in _THROUGH or reader.domain not in ("", "ai.onnx") or len(path) == _MOST_STEPS or adds > 1:
        yield _End(path)
        return
    path = (*path, (reader, operand))
    uses = tuple(use for use in reader.outputs[0].uses() if use[0].graph is reader.graph)
    if not uses or reader.outputs[0].is_graph_output():
        yield _End(path)
    for follower, place in uses:
        yield from _follow(follower, place, path)


def _linear(node: Node, operand: int) -> bool:
    """True if differences of this operand can go through a copy of the layer as one batch of all candidates."""
    if node.op_type in ("Conv", "ConvTranspose"):
        return operand == 0
    if node.op_type == "Gemm":
        return operand == 0 and not ("transA" in node.attributes and node.attributes["transA"].as_int())
    own, other = (
        len(shape) if (shape := _shape(node, place)) is not None else None for place in (operand, 1 - operand)
    )
    if own is None or other is None:
        return False
    return own >= max(other, 2) or (operand == 0 and other <= 2)  # candidates become the first dimension


def _shape(node: Node, operand: int) -> tuple[int | None, ...] | None:
    value = node.inputs[operand]
    return dimensions(value) if value is not None else None


class _Surgeon:
    """Adds trials to one model; nodes go to the end of its graph, which is sorted when it is written."""

    def __init__(self, model: Model) -> None:
        self._graph: Graph = model.graph
        self._opset = model.opset
        self._nodes = {node_key(node): node for node in self._graph}
        self._values = {value.name or "": value for value in self._graph.inputs}
        self._values.update({value.name or "": value for node in self._graph for value in node.outputs})
        self._signals: dict[str, str] = {}
        self._vectors: dict[tuple[int, ...], Value] = {}

    def measure(self, trial: Trial) -> Iterator[Measured]:
        source = self._values[trial.value]
        tried = [self._through_grid(source, scale) for scale in trial.scales]
        yield self._at(source, tried, _End())
        for end in _ends(self._nodes, trial):
            yield self._at(source, tried, end)

    def _at(self, source: Value, tried: list[Value], end: _End) -> Measured:
        arrived = [self._along(end.path, value) for value in tried]
        plain = end.arrives or source
        rows = [self._lifted(value) for value in arrived]
        noise = self._node("Sub", [self._node("Concat", rows, axis=0), plain])
        if end.layer is None:
            return Measured(self._power(noise, rows=len(tried)), self._signal(plain))
        node, operand = end.layer
        if node.op_type != "MatMul":  # candidates join the samples of the batch
            shape = self._node("Shape", [plain])
            rest = self._node("Slice", [shape, self._vector(1), self._vector(np.iinfo(np.int64).max)])
            noise = self._node("Reshape", [noise, self._node("Concat", [self._vector(-1), rest], axis=0)])
        inputs = list(node.inputs[:2])
        inputs[operand] = noise
        return Measured(self._power(self._copy(node, inputs), rows=len(tried)), self._signal(node.outputs[0]))

    def _lifted(self, value: Value) -> Value:
        """The value with a first dimension of one."""
        if self._opset < 13:
            return self._node("Unsqueeze", [value], axes=[0])
        return self._node("Unsqueeze", [value, self._vector(0)])

    def _along(self, path: tuple[tuple[Node, int], ...], value: Value) -> Value:
        """What becomes of `value` in place of the one that the path begins with."""
        for node, operand in path:
            inputs = list(node.inputs)
            inputs[operand] = value
            value = self._copy(node, inputs)
        return value

    def _through_grid(self, source: Value, scale: Scale) -> Value:
        """What the grid makes of a value; in float arithmetic where QuantizeLinear would not stop at its levels."""
        info = np.iinfo(scale.dtype) if scale.dtype in ("int8", "uint8") else None
        if info is None or (scale.lowest, scale.highest) != (info.min, info.max):
            return self._rounded(source, scale)
        steps = add_initializer(self._graph, "qcli.trial.scale", scale.scale.reshape(()))
        zero = add_initializer(self._graph, "qcli.trial.zero", scale.zero_point.astype(scale.dtype).reshape(()))
        return self._node("DequantizeLinear", [self._node("QuantizeLinear", [source, steps, zero]), steps, zero])

    def _rounded(self, source: Value, scale: Scale) -> Value:
        zero = int(scale.zero_point[0])
        ends = [np.float32(end - zero) for end in (scale.lowest, scale.highest)]
        steps, lowest, highest = (
            add_initializer(self._graph, "qcli.trial.number", np.asarray(number, np.float32))
            for number in (scale.scale.reshape(()), *ends)
        )
        level = self._node("Round", [self._node("Div", [source, steps])])
        kept = self._node("Min", [self._node("Max", [level, lowest]), highest])
        return self._node("Mul", [kept, steps])

    def _signal(self, value: Value) -> str:
        name = value.name or ""
        if name not in self._signals:
            self._signals[name] = self._power(value, rows=1)
        return self._signals[name]

    def _power(self, value: Value, *, rows: int) -> str:
        """A new output [rows]: the sums of squares of equal parts of `value`."""
        flat = self._node("Reshape", [value, self._vector(rows, -1)])
        by_attribute = self._opset < 18
        axes = {"axes": [1]} if by_attribute else {}
        total = self._node("ReduceSumSquare", [flat, *([] if by_attribute else [self._vector(1)])], keepdims=0, **axes)
        return total.name or ""

    def _copy(self, node: Node, inputs: list[Value | None]) -> Value:
        return self._node(node.op_type, inputs, **dict(node.attributes))

    def _node(self, operator: str, inputs: Sequence[Value | None], **attributes: object) -> Value:
        name = f"qcli.trial.{len(self._graph)}.{operator}"
        node = make_node(operator, inputs, name=name, output=name, attributes=attributes)
        self._graph.append(node)
        return node.outputs[0]

    def _vector(self, *numbers: int) -> Value:
        if numbers not in self._vectors:
            self._vectors[numbers] = add_initializer(self._graph, "qcli.trial.vector", np.array(numbers, np.int64))
        return self._vectors[numbers]
