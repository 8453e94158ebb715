"""What a model file is made of, and what of it runs on integer kernels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np

from qcli.benching.peak import measure_peak
from qcli.contracts import InputSpec
from qcli.errors import RuntimeFailure, UnsupportedError
from qcli.graph import Model, Node, check_sizes, concrete_shapes, constant_of, load_model, normalize_graph
from qcli.kernels import read_kernels, work_of
from qcli.latency import made_up_feeds
from qcli.layers import LAYERS, RECURRENT, multiply_accumulates
from qcli.report import FileFacts, file_facts
from qcli.sizes import BytesBy, MemoryFacts
from qcli.storage import read_storage
from qcli.types import Array, Noun

_QUANTIZE = ("QuantizeLinear", "DynamicQuantizeLinear")
_DEQUANTIZE = ("DequantizeLinear",)
_BLOCKED = (*_DEQUANTIZE, "MatMulNBits", "GatherBlockQuantized")


class KernelCounts(Noun, frozen=True, kw_only=True):
    """What onnxruntime runs: compute nodes by kind of kernel, and all operators of the optimized graph."""

    integer: int
    float_: int = msgspec.field(name="float")
    by_kernel: dict[str, int]


class Inspection(Noun, frozen=True, kw_only=True):
    """The facts of one model file.

    `weight_bytes` are those of all constants by dtype, `graph_bytes` is the rest of the file. `bytes_by` says what the
    constants are; it and the three after it are those of `qcli.sizes.Storage`. `memory` is what running the model
    takes, null unless it was asked for and where the system does not tell. `block_sizes` counts the nodes that decode
    weights in blocks, by the size of a block. `multiply_accumulates` are those of one sample, free axes of size one;
    null where shapes cannot be inferred. `kernels` is null, and `problem` says why, if onnxruntime cannot load the
    model.
    """

    schema: int = 1
    command: str = "inspect"
    model: FileFacts
    inputs: tuple[InputSpec, ...]
    outputs: tuple[str, ...]
    operators: dict[str, int]
    weight_bytes: dict[str, int]
    graph_bytes: int
    bytes_by: BytesBy
    weights: int
    bits_per_weight: float | None
    external_bytes: int
    memory: MemoryFacts | None = None
    quantize_nodes: int
    dequantize_nodes: int
    block_sizes: dict[str, int]
    multiply_accumulates: int | None
    kernels: KernelCounts | None
    problem: str = ""


def inspect_model(path: Path, *, memory: bool = False) -> Inspection:
    """Looks at a model without changing it; with `memory` also runs it in a process of its own.

    Raises InputError for what is no model.
    """
    model = load_model(path)
    check_sizes(model)
    facts = file_facts(path, model)
    operators = Counter(node.op_type for node in model.nodes())
    weights = _weight_bytes(model)
    feeds = _feeds(model)
    kernels, problem = _kernels(path, model, feeds)
    return Inspection(
        model=facts,
        inputs=model.inputs(),
        outputs=model.outputs(),
        operators=dict(sorted(operators.items(), key=lambda item: (-item[1], item[0]))),
        weight_bytes=weights,
        graph_bytes=max(facts.bytes - sum(weights.values()), 0),
        memory=measure_peak(path, feeds) if memory and feeds is not None else None,
        **msgspec.structs.asdict(read_storage(path)),
        quantize_nodes=sum(operators[op] for op in _QUANTIZE),
        dequantize_nodes=sum(operators[op] for op in _DEQUANTIZE),
        block_sizes=_block_sizes(model),
        multiply_accumulates=_work(model, feeds) if feeds is not None else None,
        kernels=kernels,
        problem=problem,
    )


def _block_sizes(model: Model) -> dict[str, int]:
    """The most frequent size first."""
    sizes = Counter(str(size) for node in model.nodes() if (size := _block_size(node)))
    return dict(sizes.most_common())


def _block_size(node: Node) -> int:
    """Of weights that a node decodes, or whose scales it repeats as `weight_only` writes it; 0 for other nodes."""
    if node.op_type in _BLOCKED:
        return node.attributes["block_size"].as_int() if "block_size" in node.attributes else 0
    scales, numbers = (constant_of(value) for value in node.inputs[:2]) if node.op_type == "Gather" else (None, None)
    if scales is None or numbers is None or scales.dtype != np.float32 or numbers.ndim != 1:
        return 0
    size = int(np.count_nonzero(numbers == 0))
    return size if size > 1 and np.array_equal(numbers, np.arange(numbers.size) // size) else 0


def _weight_bytes(model: Model) -> dict[str, int]:
    """Bytes of the constants by dtype, the largest part first."""
    sizes: Counter[str] = Counter()
    for tensor in model.constants():
        name = "string" if tensor.dtype.name == "STRING" else tensor.dtype.numpy().name
        sizes[name] += tensor.nbytes
    return dict(sizes.most_common())


def _feeds(model: Model) -> dict[str, Array] | None:
    """One sample of noise, or None if an input's rank or type is not known."""
    if any(spec.shape is None or spec.dtype == "string" for spec in model.inputs()):
        return None
    return made_up_feeds(model.inputs())


def _work(model: Model, feeds: Mapping[str, Array]) -> int | None:
    """Multiply-accumulates of all layers; None if the shapes of one in the main graph are unknown.

    Layers in bodies count one multiply-accumulate for each of their weights, since no sample is run.
    """
    normal = model.copy()
    normalize_graph(normal)  # so that weights in Constant nodes count too
    shapes = concrete_shapes(normal, feeds)
    layers = [node for node in normal.nodes() if node.op_type in (*LAYERS, *RECURRENT)]
    outside = [node for node in layers if node.op_type in LAYERS and node.graph is normal.graph]
    known = all(multiply_accumulates(node, shapes) for node in outside)
    return sum(work_of(node, shapes) for node in layers) if known else None


def _kernels(path: Path, model: Model, feeds: Mapping[str, Array] | None) -> tuple[KernelCounts | None, str]:
    try:
        found = read_kernels(path, model, feeds or {}, lean=model.large)
    except (RuntimeFailure, UnsupportedError) as error:
        return None, error.message
    return KernelCounts(integer=found.integer, float_=found.float_nodes, by_kernel=found.by_kernel), ""
