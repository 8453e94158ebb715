"""Running graph steps: each is checked against the model before it, and undone if it changed what that computes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from qcli.calibrate import Samples, collect
from qcli.errors import QcliError, RuntimeFailure, UnsupportedError
from qcli.graph import Model, raise_opset
from qcli.metrics.sqnr import Sqnr
from qcli.plugins import choice_of, create
from qcli.runtime import Session
from qcli.statistics import Statistics
from qcli.steps._base import MeasuredStep
from qcli.types import Array, Spec
from qcli.watch import Watch

SAME_DB = 60.0
"""A step keeps the outputs if they agree to this signal-to-noise ratio; float32 reordering leaves 100 dB and more."""

Feeds = Mapping[str, Array]


def prepare(model: Model, opset: int, steps: Sequence[Spec], samples: Samples | None, watch: Watch) -> Model:
    """The model after the opset conversion and all steps, each compared with the model's own outputs.

    `samples` are needed by steps that measure; without any, those are skipped with a warning, and the rest is
    compared on zeros of the declared shapes. Raises RuntimeFailure if the model itself does not run.
    """
    probe = _probe(model, samples)
    reference = Session(model.serialize()).run(probe) if probe is not None else None
    current = model.copy()
    raise_opset(current, opset)
    if reference is not None and not _same(current, probe, reference):
        raise UnsupportedError(
            f"raising the model from opset {model.opset} to {opset} changes what it computes",
            "export it again with a newer opset",
        )
    for spec in steps:
        current = _run_step(current, spec, (probe, reference), samples, watch)
    return current


def _run_step(
    model: Model, spec: Spec, check: tuple[Feeds | None, Feeds | None], samples: Samples | None, watch: Watch
) -> Model:
    step = create("steps", spec)
    name = choice_of(spec).name
    if isinstance(step, MeasuredStep) and samples is None:
        watch.warn(f"step '{name}' needs samples and was skipped")
        return model
    changed = model.copy()
    probe, reference = check
    try:
        count = step.run(changed) if not isinstance(step, MeasuredStep) else _measured(step, changed, samples)
        if not count:
            return model
        same = probe is None or reference is None or _same(changed, probe, reference)
    except RuntimeFailure:
        same = False
    if not same:
        watch.warn(f"step '{name}' changed the outputs and was undone")
        return model
    return changed


def _measured(step: MeasuredStep, model: Model, samples: Samples | None) -> int:
    requests = step.requests(model)
    if not requests or samples is None:
        return 0
    return step.run_measured(model, collect(model, Statistics.empty(requests), samples))


def _same(model: Model, probe: Feeds | None, reference: Feeds) -> bool:
    if probe is None:
        return True
    result = Session(model.serialize()).run(probe)
    return all(_equal(reference[name], result[name]) for name in reference)


def _equal(reference: Array, result: Array) -> bool:
    if getattr(reference, "dtype", None) is None or reference.dtype.kind != "f":
        return bool(np.array_equal(reference, result))
    finite = np.isfinite(reference)
    if reference.shape != result.shape or not np.array_equal(finite, np.isfinite(result)):
        return False
    if np.allclose(reference[finite], result[finite], rtol=1e-4, atol=1e-6):
        return True
    metric = Sqnr()
    metric.update(np.where(finite, reference, 0), np.where(finite, result, 0))
    return metric.value() >= SAME_DB


def _probe(model: Model, samples: Samples | None) -> Feeds | None:
    """One sample, or zeros; None if the model does not run on zeros of its declared shapes."""
    first = next(samples.feeds(), None) if samples is not None else None
    if first is not None:
        return first[1]
    if any(spec.shape is None or spec.dtype == "string" for spec in model.inputs()):
        return None
    zeros = {
        spec.name: np.zeros([1 if size is None else size for size in spec.shape or ()], spec.dtype)
        for spec in model.inputs()
    }
    try:
        Session(model.serialize()).run(zeros)
    except QcliError:
        return None
    return zeros
