"""Sparse weights made dense: no later stage knows them, and onnxruntime unpacks them too."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import prod
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from qcli.errors import InputError, UnsupportedError
from qcli.types import Array

MAX_ELEMENTS = 1 << 28
"""All sparse tensors of a model together may not unpack to more: a few bytes of a file could ask for any amount."""


def densify(path: Path, proto: onnx.ModelProto) -> None:
    """Replaces sparse initializers and sparse constants by dense ones, in place, in bodies and functions too.

    Raises InputError for damaged ones, UnsupportedError for those too large or stored in another file.
    """
    if sum(abs(prod(sparse.dims)) for sparse in _sparse(proto)) > MAX_ELEMENTS:
        problem = f"model '{path}': its sparse tensors unpack to more than {MAX_ELEMENTS} elements"
        raise UnsupportedError(problem, "store them dense")
    for graph in _graphs(proto.graph):
        for sparse in graph.sparse_initializer:
            graph.initializer.append(_dense(path, sparse))
        graph.ClearField("sparse_initializer")
        _densify_constants(path, graph.node)
    for function in proto.functions:
        _densify_constants(path, function.node)


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for body in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
                yield from _graphs(body)


def _sparse(proto: onnx.ModelProto) -> Iterator[onnx.SparseTensorProto]:
    bodies = [graph.node for graph in _graphs(proto.graph)] + [function.node for function in proto.functions]
    for graph in _graphs(proto.graph):
        yield from graph.sparse_initializer
    for nodes in bodies:
        yield from (item.sparse_tensor for node in nodes for item in node.attribute if item.name == _SPARSE)


_SPARSE = "sparse_value"


def _densify_constants(path: Path, nodes: Iterable[onnx.NodeProto]) -> None:
    for node in nodes:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == _SPARSE:
                dense = _dense(path, attribute.sparse_tensor)
                attribute.CopyFrom(onnx.helper.make_attribute("value", dense))


def _dense(path: Path, sparse: onnx.SparseTensorProto) -> onnx.TensorProto:
    name = sparse.values.name
    for part in (sparse.values, sparse.indices):
        if part.data_location == onnx.TensorProto.EXTERNAL:
            raise UnsupportedError(f"model '{path}': the sparse '{name}' lies in another file", "store it dense")
    try:
        values, indices = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
        array = _filled(values, indices, tuple(sparse.dims))
    except (ValueError, TypeError, IndexError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"model '{path}': the sparse '{name}' is damaged: {reason}", "export it again") from error
    return numpy_helper.from_array(array, name)


def _filled(values: Array, indices: Array, shape: tuple[int, ...]) -> Array:
    """The dense array. Indices are flat, [n], or of every axis, [n, rank]."""
    if min(shape, default=0) < 0 or values.ndim != 1 or indices.dtype != np.int64:
        raise ValueError("values, indices and shape do not fit each other")
    if indices.ndim == 2:
        if indices.shape[1] != len(shape):
            raise ValueError(f"its indices have {indices.shape[1]} axes, it has {len(shape)}")
        indices = np.ravel_multi_index(tuple(indices.T), shape) if len(indices) else indices[:, 0]
    if indices.shape != values.shape or (indices < 0).any():
        raise ValueError(f"{indices.shape} indices for {values.shape} values")
    dense = np.zeros(prod(shape), values.dtype)
    dense[indices] = values
    return dense.reshape(shape)
