"""Weights that learn from samples: which statistics they need, and what becomes of their codes and scales."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from qcli.contracts import along
from qcli.granularity import weights_per_code
from qcli.graph import Model, Node, constant_of, node_key
from qcli.levels import is_uniform, nearest_codes, real_values
from qcli.plugins import choice_of, create
from qcli.responses import response_of
from qcli.roundings._learned import LearnedRounding, Moments
from qcli.roundings._quadratic import damped, error_of, refitted, refitted_parts
from qcli.roundings._rows import Answer, Rows
from qcli.roundings._vectors import learned_words
from qcli.scale_forms import as_stored
from qcli.statistics import Statistics
from qcli.types import Array, Entry, Plan, Request, Role, Scale, Window
from qcli.vector_rows import in_whole_vectors, vectors_misfit, with_words
from qcli.windows import reads_of, rows_of, takes_transposed, weight_of, window_of

Float64Array = npt.NDArray[np.float64]

_LARGEST = 1024
"""Inputs of a layer that are taken to depend on each other, at most."""

_BUDGET = 1 << 28
"""Bytes of all that is kept of the inputs of all layers; where it is exceeded, layers are seen in smaller blocks."""


_EVERY = slice(None)


def learned_requests(plan: Plan, model: Model) -> dict[str, Request]:
    """The statistic that the weight of each layer learns from, by node; not those that learn one after the other.

    In a large model all learn by themselves, from float inputs: what a part of it is measured for is soon forgotten.
    """
    entries = learners(plan, model)
    if model.large:
        nodes = {node_key(node): node for node in model.graph}
        found = {entry.site.node: _request(nodes[entry.site.node], entry, _LARGEST) for entry in entries}
        return {node: request for node, request in found.items() if request is not None}
    return _requests(model, [entry for entry in entries if not rounding_of(entry).sequential])


def learners(plan: Plan, model: Model) -> list[Entry]:
    """The weights whose rounding learns, as far as they can: see `unlearned`."""
    return [entry for entry, reason in _verdicts(plan, model) if not reason]


def doubts_about_learning(plan: Plan, model: Model, statistics: Statistics) -> list[str]:
    """A sentence for each reason for which weights cannot learn from samples though their rounding does."""
    found = unlearned(plan, model, statistics)
    return [
        f"{len(values)} weights are rounded without samples, {reason}: {some_of(values)}"
        for reason, values in found.items()
    ]


def some_of(values: list[str]) -> str:
    """The first few of them."""
    return ", ".join((*values[:3], "…") if len(values) > 3 else values)


def unlearned(plan: Plan, model: Model, statistics: Statistics) -> dict[str, list[str]]:
    """The values of the weights whose rounding should learn but cannot, by reason; they are rounded without data.

    What no sample reaches in a large model is only known once it is solved.
    """
    found: dict[str, list[str]] = {}
    requests = learned_requests(plan, model) if not model.large else {}
    for entry, graph_reason in _verdicts(plan, model):
        request = requests.get(entry.site.node) if not graph_reason else None
        unseen = request is not None and not was_seen(statistics.get(request))
        reason = graph_reason or ("as no sample reaches them" if unseen else "")
        if reason:
            found.setdefault(reason, []).append(entry.site.value)
    return found


def learns(entry: Entry) -> bool:
    return isinstance(create("roundings", entry.rounding), LearnedRounding)


def _verdicts(plan: Plan, model: Model) -> Iterator[tuple[Entry, str]]:
    """Every weight whose rounding learns, with the reason why it cannot, or an empty one."""
    here = {node_key(node): node for node in model.graph}
    weights = [entry for entry in plan.entries if entry.site.role is Role.WEIGHT]
    shared = whose_weights_are_shared(plan)
    for entry in weights:
        if not learns(entry):
            continue
        node = here.get(entry.site.node)
        if node is None:
            yield entry, "as they belong to the body of another node"
        elif entry.site.node in shared:
            yield entry, "as several nodes read them"
        else:
            product = entry.site.operand == 1 and window_of(node, _LARGEST) is not None
            yield (
                entry,
                _beyond(entry, node) if product else f"as this form of {entry.site.op} is no product of patches",
            )


def _beyond(entry: Entry, node: Node) -> str:
    """Why a rounding cannot choose among the levels of a table, or nothing."""
    if is_uniform(entry.grid):
        return ""
    if not rounding_of(entry).takes_tables:
        return f"as {choice_of(entry.rounding).name} knows evenly spaced levels only"
    if weights_per_code(entry.grid) > 1:
        return vectors_misfit(entry, node, takes_vectors=rounding_of(entry).takes_vectors)
    own = getattr(create("formats", entry.grid.format), "shares", None)
    return "as its blocks have tables of their own" if entry.grid.block and own and not own(entry.grid) else ""


def whose_weights_are_shared(plan: Plan) -> set[str]:
    """The nodes that read a weight which others read in the same codes."""
    weights = [entry for entry in plan.entries if entry.site.role is Role.WEIGHT]
    readers = Counter(_decided(entry) for entry in weights)
    return {entry.site.node for entry in weights if readers[_decided(entry)] > 1}


def _decided(entry: Entry) -> tuple[str, str]:
    """Weights of which this is the same get one scale and the same codes."""
    return entry.site.value, repr((entry.grid, entry.range, entry.rounding))


def was_seen(measured: Any) -> bool:
    """True if a sample reached what this statistic of a layer's inputs measures."""
    return bool(measured.arrays()["places"])


class Inputs(NamedTuple):
    """What was measured of a layer's inputs, and how it reads them."""

    measured: Moments
    window: Window


def inputs_of(request: Request, statistics: Statistics) -> Inputs | None:
    """None if no sample got there."""
    measured: Any = statistics.get(request)
    if not was_seen(measured):
        return None
    return Inputs(measured, request.window) if request.window is not None else None


class Problem:
    """One layer's weight, as rows over what it reads; with `some`, that of these of its output channels alone."""

    def __init__(self, node: Node, weight: Array, window: Window, some: slice = _EVERY) -> None:
        self._node = node
        self._window = window
        self._shape = weight.shape
        self._some = some
        self.weight = rows_of(node, np.asarray(weight, np.float64), window)

    def solve(
        self, rounding: LearnedRounding, measured: Moments, scale: Scale, floor: Float64Array
    ) -> tuple[Array, Scale]:
        if scale.vectors is not None:
            fitted = learned_words(rounding, self.rows(scale), measured, self.steps(scale))
            scale = with_words(scale, fitted.words)
            return self.codes(fitted.values, scale), scale
        codes = rounding.learn(self.rows(scale), measured)
        products = damped(measured.moments()[0], rounding.damp)
        for _ in range(rounding.refit):
            tried = self._refitted(codes, scale, products, floor)
            fresh = rounding.learn(self.rows(tried), measured)
            chosen = min((fresh, codes), key=lambda some: self._error(some, tried, products))
            if self._error(chosen, tried, products) >= self._error(codes, scale, products):
                break
            codes, scale = chosen, tried
        return self.codes(codes, scale), scale

    def rows(self, scale: Scale, target: Float64Array | None = None) -> Rows:
        """The weight, or another target [groups, R, K], in units of the steps."""
        steps, zero = self.steps(scale), self._zeros(scale)
        shape = (*self.weight.shape[:2], zero.shape[-1])
        lowest, highest = (np.broadcast_to(end - zero, shape) for end in (scale.lowest, scale.highest))
        unit = steps.max(axis=2, keepdims=True)
        exact, answer = (self.weight if target is None else target) / steps, self._answer(unit[..., 0])
        table = self._table(scale)
        words = None if scale.vectors is None else scale.vectors.words.astype(np.float64)
        ends = Rows(exact=exact, lowest=lowest, highest=highest, sizes=steps / unit, answer=answer)
        return msgspec.structs.replace(ends, table=table, words=words)

    def _zeros(self, scale: Scale) -> Float64Array:
        """The zero points, [groups or 1, R or 1, K or 1]."""
        first = scale.zero_point.reshape(-1)[:1]
        if scale.zero_point.size and (scale.zero_point == first).all():
            return first.astype(np.float64).reshape(1, 1, 1)
        return self._along(along(scale, self._shape)[1], scale)

    def _table(self, scale: Scale) -> Float64Array | None:
        """The levels of the rows, [1, 1, L] or [groups, R, L]; None where they are evenly spaced."""
        if scale.levels is None or scale.levels.ndim == 1:
            return None if scale.levels is None else scale.levels.astype(np.float64).reshape(1, 1, -1)
        numbered = np.arange(scale.scale.size).reshape(scale.scale.shape)
        tables = along(msgspec.structs.replace(scale, zero_point=numbered), self._shape)[1]
        levels = scale.levels.astype(np.float64)
        return levels[self._along(tables, scale)[..., 0].astype(np.intp)]

    def stored(self, codes: Array, scale: Scale) -> Float64Array:
        """The inverse of `codes`."""
        if scale.is_table:
            return np.asarray(rows_of(self._node, real_values(codes, _without_steps(scale)), self._window), np.float64)
        zero = along(scale, self._shape)[1]
        return np.asarray(rows_of(self._node, codes.astype(np.float64) - zero, self._window), np.float64)

    def steps(self, scale: Scale) -> Float64Array:
        """The step of each row, or of all, [groups or 1, R or 1, 1]; in blocks that of each element."""
        steps = self._along(along(scale, self._shape)[0], scale)
        return np.where(steps > 0, steps, 1.0)  # what fills up a window has none

    def _answer(self, steps: Float64Array) -> Answer | None:
        """The layer's response in units of `steps` [groups or 1, R or 1]; None for blocks, which are parts of it."""
        groups, channels = self.weight.shape[:2]
        whole = groups * channels if self._some is _EVERY else self._channels()
        found = response_of(self._node, whole) if self._window.blocks == 1 else None
        if found is None:
            return None
        bias = found.bias[self._some].reshape(groups, channels) / steps
        lower, upper = (np.broadcast_to(end / steps, bias.shape) for end in (found.lower, found.upper))
        return Answer(bias=bias, lower=lower, upper=upper, slope=found.slope)

    def _channels(self) -> int:
        """The output channels of the layer, all of them."""
        weight = constant_of(self._node.inputs[1])
        return 0 if weight is None else int(weight.shape[0 if takes_transposed(self._node) else 1])

    def _along(self, spread: Array, scale: Scale) -> Float64Array:
        """What broadcasts against the weight as rows: [groups or 1, R or 1, 1], in blocks [groups, R, K]."""
        if spread.ndim == 0:
            return np.asarray(spread, np.float64).reshape(1, 1, 1)
        whole = np.broadcast_to(spread, self._shape).astype(np.float64)
        rows = np.asarray(rows_of(self._node, whole, self._window), np.float64)
        return rows if scale.block is not None else rows[..., :1]

    def _refitted(self, codes: Float64Array, scale: Scale, products: Float64Array, floor: Float64Array) -> Scale:
        if scale.block is not None:
            factors = self._block_factors(codes, scale, products)
            fitted = np.maximum(scale.scale * factors, floor).astype(np.float32)
            return as_stored(msgspec.structs.replace(scale, scale=fitted), scale.form)
        factors = refitted(codes, self.rows(scale).exact, products)
        sizes = np.maximum(np.einsum("grk,grk->gr", codes @ products, codes), 1e-300)
        spread = np.broadcast_to(factors[..., None], self.weight.shape)
        weighed = np.broadcast_to(sizes[..., None], self.weight.shape)
        gains, weights = (weight_of(self._node, part, self._window, self._shape) for part in (spread, weighed))
        others = tuple(axis for axis in range(len(self._shape)) if axis != scale.axis)
        steps = (gains * weights).sum(axis=others) / weights.sum(axis=others)
        fitted = np.maximum(scale.scale * np.reshape(steps, scale.scale.shape), floor).astype(np.float32)
        return msgspec.structs.replace(scale, scale=fitted)

    def _block_factors(self, codes: Float64Array, scale: Scale, products: Float64Array) -> Float64Array:
        """What each step should be multiplied by, in the shape of the scale.

        A block that lies in two windows, which are independent, gets the mean of what both want.
        """
        numbered = msgspec.structs.replace(scale, zero_point=np.arange(scale.scale.size).reshape(scale.scale.shape))
        parts = self._along(along(numbered, self._shape)[1], scale)[:, 0].astype(np.intp)
        factors = refitted_parts(codes, self.rows(scale), products, parts)
        whole, axis = weight_of(self._node, factors, self._window, self._shape), scale.axis or 0
        starts = np.arange(0, self._shape[axis], scale.block)
        means = np.add.reduceat(whole, starts, axis) / np.add.reduceat(np.ones_like(whole), starts, axis)
        return np.asarray(means, np.float64)

    def _error(self, codes: Float64Array, scale: Scale, products: Float64Array) -> float:
        return float(error_of(codes * self.steps(scale), self.weight, products).sum())

    def codes(self, codes: Float64Array, scale: Scale) -> Array:
        """Codes [groups, R, K] without zero points as the layer stores them."""
        whole = weight_of(self._node, codes, self._window, self._shape)
        if scale.is_table:
            return nearest_codes(whole, _without_steps(scale))
        return np.asarray(whole + along(scale, self._shape)[1], scale.dtype)


def _without_steps(scale: Scale) -> Scale:
    return msgspec.structs.replace(scale, scale=np.ones_like(scale.scale))


def rounding_of(entry: Entry) -> LearnedRounding:
    rounding: LearnedRounding = create("roundings", entry.rounding)
    return rounding


def _requests(model: Model, entries: Iterable[Entry]) -> dict[str, Request]:
    """Gram matrices of all layers within the budget: the largest layers are cut into blocks first."""
    nodes = {node_key(node): node for node in model.graph}
    entries = list(entries)
    most = _LARGEST
    while True:
        found = {entry.site.node: _request(nodes[entry.site.node], entry, most) for entry in entries}
        requests = {node: request for node, request in found.items() if request is not None}
        if most <= 32 or sum(_bytes(nodes[node], request) for node, request in requests.items()) <= _BUDGET:
            return requests
        most //= 2


def _request(node: Node, entry: Entry, most: int) -> Request | None:
    window, value = window_of(node, most), node.inputs[0]
    if window is None or value is None:
        return None
    window = in_whole_vectors(window, node, weights_per_code(entry.grid))
    return Request(value=value.name or "", statistic=rounding_of(entry).statistic, window=window)


def _bytes(node: Node, request: Request) -> int:
    """Two float64 matrices for each block."""
    weight = constant_of(node.inputs[1])
    if weight is None or request.window is None:
        return 0
    window = request.window
    size = reads_of(node, weight.shape, window) // window.blocks + 1
    return 16 * window.groups * window.blocks * size * size
