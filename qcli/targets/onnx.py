"""Any runtime that conforms to ONNX."""

from __future__ import annotations

from typing import Annotated, ClassVar

import msgspec

from qcli.targets._elsewhere import Elsewhere
from qcli.targets._support import EIGHT_BIT_FLOATS, STANDARD_ONLY, STORED_ONLY, Placement, Support, Traits

_MOVES = Support(placement=Placement.FOLLOW, tied=True)


class Onnx(Elsewhere, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Standard operators alone, for a runtime that is not known: what it computes is what ONNX says.

    QuantizeLinear and DequantizeLinear are defined for themselves, so the result is, whatever stands between them. They
    stand around what integer hardware commonly has: convolutions, depthwise ones too, matrix products, sums, products,
    pooling and what only moves data. Biases are int32. int8 and uint8 need operator set 10 (13 with scales for each
    channel), 4 and 16 bits and blocks 21, 2 bits 25. Floats of 16 bits and tables of levels are decoded by Cast, Gather
    and Mul.

    `opset` is the newest operator set that the runtime reads; 25 is the newest that changed QuantizeLinear.

    Source: ONNX, docs/Operators.md and docs/Changelog.md, QuantizeLinear and DequantizeLinear 10, 13, 19, 21, 25.
    """

    opset: Annotated[int, msgspec.Meta(ge=10)] = 25

    table: ClassVar[dict[str, Support]] = {
        "Conv": Support(placement=Placement.ANCHOR, weight=1, bias=2),
        "Gemm": Support(placement=Placement.ANCHOR, weight=1, bias=2, output_optional=True),
        "MatMul": Support(placement=Placement.ANCHOR, weight=1, output_optional=True),
        "Add": Support(placement=Placement.BETWEEN, data=None),
        "Mul": Support(placement=Placement.BETWEEN, data=None),
        "Concat": Support(placement=Placement.BETWEEN, data=None, tied=True),
        "Sigmoid": Support(placement=Placement.BETWEEN, natural=(0.0, 1.0)),
        "LeakyRelu": Support(placement=Placement.BETWEEN),
        "AveragePool": Support(placement=Placement.FOLLOW),
        "GlobalAveragePool": Support(placement=Placement.FOLLOW),
        "Split": Support(placement=Placement.FOLLOW, tied=True, parts=True),
        **dict.fromkeys(
            (
                "MaxPool", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Pad", "Resize",
                "DepthToSpace",
            ),
            _MOVES,
        ),
    }  # fmt: skip
    otherwise: ClassVar[str] = "few runtimes have an integer kernel for it"
    weights: ClassVar[tuple[str, ...]] = (
        "int8",
        "uint8",
        "int4",
        "uint4",
        "int2",
        "uint2",
        "int16",
        "uint16",
        *STORED_ONLY,
    )
    activations: ClassVar[tuple[str, ...]] = ("uint8", "int8", "uint16", "int16", *EIGHT_BIT_FLOATS)

    def traits(self) -> Traits:
        return Traits(
            here=False,
            unsigned_activations=False,
            newest_opset=self.opset,
            domains=STANDARD_ONLY,
            encodings=("qdq", "weight_only", "lookup_table"),
            decode=("run", "load"),
        )
