"""One node alone in 16 bits, as a model that a runtime is asked about."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper

from qcli.graph.edit import constant_of
from qcli.graph.half import KINDS
from qcli.graph.half_types import Halves
from qcli.graph.model import Model

_SMALL = 4096
"""Constants of more elements become inputs: a runtime looks at small ones alone, such as sizes and axes."""


def half_trial(model: Model, node: ir.Node, halves: Halves, to: str) -> bytes:
    """A model of the node as it would compute in `to`; what it reads are inputs, small constants apart."""
    kind = KINDS[to]
    made = ir.to_proto(node)
    for attribute in made.attribute:
        if made.op_type == "Cast" and attribute.name == "to" and halves.results:
            attribute.i = int(kind)
    graph = onnx.GraphProto(name="trial", node=[made])
    known: set[str | None] = set()
    for index, value in enumerate(node.inputs):
        if value is None or value.name in known:
            continue
        known.add(value.name)
        small = value.const_value is not None and value.const_value.size <= _SMALL
        array = constant_of(value) if small else None
        own = kind if index in halves.operands else None
        if array is None:
            graph.input.append(_described(value, own))
        else:
            graph.initializer.append(_tensor(value, array, own))
    for index, value in enumerate(node.outputs):
        if value.name:
            graph.output.append(_described(value, kind if index in halves.results else None, shaped=False))
    proto = onnx.ModelProto(ir_version=max(model.ir.ir_version or 8, 8), graph=graph)
    proto.opset_import.extend(helper.make_opsetid(name, ver) for name, ver in model.ir.opset_imports.items())
    return bytes(proto.SerializeToString())


def _tensor(value: ir.Value, array: np.ndarray, kind: ir.DataType | None) -> onnx.TensorProto:
    with np.errstate(over="ignore"):
        tensor = ir.to_proto(ir.tensor(array if kind is None else array.astype(kind.numpy())))
    tensor.name = value.name or ""
    return tensor


def _described(value: ir.Value, kind: ir.DataType | None, *, shaped: bool = True) -> onnx.ValueInfoProto:
    dtype = kind if kind is not None else value.dtype
    sizes = value.shape if shaped else None
    shape = None if sizes is None else [size if isinstance(size, int) else None for size in sizes]
    return helper.make_tensor_value_info(value.name or "", int(dtype or 0), shape)
