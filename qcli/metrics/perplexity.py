"""`perplexity`: how well a language model foretells the next token."""

from __future__ import annotations

from typing import ClassVar, Self

import msgspec
import numpy as np
import numpy.typing as npt

from qcli.types import Array

_PIECE = 1 << 20
"""Logits that are worked on at a time, as float64."""


class Perplexity(msgspec.Struct, forbid_unknown_fields=True):
    """The mean negative log-likelihood of each token after those before it, of both models, in nats.

    With logits z [batch, length, vocabulary] and tokens t [batch, length] the likelihood of t[k + 1] is
    softmax(z[k])[t[k + 1]], so the first token of a row is foretold by nothing and the last logits foretell nothing.
    Perplexity is e to the mean. Sums are float64. A result with NaN or Inf counts `WORST`, as does all beyond it.

    Source: Jelinek, Mercer, Bahl and Baker 1977, "Perplexity: a measure of the difficulty of speech recognition tasks".
    """

    WORST: ClassVar[float] = float(np.finfo(np.float32).max)

    tokens: int = 0
    reference: float = 0.0
    result: float = 0.0
    finite: bool = True

    def update(
        self, reference: Array, result: Array, tokens: npt.NDArray[np.int64], counted: npt.NDArray[np.bool_]
    ) -> None:
        """Takes in logits of both models, `reference` finite; tokens where `counted` is False are foretold by nobody.

        Tokens and `counted` are [batch, length].
        """
        wanted = counted[:, 1:]
        following = tokens[:, 1:][wanted]
        self.tokens += following.size
        self.reference += _surprise(reference[:, :-1][wanted], following)
        if np.isfinite(result).all():
            self.result += _surprise(result[:, :-1][wanted], following)
        else:
            self.finite = False

    def merge(self, other: Self) -> None:
        self.tokens += other.tokens
        self.reference += other.reference
        self.result += other.result
        self.finite = self.finite and other.finite

    def likelihoods(self) -> tuple[float, float]:
        """The mean negative log-likelihoods of the float model and of the other one; 0 before the first token."""
        count = max(self.tokens, 1)
        return self.reference / count, self.result / count if self.finite else self.WORST

    def value(self) -> float:
        """The perplexity of the result."""
        return power(self.likelihoods()[1])


def power(nats: float) -> float:
    """e to this power, at most `Perplexity.WORST`."""
    return float(np.exp(nats)) if nats < np.log(Perplexity.WORST) else Perplexity.WORST


def _surprise(logits: Array, tokens: npt.NDArray[np.int64]) -> float:
    """The sum of log(sum(exp(z))) - z[token] over rows [n, vocabulary]."""
    total = 0.0
    height = max(1, _PIECE // max(1, logits.shape[1]))
    for begin in range(0, len(logits), height):
        rows = logits[begin : begin + height].astype(np.float64)
        rows -= rows.max(axis=1, keepdims=True)
        chosen = np.take_along_axis(rows, tokens[begin : begin + height, None], axis=1)
        total += float((np.log(np.exp(rows).sum(axis=1)) - chosen[:, 0]).sum())
    return total
