"""The report: what was done, what it cost and whether it is good enough. Its keys are public API.

A section that was not measured is null.
"""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from qcli.amendments import ConversionFacts, FallbackFacts
from qcli.sizes import BothMemories, BytesBy, Storage
from qcli.types import Noun

if TYPE_CHECKING:
    from qcli.graph import Model

_MEGABYTE = 1e6


class FileFacts(Noun, frozen=True, kw_only=True):
    """A model file. `bytes` and `sha256` include external data; `parameters` counts constants' elements."""

    path: str
    sha256: str
    bytes: int
    opset: int
    nodes: int
    parameters: int


class RecipeFacts(Noun, frozen=True, kw_only=True):
    name: str
    sha256: str


class SampleCounts(Noun, frozen=True, kw_only=True):
    calibration: int | None = None
    validation: int | None = None


class Size(Noun, frozen=True, kw_only=True):
    """External data included. `ratio` = bytes / float_bytes.

    The others are those of the compressed model, as in `Storage`.
    """

    float_bytes: int
    bytes: int
    ratio: float
    bytes_by: BytesBy | None = None
    weights: int | None = None
    bits_per_weight: float | None = None
    external_bytes: int | None = None


class Scores(Noun, frozen=True, kw_only=True):
    """The accuracy of both models, 0..1. `drop` = float - quantized."""

    float_: float = msgspec.field(name="float")
    quantized: float
    drop: float


class Perplexities(Noun, frozen=True, kw_only=True):
    """The perplexity of both models on the samples' tokens, from 1. `ratio` = quantized / float."""

    float_: float = msgspec.field(name="float")
    quantized: float
    ratio: float


class Likelihoods(Noun, frozen=True, kw_only=True):
    """The mean negative log-likelihood of the next token in nats, of both models. `increase` = quantized - float."""

    float_: float = msgspec.field(name="float")
    quantized: float
    increase: float


class OutputAccuracy(Noun, frozen=True, kw_only=True):
    """One output: the first three for floats, `equal` (share of equal elements) for anything else."""

    sqnr: float | None = None
    cosine: float | None = None
    max_abs: float | None = None
    equal: float | None = None


class Accuracy(Noun, frozen=True, kw_only=True):
    """`sqnr` (dB) and `cosine` are those of the worst float output. `agreement` is for classifiers alone.

    `perplexity` and `nll` are for models that give logits for the next of the tokens that their samples hold.
    """

    sqnr: float | None = None
    cosine: float | None = None
    agreement: float | None = None
    top1: Scores | None = None
    top5: Scores | None = None
    perplexity: Perplexities | None = None
    nll: Likelihoods | None = None
    outputs: dict[str, OutputAccuracy] = msgspec.field(default_factory=dict)


class FloatNode(Noun, frozen=True, kw_only=True):
    """A compute node that stayed float, and its share of the model's multiply-accumulates."""

    node: str
    op: str
    reason: str
    mac_share: float


class Agreement(Noun, frozen=True, kw_only=True):
    """The compressed model as onnxruntime optimizes it against itself run as written."""

    sqnr: float
    max_abs: float
    agree: bool


class KernelFacts(Noun, frozen=True, kw_only=True):
    """What onnxruntime runs: compute nodes by kind of kernel, and all operators of the optimized graph."""

    integer: int
    float_: int = msgspec.field(name="float")
    integer_share: float
    by_kernel: dict[str, int]
    kept_float: tuple[FloatNode, ...] = ()
    agreement_with_unoptimized: Agreement | None = None


class LatencyFacts(Noun, frozen=True, kw_only=True):
    """Interleaved medians. `speedup` = float_ms / ms."""

    float_ms: float
    ms: float
    speedup: float
    threads: int


class GateResult(Noun, frozen=True, kw_only=True):
    gate: str
    value: float
    passed: bool


class Seconds(Noun, frozen=True, kw_only=True):
    prepare: float | None = None
    fallback: float | None = None
    calibrate: float | None = None
    solve: float | None = None
    apply: float | None = None
    validate: float | None = None
    total: float | None = None


class PlanCounts(Noun, frozen=True, kw_only=True):
    entries: int
    ties: int


class Environment(Noun, frozen=True, kw_only=True):
    qcli: str
    onnxruntime: str
    onnx: str
    numpy: str
    python: str
    cpu: str
    isa: str


class Report(Noun, frozen=True, kw_only=True):
    """Everything about one run."""

    schema: int = 1
    command: str
    status: Literal["passed", "failed"] = "passed"
    model: FileFacts | None = None
    output: FileFacts | None = None
    recipe: RecipeFacts | None = None
    samples: SampleCounts | None = None
    plan: PlanCounts | None = None
    fallback: FallbackFacts | None = None
    conversion: ConversionFacts | None = None
    size: Size | None = None
    accuracy: Accuracy | None = None
    kernels: KernelFacts | None = None
    latency: LatencyFacts | None = None
    memory: BothMemories | None = None
    gates: tuple[GateResult, ...] = ()
    warnings: tuple[str, ...] = ()
    seconds: Seconds | None = None
    peak_memory_mb: float | None = None
    environment: Environment | None = None


def with_gates(report: Report, results: tuple[GateResult, ...]) -> Report:
    """The report with its gates judged: it failed if one of them did."""
    passed = all(result.passed for result in results)
    return msgspec.structs.replace(report, gates=results, status="passed" if passed else "failed")


def encode_report(report: msgspec.Struct) -> bytes:
    """The JSON form: indented, keys in the order of the interface, a final newline."""
    return msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n"


def file_facts(path: Path, model: Model | None = None) -> FileFacts:
    """What to say of a model file; `model` is the file already loaded, to save doing it again.

    Raises InputError if the file is no model.
    """
    from qcli.graph import load_model

    loaded = model if model is not None else load_model(path)
    return FileFacts(
        path=str(path),
        sha256=loaded.sha256,
        bytes=model_bytes(path),
        opset=loaded.opset,
        nodes=loaded.node_count(),
        parameters=loaded.parameter_count(),
    )


def model_bytes(path: Path) -> int:
    """The size of a model file and of the files of external data that it names."""
    from qcli.graph.optimized import external_files

    return sum(file.stat().st_size for file in (path, *external_files(path)))


def size_of(float_model: FileFacts, compressed: FileFacts, storage: Storage | None = None) -> Size:
    """`storage` is what is known of the compressed model's bytes."""
    size = Size(
        float_bytes=float_model.bytes,
        bytes=compressed.bytes,
        ratio=compressed.bytes / float_model.bytes,
    )
    return size if storage is None else msgspec.structs.replace(size, **msgspec.structs.asdict(storage))


def environment() -> Environment:
    """The versions and the processor that the figures are true for."""
    from qcli.targets.ort_cpu import detect_isa

    return Environment(
        qcli=package_version("qcli"),
        onnxruntime=package_version("onnxruntime"),
        onnx=package_version("onnx"),
        numpy=package_version("numpy"),
        python=platform.python_version(),
        cpu=cpu_name(),
        isa=detect_isa(),
    )


def cpu_name() -> str:
    """The processor's name as the operating system gives it."""
    described = Path("/proc/cpuinfo")
    if described.exists():
        for line in described.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("model name", "Model") and value.strip():
                return value.strip()
    return platform.processor() or platform.machine()


def peak_memory_mb() -> float | None:
    """The largest resident memory of this process so far, in 10^6 bytes; None where it cannot be known."""
    if os.name == "nt":
        return _windows_peak_memory_mb()
    told = _told_by_linux("VmHWM:")  # getrusage begins with the peak of the parent process there
    if told is not None:
        return told
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux kibibytes
    return peak * unit / _MEGABYTE


def memory_mb() -> float | None:
    """The resident memory of this process now, in 10^6 bytes; None where it cannot be known."""
    return _told_by_linux("VmRSS:")


def _told_by_linux(key: str) -> float | None:
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith(key):
                return int(line.split()[1]) * 1024 / _MEGABYTE
    return None


def _windows_peak_memory_mb() -> float | None:
    try:
        import psutil  # type: ignore[import-untyped, import-not-found, unused-ignore]
    except ImportError:
        return None
    return float(psutil.Process().memory_info().peak_wset) / _MEGABYTE


def package_version(package: str) -> str:
    """The installed version of a package, `unknown` in a checkout that is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
