"""Statistics and analyses kept from one run to the next, found again by what they depend on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from os import environ
from pathlib import Path

import msgspec

from qcli.errors import QcliError
from qcli.files import replace_file
from qcli.report import package_version
from qcli.statistics import Statistics, load_statistics
from qcli.types import Request

_MEASURING = 1
"""Raised whenever the same samples would be measured otherwise."""

_KEPT = 64
"""Files kept; the ones not used for the longest go first."""


def cache_folder() -> Path:
    """`QCLI_CACHE_DIR`, or the place that the operating system has for caches."""
    from platformdirs import user_cache_path

    given = environ.get("QCLI_CACHE_DIR")
    return Path(given) if given else user_cache_path("qcli")


def cache_key(prepared_sha256: str, samples_sha256: str, preprocess: object, requests: tuple[Request, ...]) -> str:
    """A name for the measurement of these requests on this graph with these samples."""
    facts = [prepared_sha256, samples_sha256, preprocess, [request.key for request in requests]]
    return key_of_facts(facts)


def key_of_facts(facts: object) -> str:
    """A name for what follows from plain data, with these versions of the libraries."""
    versions = [package_version(package) for package in ("qcli", "onnxruntime", "numpy", "pillow")]
    return hashlib.sha256(msgspec.json.encode([_MEASURING, facts, versions], order="deterministic")).hexdigest()


def find_statistics(key: str) -> Statistics | None:
    """What was measured before, or None. A damaged or unreadable file counts as none."""
    path = cache_folder() / f"{key}.npz"
    try:
        if not path.is_file():  # raises for a folder that may not be entered
            return None
        found = load_statistics(path)
        path.touch()
    except (QcliError, OSError):
        return None
    return found


def keep_statistics(key: str, statistics: Statistics) -> None:
    """Stores a measurement. A cache that cannot be written is not used, and that is no error."""
    _keep(f"{key}.npz", statistics.save)


def find_document(key: str) -> bytes | None:
    """The JSON document of this name, or None."""
    path = cache_folder() / f"{key}.json"
    try:
        content = path.read_bytes()
        path.touch()
    except OSError:
        return None
    return content


def keep_document(key: str, content: bytes) -> None:
    """Stores a JSON document. A cache that cannot be written is not used, and that is no error."""
    _keep(f"{key}.json", lambda path: replace_file(path, content))


def _keep(name: str, write: Callable[[Path], None]) -> None:
    folder = cache_folder()
    with suppress(QcliError, OSError):
        folder.mkdir(parents=True, exist_ok=True)
        write(folder / name)
        alike = folder.glob(f"*{Path(name).suffix}")
        for path in sorted(alike, key=lambda path: path.stat().st_mtime, reverse=True)[_KEPT:]:
            path.unlink()
