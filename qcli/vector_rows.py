"""Layers whose weights are vectors that share a code: how samples can speak of them."""

from __future__ import annotations

import msgspec
import numpy as np
import numpy.typing as npt

from qcli.graph import Node, constant_of
from qcli.plugins import choice_of
from qcli.types import Entry, Scale, Window
from qcli.windows import reads_of


def vectors_misfit(entry: Entry, node: Node, *, takes_vectors: bool) -> str:
    """Why a rounding cannot choose codes for vectors of this layer's weight, or nothing."""
    if not takes_vectors:
        return f"as {choice_of(entry.rounding).name} gives each weight a code of its own"
    turned = node.op_type == "ConvTranspose"
    return "as a ConvTranspose reads weights of a vector in another order" if turned else ""


def in_whole_vectors(window: Window, node: Node, dimensions: int) -> Window:
    """The window in as many blocks, or a few more, that none of them ends within a vector."""
    weight = constant_of(node.inputs[1])
    if window.blocks == 1 or dimensions == 1 or weight is None:
        return window
    reads = reads_of(node, weight.shape, window)
    counts = range(window.blocks, reads // dimensions + 1)
    fitting = (count for count in counts if -(-reads // count) % dimensions == 0)
    return msgspec.structs.replace(window, blocks=next(fitting, window.blocks))


def with_words(scale: Scale, words: npt.NDArray[np.float64]) -> Scale:
    """The same scale with other codewords."""
    if scale.vectors is None:
        raise ValueError("the scale has no vectors")
    vectors = msgspec.structs.replace(scale.vectors, words=words.astype(np.float32))
    return msgspec.structs.replace(scale, vectors=vectors)
