"""Writing a model: the file appears whole or not at all."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from qcli.files import replace_file, unfinished, write_error
from qcli.graph.model import Model
from qcli.graph.on_disk import StoredTensor, blocks_of
from qcli.graph.optimized import external_files
from qcli.graph.weightless import Tensors, point_to, weightless

_EMBED_LIMIT = 1_800_000_000
"""Bytes of weights above which they go to a file beside the model (protobuf ends at 2 GiB)."""

_PAGE = 4096
"""Where a tensor may begin in the data file, so that it can be mapped into memory."""


def save_model(model: Model, path: Path) -> None:
    """Writes a model through a temporary file; external data, where needed, appears before the model.

    A large model keeps its weights beside it, in a file named after their content: whatever happens between the two
    renames, each model finds the data that belong to it. Raises UsageError for a folder that cannot be written and
    ResourceError for a full disk.
    """
    old = _own_data(path)
    new = None
    if model.large or model.weight_bytes() > _EMBED_LIMIT:
        new = _save_with_external_data(model, path)
    else:
        replace_file(path, model.serialize())
    _tidy(model, {file for file in old if file != new})


def move_model(model: Model, source: Path, path: Path) -> None:
    """Brings a large model that `save_model` wrote in another folder to `path`, under the same name.

    Files are copied where they cannot be moved. Raises the errors of `save_model`.
    """
    old, data = _own_data(path), sorted(_own_data(source))
    fresh = [path.with_name(file.name) for file in data if not path.with_name(file.name).exists()]
    try:
        for file in (*data, source):
            _move(file, path.with_name(file.name))
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        for file in set(fresh) - _own_data(path):
            file.unlink(missing_ok=True)
    _tidy(model, old - {path.with_name(file.name) for file in data})


def _move(source: Path, path: Path) -> None:
    """Puts a file into its place whole, from another disk if need be."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with unfinished(partial):
        shutil.move(source, partial)
        os.replace(partial, path)


def _tidy(model: Model, files: set[Path]) -> None:
    """Takes away data that nobody reads any more."""
    read = {tensor.source for tensor in model.constants() if isinstance(tensor, StoredTensor)}
    for file in files - read:
        with suppress(OSError):
            file.unlink()


def _own_data(path: Path) -> set[Path]:
    """The data file that an earlier save wrote for the model that now lies at `path`, if there is one."""
    named = re.compile(re.escape(path.name) + r"\.[0-9a-f]{16}\.data")
    with suppress(OSError, DecodeError):
        if any(named.fullmatch(file.name) for file in path.parent.iterdir()):
            return {file for file in external_files(path) if named.fullmatch(file.name) and file.parent == path.parent}
    return set()


def _save_with_external_data(model: Model, path: Path) -> Path:
    """Writes the data, then the model; the name of the data."""
    proto, aside = weightless(model.ir)
    with _partial(path) as (stream, partial):
        digest = _write_tensors(stream, proto, aside)
        data = path.with_name(f"{path.name}.{digest}.data")
        for tensor in proto.graph.initializer:
            if tensor.name in aside:
                point_to(tensor, data.name)
        new = not data.exists()
        try:
            os.replace(partial, data)
            replace_file(path, proto.SerializeToString(deterministic=True))
        finally:  # an interrupt can come behind the last rename, so the model itself is asked whether it got there
            if new and data not in _own_data(path):
                data.unlink(missing_ok=True)
    return data


@contextmanager
def _partial(path: Path) -> Iterator[tuple[IO[bytes], Path]]:
    """A temporary file beside `path`, for what is renamed before the block ends or is not wanted."""
    partial = path.with_name(f".{path.name}.data.{os.getpid()}.tmp")
    with unfinished(partial):
        try:
            with partial.open("w+b") as stream:
                yield stream, partial
        except OSError as error:
            raise write_error(path, error) from error


def _write_tensors(stream: IO[bytes], proto: onnx.ModelProto, tensors: Tensors) -> str:
    """Writes tensor by tensor, equal ones once, and notes where; a digest of it all, 16 digits."""
    known: dict[bytes, int] = {}
    whole = hashlib.sha256()
    for item in proto.graph.initializer:
        if item.name in tensors:
            end = stream.seek(0, os.SEEK_END)
            begin = stream.seek(-(-end // _PAGE) * _PAGE)
            content = _write_blocks(stream, tensors[item.name])
            if content in known:
                stream.truncate(end)
            point_to(item, offset=known.setdefault(content, begin))
            whole.update(content)
    stream.flush()
    os.fsync(stream.fileno())
    return whole.hexdigest()[:16]


def _write_blocks(stream: IO[bytes], tensor: ir.TensorProtocol) -> bytes:
    digest = hashlib.sha256()
    for block in blocks_of(tensor):
        digest.update(block)
        stream.write(block)
    return digest.digest()
