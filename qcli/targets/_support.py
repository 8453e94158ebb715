"""The row of a target's table."""

from __future__ import annotations

from enum import StrEnum

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
