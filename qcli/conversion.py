"""What a recipe says about computing in 16 bits: the key `convert`."""

from __future__ import annotations

from qcli.errors import UsageError, did_you_mean
from qcli.graph import HALF_TYPES, operator_names
from qcli.types import Noun

DEFAULT = "default"
"""Stands for the default list among the operators to keep."""

_SUMS = "its sums and powers can leave float16's range"
_QUOTIENTS = "it divides by a sum or a variance, which can be too small or too large for 16 bits"
_PLACES = "coordinates need more than the 11 bits of float16"
_STEPS = "its errors add up from step to step"
_WAVES = "its sums are long and its factors are small"

KEPT_BY_DEFAULT = {
    **dict.fromkeys(
        ("ReduceSum", "ReduceMean", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSum",
         "ReduceLogSumExp", "CumSum", "CumProd", "Pow", "Exp", "Sinh", "Cosh", "Tan", "Det"),
        _SUMS,
    ),
    **dict.fromkeys(
        ("Softmax", "LogSoftmax", "Hardmax", "LayerNormalization", "RMSNormalization", "InstanceNormalization",
         "GroupNormalization", "BatchNormalization", "LpNormalization", "MeanVarianceNormalization", "LRN", "Sqrt",
         "Reciprocal", "Log", "SoftmaxCrossEntropyLoss", "NegativeLogLikelihoodLoss"),
        _QUOTIENTS,
    ),
    **dict.fromkeys(
        ("Resize", "Upsample", "NonMaxSuppression", "RoiAlign", "MaxRoiPool", "GridSample", "AffineGrid",
         "DeformConv", "Range", "RotaryEmbedding", "OneHot"),
        _PLACES,
    ),
    **dict.fromkeys(("LSTM", "GRU", "RNN", "LinearAttention", "CausalConvWithState"), _STEPS),
    **dict.fromkeys(
        ("DFT", "STFT", "MelWeightMatrix", "HannWindow", "HammingWindow", "BlackmanWindow"), _WAVES
    ),
}  # fmt: skip
"""Operators that stay in float32 unless a recipe lists others, and why."""


class Convert(Noun, frozen=True, kw_only=True):
    """The type that operators compute in, once all else is done.

    `to` is float16 or bfloat16. `keep` are operators that stay in float32; `default` among them stands for the default
    list. With `io: keep` inputs and outputs keep their types, with `convert` they have 16 bits. What the target has no
    kernel for is refused, or with `without_kernel: keep` stays in float32.
    """

    to: str = ""
    keep: tuple[str, ...] = (DEFAULT,)
    io: str = "keep"
    without_kernel: str = "refuse"

    def kept(self) -> dict[str, str]:
        """The operators that stay in float32, and why."""
        named = {name: "convert.keep names it" for name in self.keep if name != DEFAULT}
        return {**(KEPT_BY_DEFAULT if DEFAULT in self.keep else {}), **named}


_WORDS: dict[str, tuple[str, ...]] = {"to": HALF_TYPES, "io": ("keep", "convert"), "without_kernel": ("refuse", "keep")}


def check_convert(convert: Convert) -> None:
    """Raises UsageError for a type, a word or an operator that does not exist."""
    if not convert.to:
        raise UsageError("recipe convert: there is no type to compute in", "add 'to: float16'")
    for key, known in _WORDS.items():
        word = getattr(convert, key)
        if word not in known:
            raise UsageError(f"recipe convert.{key}: unknown '{word}'", _known(word, known))
    for name in convert.keep:
        if name not in (DEFAULT, *operator_names()):
            hint = _known(name, (DEFAULT, *operator_names()))
            raise UsageError(f"recipe convert.keep: no operator is called '{name}'", hint)


def _known(word: str, known: tuple[str, ...]) -> str:
    hint = did_you_mean(word, known)
    return hint if len(hint) < _LONGEST else "'qcli inspect' lists the operators of a model"


_LONGEST = 200
