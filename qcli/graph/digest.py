"""The digest of a model file, computed beside other work where the file is large."""

from __future__ import annotations

import hashlib
import threading
from contextlib import suppress
from pathlib import Path

from qcli.errors import InputError

_BLOCK = 1 << 25
"""Bytes hashed in one go. The thread waits for its turn after each, so they are many."""


class FileDigest:
    """sha256 (hex) of what a model file holds and of its external data, by a thread that begins at once.

    Hashing a model of some gigabytes takes as long as quantizing it, and needs a core of its own, not Python's lock.
    """

    def __init__(self, content: bytes, external: tuple[Path, ...]) -> None:
        self._content = content
        self._external = external
        self._found = ""
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def value(self) -> str:
        """Waits for the thread. Raises InputError if a file cannot be read any more."""
        self._thread.join()
        try:
            return self._found or digest_of(self._content, self._external)
        except OSError as error:
            problem = f"the weights in '{error.filename}' cannot be read any more: {error.strerror}"
            raise InputError(problem, "leave the model's files alone while it is worked on") from error

    def _work(self) -> None:
        with suppress(OSError):  # which comes again when the digest is asked for
            self._found = digest_of(self._content, self._external)
            self._content = b""


def digest_of(content: bytes, external: tuple[Path, ...]) -> str:
    """sha256 (hex) of a model file and of its external data, in the order given."""
    digest = hashlib.sha256(content)
    room = bytearray(min(_BLOCK, max((file.stat().st_size for file in external), default=0)))
    for file in external:
        with file.open("rb", buffering=0) as stream:
            while size := stream.readinto(room):
                digest.update(memoryview(room)[:size])
    return digest.hexdigest()
