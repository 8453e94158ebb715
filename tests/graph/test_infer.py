"""Shapes: declared, inferred, and as they are for one sample."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from models import conv_net, node, normal, proto_of, run, wrapped

from qcli.graph import concrete_shapes, dimensions, infer_shapes


def test_free_dimensions_are_none() -> None:
    model = wrapped(proto_of([node("Relu", "x", "y")], {"x": ["n", None, 3]}, {"y": None}))
    assert dimensions(model.graph.inputs[0]) == (None, None, 3)
    assert dimensions(model.graph.outputs[0]) is None, "an unknown rank"


def test_inference_fills_in_what_the_file_leaves_out() -> None:
    model = wrapped(conv_net())
    infer_shapes(model)
    shapes = {value.name: dimensions(value) for item in model.graph for value in item.outputs}
    assert shapes["c1"] == (None, 8, 8, 8) and shapes["m"] == (None, 8, 4, 4) and shapes["f"] == (None, 8)


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 4), st.integers(3, 9))
def test_concrete_shapes_are_those_of_the_runtime(batch: int, size: int) -> None:
    weights = {"w": normal(0, 4, 3, 3, 3), "axes": np.array([0]), "tail": np.array([-1])}
    nodes = [
        node("Conv", "x w", "c", strides=[2, 2], pads=[1, 1, 1, 1]),
        node("Shape", "c", "s"),
        node("Gather", "s axes", "b", axis=0),
        node("Concat", "b tail", "to", axis=0),
        node("Reshape", "c to", "y"),
    ]
    model = wrapped(proto_of(nodes, {"x": ["n", 3, "h", "w"]}, {"y": ["a", "b"]}, weights))
    feeds = {"x": normal(1, batch, 3, size, size)}
    known = concrete_shapes(model, feeds)
    measured = run(model.serialize(extra_outputs=("c",)), feeds)
    assert known["c"] == measured["c"].shape and known["x"] == feeds["x"].shape and known["w"] == (4, 3, 3, 3)
    assert known.get("y") in (None, measured["y"].shape)


def test_inference_changes_nothing_but_shapes() -> None:
    """Statistics know the graph that they were measured on by its digest."""
    proto = proto_of([node("MatMul", "x w", "m"), node("Add", "m b", "y")], {"x": ["n", 64]}, {"y": None},
                     {"w": normal(0, 64, 64), "b": normal(1, 64)})  # fmt: skip
    model = wrapped(proto)
    before = model.digest()
    infer_shapes(model)
    assert list(model.graph.initializers) == ["w", "b"]
    assert model.digest() == before


def test_concrete_shapes_leave_the_model_alone() -> None:
    model = wrapped(conv_net())
    before = model.serialize()
    concrete_shapes(model, {"x": normal(0, 5, 3, 8, 8)})
    assert model.serialize() == before


def test_an_operator_that_inference_does_not_know_is_left_out() -> None:
    nodes = [node("Mystery", "x", "m", domain="other"), node("Relu", "m", "y")]
    model = wrapped(proto_of(nodes, {"x": [2]}, {"y": [2]}))
    model.ir.opset_imports["other"] = 1
    assert concrete_shapes(model, {"x": normal(0, 2)}) == {"x": (2,)}
