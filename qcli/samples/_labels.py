"""`labels.csv`: the class index of every sample, by file name."""

from __future__ import annotations

import csv
import re
from collections.abc import Collection, Iterator
from os.path import isfile
from pathlib import Path
from posixpath import join, normpath

from qcli.errors import InputError
from qcli.samples._refuse import refusing
from qcli.types import Noun

LABELS_FILE = "labels.csv"

_CLASS_INDEX = re.compile(r"[0-9]{1,9}")
_MOST_LISTED = 10


class LabelTable(Noun, frozen=True, kw_only=True):
    """One labels.csv, its files relative to `folder`, which is relative to the samples' root ("")."""

    path: Path
    folder: str = ""


def read_labels(tables: Collection[LabelTable], names: Collection[str], root: Path) -> dict[str, int]:
    """Class indices by sample name; empty without tables.

    The header holds `file` and `label`, other columns are ignored. Raises one InputError that lists the bad
    rows (no such file, no class index, a file twice) or, if all are good, the samples without a row.
    """
    labels: dict[str, int] = {}
    problems: list[str] = []
    for table in tables:
        for row, file, label in _rows(table.path):
            name = normpath(join(table.folder, file))
            problem = _problem(name, label, labels)
            # os.path's isfile is False for names that are too long; Path's raises.
            if problem is None and name not in names and not isfile(root / name):
                problem = f"there is no sample '{name}'"
            if problem is None:
                labels[name] = int(label)
            else:
                problems.append(f"{table.path}, row {row}: {problem}")
    if tables and not problems:
        where = next(iter(tables)).path
        problems = [f"{where}: no row for sample '{name}'" for name in sorted(set(names) - set(labels))]
    if problems:
        raise InputError(together(problems, f"{len(problems)} problems with labels"), "a row is: file,label")
    return labels


def together(problems: list[str], heading: str) -> str:
    """One problem as it is, or several under a heading, up to ten of them."""
    if len(problems) == 1:
        return problems[0]
    more = [f"… and {len(problems) - _MOST_LISTED} more"] if len(problems) > _MOST_LISTED else []
    return "\n  ".join([f"{heading}:", *problems[:_MOST_LISTED], *more])


def _problem(name: str, label: str, labels: dict[str, int]) -> str | None:
    if not _CLASS_INDEX.fullmatch(label):
        return f"label '{label}' of '{name}' is not a class index"
    return f"'{name}' has a label already" if name in labels else None


def _rows(path: Path) -> Iterator[tuple[int, str, str]]:
    """(line number, file, label) of every row, the header being line 1."""
    with (
        refusing(path, "not readable as labels"),
        path.open(newline="", encoding="utf-8-sig") as stream,
    ):
        reader = csv.DictReader(stream, strict=True)
        header = reader.fieldnames or []
        if "file" not in header or "label" not in header:
            raise ValueError("the first line must be 'file,label'")
        rows = [(reader.line_num, row["file"] or "", (row["label"] or "").strip()) for row in reader]
    yield from rows
