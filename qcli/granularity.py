"""How the scales of a weight are laid out: one, one for each channel, or one for each block."""

from __future__ import annotations

import re
from math import prod

import msgspec

from qcli.errors import UsageError
from qcli.graph import Node
from qcli.layers import input_axis, row_axis
from qcli.plugins import choice_of, create, names
from qcli.scale_forms import form_of, scale_bits
from qcli.types import Entry, Grid, Spec

_SMALLEST_BLOCK = 2
_ONE_BIT = ("int1", "uint1")
_BINARY = ("binary", "residual_binary")
_OF_VECTORS = ("product",)


def is_unscaled(number_format: Spec) -> bool:
    """True for a format whose codes are the numbers themselves, such as float16."""
    known = choice_of(number_format).name in names("formats")  # int32, that of biases, is none
    return known and bool(getattr(create("formats", number_format), "unscaled", False))


def check_layout(grid: Grid, where: str) -> None:
    """Raises UsageError for a granularity that does not exist, a block where there is none, or a single bit."""
    name = choice_of(grid.format).name
    if name in _ONE_BIT or (grid.bits == 1 and name not in (*_BINARY, *_OF_VECTORS)):
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
    if is_unscaled(grid.format):
        create("formats", grid.format).bits(grid)
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


def no_vectors(grid: Grid, node: Node, operand: int, shape: tuple[int, ...]) -> str | None:
    """Why a weight of `shape` cannot have one code for several weights, or None."""
    each, size = weights_per_code(grid), _row_size(node, operand, shape)
    return None if size >= each else f"rows have {size} weights, a vector {each}"


def codes_of(grid: Grid, node: Node, operand: int, shape: tuple[int, ...]) -> int:
    """How many codes a weight of `shape` has: one for each weight, or for each vector of a row."""
    each, size = weights_per_code(grid), _row_size(node, operand, shape)
    return prod(shape) // size * -(-size // each) if each > 1 else prod(shape)


def weights_per_code(grid: Grid) -> int:
    """How many weights one code stands for: several where the format has vectors."""
    return int(getattr(create("formats", grid.format), "weights_per_code", 1))


def _row_size(node: Node, operand: int, shape: tuple[int, ...]) -> int:
    return prod(shape) // shape[row_axis(node, operand, shape)]


def bits_of_scales(grid: Grid, shape: tuple[int, ...]) -> float:
    """The bits that the scales of a weight of `shape` take in the file."""
    return scales_of(grid, shape) * scale_bits(form_of(grid))


def with_width(grid: Grid, width: int) -> Grid | None:
    """The grid with codes of another width; None for a grid whose levels are no integers of at most 8 bits."""
    found = _INTEGERS.fullmatch(choice_of(grid.format).name)
    if found is None or int(found[2]) > _BYTE:
        return None
    return msgspec.structs.replace(grid, format=f"{found[1]}{width}", bits=None)


_INTEGERS = re.compile(r"(u?int)(\d+)")

_BYTE = 8
