"""Qualcomm's HTP through onnxruntime's QNN execution provider."""

from __future__ import annotations

from typing import Annotated, ClassVar

import msgspec

from qcli.targets._elsewhere import Elsewhere
from qcli.targets._support import Placement, Support, Traits
from qcli.types import Grid

_ANY = Support(placement=Placement.ANCHOR)
_PAIR = Support(placement=Placement.ANCHOR, data=None)
_MOVES = Support(placement=Placement.ANCHOR, tied=True)


class Qnn(Elsewhere, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Integers from the inputs of the model to its results: what stays float between them leaves the accelerator.

    Activations are uint8 or uint16 with a zero point, weights int8 (symmetric, per channel for convolutions) or uint8,
    biases int32, beside 16-bit activations too. Products of two activations are quantized as well. Operators whose
    results no 8 bits hold (Exp, Log, Pow, Sqrt, Reciprocal), LayerNormalization, whose gains would be codes too, and
    recurrent layers stay float, which newer chips run in float16. If and Loop are not supported at all, and free
    dimensions must be fixed before the model is loaded. Weights are never only stored: there is no such kernel.

    `opset` is the newest operator set: Qualcomm's "Supported ONNX Ops" has versions of most operators up to 22, of some
    up to 24.

    Sources: onnxruntime, docs/execution-providers/QNN-ExecutionProvider.md (list of operators, types of MatMul);
    onnxruntime/python/tools/quantization/execution_providers/qnn/quant_config.py (types, ranges of Sigmoid and Tanh).
    """

    opset: Annotated[int, msgspec.Meta(ge=10)] = 22

    table: ClassVar[dict[str, Support]] = {
        "Conv": Support(placement=Placement.ANCHOR, weight=1, bias=2),
        "Gemm": Support(placement=Placement.ANCHOR, weight=1, bias=2),
        "MatMul": Support(placement=Placement.ANCHOR, weight=1, either=True),
        "Sigmoid": Support(placement=Placement.ANCHOR, natural=(0.0, 1.0)),
        "Softmax": Support(placement=Placement.ANCHOR, natural=(0.0, 1.0)),
        "Tanh": Support(placement=Placement.ANCHOR, natural=(-1.0, 1.0)),
        "Concat": Support(placement=Placement.ANCHOR, data=None, tied=True),
        "Split": Support(placement=Placement.ANCHOR, tied=True, parts=True),
        **dict.fromkeys(("Add", "Sub", "Mul", "Div"), _PAIR),
        **dict.fromkeys(("Relu", "Clip", "LeakyRelu", "Elu", "HardSwish", "Gelu"), _ANY),
        **dict.fromkeys(("AveragePool", "GlobalAveragePool", "ReduceMean"), _ANY),
        **dict.fromkeys(
            (
                "MaxPool", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Pad", "Resize", "Tile",
                "DepthToSpace", "SpaceToDepth",
            ),
            _MOVES,
        ),
    }  # fmt: skip
    reasons: ClassVar[dict[str, str]] = {
        "LayerNormalization": "its gains and biases are not quantized; chips with float16 run it so",
    }
    otherwise: ClassVar[str] = "it is not among what qcli quantizes for QNN; chips with float16 may run it so"
    weights: ClassVar[tuple[str, ...]] = ("int8", "uint8")
    activations: ClassVar[tuple[str, ...]] = ("uint8", "uint16")

    def traits(self) -> Traits:
        return Traits(
            here=False,
            unsigned_activations=False,
            wide_biases=True,
            newest_opset=self.opset,
            encodings=("qdq",),
            stores=(),
        )

    def misfit(self, role: str, grid: Grid, encoding: str) -> str | None:
        if grid.granularity == "channel" and (not grid.symmetric or grid.format != "int8"):
            return "scales for each channel go with symmetric int8 weights alone"
        return None
