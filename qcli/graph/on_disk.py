"""Weights that stay on the disk until they are read, one at a time.

Memory that maps a file counts as the process's own while the map lives, so every read makes a map of its own, which
goes when its array goes. What is computed in place of such weights goes to an unnamed temporary file, and is read in
the same way.
"""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import onnx_ir as ir

from qcli.errors import InputError
from qcli.graph.bits import packed
from qcli.types import Array, Deferred

STORED_BYTES = 1 << 20
"""Smaller tensors are read at once."""

LARGE_BYTES = 1 << 28
"""A model with more external data than this is large: its weights, and what is computed in their place, stay stored."""

_BLOCK = 1 << 22
_BYTE = 8
_SHELF = "qcli.shelf"
"""Where the graph of a large model keeps the shelf for its new weights."""


class StoredTensor(ir.LazyTensor):  # type: ignore[misc, unused-ignore]
    """A tensor in a file. `location` is the file's name as the model has it, "" for one of qcli's own."""

    def __init__(
        self, source: Path | IO[bytes], offset: int, dtype: ir.DataType, shape: ir.Shape, *, location: str = ""
    ) -> None:
        super().__init__(self._read, dtype, shape)
        self.source = source
        self.offset = offset
        self.location = location

    def blocks(self) -> Iterator[bytes]:
        """The bytes in pieces, through no map."""
        for begin in range(0, self.nbytes, _BLOCK):
            size = min(_BLOCK, self.nbytes - begin)
            with self._readable(), _opened(self.source) as stream:
                stream.seek(self.offset + begin)
                block = stream.read(size)
                if len(block) < size:
                    raise ValueError("it is cut short")
            yield block

    def _read(self) -> ir.TensorProtocol:
        if self.dtype.bitwidth < _BYTE:
            return ir.PackedTensor(self._mapped(np.dtype(np.uint8), (self.nbytes,)), self.dtype, shape=self.shape)
        return ir.Tensor(self._mapped(self.dtype.numpy(), tuple(self.shape.numpy())), dtype=self.dtype)

    def _mapped(self, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
        with self._readable():
            return np.asarray(np.memmap(self.source, dtype, mode="r", offset=self.offset, shape=shape))

    @contextmanager
    def _readable(self) -> Iterator[None]:
        """The file was there and long enough when the model was loaded; it may have changed since."""
        try:
            yield
        except (OSError, ValueError) as error:
            problem = f"the weights in '{self.source}' cannot be read any more: {error}"
            raise InputError(problem, "leave the model's files alone while it is worked on") from error


def _opened(source: Path | IO[bytes]) -> IO[bytes]:
    """The file, or an open one once more, so that closing it does not close the first."""
    return source.open("rb") if isinstance(source, Path) else open(source.fileno(), "rb", closefd=False)


class DeferredTensor(ir.LazyTensor):  # type: ignore[misc, unused-ignore]
    """A tensor that is computed each time it is read."""

    def __init__(self, array: Deferred, dtype: ir.DataType) -> None:
        super().__init__(lambda: ir.Tensor(array.make()), dtype, ir.Shape(array.shape))
        self._pieces = array.pieces

    def blocks(self) -> Iterator[bytes | memoryview]:
        """The bytes of one piece after the other, where there are any."""
        if self._pieces is None:
            yield self.tobytes()
            return
        for piece in self._pieces(partial(packed, bits=self.dtype.bitwidth)):
            yield piece.data.cast("B")


class TurnedTensor(ir.LazyTensor):  # type: ignore[misc, unused-ignore]
    """The transpose of a tensor that lies in a file: a view, which takes no room of its own."""

    def __init__(self, source: ir.TensorProtocol, axes: tuple[int, ...]) -> None:
        sizes = tuple(source.shape.numpy())
        shape = ir.Shape([sizes[axis] for axis in axes])
        super().__init__(lambda: ir.Tensor(source.numpy().transpose(axes), dtype=source.dtype), source.dtype, shape)
        self.source = source
        self.axes = axes


class Shelf:
    """A temporary file that holds arrays and disappears with the last of its users, even if the process is killed."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="qcli-")  # noqa: SIM115 - it lives as long as its tensors
        weakref.finalize(self, self._file.close)

    def put(self, array: Array) -> ir.TensorProtocol:
        """The array as a tensor that is read when it is needed."""
        self._file.seek(0, 2)
        offset = self._file.tell()
        self._file.write(np.ascontiguousarray(array).data)
        self._file.flush()
        tensor = StoredTensor(self._file, offset, ir.DataType.from_numpy(array.dtype), ir.Shape(array.shape))
        tensor.meta["shelf"] = self  # the file stays open as long as one of its tensors is known
        return tensor


def make_large(graph: ir.Graph) -> None:
    """From here on, large arrays that become constants of this graph are put on a shelf."""
    graph.meta[_SHELF] = Shelf()


def is_large(graph: ir.Graph) -> bool:
    return _SHELF in graph.meta


def stay_large(old: ir.Graph, new: ir.Graph) -> None:
    """A graph made of another one by way of a file has its shelf."""
    if _SHELF in old.meta:
        new.meta[_SHELF] = old.meta[_SHELF]


def tensor_of(
    graph: ir.Graph | ir.Function | None, array: Array | Deferred, dtype: ir.DataType | None = None
) -> ir.TensorProtocol:
    """A constant's tensor: in memory, on the shelf of a large model, or computed each time it is read."""
    if isinstance(array, Deferred):
        return DeferredTensor(array, dtype or ir.DataType.from_numpy(np.dtype(array.dtype)))
    whole = np.require(array, requirements="C")
    if graph is not None and _SHELF in graph.meta and whole.nbytes >= STORED_BYTES and dtype is None:
        shelf: Shelf = graph.meta[_SHELF]
        return shelf.put(whole)
    return ir.tensor(whole, dtype=dtype)


def set_aside(graph: ir.Graph, array: Array) -> Array | Deferred:
    """The array; one that a large model should not keep in memory lies on its shelf, and is read when it is needed."""
    if _SHELF not in graph.meta or array.nbytes < STORED_BYTES:
        return array
    shelf: Shelf = graph.meta[_SHELF]
    stored = shelf.put(array)
    return Deferred(array.shape, array.dtype.name, stored.numpy, lambda then: map(then, _cut(stored.numpy())))


def _cut(array: Array) -> Iterator[Array]:
    flat = array.reshape(-1)
    for begin in range(0, flat.size, _BLOCK):
        yield flat[begin : begin + _BLOCK]


def blocks_of(tensor: ir.TensorProtocol) -> Iterator[bytes | memoryview]:
    """The bytes of a tensor as the file format has them."""
    if isinstance(tensor, (StoredTensor, DeferredTensor)):
        yield from tensor.blocks()
    else:
        yield tensor.tobytes()
