"""A folder of samples, read lazily and in the same order on every machine.

    dataset = open_dataset("calib/", inputs, preprocess="imagenet", limit=256)
    for sample in dataset:
        session.run(None, sample.feeds)

Every bad sample is found in that one pass: iteration skips it, goes on, and after the last good sample raises
one InputError that lists them all. So a result may only be used once the loop has ended normally.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypedDict, Unpack

import msgspec

from qcli import plugins
from qcli.contracts import InputSpec, Record, SampleReader
from qcli.errors import InputError, NothingToDoError, UsageError
from qcli.samples._check import check_sample
from qcli.samples._find import SampleFile, find
from qcli.samples._labels import LabelTable, read_labels, together
from qcli.samples._refuse import refusing
from qcli.types import Array, Noun

__all__ = ["Dataset", "DatasetOptions", "Problem", "Sample", "check_all", "check_sample", "open_dataset"]


class Sample(Noun, frozen=True, kw_only=True):
    """One checked sample: `feeds` in the model's order of inputs, `file` relative to the dataset's root."""

    file: str
    feeds: dict[str, Array]
    label: int | None = None
    reference: dict[str, Array] = msgspec.field(default_factory=dict)


class Problem(Noun, frozen=True, kw_only=True):
    """Why one sample cannot be used, and what to do about it."""

    file: str
    reason: str
    hint: str = ""

    def __str__(self) -> str:
        return f"{self.file}: {self.reason}"


class DatasetOptions(TypedDict, total=False):
    """What `open_dataset` can be told.

    `preprocess`: for images, a preset's name or a mapping. `labels`: a table used instead of any
    `labels.csv` beside the samples. `limit`: read at most this many. `shard` (i, n): of those, part i of n,
    counted from 1.
    """

    preprocess: str | Mapping[str, Any] | None
    labels: Path | str | None
    limit: int | None
    shard: tuple[int, int] | None


class Dataset(Noun, frozen=True, kw_only=True):
    """Samples on disk. Iterating reads them one at a time; it can be repeated. `len` counts files."""

    root: Path
    inputs: tuple[InputSpec, ...]
    files: tuple[SampleFile, ...]
    labels: dict[str, int] = msgspec.field(default_factory=dict)
    tables: tuple[Path, ...] = ()

    def __len__(self) -> int:
        return len(self.files)

    def __iter__(self) -> Iterator[Sample]:
        """Every good sample; then InputError if there were bad ones."""
        problems: list[Problem] = []
        yield from self.good(problems)
        if problems:
            raise _combined(problems, self)

    def good(self, problems: list[Problem]) -> Iterator[Sample]:
        """Every good sample; the bad ones are added to `problems` as they are met."""
        for file in self.files:
            try:
                yield from self._read(file)
            except InputError as error:
                reason = error.message.removeprefix(f"{file.path}: ").removeprefix(f"{file.name}: ")
                problems.append(Problem(file=file.name, reason=reason, hint=error.hint))

    def validate(self) -> None:
        """Reads everything once. Raises one InputError that lists the bad samples, up to ten by name."""
        for _ in self:
            pass

    def digest(self) -> str:
        """sha256 (hex) of the samples' names and bytes; labels and preprocessing are not part of it."""
        total = hashlib.sha256()
        for file in self.files:
            for name, path in _contents(file):
                encoded = os.fsencode(name)
                total.update(len(encoded).to_bytes(8, "little") + encoded + _file_sha256(path))
        return total.hexdigest()

    def paths(self) -> tuple[Path, ...]:
        """Every file that is read: samples, those of a folder that is one sample, and tables of labels."""
        return (*(path for file in self.files for _, path in _contents(file)), *self.tables)

    def _read(self, file: SampleFile) -> Iterator[Sample]:
        for record in file.reader.read(file.path, self.inputs):
            named = msgspec.structs.replace(record, file=file.name)
            feeds = check_sample(named, self.inputs)
            yield Sample(file=file.name, feeds=feeds, label=self._label(named), reference=record.reference)

    def _label(self, record: Record) -> int | None:
        listed = self.labels.get(record.file, record.label)
        if record.label not in (None, listed):
            raise InputError(f"{record.file}: its own label is {record.label}, labels.csv says {listed}")
        return listed


def open_dataset(path: Path | str, inputs: tuple[InputSpec, ...], **options: Unpack[DatasetOptions]) -> Dataset:
    """The samples at `path`, a file or a folder searched recursively, sorted bytewise by relative path.

    Reads no sample yet. Raises InputError if `path` does not exist or the labels are wrong, NothingToDoError
    if there are no samples, UsageError for a bad `preprocess`, `limit` or `shard`.
    """
    root = Path(path)
    readers = _readers(options.get("preprocess"))
    try:
        if not root.exists():
            raise InputError(f"{root}: no such file or folder", "give the folder that holds the samples")
        found = find(root, readers)
    except OSError as error:
        raise InputError(f"{root}: cannot be searched: {error}") from error
    if not found.files:
        raise NothingToDoError(f"no samples found in {root}", f"samples are {_patterns(readers)}")
    given = options.get("labels")
    tables = found.tables if given is None else (LabelTable(path=Path(given)),)
    labels = read_labels(tables, {file.name for file in found.files}, found.root)
    files = _sharded(_limited(found.files, options.get("limit")), options.get("shard"))
    return Dataset(root=root, inputs=inputs, files=files, labels=labels, tables=tuple(table.path for table in tables))


def check_all(dataset: Dataset) -> list[str]:
    """Reads everything once: one line for each bad sample, "a.npz: input 'x' is missing"."""
    problems: list[Problem] = []
    for _ in dataset.good(problems):
        pass
    return [f"{problem} ({problem.hint})" if problem.hint else str(problem) for problem in problems]


def _readers(preprocess: str | Mapping[str, Any] | None) -> tuple[SampleReader, ...]:
    """Every reader there is; those with an option `preprocess` get it."""
    given = {"preprocess": dict(preprocess) if isinstance(preprocess, Mapping) else preprocess}
    made = []
    for name in plugins.names("samples"):
        takes_it = "preprocess" in plugins.load("samples", name).__struct_fields__
        made.append(plugins.create("samples", {name: given if takes_it else {}}))
    return tuple(made)


def _patterns(readers: tuple[SampleReader, ...]) -> str:
    return " ".join(pattern for reader in readers for pattern in getattr(reader, "patterns", ()))


def _limited(files: tuple[SampleFile, ...], limit: int | None) -> tuple[SampleFile, ...]:
    """`limit` files spread evenly over the list, so that no name is favoured: of 10, 4 are 0, 2, 5, 8."""
    if limit is None:
        return files
    if limit < 1:
        raise UsageError(f"the number of samples must be at least 1, is {limit}")
    count = min(limit, len(files))
    return tuple(files[round(index * len(files) / count)] for index in range(count))


def _sharded(files: tuple[SampleFile, ...], shard: tuple[int, int] | None) -> tuple[SampleFile, ...]:
    """Every n-th file, beginning at the i-th, for a shard (i, n)."""
    if shard is None:
        return files
    index, count = shard
    if not 1 <= index <= count:
        raise UsageError(f"there is no shard {index}/{count}", "shards are i/n with i from 1 to n, as in 1/4")
    if index > len(files):
        raise NothingToDoError(f"shard {index}/{count} of {len(files)} samples is empty", "use fewer shards")
    return files[index - 1 :: count]


def _combined(problems: list[Problem], dataset: Dataset) -> InputError:
    """One error for all: a hint they share stays the hint, different ones go to the samples' lines."""
    hints = {problem.hint for problem in problems}
    shared = hints.pop() if len(hints) == 1 else ""
    lines = [str(problem) if shared or not problem.hint else f"{problem} ({problem.hint})" for problem in problems]
    counted = f"{len(problems)} of {len(dataset)} samples in {dataset.root}"
    if len(problems) == 1 < len(dataset):
        return InputError(f"{counted} is bad: {lines[0]}", shared)
    return InputError(together(lines, f"{counted} are bad"), shared)


def _contents(file: SampleFile) -> list[tuple[str, Path]]:
    """(name, path) of the file, or of every file in a folder that is one sample."""
    if not file.path.is_dir():
        return [(file.name, file.path)]
    with refusing(file.path, "not a readable folder"):
        inside = sorted(path for path in file.path.iterdir() if path.is_file() and path.name[0] != ".")
    return [(f"{file.name}/{path.name}", path) for path in inside]


def _file_sha256(path: Path) -> bytes:
    with refusing(path, "cannot be read"), path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()
