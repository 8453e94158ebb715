"""Sparse weights become dense ones; what is damaged or too large is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from models import floats, node, normal, proto_of, run, saved
from onnx import TensorProto, helper, numpy_helper

from qcli.errors import InputError, UnsupportedError
from qcli.graph import constant_of, load_model
from qcli.types import Array

FLAT = np.array([1, 5], np.int64)
BY_AXES = np.array([[0, 1], [1, 2]], np.int64)
DENSE = np.array([[0, 2, 0], [0, 0, 3]], np.float32)


def sparse(indices: Array, dims: tuple[int, ...] = (2, 3)) -> onnx.SparseTensorProto:
    values = numpy_helper.from_array(np.array([2, 3], np.float32), "w")
    return helper.make_sparse_tensor(values, numpy_helper.from_array(indices, "at"), dims)


def net(weight: onnx.SparseTensorProto) -> onnx.ModelProto:
    proto = proto_of([node("Add", "x w", "y")], {"x": [2, 3]}, {"y": [2, 3]})
    proto.graph.sparse_initializer.append(weight)
    return proto


@pytest.mark.parametrize("indices", [FLAT, BY_AXES], ids=["flat", "by axes"])
def test_initializers(tmp_path: Path, indices: Array) -> None:
    model = load_model(saved(net(sparse(indices)), tmp_path / "model.onnx"))
    np.testing.assert_array_equal(constant_of(model.graph.initializers["w"]), DENSE)
    feeds = {"x": normal(0, 2, 3)}
    np.testing.assert_array_equal(run(model, feeds)["y"], run(net(sparse(indices)), feeds)["y"])


def test_constants_in_bodies(tmp_path: Path) -> None:
    constant = helper.make_node("Constant", [], ["w"], sparse_value=sparse(FLAT))
    first = helper.make_graph([constant, node("Add", "x w", "t")], "then", [], [floats("t", [2, 3])])
    second = helper.make_graph([node("Exp", "x", "e")], "else", [], [floats("e", [2, 3])])
    choice = helper.make_node("If", ["c"], ["y"], then_branch=first, else_branch=second)
    inputs = [floats("x", [2, 3]), floats("c", [], TensorProto.BOOL)]
    graph = helper.make_graph([choice], "g", inputs, [floats("y", [2, 3])])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    model = load_model(saved(proto, tmp_path / "model.onnx"))
    result = run(model, {"x": normal(0, 2, 3), "c": np.array(True)})["y"]
    np.testing.assert_allclose(result, normal(0, 2, 3) + DENSE)


DAMAGED = {
    "an index outside": sparse(np.array([1, 6], np.int64)),
    "an index before": sparse(np.array([-1, 5], np.int64)),
    "too few indices": sparse(np.array([1], np.int64)),
    "other axes": sparse(np.array([[0], [1]], np.int64)),
    "an index outside an axis": sparse(np.array([[0, 1], [2, 0]], np.int64)),
    "a negative shape": sparse(FLAT, (-2, 3)),
}


@pytest.mark.parametrize("how", DAMAGED)
def test_damaged_ones_are_refused(tmp_path: Path, how: str) -> None:
    with pytest.raises(InputError, match="the sparse 'w' is damaged"):
        load_model(saved(net(DAMAGED[how]), tmp_path / "model.onnx"))


def test_a_bomb_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="unpack to more than"):
        load_model(saved(net(sparse(FLAT, (1 << 31, 1 << 31))), tmp_path / "model.onnx"))


def test_data_in_another_file_is_refused(tmp_path: Path) -> None:
    weight = sparse(FLAT)
    weight.values.data_location = TensorProto.EXTERNAL
    with pytest.raises(UnsupportedError, match="another file"):
        load_model(saved(net(weight), tmp_path / "model.onnx"))
