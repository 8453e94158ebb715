"""Which nodes really run on integer kernels, read from the graph that onnxruntime optimized.

The work is that of the float model's nodes; `tracing` finds what became of each. A node that cannot be
traced counts as float, unless onnxruntime runs integer nodes that could not be traced either and are large
enough to be it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path

from qcli.files import scratch_folder
from qcli.graph import Model, Node, concrete_shapes, normalize_graph, original_name
from qcli.graph.optimized import OptimizedGraph, RuntimeNode, read_optimized
from qcli.layers import RECURRENT, multiply_accumulates
from qcli.runtime import Session
from qcli.tracing import FAMILY_OF, PROJECTING, match_nodes, running_weight, weight_shapes
from qcli.types import Array, Noun

_INTEGER = (
    "QLinearConv", "QLinearConvTranspose", "ConvInteger", "QLinearMatMul", "QGemm", "MatMulInteger",
    "MatMulInteger16", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "QAttention",
)  # fmt: skip

_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}

_INTEGER_ACCURACY_LEVEL = 4
"""MatMulNBits multiplies 8-bit integers at this accuracy_level; at others it decodes its weights to float."""

_TWO_BIT_BLOCKS = (32, 64, 128)
"""Codes of two bits have an integer kernel in these blocks alone (onnxruntime 1.31.1)."""


class FloatKernel(Noun, frozen=True, kw_only=True):
    """A compute node of the float model that did not become integer.

    `node` is its name in the user's file (the output's where it has none), `output` its first output,
    `kernel` what runs it, "" if that could not be told.
    """

    node: str
    output: str
    op: str
    kernel: str
    mac_share: float


class Kernels(Noun, frozen=True, kw_only=True):
    """What runs.

    `integer` and `float_nodes` count the compute nodes of the optimized graph. `integer_share` is the share
    of the float model's multiply-accumulates that run on integer kernels, `by_kernel` counts all operators,
    most frequent first. `unmatched` names the compute nodes that could not be traced to the float model.
    """

    integer: int
    float_nodes: int
    integer_share: float
    by_kernel: dict[str, int]
    stayed_float: tuple[FloatKernel, ...]
    unmatched: tuple[str, ...] = ()


def read_kernels(
    quantized: bytes | Path, float_model: Model, feeds: Mapping[str, Array], *, lean: bool = False
) -> Kernels:
    """Loads `quantized` as onnxruntime would and reads what became of each compute node of `float_model`.

    `feeds` is one sample: multiply-accumulates are counted for its shapes. Raises RuntimeFailure if
    onnxruntime cannot load the model.
    """
    with scratch_folder() as folder:
        saved = folder / "optimized.onnx"
        Session(quantized, optimized_to=saved, lean=lean)
        optimized = read_optimized(saved, feeds)
    normal = float_model.copy()
    normalize_graph(normal)
    return count_kernels(optimized, normal, feeds)


def count_kernels(optimized: OptimizedGraph, float_model: Model, feeds: Mapping[str, Array]) -> Kernels:
    """The counts for a graph that was read already; `float_model` is in normal form."""
    running = [node for node in optimized.nodes if node.op in FAMILY_OF]
    matches = match_nodes(running, float_model, optimized)
    integer = sum(is_integer(node) for node in running)
    shapes = concrete_shapes(float_model, feeds)
    work = {node: work_of(node, shapes) for node in matches.pairs}
    total = sum(work.values())
    covered = sum(work[node] for node, found in matches.pairs.items() if _all_integer(node, found))
    unknown = sum(work[node] for node, found in matches.pairs.items() if not found)
    covered += min(unknown, sum(_own_work(node, optimized) for node in matches.unmatched if is_integer(node)))
    split = any(node.op in PROJECTING for node in running)
    if integer == len(running) >= len(matches.pairs) and not split:  # as many as there were, and none of them in float
        covered = total
    if total == 0:  # nothing to weigh the nodes with
        total, covered = max(len(running), 1), integer
    return Kernels(
        integer=integer,
        float_nodes=len(running) - integer,
        integer_share=covered / total,
        by_kernel=_counted(optimized),
        stayed_float=tuple(_stayed_float(matches.pairs, work)),
        unmatched=tuple(node.name or node.outputs[0] for node in matches.unmatched),
    )


def is_integer(node: RuntimeNode) -> bool:
    """True if the kernel of a compute node multiplies integers."""
    if node.op == "MatMulNBits":
        decodes = node.integers.get("bits") == 2 and node.integers.get("block_size") not in _TWO_BIT_BLOCKS
        return node.integers.get("accuracy_level", 0) == _INTEGER_ACCURACY_LEVEL and not decodes
    return node.op in _INTEGER


def _all_integer(node: Node, running: list[RuntimeNode]) -> bool:
    return bool(running) and all(_as_integers(node, item) for item in running)


def _as_integers(node: Node, item: RuntimeNode) -> bool:
    """True if a running node does the work of `node` on integers: of attention, the layers but not the products."""
    return is_integer(item) and (item.op not in PROJECTING or any(weight_shapes(node)))


def _counted(optimized: OptimizedGraph) -> dict[str, int]:
    counts = Counter(node.op for node in optimized.nodes)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _stayed_float(pairs: dict[Node, list[RuntimeNode]], work: dict[Node, int]) -> Iterator[FloatKernel]:
    total = sum(work.values())
    for node, running in pairs.items():
        if _all_integer(node, running):
            continue
        output = next((value.name for value in node.outputs if value.name), "")
        yield FloatKernel(
            node=original_name(node) or output,
            output=output,
            op=node.op_type,
            kernel=next((item.op for item in running if not _as_integers(node, item)), ""),
            mac_share=work[node] / total if total else 0.0,
        )


def work_of(node: Node, shapes: dict[str, tuple[int, ...]]) -> int:
    """Multiply-accumulates of a node of the float model; at least one for each of its weights."""
    weights = sum(prod(shape) for shape in weight_shapes(node))
    if node.op_type not in RECURRENT:
        return max(multiply_accumulates(node, shapes), weights)
    data = shapes.get(node.inputs[0].name or "") if node.inputs[0] is not None else None
    return (weights or _recurrent_weights(node, data)) * (
        data[0] * data[1] if data is not None and len(data) == 3 else 1
    )


def _recurrent_weights(node: Node, data: tuple[int, ...] | None) -> int:
    """The weights of a recurrent layer whose matrices are computed by other nodes, from its attributes."""
    if "hidden_size" not in node.attributes:
        return 0
    hidden = node.attributes["hidden_size"].as_int()
    both = "direction" in node.attributes and node.attributes["direction"].as_string() == "bidirectional"
    return (1 + both) * _GATES[node.op_type] * hidden * (hidden + (data[-1] if data else hidden))


def _own_work(node: RuntimeNode, optimized: OptimizedGraph) -> int:
    """Multiply-accumulates of a node of the optimized graph by its own shapes; 0 if they are unknown."""
    weight = running_weight(node, optimized)
    result = optimized.shapes.get(node.outputs[0])
    if weight is None or not result:
        return 0
    if FAMILY_OF[node.op] == "conv":
        return prod(result) * prod(weight[1:])
    return prod(result) * prod(weight) // result[-1] if len(weight) == 2 and result[-1] else 0
