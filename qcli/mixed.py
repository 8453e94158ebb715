"""Weights of several widths: each gets the one that serves the whole best within so many bits a weight."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from qcli.allot import Option, allot
from qcli.blocks import interval_of
from qcli.energies import energies_of, energy_requests
from qcli.errors import InputError, NothingToDoError, UsageError
from qcli.granularity import bits_of_scales, scales_of, with_width
from qcli.graph import Model, constant_of, node_key, stored_bits
from qcli.learn import learned_requests
from qcli.plugins import create
from qcli.recipe import Mixed
from qcli.scale_forms import as_stored
from qcli.statistics import Statistics
from qcli.types import Array, Entry, Grid, Plan, Request, Role
from qcli.windows import rows_of

Float64Array = npt.NDArray[np.float64]

_ENOUGH = 1 << 18
"""Elements of a large weight whose errors are looked at: whole rows or columns, evenly spread."""

_WIDEST = 8


def mixed_plan(model: Model, plan: Plan, statistics: Statistics, mixed: Mixed | None) -> Plan:
    """The plan in which each weight has one of the widths of `mixed`, `target_bpw` bits a weight on average or less.

    Counted are codes, scales and zero points of all weights of at most 8 bits, each once. Raises UsageError for a
    target that no choice reaches, NothingToDoError where no weight has a choice.
    """
    if mixed is None or mixed.target_bpw is None:
        return plan
    groups = _Groups(model, plan, statistics)
    things = groups.things
    if not things:
        raise NothingToDoError("target_bpw: no weight of the plan is of 2 to 8 bits", "give weights an integer grid")
    options = [[groups.option(entries, width) for width in mixed.widths] for entries in things]
    weights = sum(groups.size(entries) for entries in things)
    _check_reach(options, weights, mixed.target_bpw, mixed.widths)
    chosen = allot(options, mixed.target_bpw * weights)
    settled = {
        id(entry): _settled(entry, mixed, choice, few[choice])
        for entries, choice, few in zip(things, chosen, options, strict=True)
        for entry in entries
    }
    return msgspec.structs.replace(plan, entries=tuple(settled.get(id(entry), entry) for entry in plan.entries))


def stored_bits_of(grid: Grid, shape: tuple[int, ...]) -> float:
    """The bits that a weight of `shape` takes in a file: its codes, its scales and its zero points."""
    code = stored_bits(int(create("formats", grid.format).bits(grid)))
    size = int(np.prod(shape))
    zeros = 0 if grid.symmetric else scales_of(grid, shape) * code
    return code * size + bits_of_scales(grid, shape) + zeros


def _check_reach(options: list[list[Option]], weights: int, target: float, widths: tuple[int, ...]) -> None:
    ends = [sum(pick(option.cost for option in few) for few in options) / weights for pick in (min, max)]
    listed = ", ".join(map(str, widths))
    if not ends[0] <= target <= ends[1]:
        side = "below the smallest" if target < ends[0] else "above the largest"
        raise UsageError(
            f"target_bpw {target:g} is {side} that weights of {listed} bits reach",
            f"take {np.ceil(ends[0] * 100) / 100:.2f} to {np.floor(ends[1] * 100) / 100:.2f}, scales included,"
            " or change 'widths'",
        )


def _settled(entry: Entry, mixed: Mixed, choice: int, option: Option) -> Entry:
    grid = with_width(entry.grid, mixed.widths[choice]) or entry.grid
    ratio = -10 * np.log10(max(option.error, 1e-20))
    because = f"{entry.because}; {mixed.widths[choice]} bits by target_bpw {mixed.target_bpw:g}, {ratio:.1f} dB"
    return msgspec.structs.replace(entry, grid=grid, because=because)


class _Groups:
    """The weights that have a choice; entries that read one value on one grid choose together."""

    def __init__(self, model: Model, plan: Plan, statistics: Statistics) -> None:
        self._nodes = {node_key(node): node for node in model.nodes()}
        self._statistics = statistics
        self._products = learned_requests(plan, model)
        self._energies = energy_requests(plan, model)
        self.things = list(self._grouped(plan))

    def _grouped(self, plan: Plan) -> Iterator[list[Entry]]:
        groups: dict[tuple[str, str], list[Entry]] = {}
        for entry in plan.entries:
            if entry.site.role is Role.WEIGHT and with_width(entry.grid, _WIDEST) is not None:
                groups.setdefault((entry.site.value, repr(entry.grid)), []).append(entry)
        yield from groups.values()

    def size(self, entries: list[Entry]) -> int:
        return int(self._weight(entries[0]).size)

    def option(self, entries: list[Entry], width: int) -> Option:
        """The bits of a weight at this width, and the error of what it makes over the power of that."""
        entry = entries[0]
        grid = with_width(entry.grid, width) or entry.grid
        return Option(stored_bits_of(grid, self._weight(entry).shape), self._error(entry, grid))

    def _error(self, entry: Entry, grid: Grid) -> float:
        node, whole = self._nodes[entry.site.node], self._weight(entry)
        part = _some(whole, grid) if node.op_type not in _WHOLE else (slice(None),) * whole.ndim
        weight = np.asarray(whole[part], np.float32)
        energies = energies_of(node, self._energies.get(entry.site.node), self._statistics)
        find = partial(create("ranges", entry.range).interval, grid=grid)
        seen = energies[part] if energies is not None else None
        interval, _ = interval_of(weight, grid, find, thin=True, energies=seen)
        number = create("formats", grid.format)
        scale = as_stored(number.scale(interval, grid), grid.scales)
        wrong = number.decode(number.encode(weight, scale), scale).astype(np.float64) - weight
        request = self._products.get(entry.site.node)
        products = _products(request, self._statistics)
        if request is not None and request.window is not None and products is not None:
            rows = [rows_of(node, array, request.window) for array in (wrong, weight.astype(np.float64))]
            powers = [float(np.einsum("grk,grk->", array @ products, array)) for array in rows]
        else:
            counts = seen if seen is not None else np.ones(1)
            powers = [float((np.square(array, dtype=np.float64) * counts).sum()) for array in (wrong, weight)]
        return max(powers[0], 0.0) / powers[1] if powers[1] > 0 else 0.0

    def _weight(self, entry: Entry) -> Array:
        return np.asarray(constant_of(self._nodes[entry.site.node].inputs[entry.site.operand]))


_WHOLE = ("Conv", "ConvTranspose")
"""Operators whose weights are looked at as a whole, since they may have groups."""


def _products(request: Request | None, statistics: Statistics) -> Float64Array | None:
    """The mean products of all pairs of a layer's inputs [groups, K, K]; None if no sample got there."""
    if request is None:
        return None
    try:
        measured: Any = statistics.get(request)
        found: Float64Array = measured.moments()[0]
    except InputError:
        return None
    return found


def _some(weight: Array, grid: Grid) -> tuple[slice | Array, ...]:
    """Some of the channels of a large weight, with all that shares their scales."""
    part: list[slice | Array] = [slice(None)] * weight.ndim
    if weight.size > _ENOUGH and grid.axis is not None:
        others = [axis for axis in range(weight.ndim) if (axis == grid.axis) is (grid.block is None)]
        axis = max(others, key=lambda one: weight.shape[one])
        count = max(1, weight.shape[axis] * _ENOUGH // weight.size)
        part[axis] = np.linspace(0, weight.shape[axis] - 1, count).astype(np.intp)
    return tuple(part)
