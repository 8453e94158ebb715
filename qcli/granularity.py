"""How the scales of a weight are laid out: one, one for each channel, or one for each block."""

from __future__ import annotations

import re

import msgspec

from qcli.errors import UsageError
from qcli.graph import Node
from qcli.layers import input_axis
from qcli.scale_forms import form_of, scale_bits
from qcli.types import Entry, Grid

_SMALLEST_BLOCK = 2


def check_layout(grid: Grid, where: str) -> None:
    """Raises UsageError for a granularity that does not exist, a block where there is none, or a single bit."""
    if _ONE_BIT.fullmatch(grid.format):
        problem = f"{where}: format '{grid.format}': one bit holds zero and one more level, too few for a weight"
        raise UsageError(problem, "take two bits or more")
    if grid.granularity not in ("tensor", "channel", "block"):
        raise UsageError(f"{where}: unknown granularity '{grid.granularity}'", "known: block, channel, tensor")
    if grid.granularity == "block" and grid.block is None:
        raise UsageError(f"{where}: granularity block needs the size of a block", "add 'block: 32'")
    if grid.granularity != "block" and grid.block is not None:
        raise UsageError(f"{where}: 'block' with granularity {grid.granularity}", "use 'granularity: block'")
    if grid.block is not None and grid.block < _SMALLEST_BLOCK:
        raise UsageError(f"{where}: block must be {_SMALLEST_BLOCK} or more, is {grid.block}", "32 is usual")
    if grid.granularity != "block" and grid.scales != "float32":
        hint = "use 'granularity: block', or leave it out: the scales of channels take no space"
        raise UsageError(f"{where}: 'scales' with granularity {grid.granularity}", hint)


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
            grid = msgspec.structs.replace(grid, granularity="channel", block=None, scales="float32")
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


def bits_of_scales(grid: Grid, shape: tuple[int, ...]) -> float:
    """The bits that the scales of a weight of `shape` take in the file."""
    return scales_of(grid, shape) * scale_bits(form_of(grid))


def with_width(grid: Grid, width: int) -> Grid | None:
    """The grid with codes of another width; None for a grid whose levels are no integers of at most 8 bits."""
    found = _INTEGERS.fullmatch(grid.format)
    if found is None or int(found[2]) > _BYTE:
        return None
    return msgspec.structs.replace(grid, format=f"{found[1]}{width}", bits=None)


_ONE_BIT = re.compile(r"u?int1")

_INTEGERS = re.compile(r"(u?int)(\d+)")

_BYTE = 8
