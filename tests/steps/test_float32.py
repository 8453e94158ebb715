"""Models in other floats compute in float32, keep the types of their inputs and outputs, and mean the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from models import Stream, floats, node, normal, operators, proto_of, wrapped
from onnx import TensorProto, helper, numpy_helper

from qcli.errors import RuntimeFailure
from qcli.graph import Model, other_floats
from qcli.prepare import prepare
from qcli.runtime import Session
from qcli.steps.float32 import Float32
from qcli.steps.normalize import Normalize
from qcli.watch import Watch

KINDS = {"float16": TensorProto.FLOAT16, "float64": TensorProto.DOUBLE, "bfloat16": TensorProto.BFLOAT16}
BITS = {"float16": 2e-3, "float64": 1e-5, "bfloat16": 2e-2}


def in_kind(proto: onnx.ModelProto, kind: str) -> onnx.ModelProto:
    """The model with every float of it in another type."""
    code = KINDS[kind]
    for tensor in proto.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            array = numpy_helper.to_array(tensor).astype(helper.tensor_dtype_to_np_dtype(code))
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    for info in (*proto.graph.input, *proto.graph.output):
        if info.type.tensor_type.elem_type == TensorProto.FLOAT:
            info.type.tensor_type.elem_type = code
    return proto


def net(kind: str) -> onnx.ModelProto:
    nodes = [node("MatMul", "x w", "m"), node("Add", "m b", "a"), node("Relu", "a", "y")]
    proto = proto_of(nodes, {"x": ["n", 6]}, {"y": ["n", 4]}, {"w": normal(0, 6, 4), "b": normal(1, 4)})
    return in_kind(proto, kind)


def converted(proto: onnx.ModelProto) -> Model:
    model = wrapped(proto)
    Normalize().run(model)
    assert Float32().run(model)
    onnx.checker.check_model(model.proto(), full_check=True)
    return model


def types(model: Model) -> dict[str, str]:
    values = [*model.graph.initializers.values(), *(value for item in model.nodes() for value in item.outputs)]
    return {value.name or "": value.dtype.numpy().name for value in values if value.dtype is not None}


def assert_near(proto: onnx.ModelProto, model: Model, feeds: dict[str, Any], tolerance: float) -> None:
    reference, result = Session(proto.SerializeToString()).run(feeds), Session(model.serialize()).run(feeds)
    assert reference.keys() == result.keys()
    for name, expected in reference.items():
        assert expected.dtype == result[name].dtype and expected.shape == result[name].shape
        np.testing.assert_allclose(result[name], expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", ["float16", "float64"])
def test_a_layer_computes_in_float32_between_casts(kind: str) -> None:
    model = converted(net(kind))
    assert operators(model) == ["Cast", "MatMul", "Add", "Relu", "Cast"]
    assert types(model).pop("y") == kind and other_floats(model) == (kind,)
    assert {value for name, value in types(model).items() if name != "y"} == {"float32"}
    assert [spec.dtype for spec in model.inputs()] == [kind]
    assert_near(net(kind), model, {"x": normal(3, 2, 6).astype(kind)}, BITS[kind])


def test_a_float32_model_stays_as_it_is() -> None:
    model = wrapped(proto_of([node("Relu", "x", "y")], {"x": [4]}, {"y": [4]}))
    before = model.serialize()
    assert Float32().run(model) == 0
    assert model.serialize() == before


OPERATORS = {
    "Cast": [node("Cast", "x", "d", to=TensorProto.DOUBLE), node("Exp", "d", "e"),
             node("Cast", "e", "y", to=TensorProto.FLOAT16)],
    "Cast from integers": [node("Shape", "x", "s"), node("Cast", "s", "c", to=TensorProto.FLOAT16),
                           node("ReduceMax", "c", "r"), node("Mul", "x r", "y")],
    "CastLike": [node("Shape", "x", "s"), node("CastLike", "s x", "c"), node("ReduceMax", "c", "r"),
                 node("Div", "x r", "y")],
    "ConstantOfShape": [node("Shape", "x", "s"),
                        node("ConstantOfShape", "s", "c", value=numpy_helper.from_array(np.array([2], np.float16))),
                        node("Mul", "x c", "y")],
    "EyeLike": [node("EyeLike", "x", "i", dtype=TensorProto.FLOAT16), node("Add", "x i", "y")],
    "RandomNormal": [
        node("RandomNormal", "", "r", dtype=TensorProto.DOUBLE, shape=[3, 3], seed=1.0),
        node("Cast", "r", "h", to=TensorProto.FLOAT16),
        node("Mul", "h zero", "z"),
        node("Add", "x z", "y"),
    ],
    "RandomUniformLike": [node("RandomUniformLike", "x", "r", dtype=TensorProto.FLOAT16, seed=1.0),
                          node("Mul", "r zero", "z"), node("Add", "x z", "y")],
    "SequenceEmpty": [node("SequenceEmpty", "", "e", dtype=TensorProto.FLOAT16), node("SequenceInsert", "e x", "q"),
                      node("SequenceAt", "q first", "y")],
    "Constant": [node("Constant", "", "c", value=numpy_helper.from_array(np.array([2], np.float16))),
                 node("Mul", "x c", "y")],
    "Clip": [node("Clip", "x zero one", "y")],
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_that_name_a_type(name: str) -> None:
    weights = {"zero": np.array(0, np.float32), "one": np.array(1, np.float32), "first": np.array(0)}
    proto = in_kind(proto_of(OPERATORS[name], {"x": [3, 3]}, {"y": [3, 3]}, weights), "float16")
    model = converted(proto)
    inner = {value for key, value in types(model).items() if key != "y"}
    assert inner <= {"float32", "int64"}
    assert_near(proto, model, {"x": normal(0, 3, 3).astype(np.float16)}, 2e-3)


def half(name: str, shape: list[int]) -> onnx.ValueInfoProto:
    return floats(name, shape, TensorProto.FLOAT16)


def branching() -> onnx.ModelProto:
    weight = numpy_helper.from_array(normal(0, 4).astype(np.float16), "w")
    first = helper.make_graph([node("Add", "x w", "t")], "then", [], [half("t", [4])], [weight])
    second = helper.make_graph([node("Exp", "x", "t")], "else", [], [half("t", [4])])
    choice = helper.make_node("If", ["c"], ["y"], name="if", then_branch=first, else_branch=second)
    inputs = [half("x", [4]), floats("c", [], TensorProto.BOOL)]
    graph = helper.make_graph([choice], "g", inputs, [half("y", [4])])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def looping() -> onnx.ModelProto:
    inputs = [floats("i", [], TensorProto.INT64), floats("go", [], TensorProto.BOOL), half("carried", [4])]
    nodes = [node("Identity", "go", "more"), node("Mul", "carried x", "next"), node("Neg", "next", "each")]
    outputs = [floats("more", [], TensorProto.BOOL), half("next", [4]), half("each", [4])]
    loop = helper.make_node("Loop", ["n", "", "x"], ["y", "all"], body=helper.make_graph(nodes, "b", inputs, outputs))
    count = numpy_helper.from_array(np.array(3), "n")
    graph = helper.make_graph([loop], "g", [half("x", [4])], [half("y", [4]), half("all", [3, 4])], [count])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("taken", [True, False])
def test_bodies_of_if(taken: bool) -> None:
    model = converted(branching())
    assert_near(branching(), model, {"x": normal(1, 4).astype(np.float16), "c": np.array(taken)}, 2e-3)
    assert {kind for name, kind in types(model).items() if name != "y"} == {"float32"}


def test_bodies_of_loop() -> None:
    model = converted(looping())
    assert_near(looping(), model, {"x": normal(1, 4).astype(np.float16)}, 2e-3)


def test_mixed_floats_lose_the_casts_between() -> None:
    nodes = [node("Cast", "x", "h", to=TensorProto.FLOAT16), node("MatMul", "h w", "m"),
             node("Cast", "m", "f", to=TensorProto.FLOAT), node("Softmax", "f", "y")]  # fmt: skip
    proto = proto_of(nodes, {"x": [2, 4]}, {"y": [2, 4]})
    proto.graph.initializer.append(numpy_helper.from_array(normal(0, 4, 4).astype(np.float16), "w"))
    model = converted(proto)
    assert operators(model) == ["MatMul", "Softmax"]
    assert_near(proto, model, {"x": normal(1, 2, 4)}, 2e-3)


OUTPUTS = {
    "an input": [node("Neg", "x", "n")],
    "a weight": [node("Add", "x w", "n")],
    "a value read on": [node("Exp", "x", "e"), node("Neg", "e", "n")],
}


@pytest.mark.parametrize(("kind", "extra"), [("an input", "x"), ("a weight", "w"), ("a value read on", "e")])
def test_outputs_of_every_kind_keep_name_type_and_value(kind: str, extra: str) -> None:
    proto = in_kind(proto_of(OUTPUTS[kind], {"x": [4]}, {"n": [4], extra: [4]}, {"w": normal(0, 4)}), "float16")
    model = converted(proto)
    assert model.outputs() == ("n", extra)
    assert_near(proto, model, {"x": normal(1, 4).astype(np.float16)}, 2e-3)


def test_a_mask_of_the_lowest_double_stays_finite() -> None:
    lowest = np.finfo(np.float64).min
    proto = proto_of([node("Max", "x w", "y")], {"x": [1]}, {"y": [1]})
    proto.graph.initializer.append(numpy_helper.from_array(np.array([lowest]), "w"))
    model = converted(in_kind(proto, "float64"))
    weight = model.graph.initializers["w"].const_value
    assert weight is not None and np.isfinite(weight.numpy()).all()


def test_a_custom_operator_keeps_its_types() -> None:
    nodes = [node("Add", "x w", "a"), node("Mine", "a", "y", domain="my.own")]
    proto = in_kind(proto_of(nodes, {"x": [4]}, {"y": [4]}, {"w": normal(0, 4)}), "float16")
    proto.opset_import.append(helper.make_opsetid("my.own", 1))
    model = wrapped(proto)
    assert Float32().run(model) == 0 and "float16" in types(model).values()


def test_bfloat16_is_compared_with_its_float32_form() -> None:
    proto = net("bfloat16")
    feeds = {"x": normal(3, 2, 6).astype(helper.tensor_dtype_to_np_dtype(TensorProto.BFLOAT16))}
    with pytest.raises(RuntimeFailure):  # no kernels
        Session(proto.SerializeToString()).run(feeds)
    watch = Watch()
    model = prepare(wrapped(proto), 17, ["normalize", "float32"], Stream((feeds,)), watch)
    assert "its float32 form" in "".join(watch.warnings) and "MatMul" in operators(model)
    result = Session(model.serialize()).run(feeds)["y"]
    weights = [numpy_helper.to_array(tensor).astype(np.float32) for tensor in proto.graph.initializer]
    expected = np.maximum(feeds["x"].astype(np.float32) @ weights[0] + weights[1], 0)
    np.testing.assert_allclose(result, expected, rtol=BITS["bfloat16"], atol=BITS["bfloat16"])
