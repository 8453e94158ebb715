"""Comparing a compressed model with the float model that it was made from, by running both.

    validation = validate(ValidateJob(float_model=Path("a.onnx"), compressed=Path("a.int8.onnx"), samples=dataset))
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import numpy as np

from qcli.contracts import InputSpec
from qcli.dataset import Sample
from qcli.errors import InputError, NothingToDoError, RuntimeFailure
from qcli.graph import Model, load_model
from qcli.kernels import Kernels, read_kernels
from qcli.latency import Effort, measure
from qcli.metrics.cosine import Cosine
from qcli.metrics.max_abs import MaxAbs
from qcli.metrics.sqnr import Sqnr
from qcli.metrics.top_k import TopK
from qcli.report import Accuracy, Agreement, FloatNode, KernelFacts, LatencyFacts, OutputAccuracy, Scores
from qcli.runtime import Session
from qcli.types import Array, Noun

_AGREES_FROM_DB = 30.0
"""The optimized and the unoptimized model agree at this ratio, however little noise quantization adds."""

_LATENCY_SAMPLES = 4


class ValidateJob(Noun, frozen=True, kw_only=True):
    """What to compare and how.

    `samples` is iterated once. `threads` are those inside an operator. `latency` None leaves it out.
    `unoptimized_samples` many samples also run without graph optimization. `reasons` says why nodes were left
    float, by name or by first output.
    """

    float_model: Path | bytes
    compressed: Path | bytes
    samples: Iterable[Sample]
    threads: int = 1
    latency: Effort | None = Effort()
    unoptimized_samples: int = 4
    reasons: Mapping[str, str] = {}


class Validation(Noun, frozen=True, kw_only=True):
    """The sections of the report that come from running both models, over `samples` samples."""

    samples: int
    accuracy: Accuracy
    kernels: KernelFacts
    latency: LatencyFacts | None = None
    warnings: tuple[str, ...] = ()


def validate(job: ValidateJob) -> Validation:
    """Runs both models on every sample, in constant memory.

    Raises InputError if the models differ in inputs or outputs, if a sample has a wrong label, or if the float model
    gives NaN or Inf; RuntimeFailure if one does not run; NothingToDoError without samples. NaN or Inf from the
    compressed model is a result, -200 dB and a warning.
    """
    float_model, compressed = _model(job.float_model), _model(job.compressed)
    _check_same_interface(float_model, compressed)
    comparison = _Comparison()
    unoptimized = _Unoptimized(job)
    left, right = (Session(source, threads=job.threads) for source in (job.float_model, job.compressed))
    feeds: list[dict[str, Array]] = []
    for sample in job.samples:
        reference, result = left.run(sample.feeds), right.run(sample.feeds)
        _check_finite(reference, sample.file)
        comparison.update(reference, result, sample)
        unoptimized.update(reference, result, sample)
        if len(feeds) < _LATENCY_SAMPLES:
            feeds.append(sample.feeds)
    if not feeds:
        raise NothingToDoError("there are no samples to validate with", "give a folder of samples with -d or --eval")
    kernels = read_kernels(job.compressed, float_model, feeds[0])
    return Validation(
        samples=comparison.samples,
        accuracy=comparison.accuracy(),
        kernels=_kernel_facts(kernels, job.reasons, unoptimized.agreement()),
        latency=_latency((left, right), feeds, job),
        warnings=(*comparison.warnings(), *unoptimized.warnings()),
    )


class _Comparison:
    """The accuracy so far."""

    def __init__(self) -> None:
        self.samples = 0
        self._outputs: dict[str, _Floats | _Others] = {}
        self._classes: str | None = None
        self._top_k = TopK()
        self._bad: dict[str, list[str]] = {}

    def update(self, reference: Mapping[str, Any], result: Mapping[str, Any], sample: Sample) -> None:
        if self.samples == 0:
            self._outputs = {name: _Floats() if _is_float(value) else _Others() for name, value in reference.items()}
            self._classes = next((name for name, value in reference.items() if _is_scores(value)), None)
        self.samples += 1
        for name, meter in self._outputs.items():
            expected, given = reference[name], result[name]
            if isinstance(meter, _Floats):
                given = self._comparable(name, expected, given, sample)
            meter.update(expected, given)
            if name == self._classes and _is_scores(expected):
                self._top_k.update(expected, given, _checked_label(sample, expected.shape[1]))

    def accuracy(self) -> Accuracy:
        outputs = {name: meter.accuracy() for name, meter in self._outputs.items()}
        ratios = [output.sqnr for output in outputs.values() if output.sqnr is not None]
        cosines = [output.cosine for output in outputs.values() if output.cosine is not None]
        top = self._top_k
        return Accuracy(
            sqnr=min(ratios, default=None),
            cosine=min(cosines, default=None),
            agreement=top.value() if self._classes is not None else None,
            top1=_scores(top, top.reference_top1, top.result_top1),
            top5=_scores(top, top.reference_top5, top.result_top5),
            outputs=outputs,
        )

    def warnings(self) -> Iterator[str]:
        for problem, files in self._bad.items():
            yield f"{problem} for {len(files)} of {self.samples} samples, first '{files[0]}'"

    def _comparable(self, name: str, expected: Array, given: Array, sample: Sample) -> Array:
        """`given`, or all NaN if it has another shape; notes what is wrong with it."""
        if given.shape != expected.shape:
            self._note(f"the compressed model's output '{name}' has another shape than the float model's", sample)
            return np.full(expected.shape, np.nan, dtype=np.float64)
        if not np.isfinite(given).all():
            self._note(f"the compressed model's output '{name}' holds NaN or Inf", sample)
        return given

    def _note(self, problem: str, sample: Sample) -> None:
        self._bad.setdefault(problem, []).append(sample.file)


class _Floats:
    """One float output."""

    def __init__(self) -> None:
        self._sqnr, self._cosine, self._max_abs = Sqnr(), Cosine(), MaxAbs()

    def update(self, reference: Array, result: Array) -> None:
        for metric in (self._sqnr, self._cosine, self._max_abs):
            metric.update(reference, result)

    def accuracy(self) -> OutputAccuracy:
        return OutputAccuracy(
            sqnr=self._sqnr.value(), cosine=self._cosine.value(), max_abs=self._max_abs.value()
        )


class _Others:
    """One output of integers, booleans, strings, or of no tensor at all."""

    def __init__(self) -> None:
        self._equal = 0
        self._seen = 0

    def update(self, reference: Any, result: Any) -> None:
        if isinstance(reference, np.ndarray) and isinstance(result, np.ndarray):
            self._seen += max(reference.size, result.size)
            self._equal += int((reference == result).sum()) if reference.shape == result.shape else 0
        else:
            self._seen += 1
            self._equal += bool(reference == result)

    def accuracy(self) -> OutputAccuracy:
        return OutputAccuracy(equal=self._equal / self._seen if self._seen else 1.0)


class _Unoptimized:
    """The compressed model as written, run beside the optimized one on the first samples.

    Optimization may not change what a model means by more than quantization did; where it does, a kernel
    saturates or a fusion is wrong.
    """

    def __init__(self, job: ValidateJob) -> None:
        self._left = job.unoptimized_samples
        self._failure = ""
        self._session: Session | None = None
        self._between: dict[str, Sqnr] = {}
        self._intended: dict[str, Sqnr] = {}
        self._max_abs = MaxAbs()
        if self._left > 0:
            try:
                self._session = Session(job.compressed, threads=job.threads, optimize=False)
            except RuntimeFailure as error:
                self._failure = error.message

    def update(self, reference: Mapping[str, Any], result: Mapping[str, Any], sample: Sample) -> None:
        if self._session is None:
            return
        try:
            written = self._session.run(sample.feeds)
        except RuntimeFailure as error:
            self._failure, self._session = error.message, None
            return
        self._compare(reference, result, written)
        self._left -= 1
        if self._left <= 0:
            self._session = None

    def agreement(self) -> Agreement | None:
        if not self._between:
            return None
        return Agreement(
            sqnr=min(metric.value() for metric in self._between.values()),
            max_abs=self._max_abs.value(),
            agree=all(self._agrees(name) for name in self._between),
        )

    def warnings(self) -> Iterator[str]:
        if self._failure:
            yield f"the compressed model could not be run without optimization to check the kernels: {self._failure}"
        found = self.agreement()
        if found is not None and not found.agree:
            yield (
                f"onnxruntime's optimized kernels change the results by more than quantization does ({found.sqnr:.1f} dB): "
                "8-bit products saturate on this processor, or a fusion is wrong"
            )

    def _compare(self, reference: Mapping[str, Any], result: Mapping[str, Any], written: Mapping[str, Any]) -> None:
        for name, value in written.items():
            if _is_float(value) and value.shape == result[name].shape == reference[name].shape and np.isfinite(value).all():
                self._between.setdefault(name, Sqnr()).update(value, result[name])
                self._intended.setdefault(name, Sqnr()).update(reference[name], value)
                self._max_abs.update(value, result[name])

    def _agrees(self, name: str) -> bool:
        between = self._between[name]
        return between.value() >= _AGREES_FROM_DB or between.noise <= self._intended[name].noise


def _model(source: Path | bytes) -> Model:
    if isinstance(source, Path):
        return load_model(source)
    with TemporaryDirectory(prefix="qcli-") as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(source)
        return load_model(path)


def _check_same_interface(left: Model, right: Model) -> None:
    """Raises InputError unless both models take the same inputs and give the same outputs."""
    ours, theirs = ({spec.name: spec for spec in model.inputs()} for model in (left, right))
    for kind, names, others in (("inputs", set(ours), set(theirs)), ("outputs", set(left.outputs()), set(right.outputs()))):
        if names != others:
            raise InputError(
                f"the two models differ in their {kind}: {_listed(names)} and {_listed(others)}",
                "compare a model with one that was made from it",
            )
    for name, spec in ours.items():
        if spec.dtype != theirs[name].dtype or not _same_shape(spec, theirs[name]):
            raise InputError(
                f"the input '{name}' differs: {_shown(spec)} and {_shown(theirs[name])}",
                "compare a model with one that was made from it",
            )


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
    sizes = "" if spec.shape is None else str(["?" if size is None else size for size in spec.shape]).replace("'", "")
    return f"{spec.dtype} {sizes}".strip()


def _is_float(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind == "f"


def _is_scores(value: Any) -> bool:
    return _is_float(value) and value.ndim == 2 and value.shape[1] >= 2


def _check_finite(outputs: Mapping[str, Any], file: str) -> None:
    for name, value in outputs.items():
        if _is_float(value) and not np.isfinite(value).all():
            raise InputError(
                f"{file}: the float model's output '{name}' holds NaN or Inf",
                "check the sample and its preprocessing; nothing can be compared with that",
            )


def _checked_label(sample: Sample, classes: int) -> int | None:
    if sample.label is not None and not 0 <= sample.label < classes:
        raise InputError(
            f"{sample.file}: label {sample.label} is none of the model's {classes} classes (0 to {classes - 1})",
            "labels are class indices as the model counts them",
        )
    return sample.label


def _scores(top: TopK, reference: int, result: int) -> Scores | None:
    if not top.labelled:
        return None
    left, right = top.share(reference), top.share(result)
    return Scores(float_=left, quantized=right, drop=left - right)


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
    return f"onnxruntime runs it as a float {kernel}" if kernel else "it was not found among what onnxruntime runs"


def _latency(
    sessions: tuple[Session, ...], feeds: list[dict[str, Array]], job: ValidateJob
) -> LatencyFacts | None:
    if job.latency is None:
        return None
    latency = measure(sessions, feeds, job.threads, job.latency)
    before, after = (timing.median_ms for timing in latency.timings)
    return LatencyFacts(float_ms=before, ms=after, speedup=latency.ratios[1], threads=job.threads)


__all__ = ["ValidateJob", "Validation", "validate"]
