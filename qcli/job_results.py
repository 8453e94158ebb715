"""What a job does with the finished model beside judging it: converting it, and weighing it."""

from __future__ import annotations

from pathlib import Path

from qcli.benching.peak import measure_both
from qcli.convert import Converted, Evidence, convert_model
from qcli.errors import NothingToDoError, UnsupportedError
from qcli.graph import Model, node_key
from qcli.job import QuantizeJob, threads_of
from qcli.latency import made_up_feeds
from qcli.matching import RuleBook
from qcli.memory import budget_of
from qcli.prepared import Prepared
from qcli.sizes import BothMemories
from qcli.suitability import IN_FLOAT, of_small_floats
from qcli.types import Plan
from qcli.validate import means_of
from qcli.watch import Watch


def converted_by(job: QuantizeJob, prepared: Prepared, model: Model, watch: Watch) -> Converted | None:
    """What the recipe's `convert` makes of the finished model; None without one."""
    convert = prepared.recipe.convert
    if convert is None:
        return None
    watch.phase("apply")
    samples = prepared.calibration if means_of(budget_of(job.max_memory), prepared.source).runs else None
    if samples is None:
        watch.warn(f"no samples: whether the values stay within the range of {convert.to} was not checked")
    rules = RuleBook(prepared.model, prepared.recipe)
    kept = {node_key(node): reason for node in prepared.model.nodes() if (reason := rules.kept(node)) is not None}
    evidence = None if samples is None else Evidence(prepared.source, samples, threads_of(job))
    converted = convert_model(model, convert, kept, evidence)
    if converted.nodes:
        return converted
    if not prepared.plan.entries:
        raise NothingToDoError(f"no operator of this model can compute in {convert.to}", converted.why())
    watch.warn(f"no operator computes in {convert.to}, weights are stored as the rules say: {converted.why()}")
    return converted


def reasons_of(plan: Plan, converted: Converted | None) -> dict[str, str]:
    """Why nodes stay float32, by their first output."""
    reasons = dict.fromkeys(of_small_floats(plan.entries), IN_FLOAT)
    reasons.update((kept.node, kept.reason) for kept in plan.kept_float)
    return reasons if converted is None else {**reasons, **converted.reasons()}


def memory_of(job: QuantizeJob, prepared: Prepared, written: Path) -> BothMemories | None:
    """What both models take on a calibration sample, or on a made-up one."""
    first = next(iter(prepared.calibration), None) if prepared.calibration is not None else None
    try:
        feeds = first.feeds if first is not None else made_up_feeds(prepared.source.inputs())
    except UnsupportedError:  # text is not made up
        return None
    return measure_both(job.model, written, feeds)
