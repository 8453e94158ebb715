"""The small edits leave graphs that onnxruntime loads."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import assert_same, dense_net, feeds_for, node, normal, proto_of, run, wrapped

from qcli.graph import (
    Model,
    add_initializer,
    constant_of,
    data_consumers,
    insert_after,
    insert_before,
    is_constant,
    make_node,
    remove_node,
    replace_value,
    set_constant,
    share_initializer,
    sole_consumer,
)


def chain() -> Model:
    """x -> Neg -> n -> Exp -> e -> Abs -> y, and Add of e and w."""
    nodes = [node("Neg", "x", "n"), node("Exp", "n", "e"), node("Abs", "e", "y"), node("Add", "e w", "z")]
    return wrapped(proto_of(nodes, {"x": [3]}, {"y": [3], "z": [3]}, {"w": normal(0, 3)}))


def by_output(model: Model, name: str) -> int:
    return next(index for index, item in enumerate(model.graph) if item.outputs[0].name == name)


def test_constants_are_told_from_activations() -> None:
    model = chain()
    weight, activation = model.graph.initializers["w"], model.graph.inputs[0]
    assert is_constant(weight) and not is_constant(activation) and not is_constant(None)
    assert constant_of(activation) is None and constant_of(None) is None
    assert np.array_equal(constant_of(weight), normal(0, 3))  # type: ignore[arg-type]


def test_an_initializer_that_a_caller_may_override_is_no_constant() -> None:
    model = chain()
    weight = model.graph.initializers["w"]
    model.graph.inputs.append(weight)
    assert not is_constant(weight) and constant_of(weight) is None


def test_readers_are_counted_once() -> None:
    nodes = [node("Mul", "x x", "m"), node("Neg", "x", "y"), node("Neg", "m", "z")]
    model = wrapped(proto_of(nodes, {"x": [2]}, {"y": [2], "z": [2]}))
    assert [item.op_type for item in data_consumers(model.graph.inputs[0])] == ["Mul", "Neg"]


def test_a_sole_consumer_is_the_only_use_of_no_output() -> None:
    model = chain()
    neg, exp, absolute, _ = model.graph
    assert sole_consumer(neg.outputs[0]) is exp
    assert sole_consumer(exp.outputs[0]) is None, "two readers"
    assert sole_consumer(absolute.outputs[0]) is None, "a graph output"


def test_one_node_that_reads_a_value_twice_is_no_sole_consumer() -> None:
    model = wrapped(proto_of([node("Neg", "x", "n"), node("Mul", "n n", "y")], {"x": [2]}, {"y": [2]}))
    assert sole_consumer(model.graph[0].outputs[0]) is None


@given(st.lists(st.sampled_from(["w", "x", "n", "fresh", "w_1"]), min_size=1, max_size=6))
def test_initializers_never_take_a_name_twice(names: list[str]) -> None:
    model = chain()
    added = [add_initializer(model.graph, name, np.zeros(1, np.float32)).name for name in names]
    assert len(set(added)) == len(added)
    assert not set(added) & {"w", "x", "n", "e", "y", "z"}


def test_equal_constants_are_shared_and_others_are_not() -> None:
    graph = chain().graph
    first = share_initializer(graph, "zero", np.zeros(1, np.uint8))
    assert share_initializer(graph, "zero", np.zeros(1, np.uint8)) is first
    assert share_initializer(graph, "zero", np.zeros(1, np.int8)) is not first, "another dtype"
    assert share_initializer(graph, "zero", np.zeros((1, 1), np.uint8)) is not first, "another shape"


def test_a_new_constant_leaves_the_other_readers_alone() -> None:
    nodes = [node("Add", "x w", "y"), node("Mul", "x w", "z")]
    model = wrapped(proto_of(nodes, {"x": [3]}, {"y": [3], "z": [3]}, {"w": normal(0, 3)}))
    set_constant(model.graph, model.graph[0], 1, np.zeros(3, np.float32))
    feeds = feeds_for(model)
    result = run(model, feeds)
    np.testing.assert_allclose(result["y"], feeds["x"])
    np.testing.assert_allclose(result["z"], feeds["x"] * normal(0, 3), rtol=1e-6)


def test_a_constant_with_one_reader_is_replaced_under_its_name() -> None:
    model = chain()
    set_constant(model.graph, model.graph[3], 1, np.ones(3, np.float32))
    assert list(model.graph.initializers) == ["w"]


def test_a_constant_that_is_an_output_keeps_its_value_there() -> None:
    proto = proto_of([node("Add", "x w", "y")], {"x": [3]}, {"y": [3], "w": [3]}, {"w": normal(0, 3)})
    model = wrapped(proto)
    set_constant(model.graph, model.graph[0], 1, np.zeros(3, np.float32))
    result = run(model, {"x": np.zeros(3, np.float32)})
    np.testing.assert_array_equal(result["w"], normal(0, 3))
    np.testing.assert_array_equal(result["y"], np.zeros(3, np.float32))


def test_an_empty_operand_has_no_constant_to_set() -> None:
    proto = proto_of([node("Clip", "x -", "y")], {"x": [3]}, {"y": [3]})
    model = wrapped(proto)
    with pytest.raises(ValueError, match="is empty"):
        set_constant(model.graph, model.graph[0], 1, np.zeros((), np.float32))


def test_a_node_goes_behind_the_producer_of_its_value() -> None:
    model = chain()
    value = model.graph[1].outputs[0]
    made = make_node("Sqrt", [value], name="/root", output="root")
    insert_after(value, made, model.graph)
    assert by_output(model, "root") == by_output(model, "e") + 1
    replace_value(model.graph, model.graph[by_output(model, "y")].outputs[0], made.outputs[0])
    feeds = feeds_for(model)
    np.testing.assert_allclose(run(model, feeds)["y"], np.sqrt(np.exp(-feeds["x"])), rtol=1e-5)


def test_a_node_behind_an_input_goes_first() -> None:
    model = chain()
    made = make_node("Abs", [model.graph.inputs[0]], name="/abs", output="abs")
    insert_after(model.graph.inputs[0], made, model.graph)
    assert by_output(model, "abs") == 0


def test_a_node_goes_into_an_empty_graph() -> None:
    model = wrapped(proto_of([], {"x": [3]}, {"x": [3]}))
    insert_after(model.graph.inputs[0], make_node("Abs", [model.graph.inputs[0]], name="/a", output="a"), model.graph)
    assert len(model.graph) == 1


def test_a_node_goes_in_front_of_its_reader() -> None:
    model = chain()
    insert_before(model.graph[2], make_node("Abs", [model.graph.inputs[0]], name="/abs", output="abs"), model.graph)
    assert by_output(model, "abs") == 2


def test_a_node_taken_out_hands_its_output_name_on() -> None:
    model = chain()
    absolute = model.graph[2]
    remove_node(model.graph, absolute, absolute.inputs[0])  # type: ignore[arg-type]
    model.fix_names()
    assert model.outputs() == ("y", "z")
    feeds = feeds_for(model)
    np.testing.assert_allclose(run(model, feeds)["y"], np.exp(-feeds["x"]), rtol=1e-6)


def test_a_made_node_carries_its_attributes() -> None:
    model = wrapped(dense_net())
    value = model.graph[-1].outputs[0]
    made = make_node("Softmax", [value], name="/s", output="s", attributes={"axis": -1})
    insert_after(value, made, model.graph)
    model.graph.outputs[0] = made.outputs[0]
    np.testing.assert_allclose(run(model, feeds_for(model))["s"].sum(axis=1), 1, rtol=1e-5)


def test_copies_are_independent() -> None:
    model = chain()
    copy = model.copy()
    set_constant(copy.graph, copy.graph[3], 1, np.zeros(3, np.float32))
    remove_node(copy.graph, copy.graph[2], copy.graph[1].outputs[0])
    assert_same(chain(), model)


def test_extra_outputs_are_seen_with_their_values() -> None:
    model = chain()
    feeds = feeds_for(model)
    result = run(model.serialize(extra_outputs=("n", "e", "y")), feeds)
    assert list(result) == ["y", "z", "n", "e"]
    np.testing.assert_array_equal(result["n"], -feeds["x"])
    assert model.outputs() == ("y", "z")


def test_nodes_and_parameters_are_counted() -> None:
    assert (chain().node_count(), chain().parameter_count()) == (4, 3)
