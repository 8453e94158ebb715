"""A model's own functions, written out where they are called."""

from __future__ import annotations

import onnx
import onnx.inliner
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from qcli.errors import UnsupportedError
from qcli.graph.model import Model


def inline_functions(model: Model) -> int:
    """Replaces every call by the function's nodes, in place; the number of functions there were.

    Raises UnsupportedError for functions that call each other in a circle or belong to another operator set.
    """
    count = len(model.ir.functions)
    if not count:
        return 0
    try:
        InlinePass()(model.ir)
    except (ValueError, ir.passes.PreconditionError):
        model.ir = _inlined_by_onnx(model)
    return count


def _inlined_by_onnx(model: Model) -> ir.Model:
    """onnx's own inliner also converts functions that were written for another operator set."""
    try:
        return ir.from_proto(onnx.inliner.inline_local_functions(model.proto(), convert_version=True))
    except (RuntimeError, ValueError, onnx.checker.ValidationError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise UnsupportedError(
            f"the model's functions cannot be written out: {reason}", "export the model without functions"
        ) from error
