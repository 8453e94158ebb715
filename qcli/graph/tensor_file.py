"""Tensors in files of their own, as ONNX's test data has them."""

from __future__ import annotations

from typing import Any

from google.protobuf.message import DecodeError
from onnx import OptionalProto, SequenceProto, TensorProto, numpy_helper

from qcli.types import Array


def read_tensor(content: bytes) -> Array:
    """The array in a serialized onnx.TensorProto. Raises ValueError if it is none, or refers to another file."""
    try:
        return _array(TensorProto.FromString(content))
    except DecodeError as error:
        raise ValueError(str(error)) from error


def read_value(content: bytes, kind: str) -> Any:
    """What a graph input of a kind (`tensor`, `sequence`, `optional`) is fed with: an array, a list of them or None."""
    if kind == "tensor":
        return read_tensor(content)
    try:
        if kind == "sequence":
            return _list(SequenceProto.FromString(content))
        optional = OptionalProto.FromString(content)
    except DecodeError as error:
        raise ValueError(str(error)) from error
    if optional.elem_type == OptionalProto.SEQUENCE:
        return _list(optional.sequence_value)
    return _array(optional.tensor_value) if optional.elem_type == OptionalProto.TENSOR else None


def _list(sequence: SequenceProto) -> list[Array]:
    if sequence.elem_type not in (SequenceProto.TENSOR, SequenceProto.UNDEFINED):
        raise ValueError("it is a sequence of something else than tensors")
    return [_array(tensor) for tensor in sequence.tensor_values]


def _array(tensor: TensorProto) -> Array:
    if tensor.data_location == TensorProto.EXTERNAL:
        raise ValueError("its data lies in another file")  # which could be any file of the machine
    array: Array = numpy_helper.to_array(tensor)
    return array
