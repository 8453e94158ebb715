"""Layers as products of matrices: inputs as patches [groups, K, P], weights as rows [groups, R, K].

    output[g, :, p] = rows[g] @ patches[g, :, p]

Convolutions unfold their input (im2col); a transposed convolution is one with flipped kernels over an input with zeros
between its elements. With `blocks`, K is padded with zeros to a multiple of them and cut; a block is then a group.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from qcli.graph import Node, constant_of, dimensions
from qcli.types import Array, FloatArray, Window

_MOST_PATCHES = 1024
"""Places of one sample that are looked at, evenly spread over it."""


def window_of(node: Node, most: int) -> Window | None:
    """How a layer with a constant weight reads its input, in blocks of at most `most` elements.

    None for operators and forms that are no such product, such as a MatMul whose weight has more than two axes.
    """
    weight = constant_of(node.inputs[1]) if len(node.inputs) > 1 else None
    if weight is None or weight.size == 0 or constant_of(node.inputs[0]) is not None:
        return None
    if node.op_type in ("Conv", "ConvTranspose"):
        rank = len(dimensions(node.inputs[0]) or ()) if node.inputs[0] is not None else 0
        return _convolution(node, weight.shape, most) if rank == len(weight.shape) > 2 else None
    if node.op_type in ("Gemm", "MatMul", "Attention") and weight.ndim == 2 and not _switch(node, "transA"):
        return Window(blocks=-(-reads_of(node, weight.shape, Window()) // most))
    return None


def takes_transposed(node: Node) -> bool:
    """True for a Gemm whose matrix has its output channels first."""
    return _switch(node, "transB")


def reads_of(node: Node, shape: tuple[int, ...], window: Window) -> int:
    """The elements that one output of a layer with a weight of `shape` reads: K of all blocks of a group together."""
    if node.op_type == "ConvTranspose":
        return shape[0] // window.groups * prod(shape[2:])
    if node.op_type == "Conv":
        return prod(shape[1:])
    return shape[1] if _switch(node, "transB") else shape[0]


def _convolution(node: Node, shape: tuple[int, ...], most: int) -> Window | None:
    turned = node.op_type == "ConvTranspose"
    kernel = shape[2:]
    axes = len(kernel)
    groups = node.attributes["group"].as_int() if "group" in node.attributes else 1
    strides, dilations = _numbers(node, "strides", axes, 1), _numbers(node, "dilations", axes, 1)
    pads = _numbers(node, "pads", 2 * axes, 0)
    auto = node.attributes["auto_pad"].as_string() if "auto_pad" in node.attributes else ""
    pads = (0,) * (2 * axes) if auto == "VALID" else pads
    auto = "" if auto in ("NOTSET", "VALID") else auto
    reads = (shape[0] // groups if turned else shape[1]) * prod(kernel)
    if not turned:
        return Window(
            kernel=kernel,
            strides=strides,
            dilations=dilations,
            pads=pads,
            auto_pad=auto,
            groups=groups,
            blocks=-(-reads // most),
        )
    if auto or "output_shape" in node.attributes:
        return None
    reach = [(size - 1) * dilation for size, dilation in zip(kernel, dilations, strict=True)]
    extra = _numbers(node, "output_padding", axes, 0)
    ends = [most_ - pad + more for most_, pad, more in zip(reach, pads[axes:], extra, strict=True)]
    begins = [most_ - pad for most_, pad in zip(reach, pads[:axes], strict=True)]
    if min(*begins, *ends) < 0:
        return None
    ones = (1,) * axes
    padding = (*begins, *ends)
    blocks = -(-reads // most)
    return Window(
        kernel=kernel, strides=ones, dilations=dilations, pads=padding, spread=strides, groups=groups, blocks=blocks
    )


def rows_of(node: Node, weight: Array, window: Window) -> Array:
    """The weight of a layer as rows [groups * blocks, R, K]; R is the number of output channels of a group."""
    if not window.kernel:
        rows = (weight if _switch(node, "transB") else weight.T)[None]
    elif node.op_type == "ConvTranspose":
        flipped = np.flip(weight, tuple(range(2, weight.ndim)))
        split = flipped.reshape(window.groups, -1, *weight.shape[1:])
        rows = np.swapaxes(split, 1, 2).reshape(window.groups, weight.shape[1], -1)
    else:
        rows = weight.reshape(window.groups, weight.shape[0] // window.groups, -1)
    padded = _in_blocks(rows, window.blocks, 2)
    groups, channels, _ = rows.shape
    cut = padded.reshape(groups, channels, window.blocks, -1)
    return np.ascontiguousarray(np.swapaxes(cut, 1, 2)).reshape(groups * window.blocks, channels, -1)


def weight_of(node: Node, rows: Array, window: Window, shape: tuple[int, ...]) -> Array:
    """The weight of `shape` whose rows are these: the inverse of `rows_of`."""
    size = prod(shape) // (window.groups * rows.shape[1])
    joined = np.swapaxes(rows.reshape(window.groups, window.blocks, rows.shape[1], -1), 1, 2)
    whole = joined.reshape(window.groups, rows.shape[1], -1)[..., :size]
    if not window.kernel:
        return np.ascontiguousarray(whole[0] if _switch(node, "transB") else whole[0].T)
    if node.op_type == "ConvTranspose":
        split = whole.reshape(window.groups, rows.shape[1], -1, *window.kernel)
        weight = np.swapaxes(split, 1, 2).reshape(shape)
        return np.ascontiguousarray(np.flip(weight, tuple(range(2, len(shape)))))
    return np.ascontiguousarray(whole).reshape(shape)


def patches_of(value: FloatArray, window: Window) -> FloatArray:
    """What a layer reads of `value`, float32 [groups * blocks, K, P], of at most 1,024 places.

    Example: a value [1, 64, 56, 56] read by a 3x3 convolution gives [1, 576, 1024]; one without elements, P = 0.
    """
    patches = _unfolded(value, window) if window.kernel else _vectors(value)
    turned = np.ascontiguousarray(np.swapaxes(patches, 1, 2), np.float32)
    padded = _in_blocks(turned, window.blocks, 1)
    groups, size, places = padded.shape
    return padded.reshape(groups * window.blocks, size // window.blocks, places)


def _vectors(value: FloatArray) -> FloatArray:
    """[1, P, K] of a value [..., K]."""
    flat = value.reshape(-1, value.shape[-1])
    return flat[None, _chosen(len(flat))]


def _chosen(places: int) -> Array:
    """The numbers of at most 1,024 places, evenly spread over all."""
    return np.linspace(0, places - 1, min(places, _MOST_PATCHES)).astype(np.intp)


def _unfolded(value: FloatArray, window: Window) -> FloatArray:
    """[groups, P, K] of a value [N, C, ...]."""
    axes = len(window.kernel)
    spaced = _spaced(value, window.spread) if window.spread else value
    reach = [(size - 1) * step + 1 for size, step in zip(window.kernel, window.dilations, strict=True)]
    pads = _pads(spaced.shape[2:], window, reach)
    padded = np.pad(spaced, [(0, 0), (0, 0), *pads])
    views = sliding_window_view(padded, reach, axis=tuple(range(2, 2 + axes)))
    every = (*(slice(None, None, step) for step in window.strides), *(slice(None, None, d) for d in window.dilations))
    read = views[(slice(None), slice(None), *every)]
    samples, channels, *sizes = read.shape[: 2 + axes]
    sample, *places = np.unravel_index(_chosen(samples * prod(sizes)), (samples, *sizes))
    index: tuple[Any, ...] = (sample, slice(None), *places)
    picked = np.asarray(read[index], np.float32)
    elements = channels // window.groups * prod(window.kernel)
    return np.swapaxes(picked.reshape(len(sample), window.groups, elements), 0, 1)


def _spaced(value: FloatArray, spread: tuple[int, ...]) -> FloatArray:
    sizes = [(size - 1) * step + 1 for size, step in zip(value.shape[2:], spread, strict=True)]
    spaced = np.zeros((*value.shape[:2], *sizes), value.dtype)
    spaced[(slice(None), slice(None), *(slice(None, None, step) for step in spread))] = value
    return spaced


def _pads(sizes: tuple[int, ...], window: Window, reach: list[int]) -> list[tuple[int, int]]:
    axes = len(reach)
    if not window.auto_pad:
        return [(window.pads[axis], window.pads[axes + axis]) for axis in range(axes)]
    found = []
    for size, step, length in zip(sizes, window.strides, reach, strict=True):
        total = max((-(-size // step) - 1) * step + length - size, 0)
        small, large = total // 2, total - total // 2
        found.append((small, large) if window.auto_pad == "SAME_UPPER" else (large, small))
    return found


def _in_blocks(array: Array, blocks: int, axis: int) -> Array:
    """`array` with zeros at the end of `axis`, so that it can be cut into equal blocks."""
    missing = -array.shape[axis] % blocks
    return np.pad(array, [(0, missing if index == axis else 0) for index in range(array.ndim)]) if missing else array


def _numbers(node: Node, key: str, count: int, default: int) -> tuple[int, ...]:
    return tuple(node.attributes[key].as_ints()) if key in node.attributes else (default,) * count


def _switch(node: Node, key: str) -> bool:
    return key in node.attributes and bool(node.attributes[key].as_int())
