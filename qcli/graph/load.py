"""Reading a model file that nobody vouches for."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from pathlib import Path, PurePosixPath

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError
from onnx_ir.passes.common import TopologicalSortPass

from qcli.errors import InputError, UnsupportedError
from qcli.graph import on_disk
from qcli.graph.bounds import check_claims
from qcli.graph.digest import FileDigest, digest_of
from qcli.graph.model import Model
from qcli.graph.sparse import densify

_MOST_DIGITS = 20
"""Of an offset or a length; Python refuses to read numbers of thousands of digits."""

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def load_model(path: Path) -> Model:
    """A model from an .onnx file, its external data checked and read in.

    Raises InputError for a file that is missing, unreadable, truncated or no model, and for external data that
    is missing or lies outside the model's folder; UnsupportedError for what would be lost silently.
    """
    content = _read(path)
    proto = _parse(path, content)
    check_claims(path, proto)
    _free_negative_dimensions(proto.graph)
    densify(path, proto)
    external = tuple(_external_files(path, proto))
    large = sum(_length(path, tensor, _fields(tensor)) for tensor in _external(proto)) > on_disk.LARGE_BYTES
    digest = FileDigest(content, external) if large else digest_of(content, external)
    _embed(path, proto, on_disk.STORED_BYTES if large else None)
    _refuse_what_would_be_lost(path, proto)
    model = Model(_to_ir(path, proto), path, digest)
    if large:
        _keep_stored(model, path.parent)
    _check_connected(path, model)
    return model


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"model '{path}' not found", "check the path; the first argument is an .onnx file") from error
    except IsADirectoryError as error:
        raise InputError(f"model '{path}' is a folder", "name the .onnx file inside it") from error
    except OSError as error:
        raise InputError(f"model '{path}' cannot be read: {error.strerror}", "check the permissions") from error


def _parse(path: Path, content: bytes) -> onnx.ModelProto:
    if content.startswith(_LFS_POINTER):
        raise InputError(f"model '{path}' is a Git LFS pointer, not a model", "run 'git lfs pull' to fetch the file")
    try:
        proto: onnx.ModelProto = onnx.ModelProto.FromString(content)
    except DecodeError as error:
        problem = f"model '{path}' is not an ONNX file, is cut short, or nests too deeply"
        raise InputError(problem, "export or download it again") from error
    if not proto.HasField("graph") or not proto.graph.output:
        raise InputError(f"model '{path}' holds no graph with outputs", "export or download it again")
    return proto


def _free_negative_dimensions(graph: onnx.GraphProto) -> None:
    """Some exporters write -1 for a free dimension, which inference and conversion take for a size."""
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.HasField("tensor_type"):
            for dimension in value.type.tensor_type.shape.dim:
                if dimension.dim_value < 0:
                    dimension.Clear()


def _to_ir(path: Path, proto: onnx.ModelProto) -> ir.Model:
    try:
        model = ir.from_proto(proto)
        TopologicalSortPass()(model)
        bare = model.clone()  # every later stage copies the model and writes it: what cannot be is found here
        bare.graph.initializers.clear()
        ir.to_proto(bare)
        return model
    except (ValueError, TypeError, KeyError, AttributeError, ir.serde.SerdeError, RuntimeError) as error:
        reason = (str(_root_cause(error)).splitlines() or [type(error).__name__])[0]
        raise InputError(f"model '{path}' is damaged: {reason}", "export or download it again") from error


def _root_cause(error: BaseException) -> BaseException:
    """onnx_ir wraps an error once for each level of the graph; the innermost says what is wrong."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _refuse_what_would_be_lost(path: Path, proto: onnx.ModelProto) -> None:
    if proto.training_info:
        raise UnsupportedError(f"model '{path}' carries training information", "export it for inference")


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for body in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
                yield from _tensors(body)


def _external(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    return (tensor for tensor in _tensors(proto.graph) if tensor.data_location == onnx.TensorProto.EXTERNAL)


def _fields(tensor: onnx.TensorProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}


def _external_files(path: Path, proto: onnx.ModelProto) -> Iterator[Path]:
    """The files of external data, in a stable order, each confined to the model's folder and long enough."""
    folder = path.parent.resolve()
    ends: dict[str, int] = {}
    for tensor in _external(proto):
        fields = _fields(tensor)
        ends.setdefault(fields.get("location", ""), 0)
        end = _number(path, tensor, fields, "offset") + _length(path, tensor, fields)
        ends[fields.get("location", "")] = max(ends[fields.get("location", "")], end)
    for location, end in sorted(ends.items()):
        file = _confined(path, folder, location)
        if file.stat().st_size < end:
            raise InputError(f"external data '{location}' of '{path}' is cut short", "copy the file again, whole")
        yield file


def _number(path: Path, tensor: onnx.TensorProto, fields: dict[str, str], key: str) -> int:
    text = fields.get(key, "0")
    if not text.isdecimal() or len(text) > _MOST_DIGITS:
        raise InputError(f"model '{path}': external {key} '{text}' of '{tensor.name}' is no number", "export it again")
    return int(text)


def _length(path: Path, tensor: onnx.TensorProto, fields: dict[str, str]) -> int:
    """The bytes of a tensor's elements; the length that the file states must be the same."""
    try:
        needed = -(-prod(tensor.dims) * ir.DataType(tensor.data_type).bitwidth // 8)
    except (TypeError, ValueError) as error:
        raise InputError(f"model '{path}': '{tensor.name}' cannot lie outside", "export it again") from error
    if "length" in fields and _number(path, tensor, fields, "length") != needed:
        problem = f"model '{path}': '{tensor.name}' has {fields['length']} bytes of external data, not {needed}"
        raise InputError(problem, "export it again")
    return needed


def _embed(path: Path, proto: onnx.ModelProto, limit: int | None) -> None:
    """Puts external data, which was checked before, into its tensors, but for those of `limit` bytes and more."""
    for tensor in _external(proto):
        fields = _fields(tensor)
        length = _length(path, tensor, fields)
        if limit is not None and length >= limit:
            continue
        with (path.parent / fields["location"]).open("rb") as stream:
            stream.seek(_number(path, tensor, fields, "offset"))
            tensor.raw_data = stream.read(length)
        tensor.ClearField("external_data")
        tensor.data_location = onnx.TensorProto.DEFAULT


def _keep_stored(model: Model, folder: Path) -> None:
    """What is still external stays where it is and is read one tensor at a time."""
    for graph in (model.graph, *model.graph.subgraphs()):
        on_disk.make_large(graph)
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = _stored(value.const_value, folder)
    for node in model.nodes():
        for name, attribute in tuple(node.attributes.items()):
            if attribute.type == ir.AttributeType.TENSOR and isinstance(attribute.value, ir.ExternalTensor):
                node.attributes[name] = ir.AttrTensor(name, _stored(attribute.value, folder))


def _stored(tensor: ir.ExternalTensor, folder: Path) -> on_disk.StoredTensor:
    location = str(tensor.location)
    kept = on_disk.StoredTensor(
        folder / location, tensor.offset or 0, tensor.dtype, ir.Shape(tensor.shape.numpy()), location=location
    )
    kept.name = tensor.name
    return kept


def _confined(path: Path, folder: Path, location: str) -> Path:
    pure = PurePosixPath(location.replace("\\", "/"))
    resolved = (folder / location.replace("\0", "..")).resolve()
    if (
        not location
        or "\0" in location
        or pure.is_absolute()
        or ".." in pure.parts
        or not resolved.is_relative_to(folder)
    ):
        raise InputError(
            f"external data '{location}' of '{path}' lies outside the model's folder", "keep the data beside the model"
        )
    if not resolved.is_file():
        raise InputError(f"external data '{location}' of '{path}' is missing", "copy it beside the model")
    return resolved


def _check_connected(path: Path, model: Model) -> None:
    """A file cut at a field boundary still parses, but reads values that nothing produces."""
    known = {id(value) for value in (*model.graph.inputs, *model.graph.initializers.values())}
    for node in model.graph:
        known.update(id(value) for value in node.outputs)
    for node in model.graph:
        for value in node.inputs:
            if value is not None and id(value) not in known:
                raise InputError(
                    f"model '{path}' is damaged: node '{node.name}' reads '{value.name}', which nothing produces",
                    "export or download it again",
                )
    for value in model.graph.outputs:
        if id(value) not in known:
            raise InputError(
                f"model '{path}' is damaged: nothing produces the output '{value.name}'", "export or download it again"
            )
