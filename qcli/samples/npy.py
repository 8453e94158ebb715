"""`.npy`: one array a file, for a model with one input."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from qcli.contracts import InputSpec, Record
from qcli.samples._arrays import read_array
from qcli.samples._refuse import refusing
from qcli.types import Noun


class Npy(Noun, frozen=True, kw_only=True):
    """Reads a file written by `numpy.save`. Raises InputError for damaged, oversized and pickled files."""

    patterns: ClassVar[tuple[str, ...]] = (".npy",)

    def claims(self, path: Path) -> bool:
        return path.suffix.lower() == ".npy" and not path.is_dir()

    def read(self, path: Path, inputs: tuple[InputSpec, ...]) -> Iterator[Record]:
        """One record whose array has the name "": it belongs to the model's only input."""
        with refusing(path, "not a readable .npy", "write it with numpy.save"), path.open("rb") as stream:
            array = read_array(stream, path.stat().st_size)
        yield Record(file=path.name, arrays={"": array})
