"""Weights whose range is weighted by what they meet: the energy of each weight's input, from samples."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from qcli.errors import InputError
from qcli.graph import Model, Node, constant_of, node_key
from qcli.learn import some_of, whose_weights_are_shared
from qcli.plugins import create
from qcli.statistics import Statistics
from qcli.types import Entry, Plan, Request, Role
from qcli.windows import rows_of, takes_transposed, weight_of, window_of

Float64Array = npt.NDArray[np.float64]

_DAMP = 0.01
"""Of the mean energy of a group, added to all: an input that no calibration sample woke may still matter elsewhere."""

_WHOLE = 1 << 62
"""Inputs are never cut into blocks: nothing is kept of their pairs."""


def energy_requests(plan: Plan, model: Model) -> dict[str, Request]:
    """The statistic by which the weight of each layer is weighted, by node."""
    nodes = {node_key(node): node for node in model.graph}
    found: dict[str, Request] = {}
    for entry, reason in _verdicts(plan, model):
        node = nodes.get(entry.site.node)
        window = window_of(node, _WHOLE) if node is not None and not reason else None
        if node is not None and window is not None and node.inputs[0] is not None:
            value = node.inputs[0].name or ""
            found[entry.site.node] = Request(value=value, statistic="energy", window=window)
    return found


def energies_of(node: Node, request: Request | None, statistics: Statistics) -> Float64Array | None:
    """The mean square of the input that each element of a layer's weight meets, of the weight's shape, damped.

    None where nothing is to be weighted, or where no sample got there.
    """
    if request is None or request.window is None:
        return None
    try:
        measured: Any = statistics.get(request)
        energies: Float64Array = measured.energies()
    except InputError:
        return None
    weight = np.asarray(constant_of(node.inputs[1]))
    damped = energies + _DAMP * energies.mean(axis=1, keepdims=True)
    if not request.window.kernel:  # the same for all output channels: nothing has to be repeated
        return np.broadcast_to(damped if takes_transposed(node) else damped.T, weight.shape)
    spread = np.broadcast_to(damped[:, None], rows_of(node, weight, request.window).shape)
    return np.asarray(weight_of(node, spread, request.window, weight.shape), np.float64)


def doubts_about_energies(plan: Plan, model: Model, statistics: Statistics) -> list[str]:
    """A sentence for each reason for which ranges of weights are not weighted though they should be.

    What no sample reaches in a large model is only known once it is solved.
    """
    requests = energy_requests(plan, model)
    nodes = {node_key(node): node for node in model.graph}
    found: dict[str, list[str]] = {}
    for entry, graph_reason in _verdicts(plan, model):
        request = requests.get(entry.site.node)
        unseen = request is not None and not model.large
        unseen = unseen and energies_of(nodes[entry.site.node], request, statistics) is None
        reason = graph_reason or ("as no sample reaches them" if unseen else "")
        if reason:
            found.setdefault(reason, []).append(entry.site.value)
    return [
        f"{len(values)} weights have ranges that are not weighted, {reason}: {some_of(values)}"
        for reason, values in found.items()
    ]


def weighs(entry: Entry) -> bool:
    """True for a site whose range is weighted by input energies."""
    return bool(getattr(create("ranges", entry.range), "weighted", False))


def _verdicts(plan: Plan, model: Model) -> Iterator[tuple[Entry, str]]:
    """Every weight whose range should be weighted, with the reason why it cannot, or an empty one."""
    here = {node_key(node): node for node in model.graph}
    shared = whose_weights_are_shared(plan)
    for entry in plan.entries:
        if entry.site.role is Role.WEIGHT and weighs(entry):
            reason = _reason(entry, here.get(entry.site.node))
            yield entry, reason or ("as several nodes read them" if entry.site.node in shared else "")


def _reason(entry: Entry, node: Node | None) -> str:
    """Why it is not known what the elements of a weight meet, or nothing."""
    if node is None:
        return "as they belong to the body of another node"
    product = entry.site.operand == 1 and window_of(node, _WHOLE) is not None
    return "" if product else f"as this form of {entry.site.op} is no product of patches"
