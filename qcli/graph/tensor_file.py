"""Tensors in files of their own, as ONNX's test data has them."""

from __future__ import annotations

from google.protobuf.message import DecodeError
from onnx import TensorProto, numpy_helper

from qcli.types import Array


def read_tensor(content: bytes) -> Array:
    """The array in a serialized onnx.TensorProto. Raises ValueError if it is none, or refers to another file."""
    try:
        tensor = TensorProto.FromString(content)
    except DecodeError as error:
        raise ValueError(str(error)) from error
    if tensor.data_location == TensorProto.EXTERNAL:
        raise ValueError("its data lies in another file")  # which could be any file of the machine
    array: Array = numpy_helper.to_array(tensor)
    return array
