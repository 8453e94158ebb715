"""Which nodes become integer, so that the whole network is fast and no border stops a fusion.

Anchors (Conv, Gemm, MatMul with a constant weight) pay on their own. What lies between two anchors stays integer if it
has a kernel, because two conversions cost more than it does. What follows an anchor and only moves or reduces data does
so on 8 bits. Everything else is float, with a reason. Figures in docs/placement.md, other runtimes in docs/targets.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Protocol

import msgspec

from qcli.existing import QUANTIZED_OPERATORS, touches_quantized
from qcli.graph import (
    Graph,
    Model,
    Node,
    Value,
    dimensions,
    is_constant,
    node_key,
    original_name,
    sole_consumer,
)
from qcli.legality import illegal
from qcli.tails import bias_operand, tail_of
from qcli.targets._support import Placement, Support
from qcli.types import KeptFloat

_STRUCTURAL = (
    "Shape", "Cast", "Constant", "ConstantOfShape", "Range", "If", "Loop", "Scan", *QUANTIZED_OPERATORS,
)  # fmt: skip


class Rules(Protocol):
    """What placement asks of a recipe's rules."""

    def refusal(self, node: Node) -> str | None:
        """Why the recipe keeps a node from static quantization, or None."""
        ...

    def in_floats(self, node: Node) -> bool:
        """True if what the node reads becomes floats of eight bits."""
        ...


class Target(Protocol):
    """What placement asks of a target."""

    def support(self, operator: str, domain: str) -> Support | None: ...

    def refusal(self, operator: str, domain: str) -> str: ...


@dataclass(frozen=True)
class Placed:
    """A node that becomes integer.

    `operands` hold its activations. `tail` are the nodes that its kernel swallows (a bias Add, Relu, Clip), `result`
    is the value behind them, quantized if `quantize_output`. `bias` is the reader and operand of the bias. `floats`:
    it multiplies floats of eight bits.
    """

    node: Node
    support: Support
    operands: tuple[int, ...]
    tail: tuple[Node, ...] = ()
    bias: tuple[Node, int] | None = None
    quantize_output: bool = True
    floats: bool = False

    @property
    def result(self) -> Value:
        return (self.tail[-1] if self.tail else self.node).outputs[0]

    @property
    def results(self) -> tuple[Value, ...]:
        """All values that carry its codes: one, or the parts of a Split."""
        return tuple(self.node.outputs) if self.support.parts else (self.result,)


@dataclass
class Layout:
    """The nodes that become integer, in graph order, and those that stay float."""

    placed: dict[Node, Placed] = field(default_factory=dict)
    kept: list[KeptFloat] = field(default_factory=list)


@dataclass(frozen=True)
class Unfit:
    """Values that no static grid holds, and nodes that must not become integer, by name with the reason."""

    values: dict[str, str] = field(default_factory=dict)
    nodes: dict[str, str] = field(default_factory=dict)


NOTHING_UNFIT = Unfit()


@dataclass(frozen=True)
class _Measured:
    """The rules of a recipe, and what was measured against them."""

    rules: Rules
    unfit: Unfit

    def refusal(self, node: Node) -> str | None:
        return self.unfit.nodes.get(node_key(node)) or self.rules.refusal(node)

    def in_floats(self, node: Node) -> bool:
        return self.rules.in_floats(node)


def place(model: Model, target: Target, rules: Rules, unfit: Unfit = NOTHING_UNFIT) -> Layout:
    """Divides the main graph and each body of an If, Loop or Scan, each for itself."""
    layout = Layout()
    reasons: dict[Node, str] = {}
    measured = _Measured(rules, unfit)
    for graph in model.graphs():
        placed, why = _divide(graph, target, measured)
        layout.placed.update(placed)
        reasons.update(why)
    layout.kept = _kept(model, layout, reasons)
    return layout


def _divide(graph: Graph, target: Target, rules: _Measured) -> tuple[dict[Node, Placed], dict[Node, str]]:
    """The nodes of one graph that become integer, and why the others do not."""
    reasons: dict[Node, str] = {}
    candidates: dict[Node, Placed] = {}
    for node in graph:
        found = _candidate(node, target, rules)
        reason = found if isinstance(found, str) else _unfit(found, rules.unfit)
        if isinstance(found, str) or reason is not None:
            reasons[node] = str(reason)
        else:
            candidates[node] = found
    reachable = _forward(graph, candidates)
    placed = _settled(reachable, _backward(graph, reachable))
    for node in candidates:
        if node not in reachable:
            reasons[node] = f"no integer operator feeds it, and {node.op_type} alone does not pay"
        elif node not in placed:
            reasons[node] = "it would be an integer island between float nodes"
    return placed, reasons


def _candidate(node: Node, target: Target, rules: Rules) -> Placed | str:
    """The node as it would be placed, or the reason why it cannot be."""
    support = target.support(node.op_type, node.domain)
    if support is None:
        return target.refusal(node.op_type, node.domain)
    floats, multiplies = rules.in_floats(node), support.weight is not None
    if floats and multiplies:
        support = _of_floats(support)
    if support.either and support.weight is not None and not is_constant(node.inputs[support.weight]):
        support = msgspec.structs.replace(support, weight=None, bias=None, data=None)
    reason = illegal(node, support) or rules.refusal(node)
    if reason is None and floats and not multiplies:
        reason = "floats of 8 bits are for what Conv, Gemm and MatMul multiply: it computes in float"
    if reason is None and _is_swish(node, target):
        reason = "of x f(x), both are there in float, since f has no integer kernel"
    if reason is None and support.placement is not Placement.ANCHOR and touches_quantized(node):
        reason = "it stands beside what is quantized already"
    if reason is not None:
        return reason
    operands = tuple(
        index
        for index, value in enumerate(node.inputs)
        if value is not None and not is_constant(value) and (support.data is None or index in support.data)
    )
    if support.residual and len(operands) > 1:
        operands = _without_fused(node, operands, target)
    if not operands:
        return "it reads no activation"
    if support.depthwise is not None and _is_depthwise(node) and _is_computed(node.inputs[0]):
        support = msgspec.structs.replace(support, placement=support.depthwise)
    tail, bias = tail_of(node, support, rules.refusal)
    return Placed(node=node, support=support, operands=operands, tail=tail, bias=bias, floats=floats)


def _of_floats(support: Support) -> Support:
    """A layer that multiplies floats of eight bits: its sum and its bias are wider floats, and so is its result."""
    return Support(
        placement=Placement.ANCHOR,
        data=support.data,
        weight=support.weight,
        output_optional=True,
        float_bias=True,
        either=support.either,
    )


def _without_fused(node: Node, operands: tuple[int, ...], target: Target) -> tuple[int, ...]:
    """The operands of a sum without the first one that comes from a layer and goes nowhere else."""
    for operand in operands:
        value = node.inputs[operand]
        layer = value.producer() if value is not None else None
        row = target.support(layer.op_type, layer.domain) if layer is not None else None
        alone = value is not None and sole_consumer(value) is node
        if alone and row is not None and row.weight is not None:
            return tuple(other for other in operands if other != operand)
    return operands


def _is_swish(node: Node, target: Target) -> bool:
    """True for the Mul of x f(x) with an f that has no integer kernel: x and f(x) are there in float anyway."""
    if node.op_type != "Mul" or len(node.inputs) != 2:
        return False
    for value, other in ((node.inputs[0], node.inputs[1]), (node.inputs[1], node.inputs[0])):
        gate = other.producer() if other is not None else None
        if gate is not None and gate.op_type in _GATES and gate.inputs[0] is value:
            return target.support(gate.op_type, gate.domain) is None
    return False


_GATES = ("HardSigmoid", "Sigmoid", "Softplus", "Tanh")


def _is_depthwise(node: Node) -> bool:
    """True for a Conv in which each channel is read by itself."""
    weight = dimensions(node.inputs[1]) if node.inputs[1] is not None else None
    groups = node.attributes["group"].as_int() if "group" in node.attributes else 1
    return groups > 1 and weight is not None and weight[1] == 1


def _is_computed(value: Value | None) -> bool:
    """False for inputs of the model, which cost as much to quantize as the result of what reads them."""
    return value is not None and value.producer() is not None


def _unfit(placed: Placed, unfit: Unfit) -> str | None:
    """Why what was measured speaks against a node, or None. Kernels that can give floats need no grid behind them."""
    names = [value.name for index in placed.operands if (value := placed.node.inputs[index]) is not None]
    if not placed.support.output_optional:
        names += [value.name for value in placed.results]
    return next((f"'{name}': {unfit.values[name]}" for name in names if name in unfit.values), None)


def _forward(graph: Graph, candidates: dict[Node, Placed]) -> dict[Node, Placed]:
    """The anchors, and what can be reached from them through integer operators."""
    ready: set[Value] = set()
    reachable: dict[Node, Placed] = {}
    swallowed: set[Node] = set()
    for node in graph:
        placed = candidates.get(node)
        if placed is None or node in swallowed:
            continue
        sources = [node.inputs[index] for index in placed.operands]
        fed = [value in ready for value in sources if value is not None]
        if placed.support.placement is Placement.ANCHOR or (all(fed) if placed.support.tied else any(fed)):
            reachable[node] = placed
            swallowed.update(placed.tail)
            ready.update(placed.results)
    return reachable


def _backward(graph: Graph, reachable: dict[Node, Placed]) -> set[Node]:
    """Of those the ones that pay: anchors, what leads to one, and what moves data behind a quantized result."""
    leading: set[Node] = set()
    for node in reversed(tuple(graph)):
        placed = reachable.get(node)
        if placed is None:
            continue
        readers = [reader for value in placed.results for reader, _ in value.uses()]
        if placed.support.placement is Placement.ANCHOR or any(reader in leading for reader in readers):
            leading.add(node)
    behind: set[Value] = {
        value
        for node, placed in reachable.items()
        if node in leading and not (placed.support.placement is Placement.ANCHOR and placed.support.output_optional)
        for value in placed.results
    }
    for node, placed in reachable.items():
        source = node.inputs[0]
        if placed.support.placement is Placement.FOLLOW and source in behind:
            leading.add(node)
            behind.update(placed.results)
    return leading


def _settled(reachable: dict[Node, Placed], useful: set[Node]) -> dict[Node, Placed]:
    """Takes out what reads nothing quantized, now that kernels with float readers give floats, until all is settled."""
    while True:
        placed = {node: _with_output(item, reachable, useful) for node, item in reachable.items() if node in useful}
        quantized = {value for item in placed.values() if item.quantize_output for value in item.results}
        idle = {
            node
            for node, item in placed.items()
            if item.support.placement is not Placement.ANCHOR
            and not any(node.inputs[index] in quantized for index in item.operands)
        }
        if not idle:
            return placed
        useful = useful - idle


def _with_output(placed: Placed, reachable: dict[Node, Placed], useful: set[Node]) -> Placed:
    """A kernel that can give float results does so unless all its readers take integers from it."""
    uses = tuple(placed.result.uses())
    integer = bool(uses) and all(reader in useful and operand in reachable[reader].operands for reader, operand in uses)
    wanted = integer and not placed.result.is_graph_output() and not placed.floats
    if not placed.support.output_optional or wanted:
        return placed
    tail = placed.tail
    while tail and not _adds_bias(placed, tail[-1]):
        tail = tail[:-1]
    return replace(placed, tail=tail, quantize_output=False)


def _adds_bias(placed: Placed, follower: Node) -> bool:
    """True for the node of a tail that adds the bias, integer or not."""
    if placed.bias is not None:
        return placed.bias[0] is follower
    return placed.support.float_bias and bias_operand(placed.node, follower) is not None


def _kept(model: Model, layout: Layout, reasons: dict[Node, str]) -> list[KeptFloat]:
    swallowed = {node for placed in layout.placed.values() for node in placed.tail}
    kept: list[KeptFloat] = []
    for node in model.nodes():
        if node in layout.placed or node in swallowed or node.op_type in _STRUCTURAL or _on_integers(node):
            continue
        name = next((value.name for value in node.outputs if value.name), "")
        kept.append(KeptFloat(node=name, name=original_name(node), op=node.op_type, reason=reasons.get(node, "")))
    return kept


def _on_integers(node: Node) -> bool:
    """Shape arithmetic and the like, where there is nothing to quantize."""
    kinds = [value.dtype.numpy().kind for value in node.outputs if value.dtype is not None]
    return bool(kinds) and "f" not in kinds
