"""Running graph steps: each is checked against the model before it, and undone if it changed what that computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from typing import Any, NamedTuple

import numpy as np

from qcli.calibrate import Samples, collect
from qcli.errors import RuntimeFailure
from qcli.graph import (
    Model,
    cannot_raise,
    float32_form,
    infer_shapes,
    note_types,
    other_floats,
    raise_opset,
    untyped,
)
from qcli.memory import UNLIMITED, Budget
from qcli.metrics.sqnr import Sqnr
from qcli.plugins import choice_of, create
from qcli.runtime import Session, on_sample
from qcli.statistics import Statistics
from qcli.steps._base import MeasuredStep
from qcli.types import Array, Spec
from qcli.watch import Watch

SAME_DB = 60.0
"""A step keeps the outputs if they agree to this signal-to-noise ratio; float32 reordering leaves 100 dB and more."""

_PRECISION_DB = {"float64": 60.0, "float16": 40.0, "bfloat16": 20.0}
"""To which ratio a deep network agrees with the same in float32: each operator rounds anew."""

_ROUNDED_DB = {"float16": 50.0, "bfloat16": 35.0}
"""To which ratio outputs of such a type agree that differ in the last place."""

Feeds = Mapping[str, Array]

Judge = Callable[[Model], Iterator[float | None]]
"""How well a model comes through quantization, in dB, on one part of the samples after the other.

None if that cannot be told."""


class _Check(NamedTuple):
    """What every step is compared with: the outputs for one sample, and how near is near enough."""

    probe: Feeds | None
    reference: Feeds | None
    same_db: float
    runs: bool = True


def prepare(
    model: Model,
    opset: int,
    steps: Sequence[Spec],
    samples: Samples | None,
    watch: Watch,
    *,
    budget: Budget = UNLIMITED,
    judge: Judge | None = None,
) -> Model:
    """The model after the opset conversion and all steps, each compared with the model's own outputs.

    `samples` are needed by steps that measure; without any, those are skipped with a warning, and the rest is
    compared on zeros of the declared shapes. A step that promises to make quantization better is undone unless the
    `judge` finds that it does. Where the `budget` does not allow the model to run, nothing is measured
    or compared, and a warning says so. Raises RuntimeFailure if the model itself does not run.
    """
    needed = model.run_bytes()
    if budget.fits(needed):
        model, check = _reference(model, samples, watch)
    else:
        watch.warn(f"the steps before quantization are unchecked: running the model {budget.shortage(needed)}")
        samples, check = None, _Check(None, None, SAME_DB, runs=False)
    current = _raised(model, opset, check)
    better = _Better(judge if check.runs and samples is not None else None, watch)
    for spec in steps:
        changed, check = _run_step(current, spec, check, samples, watch)
        current = better.of(current, changed, spec)
    _note_types(current, check.probe)
    return current


def _raised(model: Model, opset: int, check: _Check) -> Model:
    current = model.copy()
    if not raise_opset(current, opset):
        return current
    try:
        same = _same(current, check)
    except RuntimeFailure as error:
        raise cannot_raise(model, opset, "it does not run then") from error
    if not same:
        raise cannot_raise(model, opset, "it computes something else then")
    return current


def _note_types(model: Model, probe: Feeds | None) -> None:
    """Asks onnxruntime for the types that inference cannot tell, such as those behind a custom operator."""
    infer_shapes(model)
    names = untyped(model)
    if names and probe is not None:
        with suppress(RuntimeFailure):  # then they stay unknown, and their readers float
            note_types(model, Session(model.runnable(names)).run(probe, names))


def _reference(model: Model, samples: Samples | None, watch: Watch) -> tuple[Model, _Check]:
    """The model, or its float32 form where onnxruntime runs only that, and what it computes for one sample."""
    probe, given = _probe(model, samples)
    same_db = min([SAME_DB, *(_ROUNDED_DB[kind] for kind in other_floats(model) if kind in _ROUNDED_DB)])
    session: Session | None = None
    try:
        session = Session(model.runnable())  # steps may rely on a graph that onnxruntime has checked
        with on_sample(given) if given else nullcontext():
            return model, _Check(probe, session.run(probe) if probe is not None else None, same_db)
    except RuntimeFailure:
        form = float32_form(model)
        if form is not None:
            converted = Session(form.runnable())
            reference = converted.run(probe) if probe is not None else None
            watch.warn("onnxruntime cannot run the model in its own floats: its float32 form is taken in its place")
            return form, _Check(probe, reference, same_db)
        if given or session is None:
            raise
        return model, _Check(None, None, same_db)


def sampling_steps(steps: Sequence[Spec]) -> tuple[str, ...]:
    """Steps that make quantization better, and do nothing without samples."""
    named = [(choice_of(spec).name, create("steps", spec)) for spec in steps]
    measuring = [(name, step) for name, step in named if isinstance(step, MeasuredStep) and step.worth_db is not None]
    return tuple(name for name, step in measuring if not step.works_blindly())


class _Better:
    """Keeps what a step did if the judge says that it was worth it.

    It has to gain on each part of the samples. A loss on the first, or a gain of a decibel beyond what it is worth,
    is word enough, and saves half of the time.
    """

    def __init__(self, judge: Judge | None, watch: Watch) -> None:
        self._judge = judge
        self._watch = watch
        self._known: tuple[Model, _Ratios] | None = None

    def of(self, before: Model, after: Model, spec: Spec) -> Model:
        worth = create("steps", spec).worth_db
        if after is before or worth is None or self._judge is None:
            return after
        old = self._known[1] if self._known is not None and self._known[0] is before else _Ratios(self._judge(before))
        new = _Ratios(self._judge(after))
        if not _gains(old, new, worth):
            unknown = None in new.known
            result = "could not be quantized then" if unknown else f"went from {old.shown(new)} to {new.shown(new)} dB"
            name = choice_of(spec).name
            self._watch.warn(f"step '{name}' was undone: on calibration samples held out for it, the result {result}")
            self._known = (before, old)
            return before
        self._known = (after, new)
        return after


def _gains(old: _Ratios, new: _Ratios, worth: float) -> bool:
    """True too if nothing is known of the model before the step."""
    for before, after in zip(old, new, strict=False):
        if before is None:
            return True
        if after is None or after - before < worth:
            return False
        if after - before >= worth + _CLEAR_DB:
            return True
    return True


_CLEAR_DB = 1.0

_FEWEST_TO_JUDGE = 4
"""A step is tried on each half of the samples with what the other half taught; one sample teaches nothing."""


class _Ratios:
    """What a judge says, asked no more than once about each part."""

    def __init__(self, asked: Iterator[float | None]) -> None:
        self._asked = asked
        self.known: list[float | None] = []

    def __iter__(self) -> Iterator[float | None]:
        yield from self.known
        for ratio in self._asked:
            self.known.append(ratio)
            yield ratio

    def shown(self, other: _Ratios) -> str:
        """The ratios of the parts that `other` was asked about."""
        known = zip(self.known, other.known, strict=False)
        return " and ".join(f"{ratio:.1f}" for ratio, _ in known if ratio is not None)


def _run_step(model: Model, spec: Spec, check: _Check, samples: Samples | None, watch: Watch) -> tuple[Model, _Check]:
    step = create("steps", spec)
    if step.looks_for and not any(node.op_type in step.looks_for for node in model.nodes()):
        return model, check
    name = choice_of(spec).name
    measures = isinstance(step, MeasuredStep) and not (samples is None and step.works_blindly())
    judged = measures and step.worth_db is not None and not step.works_blindly()
    if judged and samples is not None and len(samples) < _FEWEST_TO_JUDGE:
        watch.warn(f"step '{name}' needs {_FEWEST_TO_JUDGE} samples or more and was skipped")
        return model, check
    if measures and samples is None and step.worth_db is not None and check.runs:
        return model, check
    if measures and samples is None:
        watch.warn(f"step '{name}' needs {'samples' if check.runs else 'to run the model'} and was skipped")
        return model, check
    changed = model.copy()
    fitting = [_PRECISION_DB[kind] for kind in other_floats(model)] if step.changes_precision else []
    try:
        with np.errstate(over="ignore", invalid="ignore"):  # what is no longer finite then changes the outputs
            count = _measured(step, changed, samples) if measures else step.run(changed)
        if not count:
            return model, check
        same = _same(changed, check._replace(same_db=min([check.same_db, *fitting])))
    except RuntimeFailure:
        same = False
    if not same:
        watch.warn(f"step '{name}' changed the outputs and was undone")
        return model, check
    if step.changes_precision and check.probe is not None:
        check = check._replace(reference=Session(changed.runnable()).run(check.probe))
    return changed, check


def _measured(step: MeasuredStep, model: Model, samples: Samples | None) -> int:
    requests = step.requests(model)
    if not requests or samples is None:
        return 0
    return step.run_measured(model, collect(model, Statistics.empty(requests), samples))


def _same(model: Model, check: _Check) -> bool:
    if check.probe is None or check.reference is None:
        return True
    result = Session(model.runnable()).run(check.probe)
    return all(_equal(value, result[name], check.same_db) for name, value in check.reference.items())


def _equal(reference: Any, result: Any, same_db: float) -> bool:
    if isinstance(reference, list):  # a sequence of tensors
        pairs = zip(reference, result, strict=False)
        return len(reference) == len(result) and all(_equal(first, second, same_db) for first, second in pairs)
    if getattr(reference, "dtype", None) is None or reference.dtype.kind != "f":
        return bool(np.array_equal(reference, result))
    finite = np.isfinite(reference)
    if reference.shape != result.shape or not np.array_equal(reference[~finite], result[~finite], equal_nan=True):
        return False
    if np.allclose(reference[finite], result[finite], rtol=1e-4, atol=1e-6):
        return True
    metric = Sqnr()
    metric.update(np.where(finite, reference, 0), np.where(finite, result, 0))
    return metric.value() >= same_db


def _probe(model: Model, samples: Samples | None) -> tuple[Feeds | None, str]:
    """One sample, and its name; or zeros of the declared shapes, if they have any, and no name."""
    first = next(samples.feeds(), None) if samples is not None else None
    if first is not None:
        return first[1], first[0]
    if any(spec.shape is None or spec.dtype == "string" or spec.kind != "tensor" for spec in model.inputs()):
        return None, ""
    zeros = {
        spec.name: np.zeros([1 if size is None else size for size in spec.shape or ()], spec.dtype)
        for spec in model.inputs()
    }
    return zeros, ""
