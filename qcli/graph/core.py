"""The kernels of a graph that onnxruntime optimized, without the changes of layout around them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import onnx
from onnx import helper

from qcli.types import Array, Noun

LAYOUTS = ("Transpose", "ReorderInput", "ReorderOutput")
"""What onnxruntime puts around kernels that want their data laid out otherwise."""


class Parts(Noun, frozen=True, kw_only=True):
    """The operators of an optimized graph, the skin at its ends apart.

    `head` is a file: a model of the skin at the inputs, None where there is none. `wrapped` says if there is any skin.
    """

    kernels: tuple[str, ...]
    head: Path | None
    wrapped: bool


def take_apart(saved: Path, skin: Collection[str] = LAYOUTS) -> Parts:
    """Looks for the core of a graph that onnxruntime saved, and writes what leads to it beside it.

    `skin` are the operators that do not count at the graph's ends.
    """
    model = onnx.load(str(saved), load_external_data=False)
    first, middle, last = _divided(model.graph, skin)
    head = saved.with_name("head.onnx") if first else None
    if head is not None:
        _save(model, first, {}, head)
    kernels = tuple(node.op_type for node in middle)
    return Parts(kernels=kernels, head=head, wrapped=bool(first or last))


def write_core(saved: Path, inputs: Mapping[str, Array], skin: Collection[str] = LAYOUTS) -> Path:
    """A model of the core alone, beside `saved`; `inputs` are what the head gives, and what the whole is given."""
    model = onnx.load(str(saved), load_external_data=False)
    path = saved.with_name("core.onnx")
    _save(model, _divided(model.graph, skin)[1], inputs, path)
    return path


def _divided(graph: onnx.GraphProto, skin: Collection[str]) -> tuple[list[onnx.NodeProto], ...]:
    """The skin at the inputs, the core, and the skin at the outputs. Where all is skin, all is core."""
    nodes = list(graph.node)
    outer = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer} | {""}
    first: list[onnx.NodeProto] = []
    for node in nodes:
        if node.op_type in skin and outer.issuperset(node.input):
            first.append(node)
            outer.update(node.output)
    inner = {name for node in nodes for name in node.input}
    last: list[onnx.NodeProto] = []
    for node in reversed(nodes):
        if node.op_type in skin and node not in first and inner.isdisjoint(node.output):
            last.insert(0, node)
            inner = {name for other in nodes if other not in last for name in other.input}
    middle = [node for node in nodes if node not in first and node not in last]
    return (first, middle, last) if middle else ([], nodes, [])


def _save(source: onnx.ModelProto, nodes: Sequence[onnx.NodeProto], given: Mapping[str, Array], path: Path) -> None:
    """A model of some nodes: its inputs are what they read from others, its outputs what none of them reads."""
    model = onnx.ModelProto()
    model.CopyFrom(source)
    graph = model.graph
    known = {value.name: value for value in source.graph.input}
    known |= {name: _described(name, array) for name, array in given.items()}
    constants = {tensor.name for tensor in graph.initializer}
    made = [name for node in nodes for name in node.output if name]
    read = dict.fromkeys(name for node in nodes for name in node.input if name)
    for field in (graph.node, graph.input, graph.output, graph.value_info):
        del field[:]
    graph.node.extend(nodes)
    graph.input.extend(known[name] for name in read if name not in constants and name not in made)
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in made if name not in read)
    onnx.save(model, str(path))


def _described(name: str, array: Array) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
