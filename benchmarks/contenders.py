"""Who competes: presets of qcli and calibration methods of onnxruntime, each as a command line."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

import msgspec

from benchmarks.children import Child, run_child
from benchmarks.subjects import Subject
from qcli.targets.ort_cpu import detect_isa
from qcli.types import Noun


class Contender(Noun, frozen=True, kw_only=True):
    """One tool in one mode: a preset's name for qcli, a calibration method for onnxruntime."""

    tool: Literal["qcli", "onnxruntime"]
    mode: str

    @property
    def name(self) -> str:
        return f"{self.tool} {self.mode}"

    def command(self, subject: Subject, output: Path, samples: int | None) -> list[str]:
        """The arguments for Python that make `output` of a subject with that many of its samples."""
        build = {"qcli": _qcli, "onnxruntime": _onnxruntime}[self.tool]
        limit = [] if samples is None else ["--samples", str(samples)]
        return [*build(self.mode, subject, output), *limit]

    def prepared(self, subject: Subject, output: Path, samples: int | None) -> Callable[[], Child]:
        """The command, ready to be run."""
        return partial(run_child, self.command(subject, output, samples))


REFERENCE = Contender(tool="onnxruntime", mode="minmax")
"""What ratios are taken against."""

ALL = (
    REFERENCE,
    Contender(tool="onnxruntime", mode="percentile"),
    Contender(tool="qcli", mode="int8"),
    Contender(tool="qcli", mode="int8-minmax"),
    Contender(tool="qcli", mode="int8-percentile"),
    Contender(tool="qcli", mode="int8-entropy"),
)


def reduces_range() -> bool:
    """True where onnxruntime's documentation asks for 7-bit weights: on x86 without VNNI."""
    return detect_isa() == "avx2"


def _qcli(mode: str, subject: Subject, output: Path) -> list[str]:
    command = ["-m", "qcli", "quantize", str(subject.model), "-r", mode, "-d", str(subject.calibration)]
    return [*command, "-o", str(output), "--no-latency", "--no-cache", "-q", *subject.settings()]


def _onnxruntime(mode: str, subject: Subject, output: Path) -> list[str]:
    command = ["-m", "benchmarks.peer", str(subject.model), str(output), "--method", mode]
    preprocess = msgspec.json.encode(subject.preprocess).decode()
    narrow = ["--reduce-range"] if reduces_range() else []
    return [*command, "--calibration", str(subject.calibration), "--preprocess", preprocess, *narrow]
