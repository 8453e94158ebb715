"""Where channels lie in what an operator reads and writes."""

from __future__ import annotations

import numpy as np

from qcli.graph import Node, Value, constant_of, dimensions


def rank_of(value: Value | None) -> int | None:
    """How many axes a value has, if that is known."""
    shape = dimensions(value) if value is not None else None
    return len(shape) if shape is not None else None


def is_set(node: Node, key: str) -> bool:
    """True if an attribute that is a switch is on."""
    return key in node.attributes and bool(node.attributes[key].as_int())


def clip_bounds(node: Node) -> tuple[float, float]:
    """Between what a Clip keeps its input; NaN for a bound that is computed."""
    return _bound(node, 1, "min", -np.inf), _bound(node, 2, "max", np.inf)


def _bound(node: Node, operand: int, attribute: str, missing: float) -> float:
    """A bound of a Clip, which before operator set 11 was an attribute."""
    if operand >= len(node.inputs) or node.inputs[operand] is None:
        return node.attributes[attribute].as_float() if attribute in node.attributes else missing
    bound = constant_of(node.inputs[operand])
    return float(bound.reshape(-1)[0]) if bound is not None and bound.size == 1 else np.nan


def joined_sizes(node: Node, axis: int) -> list[int] | None:
    """How many channels each input of a Concat has along `axis`, counted from the end; None for another axis."""
    rank, along = rank_of(node.outputs[0]), node.attributes["axis"].as_int()
    if rank is None or (along - rank if along >= 0 else along) != axis:
        return None
    shapes = [dimensions(value) if value is not None else None for value in node.inputs]
    sizes = [shape[axis] if shape is not None else None for shape in shapes]
    return [size for size in sizes if size is not None] if None not in sizes else None


def flatten_run(node: Node, axis: int, channels: int) -> int | None:
    """How many features each channel becomes where [N, C, ...] becomes [N, C * ...]; None if it does not."""
    value = node.inputs[0]
    shape, result = (dimensions(value) if value is not None else None), dimensions(node.outputs[0])
    if shape is None or result is None or len(result) != 2 or axis != 1 - len(shape):
        return None
    features = result[1]
    if features is None or features % channels or (result[0] != shape[0] and shape[0] is not None):
        return None
    inner = shape[2:]
    if None in inner or int(np.prod([size or 0 for size in inner])) * channels != features:
        return None
    return features // channels
