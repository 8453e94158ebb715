"""`.npz`: one sample a file, its keys are the model's input names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar
from zipfile import ZipFile, ZipInfo

from qcli.contracts import InputSpec, Record
from qcli.errors import InputError
from qcli.samples._arrays import MAX_BYTES, read_array
from qcli.samples._refuse import refusing
from qcli.types import Array, Noun

_HINT = "write it with numpy.savez, one key for each input"


class Npz(Noun, frozen=True, kw_only=True):
    """Reads what `numpy.savez` writes. The key `label` is the class index, unless an input has that name.

    Raises InputError for damaged files, for pickled objects and for archives that unpack to more than 2 GiB.
    """

    patterns: ClassVar[tuple[str, ...]] = (".npz",)

    def claims(self, path: Path) -> bool:
        return path.suffix.lower() == ".npz" and not path.is_dir()

    def read(self, path: Path, inputs: tuple[InputSpec, ...]) -> Iterator[Record]:
        with refusing(path, "not a readable .npz", _HINT), ZipFile(path) as archive:
            _check_archive(archive.infolist())
            arrays = {_key(member): _member(archive, member) for member in archive.infolist()}
        label = None
        if "label" in arrays and "label" not in {spec.name for spec in inputs}:
            label = _label(arrays.pop("label"), path)
        yield Record(file=path.name, arrays=arrays, label=label)


def _check_archive(members: list[ZipInfo]) -> None:
    declared = sum(member.file_size for member in members)
    if declared > MAX_BYTES:
        raise ValueError(f"declares {declared} bytes unpacked, more than the limit of {MAX_BYTES}")
    names = [member.filename for member in members]
    if len(set(names)) != len(names):
        raise ValueError("holds the same key twice")


def _key(member: ZipInfo) -> str:
    if not member.filename.endswith(".npy"):
        raise ValueError(f"'{member.filename}' in it is not an array")
    return member.filename.removesuffix(".npy")


def _member(archive: ZipFile, member: ZipInfo) -> Array:
    with archive.open(member) as stream:
        try:
            return read_array(stream, member.file_size)
        except ValueError as error:
            raise ValueError(f"key '{_key(member)}': {error}") from error


def _label(array: Array, path: Path) -> int:
    if array.size != 1 or array.dtype.kind not in "iu" or array.item() < 0:
        raise InputError(
            f"{path}: key 'label' must be one class index, is {array.dtype} of shape {list(array.shape)}",
            "store it as numpy.int64(class_index)",
        )
    return int(array.item())
