"""What depends on no input is computed once, by onnxruntime itself."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from models import assert_equal, assert_same, floats, node, normal, operators, proto_of, run, wrapped
from onnx import TensorProto, helper, numpy_helper

from qcli.graph import normalize_graph
from qcli.graph.model import Model
from qcli.steps.fold_constants import FoldConstants
from qcli.steps.normalize import Normalize
from qcli.types import Array


def folded(proto: onnx.ModelProto, **options: int) -> tuple[Model, int]:
    model = wrapped(proto)
    normalize_graph(model)
    count = FoldConstants(**options).run(model)
    return model, count


def test_a_chain_of_constants_becomes_one() -> None:
    weights = {"w": normal(0, 3, 4), "b": normal(1, 4)}
    nodes = [node("Transpose", "w", "t"), node("Neg", "t", "n"), node("Gemm", "x n b", "y", transB=1)]
    proto = proto_of(nodes, {"x": [2, 3]}, {"y": [2, 4]}, weights)
    model, count = folded(proto)
    assert count == 1 and operators(model) == ["Gemm"] and "n" in model.graph.initializers
    assert_same(proto, model)


def test_the_shape_of_a_fixed_value_is_a_constant_and_with_it_all_that_follows() -> None:
    weights = {"two": np.array([2]), "scale": np.array(2.0, np.float32)}
    nodes = [
        node("Relu", "x", "r"),
        node("Shape", "r", "s"),
        node("Mul", "s two", "d"),
        node("Cast", "d", "f", to=TensorProto.FLOAT),
        node("ReduceSum", "f", "total", keepdims=0),
        node("Mul", "r total", "y"),
    ]
    proto = proto_of(nodes, {"x": [2, 3]}, {"y": [2, 3]}, weights)
    model, _ = folded(proto)
    assert operators(model) == ["Relu", "Mul"]
    assert_same(proto, model)


def test_the_shape_of_a_free_value_is_none() -> None:
    proto = proto_of([node("Shape", "x", "s"), node("Reshape", "x s", "y")], {"x": ["n", 3]}, {"y": None})
    assert folded(proto)[1] == 0


def test_a_part_of_a_shape_stays() -> None:
    nodes = [node("Shape", "x", "s", start=1), node("Expand", "x s", "y")]
    proto = proto_of(nodes, {"x": [2, 3]}, {"y": [2, 3]})
    model, _ = folded(proto)
    assert_same(proto, model)


@pytest.mark.parametrize(("size", "kept"), [(10, False), (2000, True)])
def test_a_result_that_would_blow_up_the_file_stays(size: int, kept: bool) -> None:
    value = numpy_helper.from_array(np.ones(1, np.float32))
    nodes = [node("ConstantOfShape", "s", "c", value=value), node("Add", "x c", "y")]
    proto = proto_of(nodes, {"x": [size]}, {"y": [size]}, {"s": np.array([size])})
    model, count = folded(proto, limit_bytes=4000)
    assert ("ConstantOfShape" in operators(model)) is kept and count == (not kept)
    assert_same(proto, model)


def test_what_follows_a_large_result_is_folded_all_the_same() -> None:
    nodes = [node("ConstantOfShape", "s", "c"), node("ReduceSum", "c", "r", keepdims=0), node("Add", "x r", "y")]
    proto = proto_of(nodes, {"x": [3]}, {"y": [3]}, {"s": np.array([5000])})
    assert operators(folded(proto, limit_bytes=100)[0]) == ["Add"]


def test_a_weight_may_be_as_large_as_it_was() -> None:
    proto = proto_of(
        [node("Neg", "w", "n"), node("Add", "x n", "y")], {"x": [500]}, {"y": [500]}, {"w": normal(0, 500)}
    )
    assert operators(folded(proto, limit_bytes=0)[0]) == ["Add"]


@pytest.mark.parametrize("operator", ["RandomNormalLike", "RandomUniformLike"])
def test_random_numbers_stay_random(operator: str) -> None:
    nodes = [node(operator, "w", "noise"), node("Add", "x noise", "y")]
    assert folded(proto_of(nodes, {"x": [3]}, {"y": [3]}, {"w": normal(0, 3)}))[1] == 0


def test_bernoulli_and_generators_without_inputs_stay() -> None:
    nodes = [
        node("Bernoulli", "p", "b"),
        node("RandomNormal", "", "r", shape=[3]),
        node("Add", "b r", "n"),
        node("Add", "x n", "y"),
    ]
    model, count = folded(proto_of(nodes, {"x": [3]}, {"y": [3]}, {"p": np.full(3, 0.5, np.float32)}))
    assert count == 0 and len(operators(model)) == 4


def test_a_constant_output_is_still_computed() -> None:
    proto = proto_of(
        [node("Neg", "w", "n"), node("Relu", "x", "y")], {"x": [3]}, {"y": [3], "n": [3]}, {"w": normal(0, 3)}
    )
    model, _ = folded(proto)
    assert_same(proto, model)


def test_quantized_constants_stay_codes() -> None:
    weights: dict[str, Array] = {"q": np.arange(3, dtype=np.int8), "s": np.array(0.5, np.float32)}
    nodes = [node("DequantizeLinear", "q s", "w"), node("Add", "x w", "y")]
    assert folded(proto_of(nodes, {"x": [3]}, {"y": [3]}, weights))[1] == 0


def test_operators_of_other_domains_stay() -> None:
    nodes = [node("Gelu", "w", "g", domain="com.microsoft"), node("Add", "x g", "y")]
    proto = proto_of(nodes, {"x": [3]}, {"y": [3]}, {"w": normal(0, 3)})
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    assert folded(proto)[1] == 0


@pytest.mark.parametrize("taken", [True, False])
def test_bodies_stay_and_may_read_what_was_folded(taken: bool) -> None:
    then_branch = helper.make_graph([node("Neg", "w", "i"), node("Add", "i n", "t")], "then", [], [floats("t", [3])])
    else_branch = helper.make_graph([node("Add", "x n", "e")], "else", [], [floats("e", [3])])
    nodes = [node("Neg", "w", "n"), node("If", "c", "y", then_branch=then_branch, else_branch=else_branch)]
    proto = proto_of(nodes, {"x": [3]}, {"y": [3]}, {"w": normal(0, 3)})
    proto.graph.input.append(floats("c", [], TensorProto.BOOL))
    model, count = folded(proto)
    assert count == 1 and sorted(operators(model)) == ["Add", "Add", "If", "Neg"]
    feeds = {"x": normal(1, 3), "c": np.array(taken)}
    assert_equal(run(proto, feeds), run(model, feeds))


def test_several_results_of_one_node() -> None:
    nodes = [node("Split", "w", "a b", axis=0), node("Add", "x a", "p"), node("Add", "p b", "y")]
    proto = proto_of(nodes, {"x": [2]}, {"y": [2]}, {"w": normal(0, 4)})
    model, count = folded(proto)
    assert count == 2 and operators(model) == ["Add", "Add"]
    assert_same(proto, model)


def test_strings_and_sequences_stay() -> None:
    nodes = [
        node("SequenceConstruct", "w w", "q"),
        node("ConcatFromSequence", "q", "c", axis=0),
        node("Add", "x c", "y"),
    ]
    proto = proto_of(nodes, {"x": [4]}, {"y": [4]}, {"w": normal(0, 2)})
    model, _ = folded(proto)
    assert_same(proto, model)


def test_normalize_is_a_step_that_counts_what_it_did() -> None:
    proto = proto_of([node("Identity", "x", "i"), node("Neg", "i", "y")], {"x": [3]}, {"y": [3]})
    model = wrapped(proto)
    assert Normalize().run(model) > 0 and operators(model) == ["Neg"]
    assert Normalize().run(model) == 0
