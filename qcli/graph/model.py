"""A model in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import NameFixPass, RemoveUnusedNodesPass, TopologicalSortPass

from qcli.contracts import InputSpec
from qcli.graph.digest import FileDigest
from qcli.graph.edit import forget_names
from qcli.graph.infer import dimensions
from qcli.graph.on_disk import StoredTensor, blocks_of, is_large
from qcli.graph.taps import expose
from qcli.graph.weightless import divided, embed, is_plain, placeholder, point_to, weightless
from qcli.types import Runnable

DataType = ir.DataType
Graph = ir.Graph
Node = ir.Node
Value = ir.Value

STANDARD = ("", "ai.onnx")
"""The names of the standard operators' domain."""
_PROTOBUF_LIMIT = 1_800_000_000
"""Bytes of weights that are safe inside a message, which ends at 2 GiB."""

WEIGHTS_ALONE = 4
"""The file version from which on weights need not be inputs; before it, readers miss those that are none."""


class Model:
    """A graph with its file of origin."""

    def __init__(self, ir_model: ir.Model, path: Path | None = None, sha256: str | FileDigest = "") -> None:
        self.ir = ir_model
        self.path = path
        self._sha256 = sha256

    @property
    def sha256(self) -> str:
        """The digest of the file, external data included; of a large model it may take a while to come."""
        return self._sha256 if isinstance(self._sha256, str) else self._sha256.value()

    @property
    def graph(self) -> Graph:
        return self.ir.graph

    @property
    def opset(self) -> int:
        """The version of the standard operator set."""
        versions = [self.ir.opset_imports[name] for name in STANDARD if name in self.ir.opset_imports]
        return versions[0] if versions else 1

    @property
    def file_version(self) -> int:
        """The version of the file format, ONNX's IR version."""
        return int(self.ir.ir_version or 0)

    @property
    def large(self) -> bool:
        """True if the weights lie in files and are read one at a time, and new ones are kept out of memory too."""
        return is_large(self.graph)

    def inputs(self) -> tuple[InputSpec, ...]:
        """The inputs that a caller must feed; initializers listed as inputs are not among them."""
        return tuple(_spec(value) for value in self.graph.inputs if not value.is_initializer())

    def outputs(self) -> tuple[str, ...]:
        return tuple(value.name or "" for value in self.graph.outputs)

    def graphs(self) -> Iterator[Graph]:
        """The main graph, then the bodies of If, Loop and Scan at any depth."""
        yield self.graph
        yield from self.graph.subgraphs()

    def paths(self) -> Iterator[tuple[Graph, str]]:
        """Each body with its path: names of nodes and attributes, as in `/if/then_branch`."""
        yield from _bodies_below(self.graph, "")

    def nodes(self) -> Iterator[Node]:
        """All nodes, those inside If and Loop bodies included."""
        return iter(self.graph.all_nodes())

    def copy(self) -> Model:
        """An independent graph that shares the (immutable) weight arrays."""
        copy = Model(self.ir.clone(), self.path, self._sha256)
        for graph in copy.graphs():
            forget_names(graph)  # a clone shares the notes of its source, and would take names from it
        return copy

    def proto(self) -> onnx.ModelProto:
        return ir.to_proto(self.ir)

    def serialize(self, extra_outputs: tuple[str, ...] = ()) -> bytes:
        """The model as bytes with weights inside, with more of its values made outputs; vectors for those in bodies."""
        proto = self.proto()
        expose(proto, extra_outputs)
        return bytes(proto.SerializeToString(deterministic=True))

    def ending_in(self, values: Sequence[str]) -> Model:
        """What leads to these values of the main graph, which are the outputs of the copy."""
        copy = self.copy()
        known = {value.name: value for node in copy.graph for value in node.outputs}
        copy.graph.outputs.clear()
        copy.graph.outputs.extend(known[name] for name in values)
        copy.remove_unused()
        return copy

    def runnable(self, extra_outputs: tuple[str, ...] = ()) -> Runnable:
        """What a session takes: small weights as bytes, stored ones as references to the files that they lie in."""
        if not self.large and self.weight_bytes() <= _PROTOBUF_LIMIT:
            return Runnable(self.serialize(extra_outputs))
        proto, aside = weightless(self.ir)
        inside, arrays = divided(aside)
        for tensor in proto.graph.initializer:
            stored = aside.get(tensor.name)
            if isinstance(stored, StoredTensor) and stored.location:
                point_to(tensor, stored.location, stored.offset)
        embed(proto, inside)
        folder = str(self.path.parent.resolve()) if self.path is not None else ""
        found = {name: np.ascontiguousarray(tensor.numpy()) for name, tensor in arrays.items()}
        expose(proto, extra_outputs)
        return Runnable(bytes(proto.SerializeToString(deterministic=True)), folder, found)

    def weight_bytes(self) -> int:
        """The bytes that the constants take."""
        return sum(tensor.nbytes for tensor in self.constants())

    def run_bytes(self) -> int:
        """About what the weights take while the model runs: once where they stay in their files, else twice."""
        tensors = tuple(self.constants())
        outside = sum(tensor.nbytes for tensor in tensors if isinstance(tensor, StoredTensor) and tensor.location)
        return 2 * sum(tensor.nbytes for tensor in tensors) - outside

    def constant_part(self, nodes: Sequence[Node], outputs: Sequence[str]) -> Runnable:
        """The given nodes, which read constants alone, as a model of their own."""
        proto = onnx.ModelProto(ir_version=max(self.ir.ir_version or 8, 8))
        proto.opset_import.extend(onnx.helper.make_opsetid(name, ver) for name, ver in self.ir.opset_imports.items())
        proto.graph.name = "constants"
        proto.graph.node.extend(ir.to_proto(node) for node in nodes)
        proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
        values = {value.name or "": value for node in nodes for value in node.inputs if value is not None}
        needed = {name: value.const_value for name, value in values.items() if value.const_value is not None}
        _, outside = divided(needed) if self.large else ({}, {})
        stored = {name: tensor for name, tensor in needed.items() if isinstance(tensor, StoredTensor)}
        outside |= {name: tensor for name, tensor in stored.items() if is_plain(tensor)}
        for name, constant in needed.items():
            tensor = ir.to_proto(placeholder(name, constant) if name in outside else constant)
            tensor.name = name
            proto.graph.initializer.append(tensor)
        arrays = {name: np.ascontiguousarray(tensor.numpy()) for name, tensor in outside.items()}
        return Runnable(bytes(proto.SerializeToString()), arrays=arrays)

    def remove_unused(self) -> bool:
        """Drops nodes and weights that no output needs; True if there were any."""
        removed = bool(RemoveUnusedNodesPass()(self.ir).modified)
        for body in self.graph.subgraphs():  # the pass leaves their initializers alone
            idle = [name for name, value in body.initializers.items() if not value.uses() and not _is_read(value)]
            for name in idle:
                del body.initializers[name]
            removed = removed or bool(idle)
        return removed

    def forget_shapes(self) -> None:
        """Drops what is known of values between nodes and of constants: any reader infers it, the file is smaller."""
        for graph in self.graphs():
            produced = [value for node in graph for value in node.outputs]
            for value in (*produced, *graph.initializers.values()):
                if not value.is_graph_output() and not value.is_graph_input():
                    value.shape = None
                    value.type = None

    def import_domains(self) -> None:
        """Declares the domains of all nodes, those in bodies included, where the model does."""
        for node in self.nodes():
            if node.domain not in STANDARD:
                self.ir.opset_imports.setdefault(node.domain, node.version or 1)

    def sort(self) -> None:
        """Puts every node behind those that it reads from."""
        TopologicalSortPass()(self.ir)

    def fix_names(self) -> None:
        """Resolves names that edits made twice. Run before every save: onnx_ir lets them pass in silence."""
        NameFixPass()(self.ir)

    def digest(self) -> str:
        """sha256 (hex) of the graph as it is now, weights included, whatever inference noted in it."""
        bare = self.copy()
        bare.forget_shapes()
        for value in bare.graph.outputs:
            if not value.is_graph_input():
                value.shape = None
        if not self.large:
            return hashlib.sha256(bare.serialize()).hexdigest()
        proto, aside = weightless(bare.ir)
        digest = hashlib.sha256(proto.SerializeToString(deterministic=True))
        for tensor in aside.values():
            for block in blocks_of(tensor):
                digest.update(block)
        return digest.hexdigest()

    def node_count(self) -> int:
        return sum(1 for _ in self.nodes())

    def parameter_count(self) -> int:
        return sum(int(tensor.size) for tensor in self.constants())

    def constants(self) -> Iterator[ir.TensorProtocol]:
        """The tensors of initializers and of Constant nodes, bodies included."""
        for graph in self.graphs():
            yield from (value.const_value for value in graph.initializers.values() if value.const_value is not None)
        for node in self.nodes():
            if node.op_type == "Constant" and "value" in node.attributes:
                yield node.attributes["value"].as_tensor()


def _bodies_below(graph: Graph, path: str) -> Iterator[tuple[Graph, str]]:
    for node in graph:
        for name, attribute in node.attributes.items():
            for body in _graphs_of(attribute):
                inner = f"{path}/{node.name}/{name}"
                yield body, inner
                yield from _bodies_below(body, inner)


def _graphs_of(attribute: ir.Attr) -> tuple[Graph, ...]:
    if attribute.type == ir.AttributeType.GRAPH:
        return (attribute.as_graph(),)
    return tuple(attribute.as_graphs()) if attribute.type == ir.AttributeType.GRAPHS else ()


def _is_read(value: Value) -> bool:
    return value.is_graph_output() or value.is_graph_input()


def _dtype_name(value: Value) -> str:
    return value.dtype.numpy().name if value.dtype is not None and value.dtype != ir.DataType.STRING else "string"


def _spec(value: Value) -> InputSpec:
    kind = _kind(value)
    shape = dimensions(value) if kind == "tensor" else None  # the others note the shape of their elements
    return InputSpec(name=value.name or "", dtype=_dtype_name(value), shape=shape, kind=kind)


def _kind(value: Value) -> str:
    if isinstance(value.type, ir.OptionalType):
        return "optional"
    return "sequence" if isinstance(value.type, ir.SequenceType) else "tensor"
