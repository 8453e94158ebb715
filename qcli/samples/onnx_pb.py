"""`test_data_set_*/input_N.pb`: ONNX's own sample layout, with `output_N.pb` as reference outputs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

from qcli.contracts import InputSpec, Record
from qcli.errors import InputError
from qcli.samples._arrays import MAX_BYTES
from qcli.samples._refuse import refusing
from qcli.types import Array, Noun

_NUMBERED = re.compile(r"(input|output)_(0|[1-9][0-9]{0,5})\.pb")


class OnnxPb(Noun, frozen=True, kw_only=True):
    """Reads one folder as one sample: input_N.pb is the model's N-th input, counted from 0.

    Reference outputs are named `output_0`, `output_1`, … by position, since the files need not know the
    model's names. Raises InputError for damaged files and for tensors whose data lies elsewhere.
    """

    patterns: ClassVar[tuple[str, ...]] = ("test_data_set_*/input_N.pb",)

    def claims(self, path: Path) -> bool:
        return path.name.startswith("test_data_set_") and path.is_dir()

    def read(self, path: Path, inputs: tuple[InputSpec, ...]) -> Iterator[Record]:
        arrays: dict[str, Array] = {}
        reference: dict[str, Array] = {}
        for kind, index, file in _numbered(path):
            if kind == "output":
                found = _value(path, file, "tensor", "sequence", "optional")
                if hasattr(found, "dtype"):  # a sequence or an optional is no reference
                    reference[file.stem] = found
            elif index < len(inputs):
                arrays[inputs[index].name] = _value(path, file, inputs[index].kind)
            else:
                raise InputError(
                    f"{path}: {file.name} has no input to go to, the model has {len(inputs)}",
                    "inputs are counted from 0, in the model's order",
                )
        yield Record(file=path.name, arrays=arrays, reference=reference)


def _numbered(folder: Path) -> list[tuple[str, int, Path]]:
    """(input | output, N, file) of every numbered file in the folder, in order."""
    with refusing(folder, "not a readable folder"):
        matches = [(_NUMBERED.fullmatch(file.name), file) for file in folder.iterdir()]
    return sorted((match.group(1), int(match.group(2)), file) for match, file in matches if match)


def _value(folder: Path, file: Path, *kinds: str) -> Any:
    """What the file holds, read as the first of `kinds` that it can be."""
    from qcli.graph.tensor_file import read_value  # costly, and most data folders hold no .pb

    with refusing(folder, f"{file.name} is not a readable tensor", "write it as a serialized onnx.TensorProto"):
        size = file.stat().st_size
        if size > MAX_BYTES:
            raise ValueError(f"{size} bytes are more than the limit of {MAX_BYTES}")
        content = file.read_bytes()
        for kind in kinds[:-1]:
            with suppress(ValueError, TypeError):
                return read_value(content, kind)
        return read_value(content, kinds[-1])
