"""The codes that serve the samples best, of one weight: some channels at a time where it is large."""

from __future__ import annotations

import msgspec
import numpy as np
import numpy.typing as npt

from qcli.blocks import scale_of_part
from qcli.graph import Node, constant_of
from qcli.learn import Inputs, Problem, rounding_of
from qcli.parallel import in_order
from qcli.roundings._learned import kept
from qcli.types import Array, Entry, Scale
from qcli.windows import takes_transposed

Float64Array = npt.NDArray[np.float64]

_AT_ONCE = 1 << 24
"""Bytes of a matrix whose rows are learned together: what is computed of them takes some twenty times as much."""


def learned(
    node: Node, entry: Entry, inputs: Inputs, scale: Scale, floor: Float64Array, *, threads: int = 1
) -> tuple[Array, Scale]:
    """The codes of a weight and its scale, which may have been fitted to them; of a large one on several threads.

    No step is below `floor`, which has the shape of the scale.
    """
    weight, rounding = np.asarray(constant_of(node.inputs[1])), rounding_of(entry)
    window, measured = inputs.window, kept(inputs.measured)
    count = -(-weight.nbytes // _AT_ONCE)
    if window.kernel or count == 1 or (scale.axis is None and rounding.refit and scale.vectors is None):
        return Problem(node, weight, window).solve(rounding, measured, scale, floor)
    axis = 0 if takes_transposed(node) else 1
    if scale.vectors is not None and rounding.refit:  # codewords are fitted to some channels, and taken by all
        some = slice(0, None, count)
        here = (slice(None),) * axis + (some,)
        part = Problem(node, weight[here], window, some)
        _, fitted = part.solve(rounding, measured, scale_of_part(scale, here, axis), floor)
        scale = msgspec.structs.replace(scale, vectors=fitted.vectors)
        rounding = msgspec.structs.replace(rounding, refit=0)

    def work(numbers: Array) -> tuple[Array, Scale]:
        some = slice(int(numbers[0]), int(numbers[-1]) + 1)
        where = (slice(None),) * axis + (some,)
        own, least = scale, floor
        if scale.axis is not None and (scale.block is not None or scale.axis == axis):
            here = where if scale.block is not None else (some,)
            own = msgspec.structs.replace(scale, scale=scale.scale[here], zero_point=scale.zero_point[here])
            least = floor[here]
        return Problem(node, weight[where], window, some).solve(rounding, measured, own, least)

    return _joined(list(in_order(work, np.array_split(np.arange(weight.shape[axis]), count), threads)), scale, axis)


def _joined(found: list[tuple[Array, Scale]], scale: Scale, axis: int) -> tuple[Array, Scale]:
    """The codes and scales of some output channels after the others, which lie along `axis`."""
    codes = np.concatenate([part for part, _ in found], axis=axis if scale.vectors is None else 0)
    if scale.axis is None or (scale.block is None and scale.axis != axis):
        return codes, scale
    steps = np.concatenate([own.scale for _, own in found], axis=axis if scale.block is not None else 0)
    return codes, msgspec.structs.replace(scale, scale=steps)
