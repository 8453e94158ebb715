"""Intel's OpenVINO."""

from __future__ import annotations

from typing import Annotated, ClassVar

import msgspec

from qcli.targets._elsewhere import Elsewhere, not_stored
from qcli.targets._support import Placement, Support, Traits
from qcli.types import Grid

_MOVES = Support(placement=Placement.FOLLOW, tied=True, output_optional=True)
_POOLS = Support(placement=Placement.FOLLOW, output_optional=True)


class Openvino(Elsewhere, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """OpenVINO's low precision kernels: each pair of Q and DQ becomes a FakeQuantize in front of an operator.

    Activations are uint8 with a zero point, or int8; weights symmetric int8 with a scale for each channel; biases
    stay float, as the kernels add them. What is quantized are inputs: results stay float where anything float reads
    them. Sums, products and Concat between layers, pooling and what only moves data stay in 8 bits. 4-bit weights
    are stored, best in blocks, and decompressed by the matrix kernels.

    `opset` is the newest operator set: the table of the ONNX frontend (src/frontends/onnx/docs/supported_ops.md) has
    operators up to 23.

    Sources: OpenVINO, "Low Precision Transformations" and "Quantized models" (FakeQuantize, symmetric weights, what is
    dequantized where), the frontend's table of operators.
    """

    opset: Annotated[int, msgspec.Meta(ge=10)] = 23

    table: ClassVar[dict[str, Support]] = {
        "Conv": Support(placement=Placement.ANCHOR, weight=1, float_bias=True, output_optional=True),
        "Gemm": Support(placement=Placement.ANCHOR, weight=1, float_bias=True, output_optional=True),
        "MatMul": Support(placement=Placement.ANCHOR, weight=1, either=True, float_bias=True, output_optional=True),
        "Add": Support(placement=Placement.BETWEEN, data=None, output_optional=True),
        "Mul": Support(placement=Placement.BETWEEN, data=None, output_optional=True),
        "Concat": Support(placement=Placement.BETWEEN, data=None, tied=True, output_optional=True),
        **dict.fromkeys(("AveragePool", "GlobalAveragePool", "ReduceMean"), _POOLS),
        **dict.fromkeys(
            (
                "MaxPool", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Pad", "Resize",
                "DepthToSpace",
            ),
            _MOVES,
        ),
    }  # fmt: skip
    otherwise: ClassVar[str] = "OpenVINO runs it in float"
    weights: ClassVar[tuple[str, ...]] = ("int8", "int4", "uint4")
    activations: ClassVar[tuple[str, ...]] = ("uint8", "int8")

    def traits(self) -> Traits:
        return Traits(
            here=False,
            unsigned_activations=False,
            newest_opset=self.opset,
            encodings=("qdq", "weight_only"),
            decode=("run", "load"),
        )

    def misfit(self, role: str, grid: Grid, encoding: str) -> str | None:
        if role == "weight" and grid.format == "int8" and not grid.symmetric:
            return "its int8 weights are symmetric"
        return not_stored(grid, encoding)
