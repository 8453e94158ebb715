"""Which samples a job calibrates with, lets steps measure on, and judges by."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

import msgspec

from qcli.dataset import Sample
from qcli.errors import UsageError
from qcli.graph import Model
from qcli.job import QuantizeJob
from qcli.measured import requests_of
from qcli.prepared import Prepared
from qcli.recipe import Recipe
from qcli.sources import SampleStream, open_source, random_source
from qcli.watch import Watch, watched

_SMOKE_SAMPLES = 16
"""Without evaluation samples the result is compared on this many of the calibration samples."""

_MADE_UP_SAMPLES = 4

_STEP_SAMPLES = 32
"""Steps that measure look at this many samples, spread evenly over all."""


def calibration_samples(job: QuantizeJob, recipe: Recipe, model: Model, watch: Watch) -> SampleStream | None:
    if job.random_samples is not None:
        watch.warn(f"calibrated on {job.random_samples} random inputs: good for smoke tests, not for accuracy")
        return random_source(model.inputs(), job.random_samples)
    source = recipe.samples.calibration
    return open_source(source, job.calibration, model.inputs(), limit=job.samples, shard=job.shard)


def step_samples(job: QuantizeJob, recipe: Recipe, model: Model) -> SampleStream | None:
    """What steps measure on: a few samples, the same ones for every shard."""
    if job.random_samples is not None:
        return random_source(model.inputs(), job.random_samples)
    source = recipe.samples.calibration
    limit = min(_STEP_SAMPLES, job.samples or source.limit or _STEP_SAMPLES)
    return open_source(source, job.calibration, model.inputs(), limit=limit)


def evaluation_samples(job: QuantizeJob, prepared: Prepared, watch: Watch) -> Iterable[Sample]:
    """The samples to judge by; without any, a few of the calibration samples, which flatter."""
    given = named_evaluation(job, prepared)
    if given is not None:
        return watched(given, len(given), watch)
    if job.labels is not None:
        raise UsageError("labels need samples to belong to", "name their folder with --eval")
    if prepared.calibration is None:
        return _made_up(prepared, watch)
    watch.warn(f"no evaluation samples: compared on up to {_SMOKE_SAMPLES} of the calibration samples")
    count = min(_SMOKE_SAMPLES, len(prepared.calibration))
    return watched(islice(prepared.calibration, count), count, watch)


def named_evaluation(job: QuantizeJob, prepared: Prepared) -> SampleStream | None:
    source = prepared.recipe.samples.validation
    if source.preprocess is None:
        preprocess = prepared.recipe.samples.calibration.preprocess
        source = msgspec.structs.replace(source, preprocess=preprocess)
    return open_source(source, job.evaluation, prepared.source.inputs(), labels=job.labels)


def _made_up(prepared: Prepared, watch: Watch) -> Iterable[Sample]:
    """Random inputs for a plan that needs no samples, when there are none to judge it by."""
    if requests_of(prepared.plan, prepared.model):
        return ()
    watch.warn(f"no samples: compared on {_MADE_UP_SAMPLES} random inputs, which says little about accuracy")
    return random_source(prepared.source.inputs(), _MADE_UP_SAMPLES)
