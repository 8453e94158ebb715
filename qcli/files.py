"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from qcli.errors import QcliError, ResourceError, UsageError

Writer = TypeVar("Writer")


def replace_file(path: Path, content: bytes) -> None:
    """Writes `content` beside `path`, flushes it to the disk and renames it into place.

    Raises UsageError for a place that cannot be written and ResourceError for a full disk; `path` is then as before.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with unfinished(partial):
        try:
            with partial.open("wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(partial, path)
        except OSError as error:
            raise write_error(path, error) from error


@contextmanager
def unfinished(partial: Path) -> Iterator[None]:
    """A temporary file that is gone afterwards, whatever happens, if it was not renamed."""
    _unfinished.add(partial)  # before it is there, so that no interrupt comes between
    try:
        yield
    finally:
        with suppress(OSError):
            partial.unlink()
        _unfinished.discard(partial)


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder for temporary files, gone afterwards. Raises ResourceError where there is no place for one."""
    try:
        folder = Path(tempfile.gettempdir()) / f"qcli-{secrets.token_hex(8)}"
        _unfinished.add(folder)  # before it is there, so that no interrupt comes between
        folder.mkdir(mode=0o700)
    except OSError as error:
        raise ResourceError(
            f"there is no place for temporary files: {error.strerror}", "let TMPDIR point to another folder"
        ) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _unfinished.discard(folder)


def sweep() -> None:
    """Takes away what an interrupt left: it can strike between any two lines, those that tidy up included."""
    for path in tuple(_unfinished):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink(missing_ok=True)


_unfinished: set[Path] = set()
"""Temporary files and folders that exist, or are about to."""


def writer_for(path: Path, writers: Mapping[str, Writer]) -> Writer:
    """What writes the format that the suffix of a report's path names. Raises UsageError for an unknown one."""
    writer = writers.get(path.suffix.lower())
    if writer is None:
        raise UsageError(
            f"report '{path}': unknown format '{path.suffix}'", f"the suffix is one of {' '.join(writers)}"
        )
    return writer


def write_error(path: Path, error: OSError) -> QcliError:
    """The error to show for a failed write."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return ResourceError(f"no space left to write '{path}'", "free some space or write to another disk")
    reason = error.strerror or str(error)
    return UsageError(f"'{path}' cannot be written: {reason}", "choose a folder that exists and can be written to")


def check_distinct(outputs: Iterable[Path], inputs: Iterable[Path]) -> None:
    """What is read is never overwritten, and no two results go to one file. Raises UsageError."""
    seen: set[Path] = {path.resolve() for path in inputs if is_there(path)}
    for path in outputs:
        place = path.resolve()
        if place in seen:
            problem = f"'{path}' is read or written otherwise in this run"
            raise UsageError(problem, "inputs are never changed; name another file")
        seen.add(place)


def is_there(path: Path) -> bool:
    """`path.exists()`, but False for names that are too long and for folders that may not be entered."""
    try:
        return path.exists()
    except OSError:
        return False


def same_file(first: Path, second: Path) -> bool:
    """True for two names, or two hard links, of one file."""
    return is_there(first) and is_there(second) and first.samefile(second)


def check_writable(path: Path) -> None:
    """Fails before the work, not after it. Raises UsageError."""
    try:
        if path.is_dir():
            raise UsageError(f"output '{path}' is a folder", "name the file to write")
        if path.exists() and not path.is_file():
            raise UsageError(f"output '{path}' is no ordinary file", "name the file to write")
        if not path.parent.is_dir():
            raise UsageError(f"the folder of '{path}' does not exist", f"create it: mkdir -p '{path.parent}'")
        partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        with unfinished(partial):
            partial.touch()
    except OSError as error:
        raise write_error(path, error) from error
