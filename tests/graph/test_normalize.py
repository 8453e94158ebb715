"""The normal form: every later stage may rely on it, and it computes the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import (
    assert_equal,
    assert_same,
    dense_net,
    feeds_for,
    floats,
    node,
    normal,
    operators,
    proto_of,
    run,
    wrapped,
)
from onnx import TensorProto, helper, numpy_helper

from qcli.graph import Model, normalize_graph, original_name


def normalized(proto: onnx.ModelProto) -> Model:
    model = wrapped(proto)
    normalize_graph(model)
    return model


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(["", "a", "b", "r2", "a_1"]), min_size=4, max_size=4))
def test_names_become_unique_and_the_old_ones_are_kept(given_names: Sequence[str]) -> None:
    nodes = [
        node("Relu", f"{'x' if i == 0 else f'r{i - 1}'}", f"r{i}", name=name) for i, name in enumerate(given_names)
    ]
    model = normalized(proto_of(nodes, {"x": [3]}, {"r3": [3]}))
    names = [item.name for item in model.nodes()]
    assert len(set(names)) == 4 and all(names)
    assert [original_name(item) for item in model.nodes()] == list(given_names)


def test_a_name_that_is_good_is_not_touched() -> None:
    assert [item.name for item in normalized(dense_net()).nodes()] == ["/m", "/a", "/r", "/y"]


def test_initializers_leave_the_inputs() -> None:
    proto = dense_net()
    proto.graph.input.extend([floats("w1", [12, 16]), floats("b1", [16])])
    model = normalized(proto)
    assert [value.name for value in model.graph.inputs] == ["x"]
    assert_same(dense_net(), model)


CONSTANTS: dict[str, dict[str, Any]] = {
    "value": {"value": numpy_helper.from_array(normal(0, 3), "c")},
    "value_float": {"value_float": 2.5},
    "value_floats": {"value_floats": [1.0, 2.0, 3.0]},
}


@pytest.mark.parametrize("kind", CONSTANTS)
def test_constants_become_initializers(kind: str) -> None:
    proto = proto_of([node("Constant", "", "c", **CONSTANTS[kind]), node("Mul", "x c", "y")], {"x": [3]}, {"y": [3]})
    model = normalized(proto)
    assert operators(model) == ["Mul"] and "c" in model.graph.initializers
    assert_same(proto, model)


@pytest.mark.parametrize("value", [{"value_ints": [3, 2]}, {"value": numpy_helper.from_array(np.array([3, 2]))}])
def test_integer_constants_too(value: dict[str, object]) -> None:
    nodes = [node("Constant", "", "shape", **value), node("Reshape", "x shape", "y")]
    proto = proto_of(nodes, {"x": [2, 3]}, {"y": [3, 2]})
    assert operators(normalized(proto)) == ["Reshape"]
    assert_same(proto, normalized(proto))


def test_a_single_integer_too() -> None:
    nodes = [node("Constant", "", "at", value_int=1), node("Gather", "x at", "y", axis=1)]
    proto = proto_of(nodes, {"x": [2, 3]}, {"y": [2]})
    assert operators(normalized(proto)) == ["Gather"]
    assert_same(proto, normalized(proto))


def test_a_constant_that_is_an_output_keeps_its_name() -> None:
    nodes = [node("Constant", "", "c", value_floats=[1.0, 2.0]), node("Relu", "x", "y")]
    proto = proto_of(nodes, {"x": [2]}, {"y": [2], "c": [2]})
    assert_same(proto, normalized(proto))


@pytest.mark.parametrize("mask", ["", " mask"])
def test_dropout_disappears(mask: str) -> None:
    nodes = [node("Relu", "x", "r"), node("Dropout", "r", f"d{mask}"), node("Neg", "d", "y")]
    proto = proto_of(nodes, {"x": [4]}, {"y": [4]})
    assert operators(normalized(proto)) == ["Relu", "Neg"]
    assert_same(proto, normalized(proto))


def test_dropout_stays_where_its_mask_is_read() -> None:
    nodes = [node("Dropout", "x", "d mask"), node("Cast", "mask", "m", to=TensorProto.FLOAT), node("Add", "d m", "y")]
    proto = proto_of(nodes, {"x": [4]}, {"y": [4]})
    assert operators(normalized(proto)) == ["Dropout", "Cast", "Add"]
    assert_same(proto, normalized(proto))


def test_dropout_whose_mask_is_an_output_stays() -> None:
    proto = proto_of([node("Dropout", "x", "d mask"), node("Neg", "d", "y")], {"x": [4]}, {"y": [4]})
    proto.graph.output.append(floats("mask", [4], TensorProto.BOOL))
    assert operators(normalized(proto)) == ["Dropout", "Neg"]
    assert_same(proto, normalized(proto))


def test_dropout_that_may_train_stays() -> None:
    weights = {"ratio": np.array(0.5, np.float32), "training": np.array(True)}
    nodes = [node("Dropout", "x ratio training", "d"), node("Neg", "d", "y")]
    assert operators(normalized(proto_of(nodes, {"x": [4]}, {"y": [4]}, weights))) == ["Dropout", "Neg"]


def test_dropout_that_is_told_not_to_train_disappears() -> None:
    weights = {"ratio": np.array(0.5, np.float32), "training": np.array(False)}
    proto = proto_of([node("Dropout", "x ratio training", "d"), node("Neg", "d", "y")], {"x": [4]}, {"y": [4]}, weights)
    assert operators(normalized(proto)) == ["Neg"]
    assert_same(proto, normalized(proto))


def test_a_chain_of_identities_disappears() -> None:
    nodes = [node("Identity", "x", "a"), node("Identity", "a", "b"), node("Neg", "b", "c"), node("Identity", "c", "d")]
    proto = proto_of([*nodes, node("Neg", "d", "y")], {"x": [4]}, {"y": [4]})
    assert operators(normalized(proto)) == ["Neg", "Neg"]
    assert_same(proto, normalized(proto))


def test_identity_of_a_weight_disappears() -> None:
    proto = proto_of(
        [node("Identity", "w", "same"), node("MatMul", "x same", "y")],
        {"x": [2, 3]},
        {"y": [2, 3]},
        {"w": normal(0, 3, 3)},
    )
    assert operators(normalized(proto)) == ["MatMul"]
    assert_same(proto, normalized(proto))


def test_equal_weights_are_stored_once() -> None:
    weights = {"a": normal(0, 4), "b": normal(0, 4), "c": normal(1, 4)}
    nodes = [node("Add", "x a", "p"), node("Add", "p b", "q"), node("Add", "q c", "y")]
    proto = proto_of(nodes, {"x": [4]}, {"y": [4]}, weights)
    assert len(normalized(proto).graph.initializers) == 2
    assert_same(proto, normalized(proto))


def test_equal_weights_that_are_outputs_keep_their_names() -> None:
    weights = {"a": normal(0, 4), "b": normal(0, 4)}
    proto = proto_of(
        [node("Add", "x a", "p"), node("Add", "p b", "y")], {"x": [4]}, {"y": [4], "b": [4], "a": [4]}, weights
    )
    assert_same(proto, normalized(proto))


@settings(max_examples=15, deadline=None)
@given(st.permutations(range(4)))
def test_nodes_are_sorted(order: list[int]) -> None:
    proto = dense_net()
    nodes = [proto.graph.node[index] for index in order]
    shuffled = proto_of(nodes, {"x": ["n", 12]}, {"y": ["n", 4]})
    shuffled.graph.initializer.extend(proto.graph.initializer)
    model = normalized(shuffled)
    assert operators(model) == ["MatMul", "Add", "Relu", "Gemm"]
    assert_same(proto, model)


def test_nodes_that_no_output_needs_disappear() -> None:
    proto = proto_of(
        [node("Neg", "x", "y"), node("Exp", "x", "waste")], {"x": [4]}, {"y": [4]}, {"unused": normal(0, 9)}
    )
    model = normalized(proto)
    assert operators(model) == ["Neg"] and not model.graph.initializers


def test_an_input_that_nobody_reads_stays() -> None:
    proto = proto_of([node("Neg", "x", "y")], {"x": [4], "idle": [2]}, {"y": [4]})
    assert [spec.name for spec in normalized(proto).inputs()] == ["x", "idle"]


OUTPUTS = {
    "an input": ([node("Neg", "x", "y")], {"y": [4], "x": [4]}),
    "an initializer": ([node("Add", "x w", "y")], {"y": [4], "w": [4]}),
    "an identity of an input": ([node("Identity", "x", "y")], {"y": [4]}),
    "an identity of a weight": ([node("Identity", "w", "v"), node("Add", "x v", "y")], {"y": [4], "v": [4]}),
    "two identities of one value": ([node("Neg", "x", "n"), node("Identity", "n", "y"), node("Identity", "n", "z")],
                                    {"y": [4], "z": [4]}),
    "a value inside": ([node("Neg", "x", "n"), node("Identity", "n", "i"), node("Exp", "i", "y")],
                       {"y": [4], "n": [4]}),
    "a dropout": ([node("Neg", "x", "n"), node("Dropout", "n", "y")], {"y": [4]}),
}  # fmt: skip


@pytest.mark.parametrize("kind", OUTPUTS)
def test_outputs_of_every_kind_keep_name_and_value(kind: str) -> None:
    nodes, outputs = OUTPUTS[kind]
    proto = proto_of(nodes, {"x": [4]}, outputs, {"w": normal(0, 4)})
    model = normalized(proto)
    assert model.outputs() == tuple(outputs)
    feeds = feeds_for(wrapped(proto))
    assert_equal(run(proto, feeds), run(model, feeds))


def test_empty_optional_inputs_stay_empty() -> None:
    weights = {"scales": np.array([1, 1, 2, 2], np.float32), "high": np.array(0.5, np.float32)}
    nodes = [node("Resize", "x - scales", "r", mode="nearest"), node("Clip", "r - high", "y")]
    proto = proto_of(nodes, {"x": [1, 1, 2, 2]}, {"y": [1, 1, 4, 4]}, weights)
    model = normalized(proto)
    assert [value is None for value in next(iter(model.nodes())).inputs] == [False, True, False]
    assert_same(proto, model)


def branches(inner: onnx.NodeProto) -> onnx.ModelProto:
    then_branch = helper.make_graph([inner, node("Neg", "i", "t")], "then", [], [floats("t", [4])])
    else_branch = helper.make_graph([node("Identity", "outer", "e")], "else", [], [floats("e", [4])])
    choice = helper.make_node("If", ["c"], ["y"], name="", then_branch=then_branch, else_branch=else_branch)
    graph = helper.make_graph(
        [node("Identity", "x", "outer"), choice],
        "g",
        [floats("x", [4]), floats("c", [], TensorProto.BOOL)],
        [floats("y", [4])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("taken", [True, False])
def test_bodies_that_read_outer_values_still_run(taken: bool) -> None:
    proto = branches(node("Identity", "outer", "i"))
    model = normalized(proto)
    feeds = {"x": normal(0, 4), "c": np.array(taken)}
    assert_equal(run(proto, feeds), run(model, feeds))
    onnx.checker.check_model(model.proto(), full_check=True)
    assert "outer" not in {value.name for item in model.graph for value in item.outputs}


def test_twice_is_once() -> None:
    model = normalized(dense_net())
    before = model.serialize()
    normalize_graph(model)
    assert model.serialize() == before
