"""The arrows of the pipeline one by one: each reads files and writes one."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from qcli.errors import UsageError
from qcli.files import check_distinct, check_writable, replace_file
from qcli.job import QuantizeJob, named_inputs
from qcli.measured import requests_of
from qcli.mixed import mixed_plan
from qcli.pipeline import calibrate_job, prepare_job
from qcli.plan import plan_text
from qcli.prepared import Prepared
from qcli.statistics import Header, Statistics, load_statistics
from qcli.types import Plan
from qcli.watch import Watch


def make_plan_file(job: QuantizeJob, watch: Watch | None = None) -> Plan:
    """The plan of a job, written to `job.output` if that is given. Needs no samples.

    Raises what `quantize` would raise up to that point.
    """
    if job.output is not None:
        check_distinct([job.output], named_inputs(job))
        check_writable(job.output)
    watch = watch or Watch()
    prepared = prepare_job(job, watch)
    if prepared.recipe.fallback is not None and job.plan is None:
        watch.warn(
            "what goes back to float by the recipe's 'fallback' is found by 'quantize': this is the plan before it"
        )
    if prepared.recipe.convert is not None:
        watch.warn("what the recipe's 'convert' does is decided by 'quantize': this is the plan before it")
    plan = prepared.plan
    if prepared.recipe.mixed is not None and job.plan is None:
        plan = _with_widths(prepared, watch)
    if job.output is not None:
        replace_file(job.output, plan_text(plan).encode())
    return plan


def _with_widths(prepared: Prepared, watch: Watch) -> Plan:
    """The plan with the widths that the recipe's `mixed` leads to, where that needs no samples."""
    model, plan = prepared.model, prepared.plan
    if requests_of(plan, model):
        watch.warn(
            "the widths by the recipe's 'mixed' are found by 'quantize' from samples: this is the plan before it"
        )
        return plan
    return mixed_plan(model, plan, Statistics.empty(()), prepared.recipe.mixed)


def make_statistics_file(job: QuantizeJob, watch: Watch | None = None) -> Header:
    """Measures the samples of a job, or of its shard, into `job.output`; returns the file's header."""
    if job.output is None:
        raise UsageError("there is no file to write the statistics to", "name one with -o, as in -o stats.npz")
    check_distinct([job.output], named_inputs(job))
    check_writable(job.output)
    statistics = calibrate_job(job, watch)
    statistics.save(job.output)
    return statistics.header


def merge_statistics(parts: Sequence[Path], output: Path) -> Header:
    """Statistics of several shards as those of all samples, written to `output`.

    Raises UsageError if they belong to different models or recipes, InputError for any other file.
    """
    check_distinct([output], parts)
    check_writable(output)
    merged: Statistics | None = None
    seen: dict[bytes, Path] = {}
    for part in parts:
        if (known := seen.setdefault(_digest(part), part)) is not part:
            raise UsageError(f"'{known}' and '{part}' are the same statistics", "merge each shard once")
        statistics = load_statistics(part)
        merged = statistics if merged is None else merged.merge(statistics)
    if merged is None:
        raise UsageError("there is nothing to merge", "name two or more statistics files")
    merged.save(output)
    return merged.header


def _digest(path: Path) -> bytes:
    try:
        return sha256(path.read_bytes()).digest()
    except OSError:  # reading it as statistics says what is wrong
        return str(path).encode()
