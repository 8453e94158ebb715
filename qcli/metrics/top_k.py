"""`top_k`: whether a classifier decides as it did, and whether it is right."""

from __future__ import annotations

from typing import Self

import msgspec
import numpy as np
import numpy.typing as npt

from qcli.types import Array


class TopK(msgspec.Struct, forbid_unknown_fields=True):
    """Counts over the rows of scores [N, C]: of two equal scores the one with the lower index comes first.

    `value` is the agreement: the share of rows whose best class is the float model's. `share` gives the
    accuracy of each model where there were labels. A row with NaN or Inf is never right and never agrees.
    """

    rows: int = 0
    agreed: int = 0
    labelled: int = 0
    reference_top1: int = 0
    reference_top5: int = 0
    result_top1: int = 0
    result_top5: int = 0

    def update(self, reference: Array, result: Array, label: int | None = None) -> None:
        """Takes in two score matrices [N, C]; `label` (0 to C - 1), if any, is the class of all N rows."""
        best, other = _finite_rows(reference), _finite_rows(result)
        same = np.argmax(reference, axis=1) == np.argmax(result, axis=1)
        self.rows += len(reference)
        self.agreed += int((same & best & other).sum())
        if label is None:
            return
        expected, given = _rank(reference, label), _rank(result, label)
        self.labelled += len(reference)
        self.reference_top1 += int(((expected < 1) & best).sum())
        self.reference_top5 += int(((expected < 5) & best).sum())
        self.result_top1 += int(((given < 1) & other).sum())
        self.result_top5 += int(((given < 5) & other).sum())

    def merge(self, other: Self) -> None:
        for name in self.__struct_fields__:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def value(self) -> float:
        return self.agreed / self.rows if self.rows else 1.0

    def share(self, count: int) -> float:
        """A count of labelled rows, or a difference of two, as a share of them."""
        return count / self.labelled if self.labelled else 0.0


def _finite_rows(scores: Array) -> npt.NDArray[np.bool_]:
    return np.asarray(np.isfinite(scores).all(axis=1))


def _rank(scores: Array, label: int) -> npt.NDArray[np.int64]:
    """How many classes of each row come before `label`: higher scores, and equal ones of lower index."""
    own = scores[:, label : label + 1]
    return np.asarray((scores > own).sum(axis=1) + (scores[:, :label] == own).sum(axis=1), dtype=np.int64)
