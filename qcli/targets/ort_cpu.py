"""onnxruntime's CPU provider."""

from __future__ import annotations

import platform
from functools import cache
from typing import Annotated, Literal

import msgspec

from qcli.targets._support import EIGHT_BIT_FLOATS, STORED_ONLY, Placement, Support, Traits

_ANCHOR, _BETWEEN, _FOLLOW = Placement.ANCHOR, Placement.BETWEEN, Placement.FOLLOW

_MOVES = Support(placement=_FOLLOW, tied=True)

_TABLE = {
    "Conv": Support(placement=_ANCHOR, depthwise=_BETWEEN, weight=1, bias=2),
    "Gemm": Support(placement=_ANCHOR, weight=1, bias=2, output_optional=True),
    "MatMul": Support(placement=_ANCHOR, weight=1, output_optional=True),
    "Add": Support(placement=_BETWEEN, data=None),
    "Mul": Support(placement=_BETWEEN, data=None),
    "Concat": Support(placement=_BETWEEN, data=None, tied=True),
    "Sigmoid": Support(placement=_BETWEEN, natural=(0.0, 1.0)),
    "LeakyRelu": Support(placement=_BETWEEN),
    "AveragePool": Support(placement=_FOLLOW),
    "GlobalAveragePool": Support(placement=_FOLLOW),
    "MaxPool": _MOVES,
    "Reshape": _MOVES,
    "Transpose": _MOVES,
    "Flatten": _MOVES,
    "Squeeze": _MOVES,
    "Unsqueeze": _MOVES,
    "Slice": _MOVES,
    "Split": Support(placement=_FOLLOW, tied=True, parts=True),
    "Pad": _MOVES,
    "DepthToSpace": _MOVES,
    "Resize": _MOVES,
}
"""Operators with integer kernels that pay; measured figures in docs/placement.md."""

_NO_GAIN = {
    "Softmax": "its integer kernel is six times slower than the float one",
    "LayerNormalization": "it has no integer kernel",
    "Gelu": "it has no integer kernel",
    "ConvTranspose": "it has no integer kernel",
    "Tanh": "it has no integer kernel",
}


_ANY_WIDTH = tuple(f"{sign}int{width}" for width in range(2, 17) if width != 8 for sign in ("", "u"))


class OrtCpu(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """onnxruntime on a CPU: unsigned 8-bit activations and signed 8-bit weights, or any integers of 2 to 16 bits.

    Its kernels multiply 8-bit codes, so fewer bits run at the speed of eight. More than eight on either side run as
    QuantizeLinear, DequantizeLinear and a float kernel: right, but no faster than float. So do floats of 8 bits.

    `isa` is the instruction set that the model will run on: `vnni` and `arm64` take weights of 8 bits as they
    are; on `avx2` (x86 without VNNI) two products are added in 16 bits and may saturate, so weights that sit
    next to each other must not both be large. `auto` asks this machine's onnxruntime.

    `opset` is the newest operator set of the onnxruntime that the model will run on, where that is older than
    this one. Without it, it is the installed one that must load the model.
    """

    isa: Literal["auto", "avx2", "vnni", "arm64"] = "auto"
    opset: Annotated[int, msgspec.Meta(ge=10)] | None = None

    def traits(self) -> Traits:
        return Traits(newest_opset=self.opset)

    def support(self, operator: str, domain: str) -> Support | None:
        """The row of an operator, or None where integers do not pay."""
        return _TABLE.get(operator) if domain in ("", "ai.onnx") else None

    def refusal(self, operator: str, domain: str) -> str:
        """Why an operator stays float."""
        if domain not in ("", "ai.onnx"):
            return f"operators of the domain '{domain}' have no integer form"
        return _NO_GAIN.get(operator, "onnxruntime's CPU provider has no integer kernel for it")

    def formats(self, role: str) -> tuple[str, ...]:
        """The formats that it runs for a role, the ones with the fastest kernels first."""
        if role == "weight":
            return ("int8", "uint8", *_ANY_WIDTH, *STORED_ONLY)
        return ("uint8", "int8", *_ANY_WIDTH, *EIGHT_BIT_FLOATS)

    def resolved_isa(self) -> str:
        """The instruction set, with `auto` replaced by what this machine has."""
        return detect_isa() if self.isa == "auto" else self.isa

    def pair_limited(self) -> bool:
        """True if the sum of two neighbouring weights' codes of one sign must stay within 128."""
        return self.resolved_isa() == "avx2"


@cache
def detect_isa() -> str:
    """What this machine's integer kernels do, asked of onnxruntime by a tiny model."""
    from qcli.runtime import saturates

    if platform.machine().lower() in ("arm64", "aarch64"):
        return "arm64"
    return "avx2" if saturates() else "vnni"
