"""The door to onnx and onnx_ir: loading, saving and editing models. No other module imports those libraries.

`Model` wraps a graph in memory; `Node`, `Value` and `Graph` are handed out for the steps and encodings to edit.
"""

import logging

from qcli.graph.bounds import check_sizes
from qcli.graph.edit import (
    add_initializer,
    add_turned,
    constant_of,
    data_consumers,
    enclosing_node,
    graph_of,
    insert_after,
    insert_before,
    is_constant,
    make_node,
    node_key,
    remove_node,
    replace_value,
    set_constant,
    share_initializer,
    sole_consumer,
)
from qcli.graph.finite import is_finite
from qcli.graph.float32 import compute_in_float32, float32_form, other_floats
from qcli.graph.half import KINDS as _KINDS
from qcli.graph.half import compute_in_half
from qcli.graph.half_rounding import round_as_halves
from qcli.graph.half_trial import half_trial
from qcli.graph.half_types import Halves, computes_in_float, halves_of, operator_names, weight_floats
from qcli.graph.infer import concrete_shapes, dimensions, infer_shapes, note_types, untyped
from qcli.graph.load import load_model
from qcli.graph.model import DataType, Graph, Model, Node, Value
from qcli.graph.names import original_name
from qcli.graph.normalize import normalize_graph
from qcli.graph.on_disk import set_aside
from qcli.graph.opset import cannot_raise, file_version_with, raise_opset
from qcli.graph.packed import add_packed, is_packed, native_type, packed_opset, packed_type, stored_bits
from qcli.graph.parts import Part, part_bytes, parts_of
from qcli.graph.save import move_model, save_model
from qcli.graph.sharing import share_between_bodies
from qcli.graph.switch import add_switch, choose_operand, choose_result, passed_on

logging.getLogger("onnx_ir").setLevel(logging.CRITICAL)
"""onnx_ir logs the inference failures that qcli handles; users need not see them."""

HALF_TYPES = tuple(_KINDS)
"""The floats of 16 bits that a model can compute in."""

__all__ = [
    "HALF_TYPES",
    "DataType",
    "Graph",
    "Halves",
    "Model",
    "Node",
    "Part",
    "Value",
    "add_initializer",
    "add_packed",
    "add_switch",
    "add_turned",
    "cannot_raise",
    "check_sizes",
    "choose_operand",
    "choose_result",
    "compute_in_float32",
    "compute_in_half",
    "computes_in_float",
    "concrete_shapes",
    "constant_of",
    "data_consumers",
    "dimensions",
    "enclosing_node",
    "file_version_with",
    "float32_form",
    "graph_of",
    "half_trial",
    "halves_of",
    "infer_shapes",
    "insert_after",
    "insert_before",
    "is_constant",
    "is_finite",
    "is_packed",
    "load_model",
    "make_node",
    "move_model",
    "native_type",
    "node_key",
    "normalize_graph",
    "note_types",
    "operator_names",
    "original_name",
    "other_floats",
    "packed_opset",
    "packed_type",
    "part_bytes",
    "parts_of",
    "passed_on",
    "raise_opset",
    "remove_node",
    "replace_value",
    "round_as_halves",
    "save_model",
    "set_aside",
    "set_constant",
    "share_between_bodies",
    "share_initializer",
    "sole_consumer",
    "stored_bits",
    "untyped",
    "weight_floats",
]
