"""A model without its weights: what passes through libraries that would copy them."""

from __future__ import annotations

from collections.abc import Mapping

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass

from qcli.graph import on_disk

ASIDE_BYTES = 1024
"""Constants up to this size travel with the graph: shapes, axes and bounds, which inference and conversion read."""

Tensors = dict[str, ir.TensorProtocol]


def weightless(model: ir.Model) -> tuple[onnx.ModelProto, Tensors]:
    """The model with its large weights elsewhere, and these by name. The model given stays as it is.

    In their place stand references to external data, all to a file that does not exist.
    """
    bare = model.clone()
    if on_disk.is_large(bare.graph):
        LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(bare)
    aside: Tensors = {}
    for name, value in bare.graph.initializers.items():
        tensor = value.const_value
        if tensor is not None and tensor.nbytes > ASIDE_BYTES and tensor.dtype != ir.DataType.STRING:
            aside[name] = tensor
            value.const_value = placeholder(name, tensor)
    return ir.to_proto(bare), aside


def rebuilt(proto: onnx.ModelProto, tensors: Tensors, old: ir.Model) -> ir.Model:
    """The model behind a message that a library made of a weightless one, with its weights back in place."""
    model = ir.from_proto(proto)
    for name, tensor in tensors.items():
        if name in model.graph.initializers:
            model.graph.initializers[name].const_value = tensor
    on_disk.stay_large(old.graph, model.graph)
    return model


def placeholder(name: str, tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """What stands for a tensor that lies elsewhere."""
    shape = ir.Shape(tensor.shape.numpy())
    return ir.ExternalTensor("weights", 0, tensor.nbytes, tensor.dtype, shape=shape, name=name)


def divided(tensors: Tensors) -> tuple[Tensors, Tensors]:
    """The tensors that travel inside a message after all, and those that are handed over as arrays.

    Those that lie in the model's own folder are in neither part.
    """
    ours = {name: tensor for name, tensor in tensors.items() if not getattr(tensor, "location", "")}
    outside = {
        name: tensor for name, tensor in ours.items() if tensor.nbytes >= on_disk.STORED_BYTES and is_plain(tensor)
    }
    return {name: tensor for name, tensor in ours.items() if name not in outside}, outside


def is_plain(tensor: ir.TensorProtocol) -> bool:
    """True for what numpy knows by itself: no 4-bit integers, no bfloat16."""
    return tensor.dtype.bitwidth >= 8 and tensor.dtype.numpy().isbuiltin == 1


def point_to(proto: onnx.TensorProto, location: str | None = None, offset: int | None = None) -> None:
    """Says where the external data of a tensor lies; None leaves a part as it is."""
    new = {"location": location, "offset": None if offset is None else str(offset)}
    for entry in proto.external_data:
        entry.value = new.get(entry.key) or entry.value


def embed(proto: onnx.ModelProto, tensors: Mapping[str, ir.TensorProtocol]) -> None:
    """Puts weights back into a model."""
    for tensor in proto.graph.initializer:
        if tensor.name in tensors:
            tensor.ClearField("external_data")
            tensor.data_location = onnx.TensorProto.DEFAULT
            tensor.raw_data = tensors[tensor.name].tobytes()
