"""What the samples say against a plan: values that eight bits cannot hold, and branches that no sample took.

A plan is made without data. Once its values are measured, those that the chosen grid would ruin are known before
anything is written: a power spectrum in front of a logarithm, scores joined with pixel coordinates, the results of a
branch that was never taken. The plan is then made again without them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec
import numpy as np

from qcli.contracts import Format
from qcli.distribution import Distribution
from qcli.graph import Model, node_key
from qcli.measured import measured, quantizes_as_it_runs, seen
from qcli.mixed import mixed_plan
from qcli.placement import Unfit
from qcli.plan import make_plan
from qcli.plugins import create
from qcli.recipe import Recipe
from qcli.solve import SiteKey, activation_scales, site_key
from qcli.statistics import Statistics
from qcli.types import Grid, Interval, Plan, Role, Scale

_LOST = 0.75
"""The share of values other than zero that a grid may round to zero."""

_POOR_DB = 20.0
_MUCH_DB = 12.0
"""A joint grid is refused where it leaves less than the first ratio, and the values' own would gain the second."""

_ROUNDS = 8

_LISTED = 3

_TOO_WIDE = "{:.0%} of its values would round to zero, so many magnitudes do they span"


def refine_plan(model: Model, recipe: Recipe, plan: Plan, statistics: Statistics) -> Plan:
    """The plan without what its statistics speak against, and with the widths that the recipe's `mixed` leads to.

    `plan` was made by `make_plan` for the same model.
    """
    unfit = Unfit()
    for _ in range(_ROUNDS):
        found = _judge(model, plan, statistics)
        if not found.values and not found.nodes:
            break
        unfit = Unfit({**unfit.values, **found.values}, {**unfit.nodes, **found.nodes})
        plan = make_plan(model, recipe, unfit)
    return mixed_plan(model, plan, statistics, recipe.mixed)


def doubted_plan(model: Model, plan: Plan, statistics: Statistics, warn: Callable[[str], None]) -> Plan:
    """A plan that was given, as it is: what the samples say against its values is a warning.

    The scale of a value that no sample reached is made up, and whoever takes that branch gets anything.
    """
    found = [f"'{name}': {reason}" for name, reason in _judge(model, plan, statistics).values.items()]
    if found:
        more = f"; and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
        warn(f"the samples speak against the plan: {'; '.join(found[:_LISTED])}{more}; leave out the entries")
    return plan


def _judge(model: Model, plan: Plan, statistics: Statistics) -> Unfit:
    scales = activation_scales(model, plan, statistics)
    values: dict[str, str] = {}
    asked = {request.value for request in statistics.header.requests}
    for entry in plan.entries:
        if (
            entry.site.role not in (Role.INPUT, Role.OUTPUT)
            or entry.site.value in values
            or entry.site.value not in asked
        ):
            continue
        known = measured(model, entry, statistics)
        if known is None:
            continue
        if not known.counts.sum():
            values[entry.site.value] = "no sample reached it"
            continue
        share = lost_share(known, _of_eight_bits(scales[site_key(entry)]), create("formats", entry.grid.format))
        if share > _LOST:
            values[entry.site.value] = _TOO_WIDE.format(share)
    nodes = {**dict(_ill_tied(model, plan, statistics, scales)), **dict(_ill_fed(model, plan, statistics))}
    return Unfit(values, nodes)


def _of_eight_bits(scale: Scale) -> Scale:
    """The range of `scale` with 256 levels, if it has fewer: whoever asks for so few wants small values to be lost."""
    span = scale.highest - scale.lowest
    if span >= _LEVELS or scale.levels is not None:
        return scale
    zero_point = np.rint((scale.zero_point - scale.lowest) * (_LEVELS / span)).astype(np.int64)
    steps = (scale.scale * np.float32(span / _LEVELS)).astype(np.float32)
    return msgspec.structs.replace(scale, scale=steps, zero_point=zero_point, lowest=0, highest=_LEVELS, dtype="uint8")


_LEVELS = 255


def _ill_fed(model: Model, plan: Plan, statistics: Statistics) -> Iterator[tuple[str, str]]:
    """Nodes that would quantize, as they run, data that no grid of 8 bits holds, with the reason."""
    grid = Grid(format="uint8", symmetric=False)
    format_ = create("formats", grid.format)
    nodes = {node_key(node): node for node in model.nodes()}
    for entry in plan.entries:
        data = nodes[entry.site.node].inputs[0] if quantizes_as_it_runs(entry) else None
        known = seen(data.name or "", "histogram", statistics) if data is not None else None
        if data is None or known is None:
            continue
        scale = format_.scale(Interval(lower=known.lower, upper=known.upper), grid)
        share = lost_share(known, scale, format_)
        if share > _LOST:
            yield entry.site.node, f"'{data.name}': {_TOO_WIDE.format(share)}"


def _ill_tied(
    model: Model, plan: Plan, statistics: Statistics, scales: dict[SiteKey, Scale]
) -> Iterator[tuple[str, str]]:
    """Nodes that join values of very different ranges under one scale, with the reason."""
    entries = {entry.site.value: entry for entry in plan.entries if entry.site.role in (Role.INPUT, Role.OUTPUT)}
    for tie in plan.ties:
        for value in tie.values[:-1]:
            if value not in entries:
                continue
            entry = entries[value]
            known = measured(model, entry, statistics)
            if known is None or not known.counts.sum():
                continue
            format_ = create("formats", entry.grid.format)
            joint = sqnr_of(known, scales[site_key(entry)], format_)
            alone = format_.scale(create("ranges", entry.range).interval(known, entry.grid), entry.grid)
            if joint < _POOR_DB and sqnr_of(known, alone, format_) > joint + _MUCH_DB:
                yield tie.node, f"it joins values of very different ranges; '{value}' would keep {joint:.0f} dB"
                break


def lost_share(known: Distribution, scale: Scale, format_: Format) -> float:
    """The share of the values other than zero that `scale` rounds to zero."""
    points = known.points[0].astype(np.float32)
    some = points != 0
    total = known.counts[0][some].sum()
    zero = format_.decode(format_.encode(points, scale), scale) == 0
    return float(known.counts[0][some & zero].sum() / total) if total else 0.0


def sqnr_of(known: Distribution, scale: Scale, format_: Format) -> float:
    """The signal-to-noise ratio in dB that `scale` leaves of the values."""
    points = known.points[0].astype(np.float32)
    error = format_.decode(format_.encode(points, scale), scale).astype(np.float64) - points
    signal, noise = (known.counts[0] * points.astype(np.float64) ** 2).sum(), (known.counts[0] * error**2).sum()
    return float(10 * np.log10(max(signal, 1e-300) / max(noise, signal * 1e-20, 1e-300)))
