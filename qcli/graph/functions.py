"""A model's own functions, written out where they are called."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from qcli.errors import UnsupportedError
from qcli.graph.model import Model


def inline_functions(model: Model) -> int:
    """Replaces every call by the function's nodes, in place; the number of functions there were.

    Their operators are taken to be those of the model's operator sets, as onnxruntime does. Raises UnsupportedError
    for functions that call each other in a circle.
    """
    functions = tuple(model.ir.functions.values())
    for function in functions:
        function.opset_imports.update(
            {name: model.ir.opset_imports.get(name, version) for name, version in function.opset_imports.items()}
        )
    if functions:
        try:
            InlinePass()(model.ir)
        except (ValueError, ir.passes.PreconditionError) as error:
            reason = str(error).splitlines()[0]
            problem = f"the model's functions cannot be written out: {reason}"
            raise UnsupportedError(problem, "export the model without functions") from error
    return len(functions)
