"""How far a compressed model's outputs are from the float model's, collected sample by sample."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qcli.dataset import Sample
from qcli.errors import InputError, RuntimeFailure
from qcli.metrics._tokens import Language, language_of
from qcli.metrics.cosine import Cosine
from qcli.metrics.max_abs import MaxAbs
from qcli.metrics.perplexity import Perplexity, power
from qcli.metrics.sqnr import Sqnr
from qcli.metrics.top_k import TopK
from qcli.report import Accuracy, Agreement, Likelihoods, OutputAccuracy, Perplexities, Scores
from qcli.runtime import Session
from qcli.types import Array

_AGREES_FROM_DB = 30.0
"""The optimized and the unoptimized model agree at this ratio, however little noise quantization adds."""

_NEGLIGIBLE = 1e-3
"""Differences below this part of an output's largest value say nothing: the first samples may all be near zero."""

_TOLERATED = 2.0
"""How much more error power than the model as written the optimized one may have."""


class Comparison:
    """The accuracy so far."""

    def __init__(self) -> None:
        self.samples = 0
        self._outputs: dict[str, _Floats | _Others] = {}
        self._classes: str | None = None
        self._top_k = TopK()
        self._language: Language | None = None
        self._perplexity = Perplexity()
        self._labelled = False
        self._bad: dict[str, _Problem] = {}

    def update(self, reference: Mapping[str, Any], result: Mapping[str, Any], sample: Sample) -> None:
        if self.samples == 0:
            self._outputs = {name: _Floats() if is_float(value) else _Others() for name, value in reference.items()}
            self._classes = next((name for name, value in reference.items() if _is_scores(value)), None)
            self._language = language_of(sample.feeds, reference)
        self.samples += 1
        self._labelled = self._labelled or sample.label is not None
        for name, meter in self._outputs.items():
            expected, given = reference[name], result[name]
            if isinstance(meter, _Floats):
                given = self._comparable(name, expected, given, sample)
            meter.update(expected, given)
            if name == self._classes and _is_scores(expected):
                self._top_k.update(expected, given, _checked_label(sample, expected.shape[1]))
            if self._language is not None and name == self._language.logits:
                self._foretell(self._language, expected, given, sample)

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
            perplexity=_perplexities(self._perplexity),
            nll=_likelihoods(self._perplexity),
            outputs=outputs,
        )

    def warnings(self) -> Iterator[str]:
        if self._labelled and self._classes is None:
            yield "the labels are not used: no output is a float matrix [N, C] of scores"
        for text, problem in self._bad.items():
            yield f"{text} for {problem.count} of {self.samples} samples, first '{problem.first}'"

    def _foretell(self, language: Language, expected: Array, given: Array, sample: Sample) -> None:
        if language.fits(sample.feeds, {language.logits: expected}):
            self._perplexity.update(expected, given, *language.of(sample.feeds))

    def _comparable(self, name: str, expected: Array, given: Any, sample: Sample) -> Array:
        """`given`, or all NaN if it cannot be compared; notes what is wrong with it."""
        numeric = isinstance(given, np.ndarray) and given.dtype.kind in "fiub"
        if not numeric or given.shape != expected.shape:
            self._note(f"the compressed model's output '{name}' has another shape or type", sample)
            return np.full(expected.shape, np.nan, dtype=np.float64)
        if not np.isfinite(given).all():
            self._note(f"the compressed model's output '{name}' holds NaN or Inf", sample)
        comparable: Array = given
        return comparable

    def _note(self, text: str, sample: Sample) -> None:
        self._bad.setdefault(text, _Problem(first=sample.file)).count += 1


@dataclass
class _Problem:
    """Something that is wrong with some samples' results."""

    first: str
    count: int = 0


class _Floats:
    """One float output."""

    def __init__(self) -> None:
        self._sqnr, self._cosine, self._max_abs = Sqnr(), Cosine(), MaxAbs()

    def update(self, reference: Array, result: Array) -> None:
        for metric in (self._sqnr, self._cosine, self._max_abs):
            metric.update(reference, result)

    def accuracy(self) -> OutputAccuracy:
        return OutputAccuracy(sqnr=self._sqnr.value(), cosine=self._cosine.value(), max_abs=self._max_abs.value())


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


class OptimizationCheck:
    """The compressed model as written, run beside the optimized one on the first samples.

    Both round differently here and there, and a deep network amplifies that up to the size of the quantization
    noise itself. But both must be as near to the float model: where the optimized one has more than twice the error,
    a kernel saturates or a fusion is wrong.
    """

    def __init__(self, compressed: Path | bytes, samples: int, threads: int, *, lean: bool = False) -> None:
        self._left = samples
        self._failure = ""
        self._session: Session | None = None
        self._between: dict[str, Sqnr] = {}
        self._intended: dict[str, Sqnr] = {}
        self._obtained: dict[str, Sqnr] = {}
        self._max_abs = MaxAbs()
        self._farthest: dict[str, MaxAbs] = {}
        self._peaks: dict[str, MaxAbs] = {}
        if self._left > 0:
            try:
                self._session = Session(compressed, threads=threads, optimize=False, lean=lean)
            except RuntimeFailure as error:
                self._failure = error.message

    def update(self, reference: Mapping[str, Any], result: Mapping[str, Any], sample: Sample) -> None:
        for name, value in reference.items():
            if is_float(value):
                self._peaks.setdefault(name, MaxAbs()).update(value, np.zeros_like(value))
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
            yield f"the kernels are unchecked, the model does not run unoptimized: {self._failure}"
        found = self.agreement()
        if found is not None and not found.agree:
            yield (
                "onnxruntime's optimized kernels are further from the float model than the graph as written "
                f"({found.sqnr:.1f} dB): 8-bit products saturate on this processor, or a fusion is wrong"
            )

    def _compare(self, reference: Mapping[str, Any], result: Mapping[str, Any], written: Mapping[str, Any]) -> None:
        for name, value in written.items():
            same_shape = is_float(value) and value.shape == result[name].shape == reference[name].shape
            if same_shape and np.isfinite(value).all():
                self._between.setdefault(name, Sqnr()).update(value, result[name])
                self._intended.setdefault(name, Sqnr()).update(reference[name], value)
                self._obtained.setdefault(name, Sqnr()).update(reference[name], result[name])
                self._max_abs.update(value, result[name])
                self._farthest.setdefault(name, MaxAbs()).update(value, result[name])

    def _agrees(self, name: str) -> bool:
        if self._between[name].value() >= _AGREES_FROM_DB:
            return True
        if self._farthest[name].value() <= _NEGLIGIBLE * self._peaks[name].value():
            return True
        return self._obtained[name].noise <= _TOLERATED * self._intended[name].noise


def is_float(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind == "f"


def _is_scores(value: Any) -> bool:
    return is_float(value) and value.ndim == 2 and value.shape[1] >= 2


def _checked_label(sample: Sample, classes: int) -> int | None:
    if sample.label is not None and not 0 <= sample.label < classes:
        raise InputError(
            f"{sample.file}: label {sample.label} is none of the model's classes, 0 to {classes - 1}",
            "labels are class indices as the model counts them",
        )
    return sample.label


def _perplexities(metric: Perplexity) -> Perplexities | None:
    if not metric.tokens:
        return None
    expected, given = metric.likelihoods()
    return Perplexities(float_=power(expected), quantized=power(given), ratio=power(given - expected))


def _likelihoods(metric: Perplexity) -> Likelihoods | None:
    if not metric.tokens:
        return None
    expected, given = metric.likelihoods()
    return Likelihoods(float_=expected, quantized=given, increase=given - expected)


def _scores(top: TopK, reference: int, result: int) -> Scores | None:
    if not top.labelled:
        return None
    # The drop is divided last: 0.99 - 0.98 is more than 0.01, and a gate would notice.
    drop = top.share(reference - result)
    return Scores(float_=top.share(reference), quantized=top.share(result), drop=drop)
