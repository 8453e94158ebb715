"""Writing a model: the file appears whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import onnx
import onnx_ir as ir

from qcli.files import replace_file, write_error
from qcli.graph.model import Model

_EMBED_LIMIT = 1_800_000_000
"""Bytes of weights above which they go to a file beside the model (protobuf ends at 2 GiB)."""


def save_model(model: Model, path: Path) -> None:
    """Writes a model through a temporary file; external data, where needed, appears before the model.

    Raises InputError for a folder that cannot be written and ResourceError for a full disk.
    """
    if weight_bytes(model) > _EMBED_LIMIT:
        _save_with_external_data(model, path)
        return
    content = model.serialize()
    replace_file(path, content)


def weight_bytes(model: Model) -> int:
    """The bytes that the weights take on disk."""
    return sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)


def _save_with_external_data(model: Model, path: Path) -> None:
    data = path.with_name(path.name + ".data")
    partial = data.with_name(f".{data.name}.{os.getpid()}.tmp")
    try:
        external = ir.external_data.unload_from_model(model.ir.clone(), path.parent, partial.name)
        proto: onnx.ModelProto = ir.to_proto(external)
        for tensor in proto.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = data.name
        os.replace(partial, data)
    except OSError as error:
        raise write_error(data, error) from error
    finally:
        partial.unlink(missing_ok=True)
    replace_file(path, proto.SerializeToString(deterministic=True))
