"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from qcli.errors import QcliError, ResourceError, UsageError


def replace_file(path: Path, content: bytes) -> None:
    """Writes `content` beside `path`, flushes it to the disk and renames it into place.

    Raises UsageError for a place that cannot be written and ResourceError for a full disk; `path` is then as before.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with partial.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        with suppress(OSError):
            partial.unlink()


def write_error(path: Path, error: OSError) -> QcliError:
    """The error to show for a failed write."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return ResourceError(f"no space left to write '{path}'", "free some space or write to another disk")
    reason = error.strerror or str(error)
    return UsageError(f"'{path}' cannot be written: {reason}", "choose a folder that exists and can be written to")


def check_distinct(outputs: Iterable[Path], inputs: Iterable[Path]) -> None:
    """What is read is never overwritten, and no two results go to one file. Raises UsageError."""
    seen: set[Path] = {path.resolve() for path in inputs if path.exists()}
    for path in outputs:
        place = path.resolve()
        if place in seen:
            problem = f"'{path}' is read or written otherwise in this run"
            raise UsageError(problem, "inputs are never changed; name another file")
        seen.add(place)


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
        partial.touch()
        partial.unlink()
    except OSError as error:
        raise write_error(path, error) from error
