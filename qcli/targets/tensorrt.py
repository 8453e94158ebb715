"""NVIDIA TensorRT, explicit quantization."""

from __future__ import annotations

from typing import Annotated, ClassVar

import msgspec

from qcli.plugins import choice_of
from qcli.targets._elsewhere import Elsewhere, asymmetric, not_stored
from qcli.targets._support import EIGHT_BIT_FLOATS, STANDARD_ONLY, Placement, Support, Traits
from qcli.types import Grid

_MOVES = Support(placement=Placement.FOLLOW, tied=True, output_optional=True)
_POOLS = Support(placement=Placement.FOLLOW, output_optional=True)


class Tensorrt(Elsewhere, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """TensorRT 10: symmetric int8, all zero points 0; one scale for an activation, one for each channel of a weight.

    * The inputs and weights of Conv, Gemm and MatMul are quantized; biases stay float. Results are quantized only where
      nothing but quantized operators reads them.
    * Of the inputs of a residual Add, the one that is the result of a convolution stays float: TensorRT adds the other
      one inside of that convolution.
    * Pooling and what only moves data stay in int8 behind int8. All else is left to TensorRT, which fuses it in float.
    * int4 is for stored weights in blocks; recurrent layers and embeddings read float weights.
    * float8_e4m3fn is multiplied by Conv, Gemm and MatMul where both operands have it; it has no float8_e5m2.

    `opset` is the newest operator set: onnx-tensorrt's docs/operators.md of TensorRT 10.15 has "opset 9 to opset 24".

    Sources: TensorRT, "Working with Quantized Types" (symmetric, types, granularity), "Explicit Quantization" (Q/DQ
    layer-placement recommendations: inputs of weighted operators, residual inputs, no outputs by default);
    onnx-tensorrt, docs/operators.md (zero points must be 0; Cast, Gather and Clip take no INT8).
    """

    opset: Annotated[int, msgspec.Meta(ge=10)] = 24

    table: ClassVar[dict[str, Support]] = {
        "Conv": Support(placement=Placement.ANCHOR, weight=1, float_bias=True, output_optional=True),
        "Gemm": Support(placement=Placement.ANCHOR, weight=1, float_bias=True, output_optional=True),
        "MatMul": Support(placement=Placement.ANCHOR, weight=1, float_bias=True, output_optional=True),
        "Add": Support(placement=Placement.BETWEEN, data=None, residual=True, output_optional=True),
        "Concat": Support(placement=Placement.BETWEEN, data=None, tied=True, output_optional=True),
        "AveragePool": _POOLS,
        "GlobalAveragePool": _POOLS,
        **dict.fromkeys(
            ("MaxPool", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Resize"), _MOVES
        ),
    }
    reasons: ClassVar[dict[str, str]] = {
        "Softmax": "TensorRT runs it in float",
        "LayerNormalization": "TensorRT runs it in float",
    }
    otherwise: ClassVar[str] = "TensorRT fuses it in float with what stands beside it"
    weights: ClassVar[tuple[str, ...]] = ("int8", "int4", "float8_e4m3fn")
    activations: ClassVar[tuple[str, ...]] = ("int8", "float8_e4m3fn")

    def traits(self) -> Traits:
        return Traits(
            here=False,
            unsigned_activations=False,
            newest_opset=self.opset,
            domains=STANDARD_ONLY,
            encodings=("qdq", "weight_only", "lookup_table"),
            decode=("run",),
            stores=("Conv", "ConvTranspose", "Gemm", "MatMul"),
        )

    def misfit(self, role: str, grid: Grid, encoding: str) -> str | None:
        problem = asymmetric(role, grid) or not_stored(grid, encoding)
        if problem is None and grid.format == "int4" and grid.granularity != "block":
            return "it takes 4 bits in blocks only"
        if problem is None and choice_of(grid.format).name in EIGHT_BIT_FLOATS and grid.granularity == "block":
            return "its floats of 8 bits have one scale, or one for each channel"
        return problem
