"""Make-style dependency files, so that a build runs again when a sample changes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from qcli.files import replace_file


def write_depfile(path: Path, output: Path, inputs: Iterable[Path]) -> None:
    """Writes `output: inputs…`, and an empty rule for each input, so that a deleted one is no error."""
    names = list(dict.fromkeys(_escaped(item) for item in inputs))
    lines = [f"{_escaped(output)}: \\", *(f"  {name} \\" for name in names[:-1]), *(f"  {name}" for name in names[-1:])]
    rules = [f"\n{name}:" for name in names]
    replace_file(path, ("\n".join([*lines, *rules]) + "\n").encode())


def _escaped(path: Path) -> str:
    """A file name as make reads it: `$` doubled, spaces, `#` and colons (but a drive's) behind a backslash."""
    text = path.as_posix().removeprefix(path.drive)
    for plain, escaped in (("$", "$$"), ("#", "\\#"), (" ", "\\ "), (":", "\\:")):
        text = text.replace(plain, escaped)
    return path.drive + text
