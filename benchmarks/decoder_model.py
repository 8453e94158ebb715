"""A generated decoder of any size: Llama's shape with random weights, which are written one at a time.

Root mean square normalization, rotary positions, grouped-query attention over a cache of keys and values, a gated
feed-forward network (SwiGLU), and one table for the embeddings and for the logits. Inputs are `input_ids` and
`position_ids` [batch, length], `attention_mask` [batch, past + length] and `past_key_values.N.key` and `.value` [batch,
groups, past, head]; outputs are `logits` and `present.N.key` and `.value`.
"""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from qcli.types import Array, Noun

_OPSET = 17
_IR_VERSION = 8
_EPSILON = 1e-5
_ROTARY_BASE = 10_000.0
_DATA = "model.onnx.data"


class DecoderShape(Noun, frozen=True, kw_only=True):
    """The sizes of a decoder: `heads` of queries share `groups` of keys and values."""

    layers: int
    width: int = 2048
    inner: int = 5632
    heads: int = 32
    groups: int = 4
    vocabulary: int = 32_000
    positions: int = 2048

    @property
    def head(self) -> int:
        return self.width // self.heads

    @property
    def layer_bytes(self) -> int:
        """What the matrices of one layer take."""
        attention = 2 * self.width * self.width + 2 * self.width * self.groups * self.head
        return 4 * (attention + 3 * self.width * self.inner)

    @property
    def weight_bytes(self) -> int:
        return self.layers * self.layer_bytes + 4 * self.vocabulary * self.width


def shape_of(size: int, **sizes: int) -> DecoderShape:
    """As many layers as bring the weights nearest to `size` bytes."""
    one = DecoderShape(layers=1, **sizes)
    layers = round((size - one.weight_bytes) / one.layer_bytes) + 1
    return DecoderShape(layers=max(layers, 1), **sizes)


def write_decoder(folder: Path, shape: DecoderShape, seed: int = 0) -> Path:
    """Writes `model.onnx` and its weights into the folder, a matrix at a time."""
    path = folder / "model.onnx"
    with (folder / _DATA).open("wb") as stream:
        graph = _Builder(shape, stream, seed).graph()
    opsets = [helper.make_opsetid("", _OPSET)]
    path.write_bytes(helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION).SerializeToString())
    return path


def write_samples(folder: Path, shape: DecoderShape, *, count: int, length: int, seed: int = 1) -> Path:
    """Token sequences as .npz, each with an empty cache; the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    for number in range(count):
        tokens = generator.integers(0, shape.vocabulary, (1, length), dtype=np.int64)
        np.savez(folder / f"{number:03}.npz", allow_pickle=False, **feeds_of(shape, tokens))
    return folder


def feeds_of(shape: DecoderShape, tokens: Array) -> dict[str, Array]:
    """The inputs that go with tokens [batch, length] at the beginning of a text."""
    batch, length = tokens.shape
    positions = np.broadcast_to(np.arange(length, dtype=np.int64), (batch, length))
    nothing = np.zeros((batch, shape.groups, 0, shape.head), np.float32)
    cache = {f"past_key_values.{layer}.{part}": nothing for layer in range(shape.layers) for part in ("key", "value")}
    return {"input_ids": tokens, "attention_mask": np.ones_like(tokens), "position_ids": positions, **cache}


class _Builder:
    """Nodes and weights in the order of the computation."""

    def __init__(self, shape: DecoderShape, stream: IO[bytes], seed: int) -> None:
        self._shape = shape
        self._stream = stream
        self._generator = np.random.default_rng(seed)
        self._nodes: list[NodeProto] = []
        self._constants: list[TensorProto] = []

    def graph(self) -> GraphProto:
        shape = self._shape
        table = self._matrix("embed.weight", shape.vocabulary, shape.width, spread=1.0)
        hidden = self._op("Gather", [table, "input_ids"], "embed")
        cosine, sine = self._rotary()
        mask = self._mask()
        for layer in range(shape.layers):
            hidden = self._attention(f"layers.{layer}", hidden, (cosine, sine), mask)
            hidden = self._feed_forward(f"layers.{layer}", hidden)
        hidden = self._norm("final", hidden)
        turned = self._op("Transpose", [table], "head.weight", perm=[1, 0])
        self._op("MatMul", [hidden, turned], "head", result="logits")
        inputs, outputs = self._ends()
        return helper.make_graph(self._nodes, "decoder", inputs, outputs, self._constants)

    def _attention(self, name: str, hidden: str, angles: tuple[str, str], mask: str) -> str:
        shape = self._shape
        many = shape.heads // shape.groups
        read = self._norm(f"{name}.input_norm", hidden)
        queries = self._projected(f"{name}.q", read, shape.width, [0, 0, shape.groups, many, shape.head])
        queries = self._op("Transpose", [queries], f"{name}.q.turned", perm=[0, 2, 3, 1, 4])
        queries = self._rotated(f"{name}.q", queries, angles)
        kept = shape.groups * shape.head
        cached = []
        for part in ("key", "value"):
            fresh = self._projected(f"{name}.{part}", read, kept, [0, 0, shape.groups, 1, shape.head])
            fresh = self._op("Transpose", [fresh], f"{name}.{part}.turned", perm=[0, 2, 3, 1, 4])
            fresh = self._rotated(f"{name}.{part}", fresh, angles) if part == "key" else fresh
            cached.append(self._cached(name, part, fresh))
        keys, values = cached
        keys = self._op("Transpose", [keys], f"{name}.keys", perm=[0, 1, 2, 4, 3])
        scores = self._op("MatMul", [queries, keys], f"{name}.scores")
        scale = self._scalar(f"{name}.scale", shape.head**-0.5)
        scores = self._op("Mul", [scores, scale], f"{name}.scores.scaled")
        scores = self._op("Add", [scores, mask], f"{name}.scores.masked")
        shares = self._op("Softmax", [scores], f"{name}.shares", axis=-1)
        mixed = self._op("MatMul", [shares, values], f"{name}.mixed")
        mixed = self._op("Transpose", [mixed], f"{name}.mixed.turned", perm=[0, 3, 1, 2, 4])
        mixed = self._op("Reshape", [mixed, self._sizes([0, 0, shape.width])], f"{name}.mixed.flat")
        return self._op(
            "Add", [hidden, self._product(f"{name}.o", mixed, shape.width, shape.width)], f"{name}.attended"
        )

    def _feed_forward(self, name: str, hidden: str) -> str:
        width, inner = self._shape.width, self._shape.inner
        read = self._norm(f"{name}.post_norm", hidden)
        gate = self._product(f"{name}.gate", read, width, inner)
        open_ = self._op("Mul", [gate, self._op("Sigmoid", [gate], f"{name}.sigmoid")], f"{name}.silu")
        product = self._op("Mul", [open_, self._product(f"{name}.up", read, width, inner)], f"{name}.gated")
        return self._op("Add", [hidden, self._product(f"{name}.down", product, inner, width)], f"{name}.out")

    def _cached(self, name: str, part: str, fresh: str) -> str:
        """What the cache holds with the new rows behind it, [batch, groups, 1, past + length, head]."""
        layer = name.removeprefix("layers.")
        flat = self._op("Squeeze", [fresh, self._sizes([2])], f"{name}.{part}.flat")
        past = f"past_key_values.{layer}.{part}"
        whole = self._op("Concat", [past, flat], f"{name}.{part}.cached", result=f"present.{layer}.{part}", axis=2)
        return self._op("Unsqueeze", [whole, self._sizes([2])], f"{name}.{part}.all")

    def _projected(self, name: str, read: str, columns: int, sizes: list[int]) -> str:
        product = self._product(name, read, self._shape.width, columns)
        return self._op("Reshape", [product, self._sizes(sizes)], f"{name}.heads")

    def _product(self, name: str, read: str, rows: int, columns: int) -> str:
        weight = self._matrix(f"{name}.weight", rows, columns, spread=rows**-0.5)
        return self._op("MatMul", [read, weight], name)

    def _norm(self, name: str, hidden: str) -> str:
        squares = self._op("Mul", [hidden, hidden], f"{name}.squares")
        mean = self._op("ReduceMean", [squares], f"{name}.mean", axes=[-1], keepdims=1)
        mean = self._op("Add", [mean, self._scalar(f"{name}.epsilon", _EPSILON)], f"{name}.positive")
        root = self._op("Sqrt", [mean], f"{name}.root")
        even = self._op("Div", [hidden, root], f"{name}.even")
        gains = self._generator.uniform(0.5, 1.5, self._shape.width).astype(np.float32)
        return self._op("Mul", [even, self._constant(f"{name}.weight", gains)], name)

    def _rotary(self) -> tuple[str, str]:
        """Cosine and sine of each position's angles, [batch, 1, 1, length, head]."""
        half = self._shape.head // 2
        rates = _ROTARY_BASE ** (-np.arange(half) / half)
        angles = np.outer(np.arange(self._shape.positions), np.concatenate([rates, rates]))
        found = []
        for name, table in (("cosine", np.cos(angles)), ("sine", np.sin(angles))):
            rows = self._op("Gather", [self._constant(f"{name}.table", table.astype(np.float32)), "position_ids"], name)
            found.append(self._op("Unsqueeze", [rows, self._sizes([1, 2])], f"{name}.spread"))
        return found[0], found[1]

    def _rotated(self, name: str, value: str, angles: tuple[str, str]) -> str:
        half = self._shape.head // 2
        low = self._op("Slice", [value, *(self._sizes([end]) for end in (0, half, -1))], f"{name}.low")
        high = self._op("Slice", [value, *(self._sizes([end]) for end in (half, 2 * half, -1))], f"{name}.high")
        turned = self._op("Concat", [self._op("Neg", [high], f"{name}.minus"), low], f"{name}.crossed", axis=-1)
        near = self._op("Mul", [value, angles[0]], f"{name}.near")
        far = self._op("Mul", [turned, angles[1]], f"{name}.far")
        return self._op("Add", [near, far], f"{name}.rotated")

    def _mask(self) -> str:
        """0 where a token may look, a large negative number elsewhere, [batch, 1, 1, length, past + length]."""
        total = self._op("Shape", ["attention_mask"], "mask.total", start=1, end=2)
        fresh = self._op("Shape", ["input_ids"], "mask.fresh", start=1, end=2)
        begin = self._op("Sub", [total, fresh], "mask.begin")
        ends = [self._op("Squeeze", [end], f"{end}.scalar") for end in (total, begin)]
        zero, one = (self._constant(f"mask.{number}", np.array(number, np.int64)) for number in (0, 1))
        keys = self._op("Range", [zero, ends[0], one], "mask.keys")
        rows = self._op("Range", [ends[1], ends[0], one], "mask.rows")
        rows = self._op("Unsqueeze", [rows, self._sizes([1])], "mask.rows.column")
        earlier = self._op("LessOrEqual", [keys, rows], "mask.earlier")
        known = self._op("Cast", ["attention_mask"], "mask.known", to=TensorProto.BOOL)
        known = self._op("Unsqueeze", [known, self._sizes([1, 2, 3])], "mask.known.spread")
        seen = self._op("And", [known, earlier], "mask.seen")
        bounds = [self._scalar("mask.open", 0.0), self._scalar("mask.shut", -1e9)]
        return self._op("Where", [seen, *bounds], "mask")

    def _ends(self) -> tuple[list[Any], list[Any]]:
        shape = self._shape
        cache: list[str | int | None] = ["batch", shape.groups, "past", shape.head]
        longer: list[str | int | None] = ["batch", shape.groups, "total", shape.head]
        ids = [("input_ids", "length"), ("attention_mask", "total"), ("position_ids", "length")]
        inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", axis]) for name, axis in ids]
        logits: list[str | int | None] = ["batch", "length", shape.vocabulary]
        outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, logits)]
        for layer in range(shape.layers):
            for part in ("key", "value"):
                past, present = f"past_key_values.{layer}.{part}", f"present.{layer}.{part}"
                inputs.append(helper.make_tensor_value_info(past, TensorProto.FLOAT, cache))
                outputs.append(helper.make_tensor_value_info(present, TensorProto.FLOAT, longer))
        return inputs, outputs

    def _op(self, operator: str, inputs: list[str], name: str, *, result: str = "", **attributes: Any) -> str:
        output = result or f"/{name}"
        self._nodes.append(helper.make_node(operator, inputs, [output], name=f"/{name}", **attributes))
        return output

    def _matrix(self, name: str, rows: int, columns: int, *, spread: float) -> str:
        """Random weights, in the file of weights."""
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[rows, columns])
        tensor.data_location = TensorProto.EXTERNAL
        entries = {"location": _DATA, "offset": self._stream.tell(), "length": 4 * rows * columns}
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=str(value))
        weight = self._generator.standard_normal((rows, columns), dtype=np.float32)
        weight *= np.float32(spread)
        self._stream.write(weight.data)
        self._constants.append(tensor)
        return name

    def _constant(self, name: str, array: Array) -> str:
        if name not in {tensor.name for tensor in self._constants}:
            self._constants.append(numpy_helper.from_array(array, name))
        return name

    def _scalar(self, name: str, value: float) -> str:
        return self._constant(name, np.array(value, np.float32))

    def _sizes(self, sizes: list[int]) -> str:
        return self._constant(f"sizes_{'_'.join(str(size) for size in sizes)}", np.array(sizes, np.int64))
