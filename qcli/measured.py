"""What a plan asks to be measured, and what was seen at its sites."""

from __future__ import annotations

import numpy as np

from qcli.distribution import Distribution
from qcli.energies import energy_requests
from qcli.errors import InputError, UsageError
from qcli.graph import Model, Value, constant_of, node_key
from qcli.learn import learned_requests
from qcli.plugins import choice_of, create, load, names
from qcli.statistics import Statistics
from qcli.types import Entry, Plan, Request, Role

NOTHING = Distribution(lower=np.zeros(1), upper=np.zeros(1), points=np.zeros((1, 1)), counts=np.zeros((1, 1)))
"""Of a value that no sample reached."""


def requests_of(plan: Plan, model: Model) -> tuple[Request, ...]:
    """The statistics that the plan needs: of its activations, and of what weights learn from or are weighted by."""
    values = values_of(model)
    wanted = [
        _request(entry.site.value, statistic)
        for entry in plan.entries
        if is_activation(entry, values) and (statistic := create("ranges", entry.range).statistic) is not None
    ]
    ranges = () if _is_data_free(plan) else wanted
    return tuple(dict.fromkeys((*ranges, *(weight_requests(plan, model) if not model.large else ()))))


def weight_requests(plan: Plan, model: Model) -> tuple[Request, ...]:
    """What weights learn from or are weighted by. Of a large model it is measured part by part, and forgotten."""
    wanted = (*learned_requests(plan, model).values(), *energy_requests(plan, model).values())
    return tuple(dict.fromkeys(wanted))


def _request(value: str, statistic: str) -> Request:
    return Request(value=value, statistic=statistic, axis=getattr(load("stats", statistic), "axis", None))


def _is_data_free(plan: Plan) -> bool:
    """True if activations have ranges that need no samples and, beside those, only such as are given."""
    activations = [entry.range for entry in plan.entries if entry.site.role in (Role.INPUT, Role.OUTPUT)]
    measured = [spec for spec in activations if create("ranges", spec).statistic is not None]
    return len(measured) < len(activations) and all(choice_of(spec).name == "fixed" for spec in measured)


def wishes_of(plan: Plan, model: Model) -> tuple[Request, ...]:
    """Statistics of what dynamic kernels quantize: they need none, but samples can show that they should not."""
    nodes = {node_key(node): node for node in model.nodes()}
    data = [nodes[entry.site.node].inputs[0] for entry in plan.entries if quantizes_as_it_runs(entry)]
    names = dict.fromkeys(value.name for value in data if value is not None and value.name)
    return tuple(Request(value=name, statistic="histogram") for name in names)


def quantizes_as_it_runs(entry: Entry) -> bool:
    """True for the weight of a kernel that quantizes its data by itself, with one scale: those of blocks have many."""
    encoding = create("encodings", entry.encoding)
    whole = entry.site.role is Role.WEIGHT and entry.grid.block is None
    return whole and encoding.multiplies and not encoding.calibrated


def measured(model: Model, entry: Entry, statistics: Statistics) -> Distribution | None:
    """The values seen at an activation's site; None for a constant, and counts of zero for what no sample reached."""
    if constant_of(values_of(model).get(entry.site.value)) is not None:
        return None
    return seen_at(entry, statistics) or NOTHING


def seen_at(entry: Entry, statistics: Statistics) -> Distribution | None:
    """By the statistic that the entry's range needs, or else by any other that was measured."""
    return seen(entry.site.value, create("ranges", entry.range).statistic, statistics)


def seen(value: str, wanted: str | None, statistics: Statistics) -> Distribution | None:
    """The values seen, by the statistic `wanted` or else by another; None if none was measured or nothing was there."""
    for statistic in dict.fromkeys((*([wanted] if wanted is not None else []), *names("stats"))):
        try:
            return statistics.get(_request(value, statistic)).distribution()
        except (InputError, UsageError):  # nothing was seen, or this was not asked for
            continue
    return None


def values_of(model: Model) -> dict[str, Value]:
    """All values of all graphs by name."""
    found: dict[str, Value] = {}
    for graph in model.graphs():
        found.update({value.name or "": value for value in (*graph.inputs, *graph.initializers.values())})
        found.update({value.name or "": value for node in graph for value in node.outputs})
    return found


def is_activation(entry: Entry, values: dict[str, Value]) -> bool:
    """True for a site whose values are known when samples run."""
    return entry.site.role in (Role.INPUT, Role.OUTPUT) and constant_of(values.get(entry.site.value)) is None
