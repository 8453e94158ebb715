"""The statistics of one calibration, and their file form."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec
import numpy as np

from qcli.configure import convert
from qcli.contracts import Statistic
from qcli.errors import InputError, QcliError, UsageError
from qcli.files import replace_file
from qcli.plugins import load
from qcli.samples._arrays import MAX_BYTES, read_array
from qcli.samples._refuse import refusing
from qcli.types import Array, Noun, Request

_HEADER = "header"
_FORMAT = 1
_HINT = "make it with 'qcli calibrate'"


class Header(Noun, frozen=True, kw_only=True):
    """What statistics were collected from: the model, the number of samples, and what was measured.

    `prepared_sha256` is the digest of the graph that ran, after its steps.
    """

    format: int = _FORMAT
    model_sha256: str
    recipe_sha256: str
    prepared_sha256: str
    samples: int
    requests: tuple[Request, ...]


class Statistics:
    """Measured statistics by request. Merging those of two shards equals measuring both sets of samples."""

    def __init__(self, header: Header, measured: Mapping[str, Statistic]) -> None:
        self.header = header
        self._measured = dict(measured)

    @classmethod
    def empty(
        cls, requests: Iterable[Request], *, model_sha256: str = "", recipe_sha256: str = "", prepared_sha256: str = ""
    ) -> Statistics:
        """Nothing measured yet. The digests say what the measurements will be good for."""
        ordered = tuple(sorted(set(requests), key=lambda request: request.key))
        header = Header(
            model_sha256=model_sha256,
            recipe_sha256=recipe_sha256,
            prepared_sha256=prepared_sha256,
            samples=0,
            requests=ordered,
        )
        return cls(header, {request.key: load("stats", request.statistic).empty() for request in ordered})

    def get(self, request: Request) -> Statistic:
        """The measurement asked for. Raises UsageError if the file holds another recipe's measurements."""
        try:
            return self._measured[request.key]
        except KeyError:
            raise UsageError(
                f"the statistics lack the {request.statistic} of '{request.value}'", "calibrate with the same recipe"
            ) from None

    def counted(self, samples: int) -> Statistics:
        """The same measurements, said to come from that many samples."""
        return Statistics(msgspec.structs.replace(self.header, samples=samples), self._measured)

    def merge(self, other: Statistics) -> Statistics:
        """Both together. Raises UsageError if they were measured on another model or for another recipe."""
        mine, theirs = self.header, other.header
        if msgspec.structs.replace(mine, samples=0) != msgspec.structs.replace(theirs, samples=0):
            raise UsageError("these statistics differ in model or recipe", "merge shards of one calibration")
        for key, statistic in self._measured.items():
            statistic.merge(other._measured[key])
        return self.counted(mine.samples + theirs.samples)

    def save(self, path: Path) -> None:
        """Writes an .npz without pickles whose bytes depend on the measurements alone."""
        arrays: dict[str, Array] = {_HEADER: np.frombuffer(msgspec.json.encode(self.header), np.uint8)}
        for index, request in enumerate(self.header.requests):
            for name, array in sorted(self._measured[request.key].arrays().items()):
                arrays[f"{index}.{name}"] = array
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **arrays)
        replace_file(path, buffer.getvalue())


def load_statistics(path: Path) -> Statistics:
    """Statistics from a file. Raises InputError if it is no such file."""
    arrays = _arrays(path)
    try:
        header = convert(msgspec.json.decode(arrays.pop(_HEADER).tobytes()), Header, where=f"statistics '{path}'")
    except (KeyError, msgspec.DecodeError, QcliError) as error:
        raise InputError(f"'{path}' is not a statistics file", _HINT) from error
    if header.format != _FORMAT:
        raise InputError(f"the statistics '{path}' have format {header.format}", f"this qcli reads format {_FORMAT}")
    measured: dict[str, Statistic] = {}
    for index, request in enumerate(header.requests):
        prefix = f"{index}."
        own = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
        measured[request.key] = _restore(path, request, own)
    return Statistics(header, measured)


def _arrays(path: Path) -> dict[str, Array]:
    try:
        content = io.BytesIO(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"statistics '{path}' not found", "make them with 'qcli calibrate'") from None
    except OSError as error:
        raise InputError(f"statistics '{path}' cannot be read: {error.strerror}", "check the path") from error
    arrays: dict[str, Array] = {}
    with refusing(path, "is not a statistics file", _HINT), zipfile.ZipFile(content) as archive:
        if sum(member.file_size for member in archive.infolist()) > MAX_BYTES:
            raise ValueError(f"it unpacks to more than {MAX_BYTES} bytes")
        for member in archive.infolist():
            with archive.open(member) as stream:
                arrays[member.filename.removesuffix(".npy")] = read_array(stream, member.file_size)
    return arrays


def _restore(path: Path, request: Request, arrays: dict[str, Array]) -> Statistic:
    try:
        restored: Statistic = load("stats", request.statistic).from_arrays(arrays)
    except (KeyError, ValueError, TypeError, IndexError, QcliError) as error:
        raise InputError(f"'{path}' is damaged: {request.key}", "calibrate again") from error
    return restored
