"""What becomes of float32 numbers in 16 bits: those that are too large, and those that are too small."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from qcli.conversion import Convert
from qcli.errors import NothingToDoError
from qcli.granularity import is_unscaled
from qcli.graph import HALF_TYPES, Model, constant_of, node_key, weight_floats
from qcli.plugins import choice_of, create
from qcli.types import Array, Grid, Interval, Plan

_BLOCK = 1 << 20
"""Numbers that are looked at together."""

_MATTERS = 1e-4
"""The share of a weight's power that its rounding takes before it is worth a word: 40 dB.

All 11 bits of float16 take at most 2e-7, the 8 bits of bfloat16 1e-5.
"""


def beyond(array: Array, grid: Grid) -> str | None:
    """Why a weight cannot be stored in a format without a scale, such as `reaches 7e+04`; None if it can."""
    if not is_unscaled(grid.format) or not array.size:
        return None
    largest = create("formats", grid.format).largest
    reached = max(float(np.max(array)), -float(np.min(array)))
    return f"reaches {reached:.3g}, beyond {grid.format}, which ends at {largest:.5g}" if reached > largest else None


def refuse_done(source: Model, plan: Plan, convert: Convert | None) -> None:
    """Raises NothingToDoError if the model has in 16 bits already all that was to have them.

    Storing float16 as bfloat16, or the other way, makes nothing smaller; computing in the other type is a wish.
    """
    wanted = {choice_of(entry.grid.format).name for entry in plan.entries} | (
        {convert.to} if convert is not None else set()
    )
    there = weight_floats(source)
    if not wanted or not wanted | there <= set(HALF_TYPES):
        return
    if wanted == there or (there and convert is None):
        hint = "it is as small as it gets so; take int8-weights or int8 for less"
        raise NothingToDoError(f"the model's weights are {' and '.join(sorted(there))} already", hint)


def doubts_about_halves(plan: Plan, model: Model, _: object = None) -> list[str]:
    """A sentence about the weights that are so small that hardly any bits of their numbers are left."""
    nodes = {node_key(node): node for node in model.nodes()}
    found: dict[str, dict[str, None]] = {}
    for entry in plan.entries:
        if is_unscaled(entry.grid.format):
            name = choice_of(entry.grid.format).name
            weight = constant_of(nodes[entry.site.node].inputs[entry.site.operand])
            if weight is not None and lost(weight, name) > _MATTERS:
                found.setdefault(name, {})[entry.site.value] = None
    return [
        f"{len(values)} weights are so small that {name} rounds away more than 1 % of them: "
        f"{', '.join(list(values)[:_NAMED])}; keep their nodes float, or store them as bfloat16"
        for name, values in found.items()
    ]


_NAMED = 3


def lost(weight: Array, name: str) -> float:
    """The share (0 to 1) of a weight's power that is lost in a format without a scale.

    Example: numbers around 1e-8 are all 0 in float16 and lose 1.
    """
    number_format = create("formats", name)
    scale = number_format.scale(Interval(lower=np.zeros(1), upper=np.zeros(1)), Grid(format=name))
    power = noise = 0.0
    for part in _parts(weight):
        numbers = np.asarray(part, np.float32)
        errors = numbers - number_format.decode(number_format.encode(numbers, scale), scale)
        power += float(np.square(numbers, dtype=np.float64).sum())
        noise += float(np.square(errors, dtype=np.float64).sum())
    return noise / power if power else 0.0


def _parts(weight: Array) -> Iterator[Array]:
    """A weight in pieces of some number of rows."""
    rows = weight.reshape(len(weight), -1) if weight.ndim else weight.reshape(1, 1)
    height = max(1, _BLOCK // max(1, rows.shape[1]))
    for top in range(0, len(rows), height):
        yield rows[top : top + height]
