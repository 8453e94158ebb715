"""Hard sigmoids and hard swishes that were exported in four operators run in two.

    clip(x + a, 0, b) / b = HardSigmoid(x; alpha = 1 / b, beta = a / b)
    y clip(x + a, 0, b) / b = y HardSigmoid(x)                              with y = x: hard swish

Exporters write them out as Add, Clip, Mul and Div, each of which passes over the whole tensor. In MobileNetV3 they take
longer than the convolutions between them. Source: Howard et al. 2019, "Searching for MobileNetV3", section 5.2.
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np

from qcli.graph import (
    Model,
    Node,
    Value,
    constant_of,
    graph_of,
    infer_shapes,
    insert_before,
    make_node,
    remove_node,
    sole_consumer,
)
from qcli.steps._base import Step

_SAME = 1e-6


class FuseHardSigmoid(Step, frozen=True, kw_only=True):
    """Add, Clip and a factor become HardSigmoid, with a Mul between Clip and factor or without one."""

    looks_for: ClassVar[tuple[str, ...]] = ("Clip",)

    def run(self, model: Model) -> int:
        clips = [node for graph in model.graphs() for node in graph if node.op_type == "Clip"]
        if clips:
            infer_shapes(model)
        fused = sum(_fuse(node) for node in clips)
        if fused:
            model.remove_unused()
        return fused


def _fuse(clip: Node) -> bool:
    """Refused unless each value on the way has one reader, all constants are scalars and the values float32."""
    shifted = clip.inputs[0]
    add = shifted.producer() if shifted is not None else None
    if shifted is None or add is None or add.op_type != "Add" or sole_consumer(shifted) is not clip:
        return False
    source, offset = _with_scalar(add)
    upper = _scalar(clip, 2, "max")
    if source is None or offset is None or not _is_single(source) or _scalar(clip, 1, "min") != 0:
        return False
    reader = sole_consumer(clip.outputs[0])
    if reader is None or upper is None or not 0 < upper < math.inf:
        return False
    if _is_factor(reader, 1 / upper):
        remove_node(graph_of(reader), reader, _sigmoid(clip, source, upper, offset))
        return True
    last = sole_consumer(reader.outputs[0]) if reader.op_type == "Mul" else None
    if last is None or not _is_factor(last, 1 / upper):
        return False
    operand = 0 if reader.inputs[0] is clip.outputs[0] else 1
    reader.replace_input_with(operand, _sigmoid(clip, source, upper, offset))
    remove_node(graph_of(last), last, reader.outputs[0])
    return True


def _sigmoid(clip: Node, source: Value, upper: float, offset: float) -> Value:
    name = clip.name or clip.outputs[0].name or "hard_sigmoid"
    factors = {"alpha": 1 / upper, "beta": offset / upper}
    made = make_node("HardSigmoid", [source], name=f"{name}_sigmoid", output=f"{name}_sigmoid", attributes=factors)
    insert_before(clip, made, graph_of(clip))
    made.outputs[0].type, made.outputs[0].shape = clip.outputs[0].type, clip.outputs[0].shape
    return made.outputs[0]


def _is_factor(node: Node, factor: float) -> bool:
    """Whether a node multiplies by `factor`."""
    source, constant = _with_scalar(node)
    if source is None or constant is None or node.op_type not in ("Mul", "Div") or constant == 0:
        return False
    if node.op_type == "Div" and source is not node.inputs[0]:
        return False
    return math.isclose(constant if node.op_type == "Mul" else 1 / constant, factor, rel_tol=_SAME)


def _with_scalar(node: Node) -> tuple[Value | None, float | None]:
    """The operand that is computed and the scalar that is not."""
    for value, other in ((0, 1), (1, 0)):
        constant = constant_of(node.inputs[other]) if len(node.inputs) == 2 else None
        if constant is not None and constant.size == 1 and constant.ndim <= 1:
            return node.inputs[value], float(constant.reshape(-1)[0])
    return None, None


def _scalar(node: Node, operand: int, attribute: str) -> float | None:
    """A bound of a Clip, which before operator set 11 was an attribute."""
    if operand < len(node.inputs) and node.inputs[operand] is not None:
        constant = constant_of(node.inputs[operand])
        return float(constant.reshape(-1)[0]) if constant is not None and constant.size == 1 else None
    return node.attributes[attribute].as_float() if attribute in node.attributes else None


def _is_single(value: Value) -> bool:
    return value.dtype is not None and value.dtype.numpy() == np.float32
