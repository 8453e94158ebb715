"""Reading the graphs that onnxruntime saves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from qcli.graph.optimized import OptimizedGraph, external_files, read_optimized
from qcli.runtime import Session


def branch(name: str) -> onnx.GraphProto:
    """A body with a weight of its own."""
    node = helper.make_node("MatMul", ["x", f"{name}_w"], [f"{name}_y"], f"{name}_mm")
    weight = numpy_helper.from_array(np.eye(3, dtype=np.float32), f"{name}_w")
    result = helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, None)
    return helper.make_graph([node], name, [], [result], [weight])


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """x [rows, 3] through a Softmax, a product and an If, as written."""
    nodes = [
        helper.make_node("Softmax", ["x"], ["s"], "soft", axis=1),
        helper.make_node("MatMul", ["s", "w"], ["h"], "mm"),
        helper.make_node("If", ["yes"], ["y"], "if", then_branch=branch("then"), else_branch=branch("else")),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 3]),
            helper.make_tensor_value_info("yes", TensorProto.BOOL, []),
        ],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, None),
            helper.make_tensor_value_info("h", TensorProto.FLOAT, ["rows", 5]),
        ],
        [numpy_helper.from_array(np.ones((3, 5), np.float32), "w")],
        value_info=[
            helper.make_tensor_value_info("s", TensorProto.FLOAT, ["rows", 3]),
            helper.make_tensor_value_info("unknown", TensorProto.FLOAT, ["elsewhere", 3]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "g.onnx")
    return tmp_path / "g.onnx"


def read(path: Path, rows: int = 7) -> OptimizedGraph:
    return read_optimized(path, {"x": np.zeros((rows, 3), np.float32), "yes": np.array(True)})


def test_nodes_come_in_order_with_the_bodies_behind_their_owner(saved: Path) -> None:
    nodes = read(saved).nodes
    assert [node.op for node in nodes] == ["Softmax", "MatMul", "If", "MatMul", "MatMul"]
    assert [node.nested for node in nodes] == [False, False, False, True, True]
    assert {node.name for node in nodes[3:]} == {"then_mm", "else_mm"}
    assert (nodes[1].inputs, nodes[1].outputs, nodes[1].domain) == (("s", "w"), ("h",), "")


def test_integer_attributes_are_kept(saved: Path) -> None:
    assert read(saved).nodes[0].integers == {"axis": 1}


def test_weights_of_the_graph_and_its_bodies(saved: Path) -> None:
    assert read(saved).weights == {"w": (3, 5), "then_w": (3, 3), "else_w": (3, 3)}


@pytest.mark.parametrize("rows", [1, 7])
def test_free_dimensions_are_those_of_the_sample(saved: Path, rows: int) -> None:
    shapes = read(saved, rows).shapes
    assert shapes["x"] == (rows, 3)
    assert shapes["s"] == (rows, 3)
    assert shapes["h"] == (rows, 5)
    assert shapes["yes"] == ()


def test_shapes_that_cannot_be_known_are_left_out(saved: Path) -> None:
    assert {"unknown", "y"}.isdisjoint(read(saved).shapes)


def test_what_onnxruntime_saves_can_be_read(saved: Path, tmp_path: Path) -> None:
    Session(saved, optimized_to=tmp_path / "optimized.onnx")
    found = read(tmp_path / "optimized.onnx")
    assert [node.op for node in found.nodes].count("MatMul") == 3
    assert found.shapes["h"] == (7, 5)


def test_external_files_are_those_of_weights_bodies_and_constants(saved: Path) -> None:
    assert external_files(saved) == ()
    model = onnx.load(saved)
    constant = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.ones(300, np.float32), "c"))
    model.graph.node.insert(0, constant)
    onnx.save(model, saved, save_as_external_data=True, location="w.data", size_threshold=0, convert_attribute=True)
    assert external_files(saved) == (saved.parent / "w.data",)
