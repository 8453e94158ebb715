"""What becomes of a layer's product before anything else reads it: its bias and its non-linearity."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from qcli.graph import Node, constant_of
from qcli.types import Array, Noun

Float64Array = npt.NDArray[np.float64]


class Response(Noun, frozen=True, kw_only=True):
    """f(z) = clip(z, lower, upper) of z = product + bias, where z below zero is multiplied by `slope` first.

    `bias` is float64 [channels], along the layer's output channels.
    """

    bias: Float64Array
    lower: float = -np.inf
    upper: float = np.inf
    slope: float = 1.0


def response_of(node: Node, channels: int) -> Response | None:
    """The response of a layer whose result a Relu, LeakyRelu or Clip alone reads; None where it stays linear.

    An Add of a constant for each channel may lie between.
    """
    bias = _bias(node.inputs[2] if len(node.inputs) > 2 else None, channels)
    if node.op_type == "Gemm" and not _plain(node):
        return None
    reader = _sole_reader(node)
    if reader is not None and reader.op_type == "Add" and node.op_type in ("Gemm", "MatMul"):
        operand = 1 if reader.inputs[0] is node.outputs[0] else 0
        added = _bias(reader.inputs[operand], channels) if constant_of(reader.inputs[operand]) is not None else None
        bias = bias + added if bias is not None and added is not None else None
        reader = _sole_reader(reader)
    if reader is None or bias is None:
        return None
    return _nonlinear(reader, bias)


def _nonlinear(reader: Node, bias: Float64Array) -> Response | None:
    if reader.op_type == "Relu":
        return Response(bias=bias, lower=0.0)
    if reader.op_type == "LeakyRelu":
        slope = reader.attributes["alpha"].as_float() if "alpha" in reader.attributes else 0.01
        return Response(bias=bias, slope=slope)
    if reader.op_type == "Clip":
        lower, upper = (_bound(reader, operand, end) for operand, end in ((1, -np.inf), (2, np.inf)))
        return Response(bias=bias, lower=lower, upper=upper) if lower <= upper else None
    return None


def _sole_reader(node: Node) -> Node | None:
    """The one node of the same graph that reads a node's result, if nothing else does."""
    output = node.outputs[0]
    uses = tuple(output.uses())
    if len(uses) != 1 or output.is_graph_output() or uses[0][0].graph is not node.graph or uses[0][1] > 1:
        return None
    return uses[0][0]


def _bias(value: object, channels: int) -> Float64Array | None:
    """A constant [channels], possibly with ones in front; zeros if there is none, None for anything else."""
    if value is None:
        return np.zeros(channels)
    array: Array | None = constant_of(value)  # type: ignore[arg-type]
    if array is None or array.size not in (1, channels) or (array.ndim and array.shape[-1] != array.size):
        return None
    return np.broadcast_to(array.reshape(-1), channels).astype(np.float64)


def _bound(node: Node, operand: int, missing: float) -> float:
    if operand >= len(node.inputs) or node.inputs[operand] is None:
        return missing
    bound = constant_of(node.inputs[operand])
    return float(bound.reshape(-1)[0]) if bound is not None and bound.size == 1 else np.nan


def _plain(node: Node) -> bool:
    """Whether a Gemm has no factors."""
    return all(node.attributes[key].as_float() == 1 for key in ("alpha", "beta") if key in node.attributes)
