"""The row of a target's table, and what a target's runtime is like as a whole."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Literal

from qcli.types import Noun


class Placement(StrEnum):
    """When an operator becomes integer.

    ANCHOR pays on its own. BETWEEN pays only on a path from one anchor to the next, where staying integer saves
    two conversions. FOLLOW moves or reduces data and stays integer behind an integer producer.
    """

    ANCHOR = "anchor"
    BETWEEN = "between"
    FOLLOW = "follow"


class Support(Noun, frozen=True, kw_only=True):
    """How a target runs one operator in integers.

    `data` are the operands that hold activations (None: all of them), `weight` and `bias` those that must be
    constant. `output_optional`: the kernel can also give float results. `tied`: output and inputs share a scale.
    `parts`: each of its outputs carries codes, not the first alone.
    `depthwise` is the placement of depthwise convolutions where it is another one.
    `natural` is the interval that the operator's results lie in by definition.
    `float_bias`: what is added to a product stays float, also in an Add behind a MatMul. `either`: a product of two
    activations becomes integer too. `residual`: of two activations, one that comes from a layer and goes nowhere else
    stays float, since the kernel of that layer adds the other one to its own sum.
    """

    placement: Placement
    data: tuple[int, ...] | None = (0,)
    weight: int | None = None
    bias: int | None = None
    output_optional: bool = False
    tied: bool = False
    parts: bool = False
    depthwise: Placement | None = None
    natural: tuple[float, float] | None = None
    float_bias: bool = False
    either: bool = False
    residual: bool = False


class Traits(Noun, frozen=True, kw_only=True):
    """What a target's runtime is like; the defaults are those of onnxruntime's CPU provider.

    `here`: it is the runtime that qcli measures with, so its speed and its kernels say something about the result, and
    its optimizer is reckoned with. `unsigned_activations`: int8 activations are written as uint8, the same numbers.
    `wide_biases`: biases are int32 beside 16-bit codes too. `newest_opset` is the newest operator set that it reads.
    `domains` are those of the operators that it runs, `encodings` the names of the forms that it takes; None: any.
    `decode` are the ways to decode weights that are only stored, the first of them unless a recipe says another.
    `stores` are the operators whose weights can be only stored; None: any.
    """

    here: bool = True
    unsigned_activations: bool = True
    wide_biases: bool = False
    newest_opset: int | None = None
    domains: tuple[str, ...] | None = None
    encodings: tuple[str, ...] | None = None
    decode: tuple[Literal["load", "run"], ...] = ("load", "run")
    stores: tuple[str, ...] | None = None


STANDARD_ONLY = ("", "ai.onnx")
"""The two names of the domain of ONNX's own operators."""


EIGHT_BIT_FLOATS = ("float8_e4m3fn", "float8_e5m2")
"""Formats that QuantizeLinear of operator set 19 writes, of activations too."""


STORED_ONLY = (
    "float16", "bfloat16", "codebook", "power_of_two", "additive_power_of_two", "ternary", "binary", "residual_binary",
    "normal_float", "float4_e2m1", "product", *EIGHT_BIT_FLOATS,
)  # fmt: skip
"""Formats of weights that standard operators decode before a float kernel reads them."""


def traits_of(target: Any) -> Traits:
    """The traits of a target; the defaults for one that says nothing."""
    told = getattr(target, "traits", None)
    return told() if told is not None else Traits()
