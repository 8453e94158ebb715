"""How the scales of a weight are laid out: one, one for each channel, or one for each block."""

from __future__ import annotations

import msgspec

from qcli.errors import UsageError
from qcli.graph import Node
from qcli.layers import input_axis
from qcli.plugins import choice_of
from qcli.types import Entry, Grid

_SMALLEST_BLOCK = 2
_ONE_BIT = ("int1", "uint1")
_BINARY = ("binary", "residual_binary")


def check_layout(grid: Grid, where: str) -> None:
    """Raises UsageError for a granularity that does not exist, a block where there is none, or a single bit."""
    name = choice_of(grid.format).name
    if name in _ONE_BIT or (grid.bits == 1 and name not in _BINARY):
        problem = f"{where}: one bit has two levels, which stand for weights only with a scale fitted to them"
        raise UsageError(problem, f"use format {' or '.join(_BINARY)} with granularity channel or block")
    if grid.granularity not in ("tensor", "channel", "block"):
        raise UsageError(f"{where}: unknown granularity '{grid.granularity}'", "known: block, channel, tensor")
    if grid.granularity == "block" and grid.block is None:
        raise UsageError(f"{where}: granularity block needs the size of a block", "add 'block: 32'")
    if grid.granularity != "block" and grid.block is not None:
        raise UsageError(f"{where}: 'block' with granularity {grid.granularity}", "use 'granularity: block'")
    if grid.block is not None and grid.block < _SMALLEST_BLOCK:
        raise UsageError(f"{where}: block must be {_SMALLEST_BLOCK} or more, is {grid.block}", "32 is usual")


def no_blocks(node: Node, operand: int, shape: tuple[int, ...], block: int | None) -> str | None:
    """Why a weight of `shape` cannot have blocks of this size along the axis that its operator sums over, or None."""
    axis = input_axis(node, operand, len(shape))
    if axis is None:
        return f"no input axis of a {node.op_type} could hold blocks"
    size = shape[axis]
    return None if size >= (block or 0) else f"its input axis has {size} weights, a block {block}"


def laid_out(entry: Entry, node: Node, shape: tuple[int, ...], channels: int | None) -> Entry:
    """The entry of a weight with the axis of its scales, and per channel where blocks do not fit.

    `channels` is the axis of the output channels.
    """
    grid, because, axis = entry.grid, entry.because, channels
    if grid.granularity == "block":
        misfit = no_blocks(node, entry.site.operand, shape, grid.block)
        if misfit is None:
            axis = input_axis(node, entry.site.operand, len(shape))
        else:
            grid = msgspec.structs.replace(grid, granularity="channel", block=None)
            because = f"{because}; a scale for each channel, as {misfit}"
    axis = axis if grid.granularity != "tensor" else None
    return msgspec.structs.replace(entry, grid=msgspec.structs.replace(grid, axis=axis), because=because)


def scales_of(grid: Grid, shape: tuple[int, ...]) -> int:
    """How many scales a weight of `shape` has on a grid whose axis is known."""
    if grid.axis is None:
        return 1
    if grid.block is None:
        return shape[grid.axis]
    size = 1
    for axis, length in enumerate(shape):
        size *= -(-length // grid.block) if axis == grid.axis else length
    return size
