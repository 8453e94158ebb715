"""Which changes of a recipe are worth trying after an analysis, and those of them that help.

The order is that of Nagel et al. 2021, "A White Paper on Neural Network Quantization", figure 7: what is at fault,
weights or activations, decides what is tried: channels and roundings of weights; ranges, equalization and split
outliers of activations; and for both, the worst layers in float.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from glob import escape
from typing import Any

import msgspec

from qcli.analysis.groups import Group
from qcli.analysis.nouns import Blame, Row, Suggestion
from qcli.analysis.trial import Change, Trials
from qcli.graph import Model, node_key, original_name
from qcli.plugins import choice_of, create, names
from qcli.types import Entry, Grid, Plan, Role, Spec

WORTH_DB = 0.5
"""Gains below this are chance: rounding differently moves the result of a deep network as much."""

_MOST = 6
_KEPT = (1, 3)
"""How many of the worst rows are tried in float."""

_JOINED = 3
"""How many changes are tried together with the best one."""

_LOUD = 0.1
"""From this share of the noise on the ranges of a row's own values are tried."""

_RANGES: tuple[Spec, ...] = ("minmax", "mse", {"percentile": {"keep": 99.99}})
_STEPS = ("equalize", "smooth", "split_outliers")


Data = dict[str, Any]


@dataclass(frozen=True)
class Findings:
    """What an analysis found: `rows` from the worst on, with their groups."""

    model: Model
    plan: Plan
    prepare: tuple[Spec, ...]
    blame: Blame
    rows: tuple[tuple[Row, Group], ...]


def suggest(findings: Findings, trials: Trials) -> tuple[tuple[Suggestion, ...], int]:
    """The changes that gain half a dB or more, the best first, and how many were tried."""
    changes = _distinct(_changes(findings))
    trials.announce(changes)
    tried: list[tuple[Change, Suggestion]] = []
    for done, change in enumerate(changes, 1):
        result = trials.run(change)
        if result is not None and result.gain >= WORTH_DB:
            tried.append((change, result))
        trials.watch.progress(done, len(changes) + _JOINED)
    tried.sort(key=lambda item: -item[1].gain)
    found = [result for _, result in tried]
    joined = _joined(tried, trials)
    if joined is not None:
        found.append(joined)
    different = {(one.sqnr, one.floats): one for one in reversed(found)}
    return tuple(sorted(different.values(), key=lambda one: -one.gain)[:_MOST]), len(changes)


def _joined(tried: list[tuple[Change, Suggestion]], trials: Trials) -> Suggestion | None:
    """The best change together with others of other kinds, as long as each adds something."""
    if not tried:
        return None
    change, best = tried[0]
    joined: Suggestion | None = None
    others = [other for other, _ in tried[1:] if not other.kinds & change.kinds][:_JOINED]
    for other in others:
        if other.kinds & change.kinds:
            continue
        result = trials.run(change.joined(other))
        if result is not None and result.gain >= best.gain + WORTH_DB:
            change, best, joined = change.joined(other), result, result
    return joined


def _changes(findings: Findings) -> Iterator[Change]:
    if findings.blame in ("weights", "both"):
        yield from _weights(findings)
    if findings.blame in ("activations", "both"):
        yield from _activations(findings)
    yield from _in_float(findings)


def _weights(findings: Findings) -> Iterator[Change]:
    """One scale for each channel, another rounding, another range."""
    entries = [entry for entry in findings.plan.entries if entry.site.role is Role.WEIGHT]
    whole = [entry for entry in entries if entry.grid.granularity == "tensor"]
    for grid in dict.fromkeys(map(_grid_text, whole)):
        rule: Data = {"match": {"role": "weight"}, "grid": {**msgspec.json.decode(grid), "granularity": "channel"}}
        yield Change("weights are at fault: one scale for each of their channels", frozenset({"granularity"}), (rule,))
    if "squant" in names("roundings") and any(_name(entry.rounding) == "nearest" for entry in entries):
        rule = {"match": {"role": "weight"}, "rounding": "squant"}
        why = "weights are at fault: round them so that the errors of a kernel cancel out"
        yield Change(why, frozenset({"rounding"}), (rule,))
    for span in _RANGES[:2]:
        if any(_name(entry.range) != _name(span) for entry in entries):
            why = f"weights are at fault: another range for them, {_name(span)}"
            yield Change(why, frozenset({"weight range"}), ({"match": {"role": "weight"}, "range": span},))


def _activations(findings: Findings) -> Iterator[Change]:
    """Another range for all or for the loudest, channels that are balanced, outliers that are split off."""
    entries = [entry for entry in findings.plan.entries if _has_range(entry)]
    kinds = frozenset({"range"})
    for span in _RANGES:
        if any(_name(entry.range) != _name(span) for entry in entries):
            why = f"activations are at fault: another range for them, {_name(span)}"
            yield Change(why, kinds, ({"match": {"role": "input"}, "range": span},))
    yield from (_loudest(findings, span) for span in _RANGES if _loud(findings) is not None)
    present = {_name(step) for step in findings.prepare}
    for step in _STEPS:
        if step in names("steps") and step not in present and create("steps", step).requests(findings.model):
            yield Change(f"activations are at fault: {_REASONS[step]}", frozenset({step}), steps=(step,))


_REASONS = {
    "equalize": "balance the channels that share a scale",
    "smooth": "move the largest channels' range into the weights",
    "split_outliers": "the channels that dwarf the others take a path of their own",
}


def _loudest(findings: Findings, span: Spec) -> Change:
    row = _loud(findings)
    tied = _tied_to(findings.plan, row.values if row is not None else ())
    rule = {"match": {"value": [escape(value) for value in tied]}, "range": span}
    why = f"the activations of '{row.name if row is not None else ''}' are at fault: another range, {_name(span)}"
    return Change(why, frozenset({"range"}), (rule,))


def _loud(findings: Findings) -> Row | None:
    """The row whose activations are worst, if they are loud."""
    rows = [row for row, _ in findings.rows if row.activations is not None and row.share >= _LOUD]
    return min(rows, key=lambda row: row.activations or 0.0, default=None)


def _in_float(findings: Findings) -> Iterator[Change]:
    """The worst rows in float, with what reads them where their activations are at fault."""
    for count in _KEPT:
        worst = findings.rows[:count]
        kept = list(dict.fromkeys(name for row, group in worst for name in _names(findings, row, group)))
        which = f"'{worst[0][0].name}'" if len(worst) == 1 else f"the {len(worst)} worst"
        reading = " with what reads it" if len(kept) > sum(len(group.layers) for _, group in worst) else ""
        rule = {"match": {"name": kept}, "keep": "float"}
        yield Change(f"keep {which}{reading} float", frozenset({"float"}), (rule,))


def _names(findings: Findings, row: Row, group: Group) -> Iterator[str]:
    """What a rule calls the nodes of a row, and the layers that would quantize its results all the same."""
    nodes = {node_key(node): node for node in findings.model.nodes()}
    counts = Counter(original_name(node) for node in nodes.values())
    keys = [layer.key for layer in group.layers]
    if row.activations is not None and (row.weights is None or row.activations < row.weights):
        keys += _readers(findings, row.values)
    for key in dict.fromkeys(keys):
        name = original_name(nodes[key])
        yield escape(name if name and counts[name] == 1 else key)


def _readers(findings: Findings, values: Iterable[str]) -> Iterator[str]:
    """The quantized nodes that read one of the values that are results, also behind nodes that only move codes."""
    quantized = {entry.site.node for entry in findings.plan.entries}
    results = {entry.site.value for entry in findings.plan.entries if entry.site.role is Role.OUTPUT}
    moves = {tie.node for tie in findings.plan.ties}
    wanted = dict.fromkeys(value for value in values if value in results)
    for node in findings.model.nodes():
        key = node_key(node)
        if any(value is not None and value.name in wanted for value in node.inputs) and key in quantized:
            yield key
            if key in moves:
                wanted.update(dict.fromkeys(value.name or "" for value in node.outputs))


def _tied_to(plan: Plan, values: Iterable[str]) -> tuple[str, ...]:
    """The values and all that share a scale with them."""
    found = dict.fromkeys(values)
    grown = True
    while grown:
        before = len(found)
        for tie in plan.ties:
            if any(value in found for value in tie.values):
                found.update(dict.fromkeys(tie.values))
        grown = len(found) > before
    return tuple(found)


def _has_range(entry: Entry) -> bool:
    return entry.site.role in (Role.INPUT, Role.OUTPUT) and _name(entry.range) != "fixed"


def _grid_text(entry: Entry) -> bytes:
    """The grid as a recipe has it, without the axis that a plan adds, in a form that can be compared."""
    plain = msgspec.to_builtins(entry.grid)
    shown = ("format", "symmetric", "granularity")
    return msgspec.json.encode(
        {key: plain[key] for key in plain if key in shown or (key != "axis" and plain[key] != getattr(Grid(), key))}
    )


def _name(spec: Spec) -> str:
    return choice_of(spec).name


def _distinct(changes: Iterable[Change]) -> tuple[Change, ...]:
    """Each change once; of equal ones the first, which is said more plainly."""
    found: dict[str, Change] = {}
    for change in changes:
        found.setdefault(repr((change.rules, change.steps)), change)
    return tuple(found.values())
