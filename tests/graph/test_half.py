"""Nodes that compute in 16 bits: where the Casts stand, what is stored, and what rounding every value means."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
import pytest
from models import Feeds, feeds_for, node, normal, operators, proto_of, run, wrapped
from onnx import TensorProto

from qcli.graph import (
    Halves,
    Model,
    Node,
    compute_in_half,
    computes_in_float,
    half_trial,
    halves_of,
    infer_shapes,
    node_key,
    normalize_graph,
    round_as_halves,
    weight_floats,
)
from qcli.types import Array

WEIGHTS = {"w": normal(0, 8, 8), "b": normal(1, 8)}
CHAIN = [node("MatMul", "x w", "a"), node("Add", "a b", "c"), node("Relu", "c", "y")]


def typed(nodes: list[onnx.NodeProto], weights: dict[str, Array] | None = None, opset: int = 17) -> Model:
    model = wrapped(proto_of(nodes, {"x": ["n", 8]}, {"y": None}, weights or WEIGHTS, opset=opset))
    normalize_graph(model)
    infer_shapes(model)
    return model


def chosen(model: Model, keys: Collection[str], to: str = "float16") -> dict[Node, Halves]:
    found = {node: halves_of(node, model.opset, to) for node in model.graph if node_key(node) in keys}
    return {node: halves for node, halves in found.items() if isinstance(halves, Halves)}


def in_half(model: Model, keys: Collection[str], *, ends: bool = False) -> Model:
    compute_in_half(model, chosen(model, keys), "float16", ends=ends)
    model.sort()
    model.forget_shapes()
    onnx.checker.check_model(model.proto())
    return model


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (("a", "c", "y"), ["Cast", "MatMul", "Add", "Relu", "Cast"]),
        (("a",), ["Cast", "MatMul", "Cast", "Add", "Relu"]),
        (("c",), ["MatMul", "Cast", "Add", "Cast", "Relu"]),
        ((), ["MatMul", "Add", "Relu"]),
    ],
)
def test_casts_stand_at_the_borders(keys: tuple[str, ...], expected: list[str]) -> None:
    model = typed(CHAIN)
    reference = run(model, feeds_for(model))["y"]
    assert operators(in_half(model, keys)) == expected
    np.testing.assert_allclose(run(model, feeds_for(model))["y"], reference, atol=0.02)


def test_an_input_that_both_read_is_cast_once() -> None:
    nodes = [node("Relu", "x", "r"), node("Neg", "x", "n"), node("Abs", "x", "p"), node("Sum", "r n p", "y")]
    assert operators(in_half(typed(nodes), ("r", "n"))).count("Cast") == 3, "the input and two results"
    whole = in_half(typed(nodes), ("r", "n"), ends=True)
    assert operators(whole).count("Cast") == 4, "for Abs, of two results, and of the output"


def test_a_constant_that_both_read_is_stored_in_both() -> None:
    nodes = [node("Add", "x b", "a"), node("Mul", "a b", "y")]
    model = in_half(typed(nodes), ("a",))
    kinds = sorted(tensor.data_type for tensor in model.proto().graph.initializer)
    assert kinds == [TensorProto.FLOAT, TensorProto.FLOAT16]


def test_a_cast_changes_what_it_makes() -> None:
    nodes = [
        node("Cast", "x", "i", to=TensorProto.UINT8),
        node("Cast", "i", "f", to=TensorProto.FLOAT),
        node("Relu", "f", "y"),
    ]
    model = typed(nodes)
    assert operators(in_half(model, ("f", "y"))) == ["Cast", "Cast", "Relu", "Cast"]
    assert [one.attributes["to"].as_int() for one in model.graph if one.op_type == "Cast"] == [2, 10, 1]


@pytest.mark.parametrize("to", ["float16", "bfloat16"])
def test_rounding_every_value_is_what_16_bits_store(to: str) -> None:
    import ml_dtypes

    kind = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}[to]
    model = typed(CHAIN)
    names = round_as_halves(model, chosen(model, ("a", "c", "y"), to), to)
    assert sorted(names.values()) == ["a", "c", "y"]
    model.sort()
    onnx.checker.check_model(model.proto())
    feeds: Feeds = feeds_for(model)

    def stored(values: Array) -> Array:
        return values.astype(kind).astype(np.float32)

    x, w, b = stored(feeds["x"]), stored(WEIGHTS["w"]), stored(WEIGHTS["b"])
    expected = stored(np.maximum(stored(stored(x @ w) + b), 0))
    found = run(model, feeds, optimize=True)["y"]
    assert found.dtype == np.float32
    steps = 2.0**-11 if to == "float16" else 2.0**-8
    np.testing.assert_allclose(found, expected, rtol=4 * steps, atol=8 * steps)
    np.testing.assert_array_equal(found, stored(found))


def test_what_the_schema_says() -> None:
    resize = node("Resize", "x - s", "y", mode="nearest")
    model = typed([resize], {"s": np.ones(2, np.float32)})
    [made] = model.graph
    assert halves_of(made, 17, "float16") == Halves((0,), (0,)), "the scales stay float32"
    [relu] = typed([node("Relu", "x", "y")]).graph
    assert halves_of(relu, 13, "float16") == Halves((0,), (0,)) and computes_in_float(relu)
    [conv] = typed([node("LeakyRelu", "x", "y")]).graph
    assert halves_of(conv, 13, "bfloat16") == "LeakyRelu of operator set 13 takes no bfloat16"
    [random] = typed([node("RandomNormalLike", "x", "y")]).graph
    assert halves_of(random, 17, "float16") == "an attribute says which type it has"
    [gelu] = typed([node("Gelu", "x", "y", domain="com.microsoft")]).graph
    assert "domain 'com.microsoft'" in str(halves_of(gelu, 17, "float16"))


def test_a_trial_is_the_node_alone() -> None:
    model = typed(CHAIN)
    node_of = {node_key(one): one for one in model.graph}
    trial = onnx.load_model_from_string(half_trial(model, node_of["c"], Halves((0, 1), (0,)), "float16"))
    assert [item.op_type for item in trial.graph.node] == ["Add"]
    assert [item.name for item in trial.graph.input] == ["a"]
    assert [item.data_type for item in trial.graph.initializer] == [TensorProto.FLOAT16]


def test_the_types_of_weights() -> None:
    assert weight_floats(typed(CHAIN)) == {"float32"}
    assert weight_floats(in_half(typed(CHAIN), ("a", "c", "y"))) == {"float16"}
