"""Weights for processors that add two 8-bit products in 16 bits.

x86 without VNNI multiplies unsigned activations by signed weights with VPMADDUBSW: a0 * w0 + a1 * w1, saturated to
16 bits. With activations up to 255 the sum fits if the codes of one sign in a pair add up to at most 128. Most pairs of
8-bit weights do; giving up the eighth bit everywhere, as is the custom, costs six decibels for the sake of a few.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from qcli.graph import Node
from qcli.types import Array, Scale

_BLOCK = 1 << 20
PAIR_LIMIT = 128
_SAFE_SUM = PAIR_LIMIT - 1
"""Rounding two codes can add one to their sum."""


def pair_floor(node: Node, weight: Array, scale: Scale) -> npt.NDArray[np.float64]:
    """The smallest scale per channel with which no pair of neighbouring weights can saturate.

    `weight` is the operand of a Conv [M, C/g, ...], Gemm or MatMul; the result has the shape of `scale.scale`.
    Zero for depthwise convolutions, whose kernels add in 32 bits, and for codes that are too small to saturate or that
    no such kernel multiplies: unsigned ones and those of 16 bits.
    """
    if scale.dtype != "int8" or 2 * max(-scale.lowest, scale.highest) <= PAIR_LIMIT:
        return np.zeros(scale.scale.size)
    rows = kernel_rows(node, weight)
    if rows is None:
        return np.zeros(scale.scale.size)
    limit = np.broadcast_to(np.maximum(-scale.lowest, scale.highest) * scale.scale.astype(np.float64), rows.shape[:1])
    step = max(1, _BLOCK // max(rows.shape[1], 1))
    blocks = [slice(begin, begin + step) for begin in range(0, rows.shape[0], step)]
    worst = np.concatenate([_worst(rows[block], limit[block, None]) for block in blocks] or [np.zeros(0)])
    sums = worst if scale.scale.size == rows.shape[0] else worst.max(keepdims=True)
    return np.asarray(sums / _SAFE_SUM, np.float64)


def _worst(rows: Array, limit: Array) -> Array:
    """The largest sum of a pair of one sign in each row, its weights clipped at the limit."""
    clipped = np.clip(rows, -limit, limit)
    return np.maximum(_pair_sums(np.maximum(clipped, 0)), _pair_sums(np.maximum(-clipped, 0)))


def kernel_rows(node: Node, weight: Array) -> Array | None:
    """The weights of each output channel in the order in which the kernel adds their products: [channels, K].

    A convolution runs on channels-last data, kernel position by kernel position. None where nothing is paired: in
    depthwise convolutions, and in operators that run in float.
    """
    if node.op_type not in ("Conv", "Gemm", "MatMul", "LSTM", "Attention"):
        return None
    if node.op_type == "LSTM":  # [directions, 4 * hidden, K]; both directions share a scale
        return np.moveaxis(weight, 1, 0).reshape(weight.shape[1], -1)
    if node.op_type == "Conv":
        if weight.shape[1] == 1 and _group(node) == weight.shape[0]:
            return None
        return np.moveaxis(weight, 1, -1).reshape(weight.shape[0], -1)
    if node.op_type == "Gemm" and "transB" in node.attributes and node.attributes["transB"].as_int():
        return weight
    return weight.T


def _pair_sums(rows: Array) -> Array:
    """The largest sum of two neighbours (0 and 1, 2 and 3, ...) in each row."""
    padded = np.pad(rows, ((0, 0), (0, rows.shape[1] % 2)))
    sums: Array = (padded[:, 0::2] + padded[:, 1::2]).max(axis=1, initial=0.0)
    return sums


def _group(node: Node) -> int:
    return node.attributes["group"].as_int() if "group" in node.attributes else 1
