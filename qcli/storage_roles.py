"""What the operands of operators are: weights, scales, zero points, biases.

One letter for each operand: `w` weight, `s` and `z` scale and zero point of a weight, `S` and `Z` those of an
activation, `b` bias, `.` anything else.
"""

from __future__ import annotations

ROLES = {
    "Conv": ".wb",
    "FusedConv": ".wb",
    "ConvTranspose": ".wb",
    "DeformConv": ".w.b",
    "Gemm": "wwb",
    "FusedGemm": "wwb",
    "MatMul": "ww",
    "FusedMatMul": "ww",
    "TransposeMatMul": "ww",
    "Einsum": "www",
    "Gather": "w",
    "GatherND": "w",
    "GatherElements": "w",
    "LSTM": ".wwb",
    "GRU": ".wwb",
    "RNN": ".wwb",
    "Attention": ".wb",
    "EmbedLayerNormalization": "..www",
    "PRelu": ".w",
    "QuantizeLinear": ".SZ",
    "DequantizeLinear": ".SZ",
    "QLinearConv": ".SZwszSZb",
    "QLinearMatMul": "wSZwszSZ",
    "QGemm": "wSZwszbSZ",
    "ConvInteger": ".wZz",
    "MatMulInteger": "wwZz",
    "MatMulIntegerToFloat": "wwSsZzb",
    "DynamicQuantizeMatMul": ".wszb",
    "DynamicQuantizeLSTM": ".wwb....szsz",
    "QAttention": ".wbSs.Zz",
    "MatMulNBits": ".wsz.b",
    "GatherBlockQuantized": "w.sz",
    "MatMulBnb4": ".ws",
    "QEmbedLayerNormalization": "..www...sssSSzzzZZ",
    "QLinearAdd": "wSZwSZSZ",
    "QLinearMul": "wSZwSZSZ",
    "QLinearSigmoid": ".SZSZ",
    "QLinearLeakyRelu": ".SZSZ",
    "QLinearSoftmax": ".SZSZ",
    "QLinearAveragePool": ".SZSZ",
    "QLinearGlobalAveragePool": ".SZSZ",
}
"""From ONNX's Operators.md and onnxruntime's ContribOperators.md."""

CONCAT_OPERANDS = ("S", "Z", ".", "S", "Z")
"""QLinearConcat: after scale and zero point of its result (the last two here) come data, scale, zero point again and
again, so operand 2 is data: its number modulo three tells."""

BESIDE = ("s", "z")
"""Scales and zero points that belong to a weight."""

SAME_VALUES = (
    "Cast", "Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Expand", "Tile", "Concat",
    "Pad", "Split", "BitShift", "BitwiseAnd", "BitwiseOr", "Mod",
)  # fmt: skip
"""Operators whose first operand is the data, only moved, unpacked or in another type."""
