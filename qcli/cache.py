"""Statistics kept from one run to the next, found again by what they depend on."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from os import environ
from pathlib import Path

import msgspec

from qcli.errors import QcliError
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
    versions = [package_version(package) for package in ("qcli", "onnxruntime", "numpy", "pillow")]
    facts = [_MEASURING, prepared_sha256, samples_sha256, preprocess, [request.key for request in requests], versions]
    return hashlib.sha256(msgspec.json.encode(facts, order="deterministic")).hexdigest()


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
    folder = cache_folder()
    with suppress(QcliError, OSError):
        folder.mkdir(parents=True, exist_ok=True)
        statistics.save(folder / f"{key}.npz")
        files = sorted(folder.glob("*.npz"), key=lambda path: path.stat().st_mtime, reverse=True)
        for path in files[_KEPT:]:
            path.unlink()
