"""What the bytes of a model file are: weights by format, their scales, zero points and tables, biases, and the graph.

A constant is told by what reads it. What is computed from constants alone, such as a weight behind Cast, Sub and Mul,
hands its own part on to the constants in front of it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path

from qcli.graph.layout import FileLayout, Key, PlainNode, StoredConstant, read_layout
from qcli.sizes import BytesBy, Storage
from qcli.storage_roles import BESIDE, CONCAT_OPERANDS, ROLES, SAME_VALUES


class Part(IntEnum):
    """What a constant is; of several readers the one that comes first here decides."""

    WEIGHT = 0
    TABLE = 1
    SCALE = 2
    ZERO_POINT = 3
    BIAS = 4
    OTHER = 5


_PARTS = {"w": Part.WEIGHT, "s": Part.SCALE, "z": Part.ZERO_POINT, "b": Part.BIAS}


def read_storage(path: Path) -> Storage:
    """The bytes of a model file and of its external data, each of them in one place of `bytes_by`.

    The file must have been loaded, and so checked, before.
    """
    layout = read_layout(path)
    sorter = _Sorter(layout)
    sizes = dict.fromkeys(Part, 0)
    weights: dict[str, int] = defaultdict(int)
    count = beside = inside = 0
    for constant, size in layout.charged():
        part, own = sorter.part(constant)
        inside += constant.inside
        if part is Part.WEIGHT:
            weights[sorter.format_of(constant)] += size
            count += sorter.elements(constant) if size else 0
        else:
            sizes[part] += size
            beside += size if own else 0
    external = sum(layout.external.values())
    by = BytesBy(
        weights=dict(sorted(weights.items(), key=lambda item: (-item[1], item[0]))),
        scales=sizes[Part.SCALE],
        zero_points=sizes[Part.ZERO_POINT],
        tables=sizes[Part.TABLE],
        biases=sizes[Part.BIAS],
        other=sizes[Part.OTHER],
        graph=layout.bytes - inside,
        padding=external - sum(sizes.values()) - sum(weights.values()) + inside,
    )
    bits = 8 * (sum(weights.values()) + beside) / count if count else None
    return Storage(bytes_by=by, weights=count, bits_per_weight=bits, external_bytes=external)


_Found = tuple[Part, bool]
"""A part, and whether it belongs to a weight."""


class _Sorter:
    """Goes through the nodes once, then from each constant operand back to the constants that it comes from."""

    def __init__(self, layout: FileLayout) -> None:
        self._constants: dict[Key, StoredConstant] = {}
        for constant in layout.constants:
            self._constants.setdefault(constant.key, constant)
        self._producers = {key: node for node in layout.nodes for key in node.outputs}
        self._readers: dict[Key, PlainNode] = {}
        self._fixed = set(self._constants)
        self._found: dict[Key, _Found] = {}
        for node in layout.nodes:
            self._note(node)
        self._each: dict[Key, int] = {}
        for node in layout.nodes:
            source, each = self._codes_behind(node)
            if source is not None:
                self._each[source] = max(each, self._each.get(source, 1))
        for node in layout.nodes:
            if not self._is_fixed(node):
                self._sort(node)
        for key in layout.results:
            if key in self._fixed:
                self._mark(key, (Part.OTHER, False))

    def part(self, constant: StoredConstant) -> _Found:
        return self._found.get(constant.key, (Part.OTHER, False))

    def format_of(self, constant: StoredConstant) -> str:
        """The stored type; of a matrix in MatMulNBits, whose bytes hold several codes each, that of the codes."""
        reader = self._readers.get(constant.key)
        return f"uint{reader.integers['bits']}" if reader is not None else constant.dtype

    def elements(self, constant: StoredConstant) -> int:
        """The weights that a constant stands for; those that fill up the rows of vectors count too."""
        reader = self._readers.get(constant.key)
        whole = constant.elements * self._each.get(constant.key, 1)
        return reader.integers["K"] * reader.integers["N"] if reader is not None else whole

    def _note(self, node: PlainNode) -> None:
        given = [key for key in node.inputs if key is not None]
        if given and not node.has_bodies and all(key in self._fixed for key in given):
            self._fixed.update(node.outputs)
        codes = node.inputs[1] if node.op in _BITS_PACKED and len(node.inputs) > 1 else None
        if codes is not None and node.integers.keys() >= {"bits", "K", "N"}:
            self._readers[codes] = node

    def _codes_behind(self, node: PlainNode) -> tuple[Key | None, int]:
        """The codes by which a node fetches rows of tables, and the elements that each of them becomes."""
        key, each = node.outputs[0] if node.outputs else None, 1
        first = node
        for _ in range(_FARTHEST):
            known = self._producers.get(key) if key is not None else None
            if known is None or not known.inputs:
                break
            fetches = known.op in _FETCHES and len(known.inputs) > 1 and self._small(known.inputs[1])
            if known is first and not fetches:
                return None, 1
            table = self._leaf(known.inputs[0]) if fetches else None
            each *= table.columns if table is not None else 1
            key = known.inputs[1 if fetches else 0]
        return key, each

    def _is_fixed(self, node: PlainNode) -> bool:
        return bool(node.outputs) and node.outputs[0] in self._fixed

    def _sort(self, node: PlainNode) -> None:
        """The constant operands of a node that works on activations."""
        for operand, key in enumerate(node.inputs):
            if key is not None and key in self._fixed:
                self._mark(key, self._read_by(node, operand))

    def _read_by(self, node: PlainNode, operand: int) -> _Found:
        if node.op in _ELEMENTWISE:
            return self._beside_codes(node, operand)
        if node.op in _FETCHES and operand == 0 and self._small(node.inputs[1] if len(node.inputs) > 1 else None):
            return Part.TABLE, True
        role = CONCAT_OPERANDS[operand % 3 if operand > 1 else 3 + operand] if node.op == "QLinearConcat" else ""
        roles = role or ROLES.get(node.op, "")[operand : operand + 1]
        return _PARTS.get(roles.lower(), Part.OTHER), roles in BESIDE

    def _beside_codes(self, node: PlainNode, operand: int) -> _Found:
        """What is added to, subtracted from or multiplied with something that is decoded, or the result of a layer."""
        other = next((key for index, key in enumerate(node.inputs) if index != operand), None)
        if node.op == "Mul" and (self._decoded(other) or self._is_dynamic_scale(other)):
            return Part.SCALE, True
        if node.op == "Sub" and operand == 1 and self._decoded(other):
            return Part.ZERO_POINT, True
        constant = self._leaf(node.inputs[operand])
        if node.op == "Add" and constant is not None and self._follows_layer(other):
            return Part.BIAS, False
        return Part.OTHER, False

    def _mark(self, key: Key, found: _Found) -> None:
        """Hands a part on to the constants that a value is computed from."""
        waiting, seen = [(key, found)], set()
        while waiting:
            item = waiting.pop()
            if item in seen:
                continue
            seen.add(item)
            constant = self._constants.get(item[0])
            if constant is None:
                waiting += self._handed_on(*item)
                continue
            part = Part.OTHER if item[1][0] is Part.WEIGHT and not _may_be_weight(constant) else item[1][0]
            self._found[item[0]] = min(self._found.get(item[0], (Part.OTHER, False)), (part, item[1][1]))

    def _handed_on(self, key: Key, found: _Found) -> Iterator[tuple[Key, _Found]]:
        """The operands of the node that computes a constant, with what each of them is."""
        node = self._producers.get(key)
        if node is None:
            return
        for operand, source in enumerate(node.inputs):
            if source is not None:
                yield source, self._inside(node, operand, found)

    def _inside(self, node: PlainNode, operand: int, found: _Found) -> _Found:
        own = found[0] in (Part.WEIGHT, Part.TABLE) or found[1]
        if node.op in ("DequantizeLinear", "QuantizeLinear") and operand:
            return (Part.SCALE if operand == 1 else Part.ZERO_POINT), own
        if node.op in _FETCHES:
            if found[0] is Part.WEIGHT and self._small(node.inputs[1]):
                return (Part.WEIGHT if operand else Part.TABLE), own
            return found if operand == 0 or found[0] is not Part.WEIGHT else (Part.OTHER, False)
        if node.op in _ELEMENTWISE and len(node.inputs) == _PAIR and found[0] in (Part.WEIGHT, Part.BIAS):
            if operand == self._main_operand(node):
                return found
            return _SECOND[node.op], own
        if node.op in SAME_VALUES:
            return found if operand == 0 or node.op == "Concat" else (Part.OTHER, False)
        return found

    def _main_operand(self, node: PlainNode) -> int:
        """Of a product or a sum of constants the one that holds codes, or the larger one."""
        codes = [self._decoded(key) for key in node.inputs]
        if codes[0] != codes[1] or node.op == "Sub":
            return 0 if node.op == "Sub" else codes.index(True)
        sizes = [leaf.elements if (leaf := self._leaf(key)) is not None else 0 for key in node.inputs]
        return int(sizes[1] > sizes[0])

    def _decoded(self, key: Key | None) -> bool:
        """True for what comes from small integers, be it that they are constant or the result of an integer layer."""
        return any(
            node.op in _INTEGER_RESULTS or (node.op in _FETCHES and self._small(node.inputs[1]))
            for node in self._path(key)
        ) or self._small(key)

    def _small(self, key: Key | None) -> bool:
        leaf = self._leaf(key)
        return leaf is not None and _is_small(leaf)

    def _leaf(self, key: Key | None) -> StoredConstant | None:
        """The constant at the end of the first operands, if there is one."""
        for node in self._path(key):
            key = node.inputs[0]
        return self._constants.get(key) if key is not None else None

    def _path(self, key: Key | None) -> Iterator[PlainNode]:
        """The nodes in front of a value, always by the operand that holds the data, as far as they keep its values."""
        for _ in range(_FARTHEST):
            node = self._producers.get(key) if key is not None else None
            if node is None or not node.inputs:
                return
            if node.op not in SAME_VALUES and node.op not in _FETCHES and node.op not in _ARITHMETIC:
                if node.op in _INTEGER_RESULTS:
                    yield node
                return
            yield node
            key = node.inputs[0]

    def _is_dynamic_scale(self, key: Key | None) -> bool:
        node = self._producers.get(key) if key is not None else None
        return node is not None and node.op == "DynamicQuantizeLinear"

    def _follows_layer(self, key: Key | None) -> bool:
        for _ in range(_NEAR):
            node = self._producers.get(key) if key is not None else None
            if node is None or not node.inputs:
                return False
            if node.op in _SUMS:
                return True
            if node.op not in SAME_VALUES and node.op not in ("Mul", "DequantizeLinear", "QuantizeLinear"):
                return False
            key = node.inputs[0]
        return False


_BITS_PACKED = ("MatMulNBits",)
_ELEMENTWISE = ("Mul", "Sub", "Add", "Div")
_ARITHMETIC = ("Mul", "Sub", "Add", "Div", "DequantizeLinear", "QuantizeLinear")
_FETCHES = ("Gather", "GatherElements", "GatherND")
_INTEGER_RESULTS = ("MatMulInteger", "ConvInteger")
_SUMS = ("Conv", "ConvTranspose", "MatMul", "Gemm", "MatMulNBits", "QLinearConv", "QLinearMatMul", *_INTEGER_RESULTS)
_SECOND = {"Mul": Part.SCALE, "Div": Part.SCALE, "Sub": Part.ZERO_POINT, "Add": Part.WEIGHT}
"""What the other operand of a decoded weight is; sums of decoded tables are weights in both."""
_PAIR = 2
_FARTHEST, _NEAR = 64, 6
"""How many nodes are looked back through."""

_SMALL = ("int2", "uint2", "int4", "uint4", "int8", "uint8", "int16", "uint16")
_NO_WEIGHTS = ("int32", "uint32", "int64", "uint64", "bool", "string", "complex64", "complex128")


def _is_small(constant: StoredConstant) -> bool:
    return constant.dtype in _SMALL


def _may_be_weight(constant: StoredConstant) -> bool:
    """Weights are floats or codes of at most 16 bits; wider integers are indices and shapes."""
    return constant.dtype not in _NO_WEIGHTS
