"""The metric that a search goes by: one of qcli's own, or a function in a file of the user's.

    def metric(expected, given, label):
        return float(given["logits"].argmax() == expected["logits"].argmax())

Such a file is Python that runs with all rights of the user, so it is named by a job alone, never by a recipe, and runs
only if the job allows it.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from copy import deepcopy
from math import fsum, isfinite, log
from numbers import Real
from pathlib import Path
from traceback import extract_tb
from types import ModuleType
from typing import Any

import numpy as np

from qcli.comparison import is_float
from qcli.dataset import Sample
from qcli.errors import UsageError, did_you_mean
from qcli.files import check_distinct
from qcli.job_files import output_path
from qcli.metrics.max_abs import MaxAbs
from qcli.report import Accuracy
from qcli.tuning.nouns import TuneJob
from qcli.types import Noun

SQNR = "sqnr"

WORST = -MaxAbs.WORST
"""What a file's metric counts as where a candidate gives NaN, Inf or another shape."""

_FUNCTION = "metric"

PERPLEXITY = "perplexity"
"""Of the next token. Since more must be better, its value is the mean log-likelihood in nats: minus `accuracy.nll`."""

_OWN: dict[str, Callable[[Accuracy], float | None]] = {
    SQNR: lambda _: None,
    "agreement": lambda accuracy: accuracy.agreement,
    "top1": lambda accuracy: None if accuracy.top1 is None else accuracy.top1.quantized,
    PERPLEXITY: lambda accuracy: None if accuracy.nll is None else -accuracy.nll.quantized,
}

_LACKING = {
    "agreement": (
        "--metric agreement is about classifiers, and no output of this model is a matrix of scores",
        "use --metric sqnr, which any float output has, or a file of your own",
    ),
    "top1": (
        "--metric top1 needs labels of the samples of the search, and a model that is a classifier",
        "put labels.csv beside the samples of -d; --labels is for those of --eval, or for -d where there is no --eval",
    ),
    PERPLEXITY: (
        "--metric perplexity is about language models, whose logits [batch, length, vocabulary] foretell their tokens",
        "name samples of tokens [batch, length], or use --metric sqnr, which any float output has",
    ),
}


class Metric(Noun, frozen=True, kw_only=True):
    """What is improved and limited. `file` and `code`, its source, are those of a user's own; sqnr has no value beside
    that which every outcome has."""

    name: str = SQNR
    file: str = ""
    code: bytes = b""

    @property
    def key(self) -> tuple[str, str]:
        """What tells its values from those of any other metric."""
        return self.name, hashlib.sha256(self.code).hexdigest() if self.file else ""

    def value(self, accuracy: Accuracy | None) -> float | None:
        """What is known of it without running code; None for sqnr, for a file and for what has no such value."""
        return None if accuracy is None or self.file else _OWN[self.name](accuracy)


def metric_of(job: TuneJob) -> Metric:
    """The metric that a job names.

    Raises UsageError for an unknown name, a limit that it cannot have, and a file that is not allowed to run, that
    cannot be read or run, that has no function `metric`, or that would be written over.
    """
    name = str(job.metric or SQNR)
    if Path(name).suffix.lower() == ".py":
        metric = _from_file(name, job.allow_code)
        check_distinct((output_path(job), *job.reports), (Path(name),))
    elif name in _OWN:
        metric = Metric(name=name)
    else:
        raise UsageError(f"'{name}' is no metric", did_you_mean(name, [*_OWN, "FILE.py"]))
    _check_limit(job, metric)
    return metric


def check_float_model(metric: Metric, value: float | None, least: float | None, samples: int) -> str | None:
    """A warning if the float model itself misses the limit of a metric that a candidate may yet exceed.

    Raises UsageError if the samples or the model give no such metric, and for a share of samples that the float model
    misses, since nothing can be hoped to exceed it.
    """
    if metric.name in _LACKING and value is None:
        raise UsageError(*_LACKING[metric.name])
    if least is None or value is None or value >= least:
        return None
    text = (
        f"--min-metric {least:g} is more than the float model itself reaches on the {samples} samples of the search: "
        f"{metric.name} {value:.6g}"
    )
    if not metric.file and metric.name != PERPLEXITY:
        raise UsageError(text, "ask for less, or say with --max-drop how much of it may be lost")
    return text


class Tally:
    """The metric of one candidate, sample by sample. A file's code is run anew for each, so that none leaves traces."""

    def __init__(self, metric: Metric) -> None:
        """Raises UsageError if the file's code fails."""
        self._metric = metric
        self._call = _function(metric) if metric.file else None
        self._values: list[float] = []
        self._comparable = True

    def update(self, expected: Mapping[str, Any], given: Mapping[str, Any], sample: Sample) -> None:
        """Takes in one sample's outputs by name: the float model's and the candidate's.

        Raises UsageError if the file's function raises or returns no finite number.
        """
        if self._call is None or not self._comparable:
            return
        self._comparable = _comparable(expected, given)
        if self._comparable:
            with _told(self._metric, f"sample '{sample.file}'", _signature(expected, sample)):
                value = self._call(_guarded(expected), _guarded(given), sample.label)
                self._values.append(_number(value, self._metric, sample))

    def value(self, accuracy: Accuracy) -> float | None:
        """The mean over the samples so far, or what `accuracy` says of one of qcli's own."""
        if self._call is None:
            return self._metric.value(accuracy)
        return _mean(self._values) if self._comparable and self._values else WORST


def _check_limit(job: TuneJob, metric: Metric) -> None:
    least = job.limits.min_metric
    if least is None:
        return
    if job.metric is None:
        hint = "for the ratio of signal to noise there is --min-sqnr"
        raise UsageError("--min-metric is the least value of what --metric names, and there is no --metric", hint)
    if metric.name == SQNR and not 0 < least <= 200:
        raise UsageError(f"--min-metric of sqnr must be above 0 and at most 200 dB, is {least:g}")
    if metric.name == PERPLEXITY and least > 0:
        hint = f"for a perplexity of {least:g} it is {-log(least):.4g}" if least > 1 else "it is minus accuracy.nll"
        raise UsageError(f"--min-metric of perplexity is a mean log-likelihood, 0 at most, is {least:g}", hint)
    if not metric.file and metric.name not in (SQNR, PERPLEXITY) and not 0 <= least <= 1:
        raise UsageError(f"--min-metric of {metric.name} is a share of samples, from 0 to 1, is {least:g}")


def _from_file(name: str, allowed: bool) -> Metric:
    if not allowed:
        hint = "it runs with all your rights: read it, then add --allow-code"
        raise UsageError(f"--metric {name} is Python code, which runs only if it is allowed", hint)
    try:
        code = Path(name).read_bytes()
    except OSError as error:
        raise UsageError(f"--metric {name} cannot be read: {error.strerror}", "name a file of Python code") from error
    metric = Metric(name=Path(name).name, file=name, code=code)
    _function(metric)
    return metric


def _function(metric: Metric) -> Callable[..., Any]:
    """What the file's code defines as `metric`."""
    module = ModuleType(f"qcli_metric_{metric.key[1][:16]}")
    module.__file__ = metric.file
    sys.modules[module.__name__] = module  # where dataclasses of the file look for their names
    hint = f"it defines {_FUNCTION}(expected, given, label) and returns a float; what it imports must be installed"
    try:
        compiled = compile(metric.code, metric.file, "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        text = error.msg if isinstance(error, SyntaxError) else str(error)
        raise UsageError(f"--metric {metric.file}{line}: no valid Python: {text}", hint) from error
    with _told(metric, "its first lines", hint):
        exec(compiled, module.__dict__)  # noqa: S102 - the user asked for it with --allow-code
    found = module.__dict__.get(_FUNCTION)
    if not callable(found):
        raise UsageError(f"--metric {metric.file} has no function '{_FUNCTION}'", hint)
    called: Callable[..., Any] = found
    return called


@contextmanager
def _told(metric: Metric, where: str, hint: str) -> Iterator[None]:
    """Whatever the user's code raises as an error that names its line; what it prints goes to stderr."""
    try:
        with redirect_stdout(sys.stderr):
            yield
    except UsageError:
        raise
    except (Exception, SystemExit) as error:
        lines = [frame.lineno for frame in extract_tb(error.__traceback__) if frame.filename == metric.file]
        line = f", line {lines[-1]}" if lines else ""
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")
        raise UsageError(f"--metric {metric.file}{line}: {reason} ({where})", hint) from error


def _number(value: object, metric: Metric, sample: Sample) -> float:
    number = float(value) if isinstance(value, (Real, np.bool_)) else None
    if number is not None and isfinite(number):
        return number
    shown = type(value).__name__ if number is None else f"{number}"
    raise UsageError(
        f"--metric {metric.file}: {_FUNCTION}() returned {shown} for sample '{sample.file}', no finite number",
        "it returns a float, the higher the better; the mean over the samples counts",
    )


def _mean(values: list[float]) -> float:
    """Rounded once, so that the mean of ones is one."""
    try:
        return fsum(values) / len(values)
    except OverflowError:
        return fsum(value / len(values) for value in values)


def _comparable(expected: Mapping[str, Any], given: Mapping[str, Any]) -> bool:
    """Whether the candidate's float outputs have the float model's shapes, and no NaN or Inf."""
    floats = ((value, given[name]) for name, value in expected.items() if is_float(value))
    return all(is_float(other) and other.shape == one.shape and np.isfinite(other).all() for one, other in floats)


def _guarded(outputs: Mapping[str, Any]) -> dict[str, Any]:
    """The outputs in a form that the user's code cannot change: arrays are read-only views."""
    return {name: _read_only(value) for name, value in outputs.items()}


def _read_only(value: Any) -> Any:
    if not isinstance(value, np.ndarray):
        return deepcopy(value)
    view = value.view()
    view.flags.writeable = False
    return view


def _signature(expected: Mapping[str, Any], sample: Sample) -> str:
    """What the function is called with, to be shown beside an error."""
    shapes = (f"'{name}' {list(value.shape)}" for name, value in expected.items() if isinstance(value, np.ndarray))
    return f"expected and given hold read-only arrays {', '.join(shapes)}; label is {sample.label}"
