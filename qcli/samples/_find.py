"""Which files and folders of a tree are samples."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from qcli.contracts import SampleReader
from qcli.samples._labels import LABELS_FILE, LabelTable
from qcli.samples._refuse import refusing
from qcli.types import Noun


class SampleFile(Noun, frozen=True, kw_only=True):
    """A file or folder that a reader claims. `name` is its path below the samples' root, with slashes."""

    name: str
    path: Path
    reader: SampleReader


class Findings(Noun, frozen=True, kw_only=True):
    """The samples below `root`, sorted by the bytes of their names, and the tables of labels beside them."""

    root: Path
    files: tuple[SampleFile, ...]
    tables: tuple[LabelTable, ...]


def find(path: Path, readers: tuple[SampleReader, ...]) -> Findings:
    """Everything that `readers` claim at or below `path`; hidden files and folders are skipped.

    A folder is looked into once however many links lead to it, under its own name if that lies below `path`.
    Raises InputError for a folder that cannot be listed.
    """
    single = _claimed(path, path.name, readers)
    if single is not None or not path.is_dir():
        table = path.parent / LABELS_FILE
        tables = (LabelTable(path=table),) if table.is_file() else ()
        return Findings(root=path.parent, files=(single,) if single else (), tables=tables)
    files: list[SampleFile] = []
    labels: list[LabelTable] = []
    for entry, name in _walk(path, readers):
        if entry.name == LABELS_FILE:
            labels.append(LabelTable(path=entry, folder=name.rpartition("/")[0]))
        elif claimed := _claimed(entry, name, readers):
            files.append(claimed)
    files.sort(key=lambda file: os.fsencode(file.name))
    labels.sort(key=lambda table: os.fsencode(table.folder))
    return Findings(root=path, files=tuple(files), tables=tuple(labels))


def _claimed(path: Path, name: str, readers: tuple[SampleReader, ...]) -> SampleFile | None:
    if path.exists() and not (path.is_file() or path.is_dir()):
        return None  # a pipe or a device: opening it could block for ever
    for reader in readers:
        if reader.claims(path):
            return SampleFile(name=name, path=path, reader=reader)
    return None


def _walk(root: Path, readers: tuple[SampleReader, ...]) -> Iterator[tuple[Path, str]]:
    """(path, name) of every file, and of every folder that a reader claims as a whole."""
    seen: set[str] = set()
    folders = [(root, "")]
    links: list[tuple[Path, str]] = []
    while folders or links:
        folder, prefix = folders.pop() if folders else links.pop(0)
        real = os.path.realpath(folder)
        if real in seen:
            continue
        seen.add(real)
        for entry in _listed(folder):
            name = f"{prefix}{entry.name}"
            if not entry.is_dir() or _claimed(entry, name, readers):
                yield entry, name
            else:
                (links if entry.is_symlink() else folders).append((entry, f"{name}/"))


def _listed(folder: Path) -> list[Path]:
    with refusing(folder, "not a readable folder"):
        visible = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    return sorted(visible, key=lambda entry: os.fsencode(entry.name))
