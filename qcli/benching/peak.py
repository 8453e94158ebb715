"""How much memory a model takes to run, measured in a process of its own.

Run as a program (`python -m qcli.benching.peak MODEL THREADS FEEDS.npz`) it is that process.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np

from qcli.files import scratch_folder
from qcli.report import memory_mb, peak_memory_mb
from qcli.runtime import Session
from qcli.sizes import BothMemories, MemoryFacts
from qcli.types import Array

_RUNS = 3

_START = "import sys; sys.path.append(sys.argv.pop(1)); from qcli.benching.peak import main; main(sys.argv[1:])"
"""Finds this qcli, and nothing that lies in the user's folder."""


def measure_peak(model: Path, feeds: Mapping[str, Array], threads: int = 1) -> MemoryFacts | None:
    """What running `model` takes; None if the system does not tell or the process did not end well."""
    if any(not _storable(value) for value in feeds.values()):
        return None
    with scratch_folder() as folder:
        stored = folder / "feeds.npz"
        with stored.open("wb") as stream:
            np.savez(stream, allow_pickle=False, **{f"_{name}": value for name, value in feeds.items()})
        root = Path(__file__).resolve().parent.parent.parent
        command = [sys.executable, "-P", "-c", _START, str(root), str(model), str(threads), str(stored)]
        try:
            done = subprocess.run(command, capture_output=True, check=True)  # noqa: S603
            return msgspec.json.decode(done.stdout, type=MemoryFacts)
        except (OSError, subprocess.CalledProcessError, msgspec.DecodeError):
            return None


def measure_both(float_model: Path, compressed: Path, feeds: Mapping[str, Array]) -> BothMemories:
    """What each of two models takes, one after the other."""
    return BothMemories(float_=measure_peak(float_model, feeds), compressed=measure_peak(compressed, feeds))


def main(arguments: list[str]) -> None:
    """The child: runs the model and writes MemoryFacts to stdout, or nothing where it cannot be known."""
    model, threads, stored = arguments
    with np.load(stored, allow_pickle=False) as arrays:
        feeds = {name.removeprefix("_"): arrays[name] for name in arrays.files}
    base, before = peak_memory_mb(), memory_mb()
    session = Session(Path(model), threads=int(threads), spin=False)
    after = memory_mb()
    for _ in range(_RUNS):
        session.run(feeds)
    peak = peak_memory_mb()
    if base is not None and peak is not None:
        loaded = after - before if before is not None and after is not None else None
        sys.stdout.buffer.write(msgspec.json.encode(MemoryFacts(peak_mb=peak, base_mb=base, loaded_mb=loaded)))


def _storable(value: object) -> bool:
    """True for arrays of types that numpy's files know."""
    return isinstance(value, np.ndarray) and value.dtype.kind in "biufcSU"


if __name__ == "__main__":
    main(sys.argv[1:])
