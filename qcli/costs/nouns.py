"""What a kernel is known by, what it costs, and a table of both."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from functools import cached_property
from typing import Annotated, Any, Literal

import msgspec

from qcli.types import Noun

SCHEMA = 1
"""Of the file form; raised whenever old rows would be read wrongly."""


class Mode(StrEnum):
    """How a node computes.

    STATIC reads and writes codes, STATIC_FLOAT_RESULT reads codes and writes floats, DYNAMIC quantizes its input as it
    runs, WEIGHT_ONLY computes in float from stored integers. QUANTIZE and DEQUANTIZE are conversions of one tensor.
    """

    FLOAT = "float"
    STATIC = "static"
    STATIC_FLOAT_RESULT = "static_float_result"
    DYNAMIC = "dynamic"
    WEIGHT_ONLY = "weight_only"
    QUANTIZE = "quantize"
    DEQUANTIZE = "dequantize"


INTEGER_INPUT = (Mode.STATIC, Mode.STATIC_FLOAT_RESULT)

_Size = Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]
_Name = Annotated[str, msgspec.Meta(max_length=200)]
_Milliseconds = Annotated[float, msgspec.Meta(ge=0, le=1e9)]
_Threads = Annotated[int, msgspec.Meta(ge=1, le=1024)]
_Attribute = int | float | str | tuple[int | float | str, ...]


class WeightForm(Noun, frozen=True, kw_only=True, omit_defaults=True):
    """How the weights of a node are stored, where its mode stores them as integers.

    With `block` each run of that many weights has a scale of its own, else each channel. `decode` is that of the
    encoding `weight_only`, and `load` elsewhere.
    """

    bits: Annotated[int, msgspec.Meta(ge=2, le=8)] = 8
    block: Annotated[int, msgspec.Meta(ge=2, le=1 << 20)] | None = None
    decode: Literal["load", "run"] = "load"


EIGHT_BITS = WeightForm()


class Operand(Noun, frozen=True, kw_only=True, omit_defaults=True):
    """One input of a kernel: its shape, and its type as the kernel takes it, e.g. uint8 for activations in codes.

    `values` are those of a constant that decides what is computed, such as the axes of a reduction.
    """

    shape: tuple[_Size, ...]
    type: _Name
    constant: bool = False
    values: tuple[int | float, ...] | None = None


class KernelKey(Noun, frozen=True, kw_only=True, omit_defaults=True):
    """All that the time of a kernel depends on, except the machine. Equal keys are measured once.

    `inputs` has None for an operand that is left out. Behind a MatMul the third input is a bias that is added by a
    node of its own. `attributes` are sorted by name, without those that only state a default.
    """

    op: _Name
    domain: _Name = ""
    mode: Mode
    inputs: tuple[Operand | None, ...]
    attributes: tuple[tuple[_Name, _Attribute], ...] = ()
    outputs: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 1
    opset: Annotated[int, msgspec.Meta(ge=1, le=1000)]
    weights: WeightForm = EIGHT_BITS
    threads: _Threads = 1

    @property
    def family(self) -> tuple[Any, ...]:
        """What the modes of one node have in common."""
        shapes = tuple(item and (item.shape, item.constant, item.values) for item in self.inputs)
        return (self.op, self.domain, shapes, self.attributes, self.outputs)


class KernelCost(Noun, frozen=True, kw_only=True, omit_defaults=True):
    """The median time of one run and the distance between its quartiles; None if it cannot be measured alone.

    `layout_ms` is what it costs besides where its neighbours lay their data out otherwise: a float Conv works on
    blocks of channels, an integer one has channels last. `kernel` names the operators that onnxruntime runs, `why` says
    why there is no time.
    """

    key: KernelKey
    ms: _Milliseconds | None
    spread_ms: _Milliseconds = 0.0
    layout_ms: _Milliseconds = 0.0
    kernel: Annotated[str, msgspec.Meta(max_length=2000)] = ""
    why: Annotated[str, msgspec.Meta(max_length=2000)] = ""


class CostEnvironment(Noun, frozen=True, kw_only=True):
    """What a table is true for."""

    cpu: str
    isa: str
    onnxruntime: str
    threads: _Threads


class CostTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, dict=True):
    """Costs on one machine with one number of threads."""

    schema: int = SCHEMA
    environment: CostEnvironment
    rows: tuple[KernelCost, ...] = ()

    @cached_property
    def _known(self) -> dict[KernelKey, KernelCost]:
        return {row.key: row for row in self.rows}

    def cost(self, key: KernelKey) -> KernelCost | None:
        """The row of a key, or None where the table has none."""
        return self._known.get(key)

    def ms(self, key: KernelKey | None) -> float | None:
        """The time of a key; None for what could not be measured, or was not."""
        row = self._known.get(key) if key is not None else None
        return row.ms if row is not None else None

    def missing(self, keys: Iterable[KernelKey]) -> tuple[KernelKey, ...]:
        """The keys that have no row, each once and in their order."""
        return tuple(key for key in dict.fromkeys(keys) if key not in self._known)
