"""From measurements to numbers: every entry of a plan gets its scale, every weight its codes."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from qcli.blas import single_threaded
from qcli.blocks import fitted, interval_of, rounded
from qcli.distribution import Distribution, from_weights
from qcli.energies import energies_of, energy_requests
from qcli.graph import Model, Node, constant_of, node_key, set_aside
from qcli.layers import bias_layer, row_axis
from qcli.learn import inputs_of, learned_requests, learns
from qcli.learn_weight import learned
from qcli.levels import is_uniform
from qcli.measured import NOTHING, is_activation, seen_at, values_of
from qcli.pairs import pair_floor
from qcli.parallel import FEW_AT_ONCE, MOST_AT_ONCE, in_order
from qcli.pieces import coded_pieces
from qcli.plugins import create
from qcli.quick_blocks import quick_scale
from qcli.roundings._learned import Moments, kept
from qcli.scale_forms import as_stored
from qcli.scales import equal, same_levels, union, unsigned
from qcli.statistics import Statistics
from qcli.tables import table_of
from qcli.tails import bias_floor, float_bias
from qcli.targets._support import traits_of
from qcli.ties import tied
from qcli.types import Array, Deferred, Entry, FloatArray, Interval, Plan, Request, Role, Scale

_INT32_MAX = 2**31 - 1
_EITHER = 63
"""Unsigned codes of a weight up to this run on the kernels for signed ones, twice as fast, and no pair saturates."""

Float64Array = npt.NDArray[np.float64]

SiteKey = tuple[str, str, int]
"""Node, role and operand."""


@dataclass(frozen=True)
class Solution:
    """Scales by site, and codes of constants by site."""

    scales: dict[SiteKey, Scale] = field(default_factory=dict)
    codes: dict[SiteKey, Array | Deferred] = field(default_factory=dict)


class Solved(NamedTuple):
    """A plan and its solution."""

    plan: Plan
    solution: Solution


def site_key(entry: Entry) -> SiteKey:
    return (entry.site.node, entry.site.role.value, entry.site.operand)


def solve(model: Model, plan: Plan, statistics: Statistics, threads: int = 1) -> Solution:
    """Scales for all entries and codes for all constants of the plan; the same on any number of threads."""
    solver = Solver(model, plan, statistics, threads=threads)
    solver.activations()
    with single_threaded():
        solver.weights()
    solver.biases()
    return solver.solution


def solve_again(model: Model, plan: Plan, statistics: Statistics, known: Solved, threads: int = 1) -> Solution:
    """A solution that takes over from another plan for the same model what both decide alike.

    Codes that were learned, scales that were searched and biases that were corrected stay; what is new is solved.
    """
    solver = Solver(model, plan, statistics, threads=threads)
    solver.activations()
    solver.adopt(known)
    with single_threaded():
        solver.weights()
    solver.biases()
    return solver.solution


def with_fitting_biases(model: Model, plan: Plan, solution: Solution) -> Solution | None:
    """The solution with biases in the scales of its inputs and weights; None if one does not fit into int32.

    Biases that were corrected since keep their corrections.
    """
    solver = Solver(model, plan, Statistics.empty(()), Solution(dict(solution.scales), dict(solution.codes)))
    solver.biases()
    ends = (-_INT32_MAX - 1, _INT32_MAX)
    biases = (solver.solution.codes[site_key(entry)] for entry in plan.entries if entry.site.role is Role.BIAS)
    return None if any(np.isin(np.asarray(codes), ends).any() for codes in biases) else solver.solution


def activation_scales(model: Model, plan: Plan, statistics: Statistics) -> dict[SiteKey, Scale]:
    """The scales of the activations alone."""
    solver = Solver(model, plan, statistics)
    solver.activations()
    return solver.solution.scales


class Solver:
    def __init__(
        self, model: Model, plan: Plan, statistics: Statistics, known: Solution | None = None, threads: int = 1
    ) -> None:
        self.plan = plan
        self._threads = 1 if model.large else min(threads, MOST_AT_ONCE)
        self._within = min(threads, MOST_AT_ONCE) if model.large else 1
        self.statistics = statistics
        self.model = model
        self._values = values_of(model)
        self._nodes = {node_key(node): node for node in model.nodes()}
        self._by_value: dict[str, Scale] = {}
        self._target = create("targets", plan.target)
        self._unsigned = traits_of(self._target).unsigned_activations
        self.learned = learned_requests(plan, model) if not model.large else {}
        self.energies = energy_requests(plan, model) if not model.large else {}
        self.known_moments: dict[Request, Moments] = {}
        self.solution = known or Solution()
        for entry in plan.entries if known is not None else ():
            if entry.site.role is Role.OUTPUT or entry.site.value not in self._by_value:
                self._by_value[entry.site.value] = self.solution.scales[site_key(entry)]

    def activations(self) -> None:
        """Each value gets the interval of its own range; tied values share the union of theirs."""
        entries = [entry for entry in self.plan.entries if entry.site.role in (Role.INPUT, Role.OUTPUT)]
        found = in_order(self._interval, entries, self._threads)
        intervals = {site_key(entry): interval for entry, interval in zip(entries, found, strict=True)}
        groups = tied(self.plan)
        shared: dict[str, list[Interval]] = {}
        for entry in entries:
            shared.setdefault(groups.get(entry.site.value, entry.site.value), []).append(intervals[site_key(entry)])
        for entry in entries:
            interval = union(shared[groups.get(entry.site.value, entry.site.value)])
            if not self._is_activation(entry):
                interval = intervals[site_key(entry)]
            scale = unsigned(create("formats", entry.grid.format).scale(interval, entry.grid), wanted=self._unsigned)
            self.solution.scales[site_key(entry)] = scale
            array = self._constant(entry)
            if array is not None:
                self.solution.codes[site_key(entry)] = create("roundings", entry.rounding).round(array, scale)
            elif entry.site.role is Role.OUTPUT or entry.site.value not in self._by_value:
                self._by_value[entry.site.value] = scale

    def adopt(self, known: Solved) -> None:
        """Takes over weights and biases of equal entries, and scales of values unless a tie brings others in."""
        before = {site_key(entry): entry for entry in known.plan.entries}
        by_value = {
            entry.site.value: known.solution.scales[site_key(entry)]
            for entry in known.plan.entries
            if entry.site.role in (Role.INPUT, Role.OUTPUT)
        }
        groups = tied(self.plan)
        scales: dict[str, Scale | None] = {}
        for entry in self.plan.entries:
            key = site_key(entry)
            if self._is_activation(entry):
                group, scale = groups.get(entry.site.value, entry.site.value), by_value.get(entry.site.value)
                fits = scale is not None and same_levels(scale, self.solution.scales[key])
                agrees = scales.setdefault(group, scale) is scale or equal(scales[group], scale)
                scales[group] = scale if fits and agrees else None
            elif before.get(key) == entry:
                self.solution.scales[key] = known.solution.scales[key]
                self.solution.codes[key] = known.solution.codes[key]
        for entry in self.plan.entries:
            scale = scales.get(groups.get(entry.site.value, entry.site.value))
            if scale is not None and self._is_activation(entry):
                self.solution.scales[site_key(entry)] = self._by_value[entry.site.value] = scale

    def weights(self) -> None:
        """Weights that several nodes read get one scale, which is wide enough for all of them."""
        self.keep(self.groups())

    def groups(self) -> list[list[Entry]]:
        """The weights without codes, those together that are decided alike."""
        groups: dict[tuple[str, str], list[Entry]] = {}
        for entry in self.plan.entries:
            if entry.site.role is Role.WEIGHT and site_key(entry) not in self.solution.codes:
                decided = repr((entry.grid, entry.range, entry.rounding))
                groups.setdefault((entry.site.value, decided), []).append(entry)
        return list(groups.values())

    def keep(self, groups: list[list[Entry]]) -> None:
        """Solves these weights."""
        found = in_order(self._weight, groups, self._threads)
        for entries, (scale, codes) in zip(groups, found, strict=True):
            for entry in entries:
                self.solution.scales[site_key(entry)] = scale
                self.solution.codes[site_key(entry)] = codes

    def _weight(self, entries: list[Entry]) -> tuple[Scale, Array | Deferred]:
        entry = entries[0]
        weight = self._weight_array(entry)
        find = partial(create("ranges", entry.range).interval, grid=entry.grid)
        energies = energies_of(self._nodes[entry.site.node], self.energies.get(entry.site.node), self.statistics)
        if not is_uniform(entry.grid):
            rows = row_axis(self._nodes[entry.site.node], entry.site.operand, weight.shape)
            return self._coded(entries, table_of(weight, entry, energies, rows=rows, thin=self.model.large))
        quick = getattr(create("ranges", entry.range), "quick", None) if self.model.large else None
        if quick is not None and entry.grid.block is not None and energies is None:
            found = quick_scale(weight, entry.grid, partial(quick, grid=entry.grid), self._within)
            return self._settled(entries, weight, found, None)  # nothing multiplies blocks: there is no least step
        interval, dead = interval_of(weight, entry.grid, find, thin=self.model.large, energies=energies)
        scale = create("formats", entry.grid.format).scale(interval, entry.grid)
        floor = np.max([self._floor(one, weight, scale) for one in entries], axis=0)
        steps = np.where(dead & (floor > 0), floor, np.maximum(scale.scale, floor)).astype(np.float32)
        return self._settled(entries, weight, msgspec.structs.replace(scale, scale=steps), floor)

    def _settled(
        self, entries: list[Entry], weight: FloatArray, scale: Scale, floor: Float64Array | None
    ) -> tuple[Scale, Array | Deferred]:
        """The codes of a weight whose scale was found, and that scale as the rounding and the file have it."""
        grid, rounding = entries[0].grid, create("roundings", entries[0].rounding)
        signed = self._unsigned and scale.dtype == "uint8" and scale.highest <= _EITHER
        typed = msgspec.structs.replace(scale, dtype="int8") if signed else scale
        return self._coded(entries, as_stored(fitted(weight, typed, rounding, floor), grid.scales), floor)

    def _coded(
        self, entries: list[Entry], scale: Scale, floor: Float64Array | None = None
    ) -> tuple[Scale, Array | Deferred]:
        learned_codes = self._learn(entries, scale, np.zeros(scale.scale.shape) if floor is None else floor)
        return learned_codes if learned_codes is not None else (scale, self._codes(entries[0], scale))

    def _learn(self, entries: list[Entry], scale: Scale, floor: Float64Array) -> tuple[Scale, Array | Deferred] | None:
        """The codes that serve the samples best, and their scale.

        None for weights that do not learn, or that several nodes read.
        """
        node = entries[0].site.node
        if len(entries) != 1 or node not in self.learned:
            return None
        inputs = inputs_of(self.learned[node], self.statistics)
        if inputs is None:
            return None
        inputs = inputs._replace(measured=self._kept(self.learned[node], inputs.measured))
        layer, few = self._nodes[node], min(self._within, FEW_AT_ONCE)
        codes, fitted = learned(layer, entries[0], inputs, scale, floor, threads=few)
        return fitted, set_aside(self.model.graph, codes)

    def _kept(self, request: Request, measured: Moments) -> Moments:
        """What follows from a large model's measurements is computed once for all weights that read the same."""
        if not self.model.large:
            return measured
        return self.known_moments.setdefault(request, kept(measured))

    def _codes(self, entry: Entry, scale: Scale) -> Array | Deferred:
        """The codes of a weight; those of a large model are computed again each time they are needed."""
        rounding = create("roundings", "squant" if learns(entry) else entry.rounding)
        encode, read = rounding.round, partial(self._weight_array, entry)
        if not self.model.large:
            return rounded(read(), scale, encode)
        alone = getattr(rounding, "elementwise", False) and scale.vectors is None
        pieces = partial(coded_pieces, read, scale, encode, self._within) if alone else None
        return Deferred(scale.codes_shape(read().shape), scale.dtype, lambda: rounded(read(), scale, encode), pieces)

    def biases(self) -> None:
        """scale = s_x * s_w, along the weight's output channels."""
        for entry in self.plan.entries:
            if entry.site.role is Role.BIAS:
                layer = self._layer_of(entry)
                product = self._input_scale(layer) * self._weight_scale(layer)
                bias = self._bias_so_far(entry)
                steps = np.broadcast_to(product, bias.reshape(-1).shape if product.size == 1 else product.shape)
                codes = np.rint(bias / product).clip(-_INT32_MAX - 1, _INT32_MAX).astype(np.int32)
                axis = None if product.size == 1 else bias.ndim - 1
                scale = steps[:1] if axis is None else steps
                self.solution.codes[site_key(entry)] = codes
                self.solution.scales[site_key(entry)] = Scale(
                    scale=scale.astype(np.float32),
                    zero_point=np.zeros(scale.size, np.int64),
                    axis=axis,
                    lowest=-_INT32_MAX - 1,
                    highest=_INT32_MAX,
                    dtype="int32",
                )

    def _bias_so_far(self, entry: Entry) -> Float64Array:
        """A bias in float; as it is stored where it was corrected since."""
        exact, key = np.asarray(self._constant(entry), np.float64), site_key(entry)
        if key not in self.solution.codes:
            return exact
        steps = self.solution.scales[key].scale.astype(np.float64)
        stored = np.asarray(self.solution.codes[key], np.float64) * steps
        return np.asarray(np.where(np.abs(stored - exact) > 0.51 * steps, stored, exact))

    def _floor(self, entry: Entry, weight: Array, scale: Scale) -> npt.NDArray[np.float64]:
        """The smallest weight scale, in its shape, with which the bias fits and no product saturates."""
        node = self._nodes[entry.site.node]
        floor = np.zeros(scale.scale.shape)
        if entry.grid.block is not None or not create("encodings", entry.encoding).multiplies:
            return floor  # products of blocks are added in float
        data = node.inputs[0].name if node.inputs[0] is not None else None
        bias = self._bias_of(node) if data in self._by_value else None  # dynamic kernels find the scale as they run
        if bias is not None:
            floor = np.maximum(floor, bias_floor(bias, floor.size) / self._input_scale(node))
        if self._target.pair_limited():
            floor = np.maximum(floor, pair_floor(node, weight, scale))
        return floor

    def _interval(self, entry: Entry) -> Interval:
        distribution = self._distribution(entry) or NOTHING
        interval: Interval = create("ranges", entry.range).interval(distribution, entry.grid)
        return interval

    def _distribution(self, entry: Entry) -> Distribution | None:
        """The values at a site; None if they are empty in every sample."""
        array = self._constant(entry)
        if array is not None:
            return from_weights(np.asarray(array, np.float32), None)
        return seen_at(entry, self.statistics)

    def _is_activation(self, entry: Entry) -> bool:
        return is_activation(entry, self._values)

    def _constant(self, entry: Entry) -> Array | None:
        return constant_of(self._values.get(entry.site.value))

    def _weight_array(self, entry: Entry) -> Array:
        return np.asarray(self._constant(entry), np.float32)

    def _input_scale(self, layer: Node) -> float:
        key = (node_key(layer), Role.INPUT.value, 0)
        scale = self.solution.scales.get(key) or self._by_value[(layer.inputs[0].name if layer.inputs[0] else "") or ""]
        return float(scale.scale[0])

    def _weight_scale(self, layer: Node) -> npt.NDArray[np.float64]:
        return self.solution.scales[(node_key(layer), Role.WEIGHT.value, 1)].scale.astype(np.float64)

    def _layer_of(self, entry: Entry) -> Node:
        """The layer that a bias belongs to: the node itself, or the MatMul in front of its Add."""
        node = self._nodes[entry.site.node]
        layer = bias_layer(node, entry.site.operand)
        if layer is None:
            raise ValueError(f"the bias Add {node.name} has no layer in front of it")
        return layer

    def _bias_of(self, node: Node) -> Array | None:
        for entry in self.plan.entries:
            if entry.site.role is Role.BIAS and self._layer_of(entry) is node:
                return self._constant(entry)
        return float_bias(node)
