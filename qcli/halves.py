"""What becomes of float32 numbers in 16 bits: those that are too large, and those that are too small."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from qcli.granularity import is_unscaled
from qcli.conversion import Convert
from qcli.errors import NothingToDoError
from qcli.graph import HALF_TYPES, Model, constant_of, node_key, weight_floats
from qcli.layers import weight_operands
from qcli.plugins import create
from qcli.types import Array, Grid, Interval, Plan

_BLOCK = 1 << 20
"""Numbers that are looked at together."""

_MATTERS = 1e-4
"""The share of a channel's power that its rounding takes before it is worth a word: 40 dB.

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
    """Raises NothingToDoError if the model has in 16 bits already all that was to have them."""
    wanted = {entry.grid.format for entry in plan.entries} | ({convert.to} if convert is not None else set())
    if wanted == weight_floats(source) and wanted <= set(HALF_TYPES):
        hint = "it is as small as it gets so; take int8-weights or int8 for less"
        raise NothingToDoError(f"the model's weights are {wanted.pop()} already", hint)


def doubts_about_halves(plan: Plan, model: Model, _: object = None) -> list[str]:
    """A sentence about the weights of which a channel is so small that hardly any bits of its numbers are left."""
    named = {(entry.site.node, entry.site.operand): entry for entry in plan.entries if is_unscaled(entry.grid.format)}
    found: dict[str, list[str]] = {}
    for node in model.nodes() if named else ():
        for operand, axis in weight_operands(node):
            entry = named.get((node_key(node), operand))
            weight = constant_of(node.inputs[operand])
            if entry is not None and weight is not None and lost(weight, axis, entry.grid) > _MATTERS:
                found.setdefault(entry.grid.format, []).append(entry.site.value)
    return [
        f"{len(values)} weights have channels so small that {name} rounds away more than 1 % of them: "
        f"{', '.join(values[:_NAMED])}; keep their nodes float"
        for name, values in found.items()
    ]


_NAMED = 3


def lost(weight: Array, axis: int | None, grid: Grid) -> float:
    """The share of its power (0 to 1) that the channel of a weight loses which loses most; channels lie along `axis`.

    Example: a row of numbers around 1e-8 is 0 in float16 and loses 1.
    """
    number_format = create("formats", grid.format)
    rows = weight.reshape(1, -1) if axis is None else np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)
    scale = number_format.scale(Interval(lower=np.zeros(1), upper=np.zeros(1)), Grid(format=grid.format))
    power, noise = np.zeros(len(rows)), np.zeros(len(rows))
    for part in _parts(rows.shape):
        numbers = np.asarray(rows[part], np.float32)
        errors = numbers - number_format.decode(number_format.encode(numbers, scale), scale)
        power[part[0]] += np.square(numbers, dtype=np.float64).sum(axis=1)
        noise[part[0]] += np.square(errors, dtype=np.float64).sum(axis=1)
    shares = np.divide(noise, power, out=np.zeros_like(noise), where=power > 0)
    return float(shares.max(initial=0.0))


def _parts(shape: tuple[int, ...]) -> Iterator[tuple[slice, slice]]:
    """Pieces of a matrix that have at most a block of numbers each."""
    rows, columns = shape
    width = min(columns, _BLOCK)
    height = max(1, _BLOCK // max(1, width))
    for top in range(0, rows, height):
        for left in range(0, columns, max(1, width)):
            yield slice(top, top + height), slice(left, left + width)
