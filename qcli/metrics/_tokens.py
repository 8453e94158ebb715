"""Which input of a language model holds the tokens that its logits foretell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from qcli.types import Array

_IDS = "input_ids"
_MASK = "attention_mask"
_OTHERS = ("mask", "position", "type", "segment", "length")
"""Parts of the names of integer inputs that hold no tokens."""


class Language(NamedTuple):
    """The names of the input that holds token ids and of the output that holds logits."""

    tokens: str
    logits: str

    def fits(self, feeds: Mapping[str, Any], outputs: Mapping[str, Any]) -> bool:
        """True for a sample that has something to foretell."""
        return _fits(feeds.get(self.tokens), outputs.get(self.logits))

    def of(self, feeds: Mapping[str, Array]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """The tokens [batch, length], and which of them count: not those that the attention mask hides."""
        tokens = feeds[self.tokens].astype(np.int64)
        mask = feeds.get(_MASK)
        if mask is None or mask.ndim != 2 or len(mask) != len(tokens) or mask.shape[1] < tokens.shape[1]:
            return tokens, np.ones(tokens.shape, np.bool_)
        return tokens, mask[:, mask.shape[1] - tokens.shape[1] :] != 0


def language_of(feeds: Mapping[str, Any], outputs: Mapping[str, Any]) -> Language | None:
    """The tokens and the logits of a sample and what became of it, or None if these are no such thing.

    Logits are a float output [batch, length, vocabulary], tokens an integer input [batch, length] of two or more whose
    values all lie within the vocabulary: `input_ids`, or the only one whose name does not say that it is another thing.
    """
    for output, logits in outputs.items():
        fitting = [name for name, array in feeds.items() if _fits(array, logits)]
        named = [name for name in fitting if name == _IDS]
        named = named or [name for name in fitting if not any(part in name.lower() for part in _OTHERS)]
        if len(named) == 1:
            return Language(named[0], output)
    return None


def _fits(tokens: Any, logits: Any) -> bool:
    if not (isinstance(tokens, np.ndarray) and isinstance(logits, np.ndarray)) or logits.dtype.kind != "f":
        return False
    if tokens.ndim != 2 or tokens.dtype.kind not in "iu" or tokens.shape != logits.shape[:-1] or tokens.shape[1] < 2:
        return False
    return tokens.size > 0 and int(tokens.min()) >= 0 and int(tokens.max()) < logits.shape[-1]
