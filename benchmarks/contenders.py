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

FULL_RANGE = Contender(tool="onnxruntime", mode="minmax-8bit")
"""The reference with all 8 bits of its weights: what it could be on a CPU that does not saturate, or barely does."""

_ALWAYS = (
    REFERENCE,
    Contender(tool="onnxruntime", mode="percentile"),
    Contender(tool="qcli", mode="int8"),
    Contender(tool="qcli", mode="int8-minmax"),
    Contender(tool="qcli", mode="int8-percentile"),
    Contender(tool="qcli", mode="int8-entropy"),
)


def contenders() -> tuple[Contender, ...]:
    """All that compete on this machine: where the reference gives up a bit of its weights, it competes with it too."""
    return (_ALWAYS[0], FULL_RANGE, *_ALWAYS[1:]) if reduces_range() else _ALWAYS


def reduces_range() -> bool:
    """True where onnxruntime's documentation asks for 7-bit weights: on x86 without VNNI."""
    return detect_isa() == "avx2"


def _qcli(mode: str, subject: Subject, output: Path) -> list[str]:
    command = ["-m", "qcli", "quantize", str(subject.model), "-r", mode, "-d", str(subject.calibration)]
    return [*command, "-o", str(output), "--no-latency", "--no-cache", "-q", *subject.settings()]


def _onnxruntime(mode: str, subject: Subject, output: Path) -> list[str]:
    method, _, width = mode.partition("-")
    command = ["-m", "benchmarks.peer", str(subject.model), str(output), "--method", method]
    preprocess = msgspec.json.encode(subject.preprocess).decode()
    narrow = ["--reduce-range"] if reduces_range() and not width else []
    return [*command, "--calibration", str(subject.calibration), "--preprocess", preprocess, *narrow]
