"""Reading model files as they lie on the disk, above all what onnxruntime made of a model: what really runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import onnx

from qcli.types import Array, Noun


class RuntimeNode(Noun, frozen=True, kw_only=True):
    """One node of an optimized graph. `integers` holds the integer attributes, e.g. accuracy_level."""

    op: str
    domain: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    integers: dict[str, int]
    nested: bool


class OptimizedGraph(Noun, frozen=True, kw_only=True):
    """The nodes in the order in which they run, bodies of If and Loop included.

    `weights` are the names and shapes of the constants, `shapes` the known shapes of activations, with the
    free dimensions as they are for the sample that the graph was read for.
    """

    nodes: tuple[RuntimeNode, ...]
    weights: dict[str, tuple[int, ...]]
    shapes: dict[str, tuple[int, ...]]


def read_optimized(path: Path, feeds: Mapping[str, Array]) -> OptimizedGraph:
    """The graph that onnxruntime saved, for inputs of the shapes of `feeds`."""
    graph = onnx.load(str(path), load_external_data=False).graph
    bound = _bound_dimensions(graph, feeds)
    known = ((info.name, _shape(info, bound)) for info in (*graph.input, *graph.value_info, *graph.output))
    return OptimizedGraph(
        nodes=tuple(_nodes(graph, nested=False)),
        weights={tensor.name: tuple(tensor.dims) for tensor in _weights(graph)},
        shapes={name: shape for name, shape in known if shape is not None},
    )


def external_files(path: Path) -> tuple[Path, ...]:
    """The files of external data that a model file names, each once; the model was loaded, and so checked, before."""
    graph = onnx.load(str(path), load_external_data=False).graph
    tensors = [*_weights(graph), *_constants(graph)]
    entries = [entry for tensor in tensors for entry in tensor.external_data]
    return tuple(sorted({path.parent / entry.value for entry in entries if entry.key == "location"}))


def _nodes(graph: onnx.GraphProto, nested: bool) -> Iterator[RuntimeNode]:
    for node in graph.node:
        yield RuntimeNode(
            op=node.op_type,
            domain=node.domain,
            name=node.name,
            inputs=tuple(node.input),
            outputs=tuple(node.output),
            integers={item.name: item.i for item in node.attribute if item.type == onnx.AttributeProto.INT},
            nested=nested,
        )
        for body in _bodies(node):
            yield from _nodes(body, nested=True)


def _weights(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for body in _bodies(node):
            yield from _weights(body)


def _constants(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """The tensors in attributes, those of Constant nodes above all."""
    for node in graph.node:
        for attribute in node.attribute:
            yield from [attribute.t, *attribute.tensors]
        for body in _bodies(node):
            yield from _constants(body)


def _bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _bound_dimensions(graph: onnx.GraphProto, feeds: Mapping[str, Array]) -> dict[str, int]:
    """The sizes of the named free dimensions for one sample."""
    bound: dict[str, int] = {}
    for value in graph.input:
        if value.name in feeds:
            dimensions = value.type.tensor_type.shape.dim
            for dimension, size in zip(dimensions, getattr(feeds[value.name], "shape", ()), strict=False):
                if dimension.dim_param:
                    bound.setdefault(dimension.dim_param, size)
    return bound


def _shape(info: onnx.ValueInfoProto, bound: Mapping[str, int]) -> tuple[int, ...] | None:
    if not info.type.tensor_type.HasField("shape"):
        return None
    sizes: list[int] = []
    for dimension in info.type.tensor_type.shape.dim:
        size = dimension.dim_value if dimension.HasField("dim_value") else bound.get(dimension.dim_param)
        if size is None or size < 0:
            return None
        sizes.append(size)
    return tuple(sizes)
