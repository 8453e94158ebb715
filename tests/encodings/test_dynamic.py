"""Products that quantize their input as they run: as numpy does it, and on the fused kernels of onnxruntime."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import pytest
from codes import (
    EXACT,
    constants,
    decoded,
    float_weights,
    kernels_of,
    node_at,
    reasons,
    stored_of,
    weights_of,
    with_decoded_weights,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from models import (
    Feeds,
    Quantized,
    Shape,
    assert_equal,
    feeds_for,
    node,
    normal,
    operators,
    proto_of,
    quantized_of,
    run,
)
from onnx import TensorProto, helper

from qcli.plugins import create
from qcli.types import Array

PER_TENSOR = "rules=[{match: {role: weight}, grid: {format: int8, symmetric: true, narrow: true}}]"
ASYMMETRIC = "rules=[{match: {role: weight}, grid: {format: int8, symmetric: false, granularity: channel}}]"


def as_quantized(data: Array) -> Array:
    """What DynamicQuantizeLinear makes of a tensor, back in floats: uint8, one scale, zero is a level."""
    low, high = min(float(data.min()), 0.0), max(float(data.max()), 0.0)
    step = np.float32((np.float32(high) - np.float32(low)) / np.float32(255))
    zero = np.clip(np.rint(-np.float32(low) / step), 0, 255)
    codes = np.clip(np.rint(data / step) + zero, 0, 255)
    return np.asarray((codes - zero) * step, np.float32)


@dataclass(frozen=True)
class Product:
    """A MatMul or Gemm with its weight, and the shape of its data."""

    node: onnx.NodeProto
    data: Shape
    weights: dict[str, Array]

    def proto(self) -> onnx.ModelProto:
        return proto_of([self.node], {"x": self.data}, {"y": None}, self.weights)

    def expected(self, x: Array, weight: Array) -> Array:
        """The product in float64, of the data as it is quantized."""
        options = {item.name: helper.get_attribute_value(item) for item in self.node.attribute}
        data = as_quantized(x).astype(np.float64)
        data = data.T if options.get("transA") else data
        weight = weight.T if options.get("transB") else weight
        result = data @ weight.astype(np.float64) * options.get("alpha", 1.0)
        bias = self.weights.get("b")
        return np.asarray(result if bias is None else result + options.get("beta", 1.0) * bias)


W, WT = normal(0, 24, 20) / 5, normal(0, 20, 24) / 5

PRODUCTS: dict[str, Product] = {
    "MatMul of a vector": Product(node("MatMul", "x w", "y"), [24], {"w": W}),
    "MatMul 2-D": Product(node("MatMul", "x w", "y"), [3, 24], {"w": W}),
    "MatMul 3-D": Product(node("MatMul", "x w", "y"), [2, 3, 24], {"w": W}),
    "MatMul 4-D": Product(node("MatMul", "x w", "y"), [2, 2, 3, 24], {"w": W}),
    "Gemm": Product(node("Gemm", "x w", "y"), [3, 24], {"w": W}),
    "Gemm with a bias": Product(node("Gemm", "x w b", "y"), [3, 24], {"w": W, "b": normal(1, 20)}),
    "Gemm with a row as bias": Product(node("Gemm", "x w b", "y"), [3, 24], {"w": W, "b": normal(1, 1, 20)}),
    "Gemm with a column as bias": Product(node("Gemm", "x w b", "y"), [3, 24], {"w": W, "b": normal(1, 3, 1)}),
    "Gemm with a matrix as bias": Product(node("Gemm", "x w b", "y"), [3, 24], {"w": W, "b": normal(1, 3, 20)}),
    "Gemm with a scalar as bias": Product(node("Gemm", "x w b", "y"), [3, 24], {"w": W, "b": normal(1)}),
    "Gemm beta": Product(node("Gemm", "x w b", "y", beta=-0.5), [3, 24], {"w": W, "b": normal(1, 20)}),
    "Gemm beta of zero": Product(node("Gemm", "x w b", "y", beta=0.0), [3, 24], {"w": W, "b": normal(1, 20)}),
    "Gemm alpha": Product(node("Gemm", "x w", "y", alpha=0.25), [3, 24], {"w": W}),
    "Gemm alpha below zero": Product(node("Gemm", "x w b", "y", alpha=-2.0), [3, 24], {"w": W, "b": normal(1, 20)}),
    "Gemm transA": Product(node("Gemm", "x w", "y", transA=1), [24, 3], {"w": W}),
    "Gemm transB": Product(node("Gemm", "x w", "y", transB=1), [3, 24], {"w": WT}),
    "Gemm all at once": Product(
        node("Gemm", "x w b", "y", alpha=0.5, beta=2.0, transA=1, transB=1), [24, 3], {"w": WT, "b": normal(1, 20)}
    ),
}


@pytest.mark.parametrize("chosen", [(), (PER_TENSOR,), (ASYMMETRIC,)], ids=["channel", "tensor", "asymmetric"])
@pytest.mark.parametrize("name", PRODUCTS)
def test_the_result_is_that_of_the_arithmetic(name: str, chosen: tuple[str, ...]) -> None:
    product = PRODUCTS[name]
    quantized = stored_of(product.proto(), "int8-dynamic", (EXACT, *chosen))
    assert weights_of(quantized) == [("y", 1, "dynamic")]
    weight = decoded(quantized.plan, quantized.solution, "y", 1)
    onnx.checker.check_model(quantized.model.proto(), full_check=True)
    for seed in range(3):
        feeds = feeds_for(quantized.source, seed)
        expected = product.expected(feeds["x"], weight)
        for optimize in (False, True):
            found = run(quantized.model, feeds, optimize=optimize)["y"]
            assert found.shape == expected.shape
            np.testing.assert_allclose(found, expected, atol=2e-5 * max(1, np.abs(expected).max()))
        assert_equal(run(product.proto(), feeds), run(quantized.model, feeds), tolerance=0.05)
    assert not {"w"} & set(constants(quantized.model))


@pytest.mark.parametrize("name", [name for name, product in PRODUCTS.items() if len(product.data) > 1])
def test_onnxruntime_runs_it_on_an_integer_kernel(name: str) -> None:
    kernels = kernels_of(stored_of(PRODUCTS[name].proto(), "int8-dynamic"))
    assert kernels.integer_share == 1 and kernels.float_nodes == 0
    assert "MatMulInteger" not in kernels.by_kernel, "a fused kernel, and not the pieces that were written"


def test_one_product_of_an_input_is_one_kernel_with_its_bias() -> None:
    weights = {"w": W, "b": normal(1, 20)}
    nodes = [node("MatMul", "x w", "m"), node("Add", "m b", "y")]
    quantized = stored_of(proto_of(nodes, {"x": [2, 3, 24]}, {"y": None}, weights), "int8-dynamic")
    assert kernels_of(quantized).by_kernel == {"DynamicQuantizeMatMul": 1}


def attention(bias: bool = True) -> onnx.ModelProto:
    """Three products of one input."""
    weights = {f"w{name}": normal(at, 24, 24) / 5 for at, name in enumerate("qkv")}
    nodes = [node("MatMul", f"x w{name}", f"{name}0") for name in "qkv"]
    if bias:
        weights |= {f"b{name}": normal(5, 24) for name in "qkv"}
        nodes += [node("Add", f"{name}0 b{name}", name) for name in "qkv"]
    ends = list("qkv") if bias else ["q0", "k0", "v0"]
    nodes += [
        node("Transpose", ends[1], "kt", perm=[0, 2, 1]),
        node("MatMul", f"{ends[0]} kt", "s"),
        node("Softmax", "s", "p"),
        node("MatMul", f"p {ends[2]}", "y"),
    ]
    return proto_of(nodes, {"x": [2, 5, 24]}, {"y": None}, weights)


@pytest.mark.parametrize("bias", [True, False])
def test_products_of_one_input_quantize_it_once(bias: bool) -> None:
    quantized = stored_of(attention(bias), "int8-dynamic")
    assert operators(quantized.model).count("DynamicQuantizeLinear") == 1
    found = kernels_of(quantized).by_kernel
    assert (found["DynamicQuantizeLinear"], found["MatMulIntegerToFloat"]) == (1, 3)
    assert "DynamicQuantizeMatMul" not in found
    feeds = feeds_for(quantized.source)
    assert_equal(run(attention(bias), feeds), run(quantized.model, feeds, optimize=True), tolerance=0.05)
    assert [reasons(quantized)[key] for key in ("s", "y")] == ["integers do not pay between two activations"] * 2


def test_one_matrix_of_several_products_is_stored_once() -> None:
    square = normal(0, 24, 24) / 5
    nodes = [node("MatMul", "x w", "a"), node("Gemm", "a w", "b", transB=0), node("Gemm", "b w", "y", alpha=0.5)]
    quantized = stored_of(proto_of(nodes, {"x": [3, 24]}, {"y": None}, {"w": square}), "int8-dynamic")
    codes = [array for array in constants(quantized.model).values() if array.dtype == np.int8 and array.ndim == 2]
    assert len(codes) == 1
    feeds = feeds_for(quantized.source)
    assert_equal(run(with_decoded_weights(quantized), feeds), run(quantized.model, feeds), tolerance=0.05)


def test_names_of_results_and_of_nodes_stay() -> None:
    nodes = [node("MatMul", "x w", "m"), node("Relu", "m", "y")]
    proto = proto_of(nodes, {"x": [3, 24]}, {"y": None, "m": None}, {"w": W})
    quantized = stored_of(proto, "int8-dynamic")
    assert quantized.model.outputs() == ("y", "m")
    assert node_at(quantized.model, "m").name == "/m"


FLOAT: dict[str, tuple[list[onnx.NodeProto], dict[str, Shape], dict[str, Array], str]] = {
    "a weight on the left": (
        [node("MatMul", "w x", "y")], {"x": [20, 3]}, {"w": W}, "its weight is not a matrix on the right",
    ),
    "a batch of weights": (
        [node("MatMul", "x w", "y")], {"x": [2, 3, 24]}, {"w": normal(0, 2, 24, 20)}, "its weight is not a matrix",
    ),
    "a thin weight": ([node("MatMul", "x w", "y")], {"x": [3, 40]}, {"w": normal(0, 40, 8)}, "is below 16"),
    "a bias that is computed": (
        [node("Gemm", "x w x", "y", beta=2.0)], {"x": [24, 24]}, {"w": normal(0, 24, 24)}, "its bias is not constant",
    ),
    "an LSTM with batches first": (
        [node("LSTM", "x w r", "y", hidden_size=8, layout=1)],
        {"x": [2, 4, 24]}, {"w": normal(0, 1, 32, 24), "r": normal(1, 1, 32, 8)}, "its layout is 1",
    ),
    "a GRU": (
        [node("GRU", "x w r", "y", hidden_size=8)],
        {"x": [4, 2, 24]}, {"w": normal(0, 1, 24, 24), "r": normal(1, 1, 24, 8)}, "GRU has no dynamic form",
    ),
    "a domain": (
        [node("FusedMatMul", "x w", "y", domain="com.microsoft")], {"x": [3, 24]}, {"w": W}, "FusedMatMul has no",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", FLOAT)
def test_what_has_no_dynamic_form_is_stored_and_says_so(kind: str) -> None:
    nodes, data, weights, reason = FLOAT[kind]
    proto = proto_of(nodes, data, {"y": None}, weights)
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    rule = "rules=[{match: {role: weight}, encoding: dynamic}]"
    quantized = stored_of(proto, "int8-dynamic", (rule,))
    entries = quantized.plan.entries
    assert {entry.encoding for entry in entries} == {"weight_only"}
    assert all("not dynamic: " in entry.because for entry in entries)
    if kind != "a domain":
        assert all(reason in entry.because for entry in entries), entries[0].because
    if kind != "an LSTM with batches first":  # onnxruntime runs none
        feeds = feeds_for(quantized.source)
        assert_equal(run(with_decoded_weights(quantized), feeds), run(quantized.model, feeds), tolerance=1e-5)


def test_a_computed_bias_without_a_factor_is_added() -> None:
    proto = proto_of(
        [node("Gemm", "x w x", "y", alpha=0.5)], {"x": [24, 24]}, {"y": None}, {"w": normal(0, 24, 24) / 5}
    )
    quantized = stored_of(proto, "int8-dynamic")
    assert weights_of(quantized) == [("y", 1, "dynamic")]
    feeds = feeds_for(quantized.source)
    assert_equal(run(proto, feeds), run(quantized.model, feeds), tolerance=0.05)


def lstm(
    direction: str = "forward", extra: str = "", outputs: str = "y yh yc", inputs: int = 24, **attributes: Any
) -> onnx.ModelProto:
    """x [5, 2, inputs], 16 units; `extra` are the inputs behind R."""
    count = 2 if direction == "bidirectional" else 1
    weights: dict[str, Array] = {
        "w": normal(1, count, 64, inputs) / 4,
        "r": normal(2, count, 64, 16) / 4,
        "b": normal(3, count, 128) / 4,
        "h0": normal(4, count, 2, 16) / 4,
        "c0": normal(5, count, 2, 16) / 4,
        "p": normal(6, count, 48) / 4,
    }
    used = {"w", "r", *extra.split()}
    reads = ["" if name == "-" else name for name in f"x w r {extra}".split()]
    gives = ["" if name == "-" else name for name in outputs.split()]
    made = helper.make_node("LSTM", reads, gives, name="/lstm", hidden_size=16, direction=direction, **attributes)
    kept = {name: array for name, array in weights.items() if name in used}
    return proto_of([made], {"x": [5, 2, inputs]}, {name: None for name in gives if name}, kept)


LSTMS: dict[str, onnx.ModelProto] = {
    "forward": lstm(),
    "backward": lstm("reverse", "b"),
    "both ways": lstm("bidirectional", "b"),
    "initial states": lstm("bidirectional", "b - h0 c0"),
    "peepholes": lstm("forward", "b - h0 c0 p"),
    "peepholes both ways": lstm("bidirectional", "- - - - p"),
    "all states alone": lstm("bidirectional", "b", "y"),
    "the last state alone": lstm("forward", "b", "- yh"),
    "the cell alone": lstm("bidirectional", "b", "- - yc"),
    "clipped": lstm("forward", "b", clip=0.5),
    "other activations": lstm("forward", "b", activations=["Sigmoid", "Relu", "Tanh"]),
}


@pytest.mark.parametrize("chosen", [(), (PER_TENSOR,)], ids=["channel", "tensor"])
@pytest.mark.parametrize("kind", LSTMS)
def test_an_lstm_runs_on_its_integer_kernel(kind: str, chosen: tuple[str, ...]) -> None:
    proto = LSTMS[kind]
    quantized = stored_of(proto, "int8-dynamic", (EXACT, *chosen))
    assert operators(quantized.model) == ["DynamicQuantizeLSTM"]
    assert quantized.model.outputs() == tuple(output.name for output in proto.graph.output)
    for seed in range(2):
        feeds = feeds_for(quantized.source, seed)
        reference = run(with_decoded_weights(quantized), feeds)
        assert_equal(reference, run(quantized.model, feeds), tolerance=0.03, what=kind)
        assert_equal(reference, run(quantized.model, feeds, optimize=True), tolerance=0.03, what=kind)
    assert kernels_of(quantized).by_kernel == {"DynamicQuantizeLSTM": 1}
    assert kernels_of(quantized).integer_share == 1
    assert not {"w", "r"} & set(constants(quantized.model))


def test_an_lstm_of_which_one_weight_is_too_small_keeps_float_arithmetic() -> None:
    """Its kernel takes both weights as integers or none."""
    quantized = stored_of(lstm(inputs=2), "int8-dynamic")
    assert weights_of(quantized) == [("y", 2, "weight_only")]
    assert operators(quantized.model) == ["Cast", "Mul", "LSTM"]
    feeds = feeds_for(quantized.source)
    assert_equal(run(with_decoded_weights(quantized), feeds), run(quantized.model, feeds), tolerance=1e-5)


def test_an_lstm_of_which_a_rule_stores_one_weight() -> None:
    rule = "rules=[{match: {value: r, role: weight}, encoding: weight_only}]"
    quantized = stored_of(lstm(), "int8-dynamic", (rule,))
    assert weights_of(quantized) == [("y", 1, "weight_only"), ("y", 2, "weight_only")]
    assert_equal(*(run(one, feeds_for(quantized.source)) for one in (with_decoded_weights(quantized), quantized.model)))


def branches(shared: bool = True) -> onnx.ModelProto:
    """An If whose bodies multiply a value of the main graph, which multiplies it too."""
    names = ("w", "w") if shared else ("v", "u")
    bodies = [
        helper.make_graph(
            [node("MatMul", f"h {name}", f"{which}_y")],
            which,
            [],
            [helper.make_tensor_value_info(f"{which}_y", 1, None)],
        )
        for which, name in zip(("then", "else"), names, strict=True)
    ]
    nodes = [
        node("Relu", "x", "h"),
        node("MatMul", "h w", "m"),
        node("If", "which", "y", then_branch=bodies[0], else_branch=bodies[1]),
    ]
    weights = {"w": normal(0, 24, 24) / 5, "v": normal(1, 24, 24) / 5, "u": normal(2, 24, 24) / 5}
    kept = {name: array for name, array in weights.items() if name in {"w", *names}}
    proto = proto_of(nodes, {"x": [3, 24]}, {"y": None, "m": None}, kept)
    proto.graph.input.append(helper.make_tensor_value_info("which", TensorProto.BOOL, []))
    return proto


@pytest.mark.parametrize("recipe", ["int8-dynamic", "int8-weights"])
@pytest.mark.parametrize("shared", [True, False])
def test_a_value_that_bodies_multiply(shared: bool, recipe: str) -> None:
    """Each graph quantizes it for itself, and weights that are shared stay so."""
    proto = branches(shared)
    for which in (True, False):
        feeds: Feeds = {"x": normal(1, 3, 24), "which": np.array(which)}
        quantized = stored_of(proto, recipe, feeds=feeds)
        assert {name for name, _, _ in weights_of(quantized)} == {"m", "then_y", "else_y"}
        for optimize in (False, True):
            assert_equal(run(proto, feeds), run(quantized.model, feeds, optimize=optimize), tolerance=0.05)
        codes = [array for array in constants(quantized.model).values() if array.dtype == np.int8 and array.ndim == 2]
        assert len(codes) == (1 if shared else 3) and float_weights(quantized.model) == []
    if recipe == "int8-dynamic":
        assert operators(quantized.model).count("DynamicQuantizeLinear") == 3


def test_a_static_and_a_dynamic_product_side_by_side() -> None:
    """A recipe may mix the two: the static one learns its range, the other one takes what comes."""
    nodes = [node("MatMul", "x w", "a"), node("Exp", "a", "e"), node("MatMul", "e v", "y", name="last")]
    weights = {"w": normal(0, 24, 24) / 24, "v": normal(1, 24, 24) / 24}
    proto = proto_of(nodes, {"x": [4, 24]}, {"y": None}, weights)
    rule = "rules=[{match: {name: last, role: weight}, encoding: dynamic}]"
    quantized: Quantized = quantized_of(proto, settings=(rule,))
    assert weights_of(quantized) == [("a", 1, "qdq"), ("y", 1, "dynamic")]
    assert [entry.site.value for entry in quantized.plan.entries if entry.site.role == "input"] == ["x"]
    feeds = feeds_for(quantized.source)
    for optimize in (False, True):
        assert_equal(run(proto, feeds), run(quantized.model, feeds, optimize=optimize), tolerance=0.05)


@settings(max_examples=30)
@given(rows=st.integers(1, 5), seed=st.integers(0, 2**20), scale=st.floats(1e-4, 1e4), shift=st.floats(-2, 2))
def test_whatever_the_range_of_the_data(rows: int, seed: int, scale: float, shift: float) -> None:
    """The range is found anew for every input, so its size and its place do not matter."""
    product = PRODUCTS["Gemm with a bias"]
    weights = product.weights | {"b": product.weights["b"] * np.float32(scale)}
    proto = proto_of([product.node], {"x": ["n", 24]}, {"y": None}, weights)
    quantized = stored_of(proto, "int8-dynamic", (EXACT,))
    x = ((normal(seed, rows, 24) + np.float32(shift)) * np.float32(scale)).astype(np.float32)
    weight = decoded(quantized.plan, quantized.solution, "y", 1)
    expected = Product(product.node, product.data, weights).expected(x, weight)
    step = (max(x.max(), 0) - min(x.min(), 0)) / 255
    bound = step * np.abs(weight).sum(axis=0) * 0.01 + 1e-5 * np.abs(expected).max()
    found = run(quantized.model, {"x": x})["y"]
    one_level_apart = step * np.abs(weight).max(axis=0)  # numpy and onnxruntime may round a tie differently
    assert (np.abs(found - expected) <= bound + one_level_apart).all()


def test_it_asks_for_the_operator_set_of_its_operators() -> None:
    assert create("encodings", "dynamic").min_opset(8, "channel") == 11
