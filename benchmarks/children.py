"""Child processes, timed and weighed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import msgspec

from qcli.types import Noun

ROOT = Path(__file__).resolve().parent.parent
_STOPWATCH = Path(__file__).with_name("stopwatch.py")
_MEGABYTE = 1e6


class Child(Noun, frozen=True, kw_only=True):
    """One process that has ended: `seconds` from its start to its end, `peak_mb` (10^6 bytes) of resident memory."""

    exit_code: int
    seconds: float
    peak_mb: float | None
    stdout: str
    stderr: str

    @property
    def complaint(self) -> str:
        """Its last words, if it failed."""
        if self.exit_code == 0:
            return ""
        lines = [line.strip() for line in self.stderr.splitlines() if line.strip()]
        return next((line for line in reversed(lines) if "rror" in line), f"exit code {self.exit_code}")[:200]


class _Cost(Noun, frozen=True, kw_only=True):
    exit_code: int
    seconds: float
    peak_bytes: int | None


def run_child(arguments: Sequence[str]) -> Child:
    """Runs this Python with `arguments`, as in `["-m", "qcli", "--help"]`, from the repository's root."""
    with TemporaryDirectory(prefix="qcli-bench-") as folder:
        cost = Path(folder) / "cost.json"
        command = [sys.executable, "-I", str(_STOPWATCH), str(cost), sys.executable, *arguments]
        ended = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment_of_children()
        )
        if not cost.exists():  # the stopwatch itself was stopped
            return Child(exit_code=ended.returncode or 1, seconds=0, peak_mb=None, stdout="", stderr=ended.stderr)
        found = msgspec.json.decode(cost.read_bytes(), type=_Cost)
    peak = found.peak_bytes / _MEGABYTE if found.peak_bytes is not None else None
    code = found.exit_code
    return Child(exit_code=code, seconds=found.seconds, peak_mb=peak, stdout=ended.stdout, stderr=ended.stderr)


def interleaved(commands: Sequence[Callable[[], Child]], repeats: int) -> list[list[Child]]:
    """Runs all commands in turn, `repeats` times: A B C, C B A, A B C. The runs of each, in the order given."""
    runs: list[list[Child]] = [[] for _ in commands]
    for turn in range(repeats):
        order = range(len(commands)) if turn % 2 == 0 else reversed(range(len(commands)))
        for index in order:
            runs[index].append(commands[index]())
    return runs


def median_seconds(runs: Sequence[Child]) -> float:
    return median(run.seconds for run in runs)


def median_peak(runs: Sequence[Child]) -> float | None:
    peaks = [run.peak_mb for run in runs if run.peak_mb is not None]
    return median(peaks) if peaks else None


def progress(text: str) -> None:
    """One line on stderr."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def environment_of_children() -> dict[str, str]:
    """Compiled modules are kept, as an installed program has them."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**inherited, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"}
