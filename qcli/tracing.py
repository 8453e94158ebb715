"""From a node of the graph that onnxruntime optimized back to the node of the float model that it came from.

onnxruntime renames what it fuses. Seen in 1.31: a node keeps its name (`/head`), gets a suffix
(`/stem/conv_token_1`, `/scores/MatMulScaleFusion/`, quantize_dynamic's `MatMul_4_quant`), or is called
after the value that it now makes (`/stem/relu_output_nchwc`); values get suffixes too
(`/up/matmul_output_QuantizeLinear_Output`), and so do weights (`head.weight_quantized`). So nodes are
matched by name, by output and by weight: exactly first, then by the longest known name that a name begins
with, last by a weight of a size that occurs once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import TypeVar

from qcli.graph import Model, Node, is_constant
from qcli.graph.optimized import OptimizedGraph, RuntimeNode
from qcli.layers import RECURRENT

_FAMILIES = {
    "conv": (
        "Conv", "ConvTranspose", "FusedConv", "NhwcFusedConv", "QLinearConv", "ConvInteger",
        "QLinearConvTranspose",
    ),
    "product": (
        "MatMul", "Gemm", "FusedMatMul", "FusedGemm", "TransposeMatMul", "FusedMatMulActivation",
        "MatMulNBits", "MatMulBnb4", "QLinearMatMul", "QGemm", "MatMulInteger", "MatMulInteger16",
        "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "Attention", "MultiHeadAttention", "QAttention",
    ),
    "recurrent": (*RECURRENT, "DynamicQuantizeLSTM"),
}  # fmt: skip
"""The operators with multiply-accumulates, ONNX's and onnxruntime's. A node comes from one of its family."""

FAMILY_OF = {operator: family for family, operators in _FAMILIES.items() for operator in operators}

_REPACKED = ("MatMulNBits", "MatMulBnb4", "Attention", "QAttention", "MultiHeadAttention")
"""Operators whose weights are laid out anew, so that their size says nothing."""

_MOST_OWNERS = 4

Known = TypeVar("Known")


@dataclass
class Matches:
    """The float model's compute nodes, each with what runs in its place, and what could not be traced."""

    pairs: dict[Node, list[RuntimeNode]]
    unmatched: list[RuntimeNode] = field(default_factory=list)


def match_nodes(running: list[RuntimeNode], model: Model, optimized: OptimizedGraph) -> Matches:
    """Traces the compute nodes `running`; the better evidence of one goes before the weaker of another."""
    names = _index(model)
    matches = Matches(pairs={node: [] for node in model.nodes() if node.op_type in FAMILY_OF}, unmatched=running)
    for strategy in _STRATEGIES:
        rest = []
        for item in matches.unmatched:
            found = [node for node in strategy(names, item) if _fits(node, item, optimized)]
            if found:
                matches.pairs[next((node for node in found if not matches.pairs[node]), found[0])].append(item)
            else:
                rest.append(item)
        matches.unmatched = rest
    _match_attention(matches, names, running, optimized)
    _match_by_size(matches, optimized)
    return matches


def weight_shapes(node: Node) -> Iterator[tuple[int, ...]]:
    """The shapes of a node's constant factors: W of a layer, W and R of a recurrent one."""
    for value in node.inputs[1 : 3 if node.op_type in RECURRENT else 2]:
        if value is not None and is_constant(value) and value.const_value is not None:
            yield tuple(value.const_value.shape.numpy())


def running_weight(node: RuntimeNode, optimized: OptimizedGraph) -> tuple[int, ...] | None:
    """The shape of the first constant matrix that a running node reads, None if it is laid out anew."""
    if node.op in _REPACKED or "nchwc" in node.domain:
        return None
    shapes = (optimized.weights.get(name, ()) for name in node.inputs)
    return next((shape for shape in shapes if len(shape) >= 2), None)


@dataclass
class _Names:
    """Compute nodes by what they are known by, those that come last in the graph first.

    A name of a node that does not compute, or of a value, leads to the compute nodes before it, since
    fusions go by the last of the names that they swallow.
    """

    nodes: dict[str, list[Node]] = field(default_factory=dict)
    values: dict[str, list[Node]] = field(default_factory=dict)
    weights: dict[str, list[Node]] = field(default_factory=dict)


def _index(model: Model) -> _Names:
    names = _Names()
    for node in model.nodes():
        owners = [node] if node.op_type in FAMILY_OF else _owners(node, names)
        if node.name:
            names.nodes.setdefault(node.name, owners)
        for output in node.outputs:
            if output.name:
                names.values.setdefault(output.name, owners)
        if node.op_type in FAMILY_OF:
            for value in node.inputs[1:3]:
                if is_constant(value) and value is not None and value.name:
                    names.weights.setdefault(value.name, []).append(node)
    return names


def _owners(node: Node, names: _Names) -> list[Node]:
    """The compute nodes that a value of another node comes from, nearest first."""
    sources = [names.values.get(value.name or "", []) for value in node.inputs if value is not None]
    deepest = max((len(source) for source in sources), default=0)
    nearest = [source[depth] for depth in range(deepest) for source in reversed(sources) if depth < len(source)]
    return list(dict.fromkeys(nearest))[:_MOST_OWNERS]


def _exact_name(names: _Names, item: RuntimeNode) -> list[Node]:
    return names.nodes.get(item.name, [])


def _exact_output(names: _Names, item: RuntimeNode) -> list[Node]:
    return [node for output in item.outputs for node in names.values.get(output, [])]


def _exact_weight(names: _Names, item: RuntimeNode) -> list[Node]:
    return [node for name in item.inputs for node in names.weights.get(name, [])]


def _name_prefix(names: _Names, item: RuntimeNode) -> list[Node]:
    """The longest known name of a node or value that the node's name begins with."""
    return _longest({**names.values, **names.nodes}, item.name)


def _output_prefix(names: _Names, item: RuntimeNode) -> list[Node]:
    return [node for output in item.outputs for node in _longest({**names.nodes, **names.values}, output)]


def _weight_prefix(names: _Names, item: RuntimeNode) -> list[Node]:
    return [node for name in item.inputs for node in _longest(names.weights, name)]


_STRATEGIES: tuple[Callable[[_Names, RuntimeNode], list[Node]], ...] = (
    _exact_name,
    _exact_output,
    _exact_weight,
    _name_prefix,
    _output_prefix,
    _weight_prefix,
)


def _longest(known: dict[str, list[Node]], name: str) -> list[Node]:
    return longest_beginning(known, name) or []


def longest_beginning(known: Mapping[str, Known], name: str) -> Known | None:
    """What the longest known beginning of `name` stands for, whole words only.

    Example: conv_1_quant begins with conv_1, conv_10 does not.
    """
    for end in range(len(name), 0, -1):
        whole = end == len(name) or not (name[end].isalnum() and name[end - 1].isalnum())
        if whole and name[:end] in known:
            return known[name[:end]]
    return None


def _fits(node: Node, item: RuntimeNode, optimized: OptimizedGraph) -> bool:
    """True if the operators are of one family and the weights, where they can be compared, of one size."""
    if FAMILY_OF[node.op_type] != FAMILY_OF[item.op]:
        return False
    weight, expected = running_weight(item, optimized), next(weight_shapes(node), None)
    return weight is None or expected is None or prod(weight) == prod(expected)


def _match_attention(matches: Matches, names: _Names, running: list[RuntimeNode], optimized: OptimizedGraph) -> None:
    """Gives an Attention all that it does: the products that lead to its result, back to the layers with weights."""
    for item in running:
        product = next(iter(_exact_output(names, item)), None) if item.op in PROJECTING else None
        behind = _back_to_layers(product) if product is not None else []
        weights = sum(prod(shape) for node in behind for shape in weight_shapes(node))
        if behind and weights == prod(optimized.weights.get(item.inputs[1], (0,))):
            for node in behind:
                if item not in matches.pairs[node]:
                    matches.pairs[node].append(item)
            matches.unmatched = [other for other in matches.unmatched if other is not item]


PROJECTING = ("Attention", "QAttention")
"""Operators that are layers with weights, and products of what these compute."""


def _back_to_layers(product: Node) -> list[Node]:
    """A product of two activations and the compute nodes in front of it, up to the first with weights on each way."""
    found: dict[Node, None] = {}
    ahead, seen = [product], {product}
    while ahead:
        node = ahead.pop()
        if node.op_type in FAMILY_OF:
            found[node] = None
        if node.op_type not in FAMILY_OF or not any(weight_shapes(node)):
            sources = [value.producer() for value in node.inputs if value is not None]
            fresh = [source for source in dict.fromkeys(sources) if source is not None and source not in seen]
            seen.update(fresh)
            ahead += fresh
    return list(found) if not any(weight_shapes(product)) else []


def _match_by_size(matches: Matches, optimized: OptimizedGraph) -> None:
    """Pairs what is left over where the size of the weight leaves no choice."""
    alone = [node for node, found in matches.pairs.items() if not found]
    rest = []
    for item in matches.unmatched:
        size = prod(running_weight(item, optimized) or (0,))
        rivals = [other for other in matches.unmatched if prod(running_weight(other, optimized) or (0,)) == size]
        fitting = [
            node for node in alone if prod(next(weight_shapes(node), (0,))) == size and _fits(node, item, optimized)
        ]
        if size and len(rivals) == len(fitting) == 1:
            matches.pairs[fitting[0]].append(item)
        else:
            rest.append(item)
    matches.unmatched = rest
