"""Models in float16, bfloat16 and float64 in the type that quantization works on."""

from __future__ import annotations

from typing import ClassVar

from qcli.graph import Model, compute_in_float32, infer_shapes
from qcli.steps._base import Step


class Float32(Step, frozen=True, kw_only=True):
    """Computes in float32 whatever the model computes in; its inputs and outputs keep their types.

    Nothing changes in a float32 model, and in one whose custom operators work on another float.
    """

    changes_precision: ClassVar[bool] = True

    def run(self, model: Model) -> int:
        infer_shapes(model)
        return compute_in_float32(model)
