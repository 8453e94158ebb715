"""A model file as it lies on the disk: its nodes, and where the bytes of each of its constants are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import count
from math import prod
from pathlib import Path

import onnx
import onnx_ir as ir

Key = tuple[int, str]
"""A value: the number of the graph that it is defined in, and its name there."""


@dataclass(frozen=True)
class StoredConstant:
    """A constant: its type as numpy names it, its elements, and the bytes of its data in the model file itself.

    `piece` is where its data lies if it is outside: file, first byte and the byte behind the last one. `columns` are
    the elements that lie behind one index along the first axis.
    """

    key: Key
    dtype: str
    elements: int
    inside: int
    piece: tuple[str, int, int] | None = None
    columns: int = 1


@dataclass(frozen=True)
class PlainNode:
    """A node with its operands by key; None for those that are left out."""

    op: str
    inputs: tuple[Key | None, ...]
    outputs: tuple[Key, ...]
    integers: dict[str, int]
    has_bodies: bool


@dataclass
class FileLayout:
    """`bytes` are those of the model file, `external` those of the files that it names, by name.

    `nodes` are in the order of the file, bodies behind the node that they belong to. `results` are the outputs of all
    graphs.
    """

    bytes: int
    external: dict[str, int] = field(default_factory=dict)
    constants: list[StoredConstant] = field(default_factory=list)
    nodes: list[PlainNode] = field(default_factory=list)
    results: list[Key] = field(default_factory=list)

    def charged(self) -> Iterator[tuple[StoredConstant, int]]:
        """Each constant with its bytes on the disk. Bytes that several constants share are those of the first one."""
        outside: dict[str, list[StoredConstant]] = defaultdict(list)
        for constant in self.constants:
            if constant.piece is None:
                yield constant, constant.inside
            else:
                outside[constant.piece[0]].append(constant)
        for file, constants in outside.items():
            end = 0
            for constant in sorted(constants, key=_begin_and_end):
                begin, stop = _begin_and_end(constant)
                stop = min(stop, self.external[file])
                yield constant, constant.inside + max(stop - max(begin, end), 0)
                end = max(end, stop)


def _begin_and_end(constant: StoredConstant) -> tuple[int, int]:
    return constant.piece[1:] if constant.piece is not None else (0, 0)


def read_layout(path: Path) -> FileLayout:
    """The layout of a model file that was loaded, and so checked, before."""
    proto = onnx.load(str(path), load_external_data=False)
    layout = FileLayout(bytes=path.stat().st_size)
    reader = _Reader(path.parent, layout)
    reader.graph(proto.graph, {})
    for function in proto.functions:
        reader.function(function)
    return layout


_PAYLOADS = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data")
"""The fields of a tensor that hold data one by one."""


class _Reader:
    def __init__(self, folder: Path, layout: FileLayout) -> None:
        self._folder, self._layout, self._numbers = folder, layout, count()
        self._functions: set[int] = set()
        """Their constants never lie outside."""

    def graph(self, graph: onnx.GraphProto, outer: dict[str, Key]) -> None:
        """One graph; `outer` are the values that its nodes see beside its own."""
        number = next(self._numbers)
        known = dict(outer)
        known.update((value.name, (number, value.name)) for value in graph.input)
        for tensor in graph.initializer:
            self._constant((number, tensor.name), tensor)
            known[tensor.name] = (number, tensor.name)
        for sparse in graph.sparse_initializer:
            self._sparse((number, sparse.values.name), sparse)
            known[sparse.values.name] = (number, sparse.values.name)
        self._nodes(graph.node, number, known)
        self._layout.results += [known.get(value.name, (number, value.name)) for value in graph.output]

    def function(self, function: onnx.FunctionProto) -> None:
        number = next(self._numbers)
        self._functions.add(number)
        known = {name: (number, name) for name in function.input}
        self._nodes(function.node, number, known)
        self._layout.results += [(number, name) for name in function.output]

    def _nodes(self, nodes: Iterable[onnx.NodeProto], number: int, known: dict[str, Key]) -> None:
        for node in nodes:
            inputs = tuple(known.get(name, (number, name)) if name else None for name in node.input)
            known.update((name, (number, name)) for name in node.output if name)
            bodies = [body for item in node.attribute for body in ([item.g] if item.HasField("g") else item.graphs)]
            self._attributes(node, (number, node.output[0] if node.output else ""))
            if node.op_type != "Constant":
                integers = {item.name: item.i for item in node.attribute if item.type == onnx.AttributeProto.INT}
                outputs = tuple((number, name) for name in node.output)
                self._layout.nodes.append(PlainNode(node.op_type, inputs, outputs, integers, bool(bodies)))
            for body in bodies:
                self.graph(body, known)

    def _attributes(self, node: onnx.NodeProto, key: Key) -> None:
        """The tensors in attributes: the value of a Constant node, and whatever other operators keep there."""
        for item in node.attribute:
            holder = key if node.op_type == "Constant" else (key[0], f"{key[1]}.{item.name}")
            for tensor in ([item.t] if item.HasField("t") else []) + list(item.tensors):
                self._constant(holder, tensor)
            for sparse in ([item.sparse_tensor] if item.HasField("sparse_tensor") else []) + list(item.sparse_tensors):
                self._sparse(holder, sparse)

    def _sparse(self, key: Key, sparse: onnx.SparseTensorProto) -> None:
        self._constant(key, sparse.values)
        self._constant((key[0], f"{key[1]}.indices"), sparse.indices)

    def _constant(self, key: Key, tensor: onnx.TensorProto) -> None:
        kind = ir.DataType(tensor.data_type)
        dtype = "string" if kind == ir.DataType.STRING else kind.numpy().name
        external = tensor.data_location == onnx.TensorProto.EXTERNAL
        piece = self._piece(tensor, kind) if external and key[0] not in self._functions else None
        inside = 0 if external else _payload(tensor)
        columns = prod(tensor.dims[1:])
        self._layout.constants.append(StoredConstant(key, dtype, prod(tensor.dims), inside, piece, columns))

    def _piece(self, tensor: onnx.TensorProto, kind: ir.DataType) -> tuple[str, int, int]:
        said = {entry.key: entry.value for entry in tensor.external_data}
        name = said["location"]
        if name not in self._layout.external:
            self._layout.external[name] = (self._folder / name).stat().st_size
        begin = int(said.get("offset", 0))
        return name, begin, begin + -(-prod(tensor.dims) * kind.bitwidth // 8)


def _payload(tensor: onnx.TensorProto) -> int:
    """The bytes of a tensor's data in the file, without its name, type and shape."""
    if tensor.HasField("raw_data"):
        return len(tensor.raw_data)
    if tensor.string_data:
        return sum(len(text) for text in tensor.string_data)
    return sum(_listed(onnx.TensorProto(**{name: getattr(tensor, name)})) for name in _PAYLOADS)


def _listed(only: onnx.TensorProto) -> int:
    """The bytes of the one field that a message has, without the byte of its key and the length behind that."""
    whole = only.ByteSize()
    digits = next((count for count in range(1, 6) if whole - 1 - count < 1 << 7 * count), 0)
    return max(whole - 1 - digits, 0)
