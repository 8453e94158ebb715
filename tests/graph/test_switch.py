"""Values chosen at each run."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from models import node, normal, proto_of, run, wrapped

from qcli.graph import (
    Graph,
    Model,
    Value,
    add_initializer,
    add_switch,
    choose_operand,
    choose_result,
    make_node,
    passed_on,
)
from qcli.types import Array


def chain() -> Model:
    nodes = [node("Relu", "x", "r"), node("Neg", "r", "y"), node("Abs", "r", "z")]
    return wrapped(proto_of(nodes, {"x": [3]}, {"y": [3], "z": [3]}))


def doubled(value: Value) -> Callable[[Graph], Value]:
    def build(body: Graph) -> Value:
        twice = make_node("Add", [value, value], name="twice", output="twice")
        body.append(twice)
        return twice.outputs[0]

    return build


def feeds(on: bool) -> dict[str, Array]:
    return {"x": np.array([1, -2, 3], np.float32), "on": np.array(on)}


def value_of(model: Model, name: str) -> Value:
    return next(value for item in model.nodes() for value in item.outputs if value.name == name)


def test_all_readers_of_a_result_read_what_is_chosen() -> None:
    model = chain()
    result = value_of(model, "r")
    choose_result(add_switch(model.graph, "on"), result, doubled(result))
    for on, factor in ((False, 1), (True, 2)):
        found = run(model, feeds(on))
        np.testing.assert_array_equal(found["y"], [-factor, 0, -3 * factor])
        np.testing.assert_array_equal(found["z"], [factor, 0, 3 * factor])
    onnx.checker.check_model(model.proto(), full_check=True)


def test_an_output_keeps_its_name() -> None:
    model = chain()
    result = value_of(model, "y")
    chosen = choose_result(add_switch(model.graph, "on"), result, doubled(result))
    assert model.outputs() == ("y", "z") and chosen.name == "y"
    np.testing.assert_array_equal(run(model, feeds(True))["y"], [-2, 0, -6])


def test_one_operand_alone_is_chosen() -> None:
    model = chain()
    reader = next(item for item in model.nodes() if item.op_type == "Abs")
    choose_operand(add_switch(model.graph, "on"), reader, 0, doubled(value_of(model, "r")))
    found = run(model, feeds(True))
    np.testing.assert_array_equal(found["y"], [-1, 0, -3])
    np.testing.assert_array_equal(found["z"], [2, 0, 6])


def test_a_weight_can_be_chosen() -> None:
    weight, other = normal(0, 4, 4), normal(1, 4, 4)
    model = wrapped(proto_of([node("MatMul", "x w", "y")], {"x": [2, 4]}, {"y": [2, 4]}, {"w": weight}))
    product = next(iter(model.nodes()))
    choose_operand(add_switch(model.graph, "on"), product, 1, passed_on(add_initializer(model.graph, "v", other)))
    x = normal(2, 2, 4)
    for on, chosen in ((False, weight), (True, other)):
        np.testing.assert_allclose(run(model, {"x": x, "on": np.array(on)})["y"], x @ chosen, rtol=1e-4, atol=1e-5)


def test_switches_have_names_of_their_own() -> None:
    model = chain()
    assert add_switch(model.graph, "r").name == "r_1"
    assert [spec.name for spec in model.inputs()] == ["x", "r_1"]


def test_what_no_node_produces_has_no_result_to_choose() -> None:
    model = chain()
    source = model.graph.inputs[0]
    with pytest.raises(ValueError, match="no node produces"):
        choose_result(add_switch(model.graph, "on"), source, passed_on(source))
