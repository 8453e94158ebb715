"""Checks of the command line that are true or false: the same bytes, shards, and how `--help` starts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from benchmarks.children import Child, run_child
from benchmarks.outcome import Check
from benchmarks.subjects import Subject, subject
from benchmarks.targets import HEAVY, HELP_SECONDS, SAME_BYTES

_HELP_RUNS = 5
_SAMPLES = 32
_SHARDS = 4


def command_checks(zoo: Path, models: Sequence[str]) -> Iterator[Check]:
    """The checks on those of the models that they are made on, and of `qcli --help`."""
    for name in SAME_BYTES:
        if name in models:
            yield from _same_bytes(subject(zoo, name))
            yield from _shards(subject(zoo, name))
    yield from _help()


def _same_bytes(model: Subject) -> Iterator[Check]:
    with TemporaryDirectory(prefix="qcli-accept-") as folder:
        first = _made(model, Path(folder) / "first.onnx")
        again = {
            "the same command again": _made(model, Path(folder) / "again.onnx"),
            "--threads 1": _made(model, Path(folder) / "one.onnx", "--threads", "1"),
            "--threads 2": _made(model, Path(folder) / "two.onnx", "--threads", "2"),
        }
    for what, digest in again.items():
        yield _truth(model.name, f"identical bytes, {what}", digest == first != "")


def _shards(model: Subject) -> Iterator[Check]:
    with TemporaryDirectory(prefix="qcli-accept-") as folder:
        place = Path(folder)
        whole, merged = place / "whole.npz", place / "merged.npz"
        _calibrate(model, whole)
        parts = [place / f"part{index}.npz" for index in range(1, _SHARDS + 1)]
        for index, part in enumerate(parts, start=1):
            _calibrate(model, part, "--shard", f"{index}/{_SHARDS}")
        run_child(["-m", "qcli", "merge", *map(str, parts), "-o", str(merged), "-q"])
        same = _digest(whole) == _digest(merged) != ""
        yield _truth(model.name, f"{_SHARDS} shards merged: the same statistics file", same)
        from_parts = _made(model, place / "parts.onnx", "--stats", str(merged))
        same = from_parts == _made(model, place / "direct.onnx") != ""
        yield _truth(model.name, f"{_SHARDS} shards merged: the same model", same)


def _help() -> Iterator[Check]:
    runs = [run_child(["-m", "qcli", "--help"]) for _ in range(_HELP_RUNS)]
    seconds = median(run.seconds for run in runs)
    met = seconds <= HELP_SECONDS and all(run.exit_code == 0 for run in runs)
    yield Check(subject="qcli --help", what="wall seconds", target=f"<= {HELP_SECONDS}", measured=seconds, met=met)
    imported = heavy_imports(run_child(["-X", "importtime", "-m", "qcli", "--help"]))
    yield Check(
        subject="qcli --help",
        what=f"imports of {', '.join(HEAVY)}",
        target="== 0",
        measured=len(imported),
        met=not imported,
        note=", ".join(imported),
    )


def heavy_imports(traced: Child) -> list[str]:
    """The heavy packages among what a run with `-X importtime` imported."""
    modules = {line.rsplit("|", 1)[-1].strip() for line in traced.stderr.splitlines() if "|" in line}
    return sorted(modules.intersection(HEAVY))


def _made(model: Subject, output: Path, *more: str) -> str:
    samples = ["-d", str(model.calibration), "--samples", str(_SAMPLES), *model.settings()]
    command = ["-m", "qcli", "quantize", str(model.model), *samples, "-o", str(output)]
    run_child([*command, "-q", "--no-latency", "--no-cache", *more])
    return _digest(output)


def _calibrate(model: Subject, output: Path, *more: str) -> None:
    samples = ["-d", str(model.calibration), "--samples", str(_SAMPLES), *model.settings()]
    run_child(["-m", "qcli", "calibrate", str(model.model), *samples, "-o", str(output), "-q", *more])


def _digest(path: Path) -> str:
    """sha256 of a file, "" if it is not there."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def _truth(name: str, what: str, true: bool) -> Check:
    return Check(subject=name, what=what, target="== 1", measured=float(true), met=true)
