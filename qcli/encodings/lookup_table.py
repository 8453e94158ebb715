"""Places in a table on the disk, float in the kernel: for weights whose levels are not evenly spaced."""

from __future__ import annotations

from typing import ClassVar, Literal

import msgspec
import numpy as np

from qcli.contracts import along
from qcli.encodings._coarse import coarse
from qcli.encodings._digits import as_digits, digit_table
from qcli.encodings._lines import Lines
from qcli.encodings._native import as_numbers, type_of
from qcli.encodings._weights import Coded, Pool, block_numbers, fetches_rows, home_of
from qcli.encodings._words import can_fetch, fetched_rows, whole_weight
from qcli.graph import (
    DataType,
    Value,
    add_initializer,
    add_packed,
    enclosing_node,
    graph_of,
    insert_before,
    make_node,
    packed_opset,
    packed_type,
    replace_value,
)
from qcli.levels import digits_of
from qcli.types import Array, Deferred, FloatArray, Scale


class LookupTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Weights as places in a table of levels, times a scale; activations and arithmetic stay float.

    The places are stored in 4 or 8 bits, two or three levels eight or five to a byte; without `pack` in 8 bits each.
    `decode: load` writes Cast, Gather and Mul, which onnxruntime computes once when it loads the model: the speed and
    the memory of the float model. `decode: run` puts a DequantizeLinear in front, which onnxruntime never folds: the
    weights stay packed in memory and are decoded at every run, which is slow. Rows that a Gather fetches are decoded
    behind it, in both cases. Numbers of an 8-bit float type need no table: they are stored as such. Codes of vectors
    fetch whole codewords, which a Reshape and, unless the rows of the weight come first, a Transpose put into place.
    """

    decode: Literal["load", "run"] = "load"
    pack: bool = True
    calibrated: ClassVar[bool] = False
    multiplies: ClassVar[bool] = False

    def min_opset(self, bits: int, granularity: str) -> int:
        """DequantizeLinear came with operator set 10, blocks with 21, packed types with 21 and 25; the rest with 7."""
        run = 21 if granularity == "block" else 10
        return max(run if self.decode == "run" else 7, packed_opset(bits) if self.pack else 1)

    def opset_of(self, entries: int, bits: int, granularity: str) -> int:
        """The same for a number of levels: two or three of them need no packed type but a Slice with ends as inputs."""
        if not (self.pack and digits_of(entries)):
            return self.min_opset(bits, granularity)
        return max(_SLICE, self.min_opset(_BYTE, granularity))

    def write(self, weights: tuple[Coded, ...], pool: Pool) -> None:
        """Rewrites the operands of one node."""
        for coded in weights:
            if coded.scale.block is None and fetches_rows(coded) and can_fetch(coded):
                self._gather(coded, pool)
            else:
                key = (id(home_of(coded)), coded.name, id(coded.codes), self.decode, "table")
                real = pool.once(key, lambda coded=coded: self._decoded(coded))  # type: ignore[misc]
                coded.node.replace_input_with(coded.operand, real)

    def _decoded(self, coded: Coded) -> Value:
        """The weight's real value, in the graph that holds the weight: bodies share it, and a Loop decodes once."""
        home = home_of(coded)
        lines = Lines(home, enclosing_node(home, coded.node), coded.name)
        if coded.scale.native is not None:
            return self._of_native(coded, lines)
        places = self._places(coded, lines, run=self.decode == "run")
        if coded.scale.vectors is not None:
            return _scaled(coded, whole_weight(coded, places, lines), lines)
        return _real(coded, places, lines)

    def _of_native(self, coded: Coded, lines: Lines) -> Value:
        """From numbers of a type that ONNX has."""
        known = as_numbers(coded.codes, coded.scale)
        stored = add_initializer(lines.graph, f"{coded.name}_q", known, type_of(coded.scale))
        if self.decode == "run":
            attributes = {} if coded.scale.axis is None else {"axis": coded.scale.axis}
            if coded.scale.block is not None:
                attributes["block_size"] = coded.scale.block
            steps = coded.scale.scale.reshape(()) if coded.scale.axis is None else coded.scale.scale
            return lines.add("DequantizeLinear", [stored, _stored_steps(coded.scale, steps, lines)], "dq", attributes)
        return _scaled(coded, lines.add("Cast", [stored], "cast", _TO_FLOAT), lines)

    def _places(self, coded: Coded, lines: Lines, *, run: bool) -> Value:
        """The places in the table as integers, or as floats where something must keep them from being folded."""
        codes, entries = coded.codes, coded.scale.highest + 1
        if self.pack and digits_of(entries):
            return _undone(codes, entries, lines, run=run)
        kind = packed_type(codes.size, (0, entries - 1)) if self.pack else None
        name = f"{coded.name}_q"
        stored = (
            add_initializer(lines.graph, name, codes) if kind is None else add_packed(lines.graph, name, codes, kind)
        )
        return lines.unfolded(stored) if run else stored

    def _gather(self, coded: Coded, pool: Pool) -> None:
        """y = decode(Gather(codes)): only the rows that are fetched are decoded, at every run."""
        node, graph = coded.node, graph_of(coded.node)
        out = node.outputs[0]
        key = (coded.name, id(coded.codes), "rows")
        node.replace_input_with(coded.operand, pool.once(key, lambda: self._bytes(coded)))
        rows = make_node(
            "Gather", node.inputs, name=f"{node.name}_codes", output=f"{out.name}_codes", attributes={"axis": 0}
        )
        insert_before(node, rows, graph)
        lines = Lines(graph, node, out.name or coded.name)
        if coded.scale.vectors is not None:
            real = _scaled(coded, fetched_rows(coded, rows.outputs[0], lines), lines)
        else:
            real = _real(coded, rows.outputs[0], lines)
        replace_value(graph, out, real)
        graph.remove(node, safe=True)

    def _bytes(self, coded: Coded) -> Value:
        """The places as bytes, which are unpacked once when the model is loaded."""
        home = home_of(coded)
        lines = Lines(home, enclosing_node(home, coded.node), coded.name)
        places = self._places(coded, lines, run=False)
        if places.dtype is None or places.dtype == DataType.UINT8:
            return places
        return lines.add("Cast", [places], "unpacked", {"to": DataType.UINT8.value})


_BYTE = 8
_SLICE = 10
_TO_FLOAT = {"to": DataType.FLOAT.value}
_TO_PLACE = {"to": DataType.INT32.value}


def _undone(codes: Array | Deferred, base: int, lines: Lines, *, run: bool) -> Value:
    """Codes that are stored as the digits of bytes, uint8 in their shape."""
    stored = lines.constant("q", as_digits(codes, base))
    numbers = lines.add("Cast", [lines.unfolded(stored) if run else stored], "bytes", _TO_PLACE)
    digits = lines.add("Gather", [lines.shared(f"digits_{base}", digit_table(base)), numbers], "digits", {"axis": 0})
    if codes.size % digits_of(base):
        ends = [lines.shared(f"at_{end}", np.array([end], np.int64)) for end in (0, codes.size)]
        flat = lines.add("Reshape", [digits, lines.shared("flat", np.array([-1], np.int64))], "flat")
        digits = lines.add("Slice", [flat, *ends], "cut")
    return lines.add("Reshape", [digits, lines.constant("shape", np.array(codes.shape, np.int64))], "places")


def _real(coded: Coded, places: Value, lines: Lines) -> Value:
    """What the places stand for, in whatever shape they have."""
    scale = coded.scale
    if scale.levels is None:
        raise ValueError(f"{coded.name} has no levels")
    numbers = lines.add("Cast", [places], "indices", _TO_PLACE)
    if scale.levels.ndim > 1 and scale.scale.size > 1:
        numbers = lines.add("Add", [numbers, _first_places(coded, lines)], "placed")
    levels = lines.add("Gather", [lines.constant("levels", scale.levels.reshape(-1)), numbers], "dq", {"axis": 0})
    return _scaled(coded, levels, lines)


def _first_places(coded: Coded, lines: Lines) -> Value:
    """Where the table of each channel or block begins, in a shape that broadcasts against the codes."""
    scale = coded.scale
    sizes = np.asarray(scale.levels).shape
    starts = (np.arange(scale.scale.size, dtype=np.int32) * sizes[-1]).reshape(scale.scale.shape)
    if scale.block is not None:
        return lines.add(
            "Gather", [lines.constant("starts", starts), block_numbers(coded)], "starts", {"axis": scale.axis}
        )
    spread = along(msgspec.structs.replace(scale, zero_point=starts), coded.codes.shape)[1]
    return lines.constant("starts", _broadcasting(np.asarray(spread, np.int32)))


def _broadcasting(spread: Array) -> Array:
    """Without axes of one in front: what a Gather fetches may have fewer than the weight."""
    while spread.ndim and spread.shape[0] == 1 and spread.size > 1:
        spread = spread[0]
    return spread


def _scaled(coded: Coded, levels: Value, lines: Lines) -> Value:
    """The levels times the scale, which is left out where it is 1."""
    scale = coded.scale
    if (scale.scale == 1).all():
        return levels
    if scale.block is None:
        steps = _broadcasting(along(scale, coded.shape)[0])
        return lines.add("Mul", [levels, lines.constant("scale", steps)], "real")
    stored = _stored_steps(scale, scale.scale, lines)
    repeated = lines.add("Gather", [stored, block_numbers(coded)], "steps", {"axis": scale.axis})
    return lines.add("Mul", [levels, repeated], "real")


def _stored_steps(scale: Scale, steps: FloatArray, lines: Lines) -> Value:
    """The scales, a byte each where a small float type holds them."""
    small = coarse(steps)
    if small is None:
        return lines.constant("scale", steps)
    stored = add_initializer(lines.graph, f"{lines.name}_scale", small.numbers, small.kind)
    floats = lines.add("Cast", [stored], "scale_cast", _TO_FLOAT)
    if small.factor == 1:
        return floats
    return lines.add("Mul", [floats, lines.constant("factor", np.array(small.factor, np.float32))], "scale_real")
