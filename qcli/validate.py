"""Comparing a compressed model with the float model that it was made from, by running both.

job = ValidateJob(float_model=Path("a.onnx"), compressed=Path("a.int8.onnx"), samples=dataset)
print(validate(job).accuracy.sqnr)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sized
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from qcli.comparison import Comparison, OptimizationCheck, is_float
from qcli.contracts import InputSpec
from qcli.dataset import Sample
from qcli.errors import InputError, NothingToDoError, ResourceError, RuntimeFailure
from qcli.files import scratch_folder
from qcli.graph import HALF_TYPES, Model, float32_form, load_model
from qcli.kernels import Kernels, read_kernels
from qcli.latency import BUSY, NORMAL_EFFORT, Effort, Latency, measure
from qcli.memory import Budget
from qcli.node_costs import NodeCost, compare_nodes, dearer
from qcli.parallel import in_order
from qcli.report import (
    Accuracy,
    Agreement,
    FileFacts,
    FloatNode,
    KernelFacts,
    LatencyFacts,
    Report,
    SampleCounts,
    Size,
    file_facts,
    size_of,
)
from qcli.runtime import Session, on_sample
from qcli.tracing import PROJECTING
from qcli.types import Array, Noun
from qcli.watch import Watch

_LATENCY_SAMPLES = 4


class ValidateJob(Noun, frozen=True, kw_only=True):
    """What to compare and how.

    `samples` is iterated once; `parallel` of them are run at a time. `threads` are those inside an operator.
    `latency` None leaves it out. `unoptimized_samples` many samples also run without graph optimization. `reasons`
    says why nodes were left float, by name or by first output. `lean` leaves weights in their files, at the cost of
    speed.
    """

    float_model: Path | bytes
    compressed: Path | bytes
    samples: Iterable[Sample]
    threads: int = 1
    parallel: int = 1
    latency: Effort | None = NORMAL_EFFORT
    unoptimized_samples: int = 4
    reasons: Mapping[str, str] = msgspec.field(default_factory=dict)
    lean: bool = False


class Validation(Noun, frozen=True, kw_only=True):
    """The sections of the report that come from running both models, over `samples` samples.

    `dearer` are the nodes that cost the most where the compressed model is slower.
    """

    samples: int
    model: FileFacts
    output: FileFacts
    accuracy: Accuracy
    kernels: KernelFacts
    latency: LatencyFacts | None = None
    dearer: tuple[NodeCost, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def size(self) -> Size:
        return size_of(self.model, self.output)

    def sections(self, output: Path | None = None) -> dict[str, Any]:
        """The report's fields by name; `output` is where the compressed model will lie, if elsewhere."""
        written = self.output if output is None else msgspec.structs.replace(self.output, path=str(output))
        return {
            "model": self.model,
            "output": written,
            "size": self.size,
            "accuracy": self.accuracy,
            "kernels": self.kernels,
            "latency": self.latency,
        }


class Means(Noun, frozen=True, kw_only=True):
    """How far two models can be compared: by running them or not, with copies of their weights or not.

    `unmeasured` are the sections of the report that stay empty, `why` says it.
    """

    runs: bool = True
    lean: bool = False
    unmeasured: tuple[str, ...] = ()
    why: str = ""


def means_of(budget: Budget, float_model: Model) -> Means:
    """What the memory allows. The compressed model counts like the float one, to which onnxruntime may decode it."""
    weights = float_model.weight_bytes()
    if budget.fits(_AT_EASE * weights):
        return Means()
    if float_model.large and budget.fits(_LEAN * weights):
        usual = budget.shortage(_AT_EASE * weights)
        why = f"latency was not measured and the models ran without copies of their weights: running as usual {usual}"
        return Means(lean=True, unmeasured=("latency",), why=why)
    needed = (_LEAN if float_model.large else _AT_EASE) * weights
    why = f"the models were not run and not compared: that {budget.shortage(needed)}"
    return Means(runs=False, unmeasured=("accuracy", "kernels", "latency"), why=why)


_AT_EASE = 5
"""Both models, the compressed one decoded, with the copies that kernels work on: in sizes of the float weights."""

_LEAN = 2
"""The weights of both models in their files, the compressed ones at most as large."""


def validate(job: ValidateJob, watch: Watch | None = None) -> Validation:
    """Runs both models on every sample, in constant memory. Warnings go to `watch` too.

    Raises InputError if the models differ in inputs or outputs, if a sample has a wrong label, or if the
    float model gives NaN or Inf; RuntimeFailure if one does not run; NothingToDoError without samples. NaN
    or Inf from the compressed model is a result, -200 dB and a warning.
    """
    watch = watch or Watch()
    float_model, compressed = _model(job.float_model), _model(job.compressed)
    _check_same_interface(float_model, compressed)
    reference, warned = _reference_session(job, float_model)
    sessions = _Sessions(
        reference,
        Session(job.compressed, threads=job.threads, spin=False, lean=job.lean),
    )
    comparison = Comparison()
    check = OptimizationCheck(job.compressed, job.unoptimized_samples, job.threads, lean=job.lean)
    feeds = _run_all(job, sessions, (comparison, check), watch)
    latency = _latency(sessions, feeds, job)
    del sessions, reference  # the next one takes as much memory
    kernels = read_kernels(job.compressed, float_model, feeds[0], lean=job.lean)
    warnings = (*warned, *comparison.warnings(), *check.warnings(), *_latency_warnings(latency))
    for text in warnings:
        watch.warn(text)
    return Validation(
        samples=comparison.samples,
        model=_facts(job.float_model, float_model),
        output=_facts(job.compressed, compressed),
        accuracy=comparison.accuracy(),
        kernels=_kernel_facts(kernels, job.reasons, check.agreement()),
        latency=_latency_facts(latency),
        dearer=_dearer(job, float_model, feeds[0]) if latency is not None and latency.ratios[1] < 1 else (),
        warnings=warnings,
    )


def with_validation(report: Report, validation: Validation) -> Report:
    """The report with what running both models showed."""
    counts = msgspec.structs.replace(report.samples or SampleCounts(), validation=validation.samples)
    sections = {"accuracy": validation.accuracy, "kernels": validation.kernels, "latency": validation.latency}
    return msgspec.structs.replace(report, samples=counts, **sections)


class _Sessions(NamedTuple):
    float_model: Session
    compressed: Session

    def run(self, sample: Sample) -> tuple[Sample, dict[str, Array], dict[str, Array]]:
        with on_sample(sample.file):
            return sample, self.float_model.run(sample.feeds), self.compressed.run(sample.feeds)


def _reference_session(job: ValidateJob, model: Model) -> tuple[Session, tuple[str, ...]]:
    """The float model, or its float32 form where onnxruntime lacks the model's own floats, and a warning."""
    try:
        return Session(job.float_model, threads=job.threads, spin=False, lean=job.lean), ()
    except RuntimeFailure:
        form = float32_form(model)
        if form is None:
            raise
        warning = "onnxruntime cannot run the float model in its own floats: compared with its float32 form"
        return Session(form.runnable(), threads=job.threads, spin=False), (warning,)


def _run_all(
    job: ValidateJob, sessions: _Sessions, meters: tuple[Comparison, OptimizationCheck], watch: Watch
) -> list[dict[str, Array]]:
    """Runs every sample and returns the first few of them, to measure the time with."""
    total = len(job.samples) if isinstance(job.samples, Sized) else 0
    feeds: list[dict[str, Array]] = []
    for done, (sample, reference, result) in enumerate(in_order(sessions.run, job.samples, job.parallel), start=1):
        _check_finite(reference, sample.file)
        for meter in meters:
            meter.update(reference, result, sample)
        if len(feeds) < _LATENCY_SAMPLES:
            feeds.append(sample.feeds)
        watch.progress(done, max(done, total))
    if not feeds:
        raise NothingToDoError("there are no samples to validate with", "name a folder of them with -d or --eval")
    return feeds


def _model(source: Path | bytes) -> Model:
    if isinstance(source, Path):
        return load_model(source)
    with scratch_folder() as folder:
        path = folder / "model.onnx"
        path.write_bytes(source)
        return load_model(path)


def _facts(source: Path | bytes, model: Model) -> FileFacts:
    """The facts of a file, or of a model in memory, which has no path."""
    if isinstance(source, Path):
        return file_facts(source, model)
    return FileFacts(
        path="",
        sha256=model.sha256,
        bytes=len(source),
        opset=model.opset,
        nodes=model.node_count(),
        parameters=model.parameter_count(),
    )


def _check_same_interface(left: Model, right: Model) -> None:
    """Raises InputError unless both models take the same inputs and give the same outputs."""
    ours, theirs = ({spec.name: spec for spec in model.inputs()} for model in (left, right))
    both = {"inputs": (set(ours), set(theirs)), "outputs": (set(left.outputs()), set(right.outputs()))}
    for kind, (names, others) in both.items():
        if names != others:
            raise InputError(
                f"the two models differ in their {kind}: {_listed(names)} and {_listed(others)}",
                "compare a model with one that was made from it",
            )
    for name, spec in ours.items():
        if not _same_type(spec, theirs[name]) or not _same_shape(spec, theirs[name]):
            raise InputError(
                f"the input '{name}' differs: {_shown(spec)} and {_shown(theirs[name])}",
                "compare a model with one that was made from it",
            )


def _same_type(left: InputSpec, right: InputSpec) -> bool:
    """True if one sample can fit both: float32 is rounded for an input of 16 bits."""
    return left.dtype == right.dtype or (left.dtype == "float32" and right.dtype in HALF_TYPES)


def _same_shape(left: InputSpec, right: InputSpec) -> bool:
    """True if one sample can fit both; free dimensions fit anything."""
    if left.shape is None or right.shape is None:
        return True
    if len(left.shape) != len(right.shape):
        return False
    return all(None in pair or pair[0] == pair[1] for pair in zip(left.shape, right.shape, strict=True))


def _listed(names: set[str]) -> str:
    return ", ".join(f"'{name}'" for name in sorted(names)) or "none"


def _shown(spec: InputSpec) -> str:
    if spec.shape is None:
        return spec.dtype
    return f"{spec.dtype} [{', '.join('?' if size is None else str(size) for size in spec.shape)}]"


def _check_finite(outputs: Mapping[str, Any], file: str) -> None:
    for name, value in outputs.items():
        if is_float(value) and not np.isfinite(value).all():
            raise InputError(
                f"{file}: the float model's output '{name}' holds NaN or Inf",
                "check the sample and its preprocessing; nothing can be compared with that",
            )


def _kernel_facts(kernels: Kernels, reasons: Mapping[str, str], agreement: Agreement | None) -> KernelFacts:
    kept = (
        FloatNode(
            node=item.node,
            op=item.op,
            reason=reasons.get(item.output) or reasons.get(item.node) or _reason(item.kernel),
            mac_share=item.mac_share,
        )
        for item in kernels.stayed_float
    )
    return KernelFacts(
        integer=kernels.integer,
        float_=kernels.float_nodes,
        integer_share=kernels.integer_share,
        by_kernel=kernels.by_kernel,
        kept_float=tuple(kept),
        agreement_with_unoptimized=agreement,
    )


def _reason(kernel: str) -> str:
    if kernel in PROJECTING:
        return f"{kernel} multiplies activations in float"
    return f"onnxruntime runs it as a float {kernel}" if kernel else "it is not among what onnxruntime runs"


def _latency(sessions: _Sessions, feeds: list[dict[str, Array]], job: ValidateJob) -> Latency | None:
    return measure(sessions, feeds, job.threads, job.latency) if job.latency is not None else None


def _latency_facts(latency: Latency | None) -> LatencyFacts | None:
    if latency is None:
        return None
    before, after = (timing.median_ms for timing in latency.timings)
    return LatencyFacts(float_ms=before, ms=after, speedup=latency.ratios[1], threads=latency.threads)


def _dearer(job: ValidateJob, float_model: Model, feeds: Mapping[str, Array]) -> tuple[NodeCost, ...]:
    """The nodes that make the compressed model slower; none if they cannot be told, which is no reason to fail."""
    try:
        return dearer(compare_nodes((job.float_model, job.compressed), float_model, feeds, threads=job.threads))
    except (RuntimeFailure, ResourceError):
        return ()


def _latency_warnings(latency: Latency | None) -> Iterator[str]:
    if latency is not None and not latency.steady:
        yield BUSY
