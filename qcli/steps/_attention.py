"""Recognizes attention as exporters write it: softmax(scale Q K' + mask) V for several heads at once.

Q, K and V are [batch, heads, tokens, size]. They come from values [batch, tokens, heads * size] by Reshape and
Transpose, from the parts of a Split, or, as timm writes it, from one Reshape and Transpose and a Gather for each.
Every value on the way has one reader, so that nothing else misses what is replaced. Source: Vaswani et al. 2017,
"Attention Is All You Need", section 3.2.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from qcli.graph import Node, Value, constant_of, dimensions, is_constant, sole_consumer
from qcli.types import Array

_TOKENS_FIRST = (0, 2, 1, 3)
_TURNED = (0, 2, 3, 1)
_LAST_TWO = (0, 1, 3, 2)
_PACKED = (2, 0, 3, 1, 4)
_PARTS = 3


@dataclass(frozen=True)
class Heads:
    """Where the queries, keys or values come from.

    `source` is [batch, tokens, heads * size], or holds three `part`s of that width side by side.
    """

    source: Value
    heads: int
    size: int
    part: int | None = None
    factor: float = 1.0


@dataclass(frozen=True)
class Found:
    """One attention: `last` is the Reshape whose result [batch, tokens, heads * size] it gives."""

    queries: Heads
    keys: Heads
    values: Heads
    scale: float
    mask: Value | None
    last: Node

    @property
    def parts(self) -> tuple[Heads, Heads, Heads]:
        return self.queries, self.keys, self.values


@dataclass(frozen=True)
class Projection:
    """A MatMul of data [batch, tokens, inputs] with a weight [inputs, outputs], and the bias [outputs] behind it."""

    node: Node
    data: Value
    weight: Array
    bias: Array | None


@dataclass(frozen=True)
class Padding:
    """A mask [batch, tokens] of ones and zeros; `filtered` is added to the scores of tokens that have a zero."""

    mask: Value
    filtered: float


def find(softmax: Node, *, default_axis: int) -> Found | None:
    """The attention that a Softmax over the last axis belongs to; `default_axis` is that of a Softmax without one."""
    mix = sole_consumer(softmax.outputs[0])
    scaled = _scores(softmax.inputs[0]) if _over_last_axis(softmax, default_axis) else None
    if mix is None or mix.op_type != "MatMul" or mix.inputs[0] is not softmax.outputs[0] or scaled is None:
        return None
    product, scale, mask = scaled
    queries, keys = _heads(product.inputs[0]), _heads(product.inputs[1], turned=True)
    values = _heads(mix.inputs[1])
    turned = sole_consumer(mix.outputs[0])
    last = sole_consumer(turned.outputs[0]) if turned is not None and _turns(turned, _TOKENS_FIRST) else None
    if queries is None or keys is None or values is None or last is None or last.op_type != "Reshape":
        return None
    width = values.heads * values.size
    whole = (dimensions(last.outputs[0]) or ())[2:] == (width,) and _keeps_axes(last)
    alike = queries.heads == keys.heads == values.heads and queries.size == keys.size == values.size
    if not whole or not alike or values.factor != 1.0 or softmax.graph is not last.graph:
        return None
    return Found(queries, keys, values, scale * queries.factor * keys.factor, mask, last)


def projection(heads: Heads) -> Projection | None:
    """The MatMul that makes the source of some heads."""
    node, bias = heads.source.producer(), None
    if node is not None and node.op_type == "Add":
        left, right = node.inputs
        bias, behind = (constant_of(right), left) if constant_of(left) is None else (constant_of(left), right)
        node = _maker(behind) if bias is not None else None
    weight = constant_of(node.inputs[1]) if node is not None and node.op_type == "MatMul" else None
    data = node.inputs[0] if node is not None else None
    if node is None or data is None or weight is None or weight.ndim != 2 or weight.dtype != np.float32:
        return None
    if len(dimensions(data) or ()) != 3 or (bias is not None and bias.shape[-1:] != weight.shape[1:]):
        return None
    if bias is not None and (bias.size != weight.shape[1] or bias.dtype != np.float32):
        return None
    return Projection(node, data, weight, bias.reshape(-1) if bias is not None else None)


def padding(mask: Value) -> Padding | None:
    """(1 - m) c with a negative c, as BERT masks."""
    left, filtered = _with_scalar(mask.producer(), "Mul")
    difference = left.producer() if left is not None else None
    if difference is None or difference.op_type != "Sub" or filtered >= 0 or constant_of(difference.inputs[0]) != 1:
        return None
    value, axes = difference.inputs[1], 0
    while value is not None and (node := value.producer()) is not None and node.op_type in ("Cast", "Unsqueeze"):
        value, axes = node.inputs[0], axes + (node.op_type == "Unsqueeze")
    shapes = (dimensions(mask) or ())[1:3], len(value.shape or ()) if value is not None else 0
    if value is None or shapes != ((1, 1), 2) or not axes or value.dtype is None:
        return None
    return Padding(value, filtered) if value.dtype.numpy().kind in "biu" else None


def same_size(value: Value, other: Value, axes: int) -> bool:
    """True if the first axes of two values are known to be alike: equal numbers, or one free size of one name."""
    if value.shape is None or other.shape is None or min(len(value.shape), len(other.shape)) < axes:
        return False
    return all(_is_same(value.shape[axis], other.shape[axis]) for axis in range(axes))


def _is_same(size: object, other: object) -> bool:
    return size == other and getattr(size, "value", size) is not None


def _scores(value: Value | None) -> tuple[Node, float, Value | None] | None:
    """The product of queries and keys, what it is multiplied by, and what is added then."""
    node, mask = _maker(value), None
    if node is not None and node.op_type == "Add":
        first = _scaled(node.inputs[0])[0]
        side = 0 if first is not None and (made := first.producer()) is not None and made.op_type == "MatMul" else 1
        value, mask = node.inputs[side], node.inputs[1 - side]
    value, scale = _scaled(value)
    node = _maker(value)
    return (node, scale, mask) if node is not None and node.op_type == "MatMul" else None


def _heads(value: Value | None, *, turned: bool = False) -> Heads | None:
    """Heads [batch, heads, tokens, size]; `turned` are those of keys, whose last two axes change places."""
    value, factor = _scaled(value)
    node = _maker(value)
    if node is None:
        return None
    if turned and _turns(node, _LAST_TWO):
        found = _heads(node.inputs[0])
        return replace(found, factor=found.factor * factor) if found is not None else None
    if _turns(node, _TURNED if turned else _TOKENS_FIRST):
        found = _reshaped(_maker(node.inputs[0]))
    else:
        found = None if turned else _gathered(node)
    return replace(found, factor=factor) if found is not None else None


def _reshaped(reshape: Node | None) -> Heads | None:
    """Heads from a Reshape of [batch, tokens, heads * size] to [batch, tokens, heads, size]."""
    if reshape is None or reshape.op_type != "Reshape" or not _keeps_axes(reshape):
        return None
    source, shape = reshape.inputs[0], dimensions(reshape.outputs[0]) or ()
    heads, size = shape[2:] if len(shape) == 4 else (None, None)
    if source is None or heads is None or size is None or (dimensions(source) or ())[2:] != (heads * size,):
        return None
    split = source.producer()
    if split is None or split.op_type != "Split" or len(split.outputs) != _PARTS:
        return Heads(source, heads, size) if _maker(source) is not None else None
    whole, widths = split.inputs[0], {(dimensions(part) or ())[2:] for part in split.outputs}
    axis = split.attributes["axis"].as_int() if "axis" in split.attributes else 0
    if whole is None or len(widths) != 1 or axis not in (-1, 2) or sole_consumer(whole) is not split:
        return None
    return Heads(whole, heads, size, split.outputs.index(source)) if _maker(source) is not None else None


def _gathered(gather: Node) -> Heads | None:
    """Heads that are one of three, from [batch, tokens, 3, heads, size] with the third axis in front."""
    index = constant_of(gather.inputs[1]) if gather.op_type == "Gather" else None
    axis = gather.attributes["axis"].as_int() if "axis" in gather.attributes else 0
    packed = gather.inputs[0]
    turned = packed.producer() if packed is not None else None
    if index is None or index.ndim != 0 or axis != 0 or packed is None or turned is None or packed.is_graph_output():
        return None
    reshape = _maker(turned.inputs[0]) if _turns(turned, _PACKED) else None
    if reshape is None or reshape.op_type != "Reshape" or len(packed.uses()) != _PARTS or not _keeps_axes(reshape):
        return None
    source, shape = reshape.inputs[0], dimensions(reshape.outputs[0]) or ()
    parts, heads, size = shape[2:] if len(shape) == 5 else (None, None, None)
    if source is None or _maker(source) is None or heads is None or size is None or parts != _PARTS:
        return None
    if (dimensions(source) or ())[2:] != (_PARTS * heads * size,):
        return None
    return Heads(source, heads, size, int(index) % _PARTS)


def _keeps_axes(reshape: Node) -> bool:
    """True if the first two axes stay as they are and only what is behind them is divided or joined."""
    source, result = reshape.inputs[0], reshape.outputs[0]
    if source is None or source.shape is None or result.shape is None or min(len(source.shape), len(result.shape)) < 3:
        return False
    target = constant_of(reshape.inputs[1])
    zeros = "allowzero" in reshape.attributes and reshape.attributes["allowzero"].as_int()
    kept, open_axes = 0, 0
    for axis in (0, 1):
        size = source.shape[axis]
        copied = target is not None and target[axis] == 0 and not zeros
        known = _is_same(size, result.shape[axis])
        kept += copied or known
        open_axes += target is not None and target[axis] == -1 and not known
    behind = [dimensions(value) or () for value in (source, result)]
    sizes = [np.prod([size or 0 for size in shape[2:]]) for shape in behind]
    return kept == 2 or (kept == 1 and open_axes == 1 and sizes[0] == sizes[1] > 0)


def _scaled(value: Value | None) -> tuple[Value | None, float]:
    """What lies before products and quotients with constant scalars, and the product of these."""
    factor = 1.0
    while (node := _maker(value)) is not None and node.op_type in ("Mul", "Div"):
        source, constant = _with_scalar(node, node.op_type)
        if source is None or constant == 0 or (node.op_type == "Div" and source is not node.inputs[0]):
            break
        value, factor = source, factor * constant if node.op_type == "Mul" else factor / constant
    return value, factor


def _with_scalar(node: Node | None, operator: str) -> tuple[Value | None, float]:
    """The operand that is computed and the scalar that is not; None if the node is something else."""
    for value, other in ((0, 1), (1, 0)):
        if node is None or node.op_type != operator:
            break
        constant = constant_of(node.inputs[other])
        if constant is not None and constant.size == 1 and constant.ndim <= 1 and not is_constant(node.inputs[value]):
            return node.inputs[value], float(constant.reshape(-1)[0])
    return None, 0.0


def _maker(value: Value | None) -> Node | None:
    """What makes a value that has one reader, in the graph of that reader."""
    node = value.producer() if value is not None else None
    reader = sole_consumer(value) if value is not None else None
    return node if node is not None and reader is not None and reader.graph is node.graph else None


def _turns(node: Node, order: tuple[int, ...]) -> bool:
    return (
        node.op_type == "Transpose" and "perm" in node.attributes and tuple(node.attributes["perm"].as_ints()) == order
    )


def _over_last_axis(softmax: Node, default: int) -> bool:
    """Over the last of four axes."""
    return (softmax.attributes["axis"].as_int() if "axis" in softmax.attributes else default) in (-1, 3)
