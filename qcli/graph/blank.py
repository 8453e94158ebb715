"""Models from nothing, for questions to the runtime."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qcli.graph.model import Model

_FILE_VERSION = 10
_MICROSOFT = "com.microsoft"


def blank_model(opset: int) -> Model:
    """A model without nodes, inputs and outputs; the operators of onnxruntime's own domain may be used."""
    imports = {"": opset, _MICROSOFT: 1}
    graph = ir.Graph([], [], nodes=[], opset_imports=imports, name="main")
    return Model(ir.Model(graph, ir_version=_FILE_VERSION))


def add_input(model: Model, name: str, dtype: str, shape: tuple[int | None, ...]) -> ir.Value:
    """An input of a numpy type; None stands for a free dimension."""
    kind = ir.DataType.from_numpy(np.dtype(dtype))
    value = ir.Value(name=name, type=ir.TensorType(kind), shape=ir.Shape(shape))
    model.graph.inputs.append(value)
    return value


def add_output(model: Model, value: ir.Value) -> None:
    """Makes a value an output; its type is left to inference."""
    model.graph.outputs.append(value)
