"""What a body takes in is measured too: the carried value of a Loop, the slices of a Scan."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from models import floats, node, normal, proto_of, run, wrapped
from onnx import TensorProto, helper, numpy_helper

ROUNDS = 3


def looping() -> onnx.ModelProto:
    """x is multiplied by q in each of three rounds."""
    inputs = [floats("i", [], TensorProto.INT64), floats("go", [], TensorProto.BOOL), floats("c", ["n", 4])]
    outputs = [floats("more", [], TensorProto.BOOL), floats("next", ["n", 4])]
    nodes = [node("Identity", "go", "more"), node("MatMul", "c q", "next")]
    loop = helper.make_node("Loop", ["k", "", "x"], ["y"], body=helper.make_graph(nodes, "b", inputs, outputs))
    proto = proto_of([loop], {"x": ["n", 4]}, {"y": ["n", 4]}, {"q": normal(0, 4, 4)})
    proto.graph.initializer.append(numpy_helper.from_array(np.array(ROUNDS), "k"))
    return proto


def scanning() -> onnx.ModelProto:
    body = helper.make_graph(
        [node("Add", "s slice", "sum"), node("Identity", "sum", "each")],
        "b",
        [floats("s", [4]), floats("slice", [4])],
        [floats("sum", [4]), floats("each", [4])],
    )
    scan = helper.make_node("Scan", ["zero", "x"], ["last", "y"], body=body, num_scan_inputs=1)
    return proto_of([scan], {"x": [3, 4]}, {"y": [3, 4]}, {"zero": np.zeros(4, np.float32)})


def test_the_carried_value_of_a_loop() -> None:
    model, x = wrapped(looping()), normal(1, 2, 4)
    found = run(model.serialize(extra_outputs=("c",)), {"x": x})["c"]
    rounds = [x @ np.linalg.matrix_power(normal(0, 4, 4), index) for index in range(ROUNDS)]
    np.testing.assert_allclose(found, np.concatenate([each.reshape(-1) for each in rounds]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["slice", "s"])
def test_what_a_scan_hands_in(name: str) -> None:
    x = normal(1, 3, 4)
    found = run(wrapped(scanning()).serialize(extra_outputs=(name,)), {"x": x})[name]
    expected = x if name == "slice" else np.concatenate([np.zeros((1, 4)), np.cumsum(x, axis=0)[:-1]])
    np.testing.assert_allclose(found.reshape(3, 4), expected, rtol=1e-5, atol=1e-6)
