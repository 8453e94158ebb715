"""NVIDIA TensorRT, explicit quantization."""

from __future__ import annotations

from typing import Annotated, ClassVar

import msgspec

from qcli.targets._elsewhere import Elsewhere, asymmetric, unpacked_block
from qcli.targets._support import STANDARD_ONLY, Placement, Support, Traits
from qcli.types import Grid

_MOVES = Support(placement=Placement.FOLLOW, tied=True, output_optional=True)
_POOLS = Support(placement=Placement.FOLLOW, output_optional=True)


class Tensorrt(Elsewhere, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """TensorRT 10: signed symmetric int8 with all zero points 0, scales per tensor for activations, per channel for weights.

    * The inputs of Conv, Gemm and MatMul are quantized, and their weights; biases stay float. Results are quantized only
      where nothing but quantized operators reads them (TensorRT, "Q/DQ Layer-Placement Recommendations").
    * Of the Add of a residual block, the input that is not the result of a convolution is quantized: TensorRT
      adds it inside of that convolution (the same, "quantize the residual input in skip connections").
    * Pooling and what only moves data stay in int8 behind int8, as Q and DQ commute with them ("Q/DQ Limitations", "Q/DQ
      Interaction with Plugins" and figures there). Everything else is left to TensorRT, which fuses it in float.
    * int4 is for stored weights in blocks; recurrent layers and embeddings read float weights (onnx-tensorrt,
      docs/operators.md: Cast and Gather take no INT8, DequantizeLinear takes INT8 and INT4 with zero points of 0).

    `opset` is the newest operator set: onnx-tensorrt's docs/operators.md of TensorRT 10.15 has "opset 9 to opset 24".
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
    weights: ClassVar[tuple[str, ...]] = ("int8", "int4")
    activations: ClassVar[tuple[str, ...]] = ("int8",)

    def traits(self) -> Traits:
        return Traits(
            here=False,
            unsigned_activations=False,
            newest_opset=self.opset,
            domains=STANDARD_ONLY,
            encodings=("qdq", "weight_only"),
            decode=("run",),
            stores=("Conv", "ConvTranspose", "Gemm", "MatMul"),
        )

    def misfit(self, role: str, grid: Grid, encoding: str) -> str | None:
        return asymmetric(role, grid) or unpacked_block(grid, encoding)
