"""What this machine and this onnxruntime can do."""

from __future__ import annotations

import os
import platform

from qcli.errors import RuntimeFailure
from qcli.files import scratch_folder
from qcli.graph.optimized import read_optimized
from qcli.graph.probe import PROBED, kernel_probe
from qcli.report import Environment, environment
from qcli.runtime import Session
from qcli.types import Noun

_CONVERTS = "DequantizeLinear"

_NOTES = {
    "avx2": (
        "two 8-bit products are added in 16 bits here and may saturate: qcli keeps weights that sit next to "
        "each other from both being large; for models that run elsewhere set target: {ort_cpu: {isa: vnni}}"
    ),
    "vnni": (
        "8-bit products are added in 32 bits here; for models that will run on processors without VNNI "
        "set target: {ort_cpu: {isa: avx2}}"
    ),
    "arm64": "8-bit products are added in 32 bits here",
}


class ProbedKernel(Noun, frozen=True, kw_only=True):
    """The integer kernel that onnxruntime has for a quantized operator; "" if it stays float."""

    op: str
    kernel: str


class Diagnosis(Noun, frozen=True, kw_only=True):
    """This machine: versions, processor, integer kernels, and what they mean for recipes."""

    schema: int = 1
    command: str = "doctor"
    environment: Environment
    platform: str
    cores: int
    kernels: tuple[ProbedKernel, ...]
    notes: tuple[str, ...] = ()


def examine() -> Diagnosis:
    """Asks onnxruntime with tiny models what it runs on integers. Takes no input, changes nothing."""
    facts = environment()
    return Diagnosis(
        environment=facts,
        platform=platform.platform(),
        cores=_usable_cores(),
        kernels=tuple(ProbedKernel(op=op, kernel=integer_kernel(op)) for op in PROBED),
        notes=(_NOTES[facts.isa],) if facts.isa in _NOTES else (),
    )


def integer_kernel(op: str) -> str:
    """The kernel that runs a quantized operator, or "" if onnxruntime converts to float for it."""
    with scratch_folder() as folder:
        saved = folder / "optimized.onnx"
        try:
            Session(kernel_probe(op), optimized_to=saved)
        except RuntimeFailure:
            return ""
        running = [node.op for node in read_optimized(saved, {}).nodes]
    if _CONVERTS in running:
        return ""
    return next(name for name in running if op in name)


def _usable_cores() -> int:
    """The cores that this process may use, which in a container are fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
