"""Which nodes become integer, graph by graph; each that stays float says why."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from models import (
    SAMPLE_MODELS,
    Shape,
    Stream,
    assert_equal,
    conv_net,
    dense_net,
    feeds_for,
    floats,
    node,
    normal,
    proto_of,
    quantized_of,
    run,
    sample_model,
    wrapped,
)
from onnx import TensorProto, helper

from qcli.graph import normalize_graph
from qcli.kernels import read_kernels
from qcli.plan import make_plan
from qcli.plugins import create
from qcli.recipe import load_recipe
from qcli.runtime import Session
from qcli.types import Array, Plan, Role


def planned(proto: onnx.ModelProto) -> Plan:
    model = wrapped(proto)
    normalize_graph(model)
    return make_plan(model, load_recipe("int8"))


def results(plan: Plan) -> list[str]:
    return [entry.site.value for entry in plan.entries if entry.site.role is Role.OUTPUT]


def reads(plan: Plan) -> list[tuple[str, str]]:
    return [(entry.site.node, entry.site.value) for entry in plan.entries if entry.site.role is Role.INPUT]


def biases(plan: Plan) -> list[str]:
    return [entry.site.value for entry in plan.entries if entry.site.role is Role.BIAS]


def kept(plan: Plan) -> dict[str, str]:
    return {item.op: item.reason for item in plan.kept_float}


def sandwich(
    *middle: onnx.NodeProto, result: str, more: dict[str, Array] | None = None, shape: Shape = (1, 4, 6, 6)
) -> Plan:
    """Conv x -> c, the nodes, Conv result -> y."""
    weights = {"w": normal(0, 4, 4, 1, 1), "v": normal(1, 4, 4, 1, 1)} | (more or {})
    return planned(
        proto_of(
            [node("Conv", "x w", "c"), *middle, node("Conv", f"{result} v", "y")], {"x": shape}, {"y": None}, weights
        )
    )


def test_a_convolutional_network_is_integer_from_end_to_end() -> None:
    plan = planned(conv_net())
    assert plan.kept_float == ()
    assert results(plan) == ["r1", "k2", "c3", "a", "m", "g", "f"], "the last Gemm gives floats"
    assert reads(plan) == [("c1", "x")]
    assert biases(plan) == ["b1", "b4"]


def test_the_sample_network_too() -> None:
    model = sample_model("cnn")
    for name in ("fold_constants", "fold_batchnorm"):
        create("steps", name).run(model)
    plan = make_plan(model, load_recipe("int8"))
    assert {item.op for item in plan.kept_float} == set()


def test_every_entry_and_every_node_kept_float_says_why() -> None:
    for name in ("cnn", "transformer", "gru", "mlp"):
        plan = make_plan(sample_model(name), load_recipe("int8"))
        assert all(entry.because for entry in plan.entries)
        assert all(item.reason for item in plan.kept_float), [item for item in plan.kept_float if not item.reason]
        assert all(tie.because for tie in plan.ties)


def encoder(written_out: bool) -> onnx.ModelProto:
    """LayerNormalization, MatMul + Add, Softmax between two activations, Gelu as one node or written with Erf."""
    weights = {
        "gain": np.ones(8, np.float32),
        "wq": normal(0, 8, 8),
        "wk": normal(1, 8, 8),
        "bq": normal(2, 8),
        "w1": normal(3, 8, 16),
        "b1": normal(4, 16),
        "w2": normal(5, 16, 8),
        "root": np.array(1.414, np.float32),
        "one": np.array(1, np.float32),
    }
    nodes = [
        node("LayerNormalization", "x gain", "n"),
        node("MatMul", "n wq", "q0"),
        node("Add", "q0 bq", "q"),
        node("MatMul", "n wk", "k"),
        node("Transpose", "k", "kt", perm=[0, 2, 1]),
        node("MatMul", "q kt", "s"),
        node("Softmax", "s", "p"),
        node("MatMul", "p n", "o"),
        node("Add", "o x", "h"),
        node("MatMul", "h w1", "u0"),
        node("Add", "u0 b1", "u"),
    ]
    gelu = [
        node("Div", "u root", "d"),
        node("Erf", "d", "e"),
        node("Add", "e one", "e1"),
        node("Mul", "u e1", "g"),
    ]
    nodes += [*(gelu if written_out else [node("Gelu", "u", "g")]), node("MatMul", "g w2", "y")]
    return proto_of(nodes, {"x": ["n", 6, 8]}, {"y": None}, weights, opset=20)


def test_an_encoder_is_integer_in_its_products_alone() -> None:
    plan = planned(encoder(written_out=False))
    assert sorted(entry.site.value for entry in plan.entries if entry.site.role is Role.WEIGHT) == [
        "w1",
        "w2",
        "wk",
        "wq",
    ]
    assert results(plan) == [], "MatMul gives floats to float readers"
    assert sorted(reads(plan)) == [("k", "n"), ("q0", "n"), ("u0", "h"), ("y", "g")]
    reasons = kept(plan)
    assert "six times slower" in reasons["Softmax"] and "no integer kernel" in reasons["LayerNormalization"]
    assert "between two activations" in reasons["MatMul"] and "no integer kernel" in reasons["Gelu"]
    assert reasons["Transpose"] and reasons["Add"]


def test_a_gelu_written_out_stays_float() -> None:
    """Its Mul lies between two products, but Div and Erf make all that it reads float."""
    plan = planned(encoder(written_out=True))
    assert results(plan) == []
    assert sorted(reads(plan)) == [("k", "n"), ("q0", "n"), ("u0", "h"), ("y", "g")]
    assert {"Div", "Erf", "Mul"} <= set(kept(plan))


@pytest.mark.parametrize(
    ("shape", "bias", "integer"),
    [
        (["n", 8], (16,), True),
        (["n", 8], (1, 16), True),
        ([2, 3, 8], (16,), True),
        (["n", 3, 8], (16,), False),
        ([2, "t", 8], (16,), False),
        (["n", 8], (), False),
        (["n", 8], (1,), False),
        ([2, 3, 8], (3, 16), False),
        ([2, 3, 8], (1, 1, 16), False),
    ],
)
def test_a_bias_behind_a_product_is_integer_where_the_runtime_joins_the_two(
    shape: list[int | str], bias: tuple[int, ...], integer: bool
) -> None:
    nodes = [node("MatMul", "x w", "m"), node("Add", "b m", "y")]
    proto = proto_of(nodes, {"x": shape}, {"y": None}, {"w": normal(0, 8, 16), "b": normal(1, *bias)})
    assert biases(planned(proto)) == (["b"] if integer else [])


def test_the_joined_bias_really_becomes_one_integer_kernel(tmp_path: Any) -> None:
    quantized = quantized_of(dense_net())
    Session(quantized.model.serialize(), optimized_to=tmp_path / "o.onnx")
    found = [item.op_type for item in onnx.load(tmp_path / "o.onnx").graph.node]
    assert "MatMul" not in found and "Gemm" not in found, found


def test_what_only_moves_codes_shares_one_scale() -> None:
    weights = {"w": normal(0, 4, 4, 1, 1), "v": normal(1, 4, 8, 1, 1), "shape": np.array([1, 8, 3, 3])}
    nodes = [
        node("Conv", "x w", "c"),
        node("MaxPool", "c", "p", kernel_shape=[2, 2], strides=[2, 2]),
        node("Concat", "p p", "j", axis=1),
        node("Reshape", "j shape", "r"),
        node("Conv", "r v", "y"),
    ]
    plan = planned(proto_of(nodes, {"x": [1, 4, 6, 6]}, {"y": None}, weights))
    assert [tie.values for tie in plan.ties] == [("c", "p"), ("p", "p", "j"), ("j", "r")]
    quantized = quantized_of(proto_of(nodes, {"x": [1, 4, 6, 6]}, {"y": None}, weights))
    scales = {
        (float(quantized.solution.scales[key].scale[0]), int(quantized.solution.scales[key].zero_point[0]))
        for key in quantized.solution.scales
        if key[0] in ("c", "p", "j", "r") and key[1] == "output"
    }
    assert len(scales) == 1


MOVES = {
    "MaxPool": node("MaxPool", "c", "m", kernel_shape=[1, 1]),
    "Transpose": node("Transpose", "c", "m", perm=[0, 1, 3, 2]),
    "Slice": node("Slice", "c zero six", "m"),
    "Pad": node("Pad", "c pads", "m"),
    "Resize": node("Resize", "c - two", "m", mode="nearest"),
    "AveragePool": node("AveragePool", "c", "m", kernel_shape=[2, 2]),
    "LeakyRelu": node("LeakyRelu", "c", "m"),
    "Sigmoid": node("Sigmoid", "c", "m"),
    "Mul": node("Mul", "c scalar", "m"),
    "Add": node("Add", "c x", "m"),
    "Concat of inputs": node("Concat", "c c", "cc", axis=2),
}
CONSTANTS: dict[str, Array] = {
    "zero": np.array([0]),
    "six": np.array([1]),
    "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
    "two": np.array([1, 1, 2, 2], np.float32),
    "scalar": np.array(1.5, np.float32),
}


@pytest.mark.parametrize("name", MOVES)
def test_operators_between_two_convolutions_are_integer(name: str) -> None:
    plan = sandwich(MOVES[name], result=MOVES[name].output[0], more=CONSTANTS)
    assert plan.kept_float == () and MOVES[name].output[0] in results(plan)


REFUSED = {
    "interpolates": node("Resize", "c - two", "m", mode="linear"),
    "something else than zero": node("Pad", "c pads scalar", "m"),
    "Tanh": node("Tanh", "c", "m"),
    "HardSwish": node("HardSwish", "c", "m"),
    "Sub": node("Sub", "c x", "m"),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_has_no_integer_kernel_stays_float_with_a_reason(reason: str) -> None:
    middle = REFUSED[reason]
    plan = sandwich(middle, result="m", more=CONSTANTS)
    [found] = [item for item in plan.kept_float if item.op == middle.op_type]
    assert reason in found.reason or "no integer kernel" in found.reason
    assert "c" in results(plan) and ("y", "m") in reads(plan), "the border lies at the float node"


def test_pooling_that_also_gives_indices_stays_float() -> None:
    nodes = [node("Conv", "x w", "c"), node("MaxPool", "c", "m i", kernel_shape=[1, 1]), node("Conv", "m w", "y")]
    proto = proto_of(nodes, {"x": [1, 4, 6, 6]}, {"y": None}, {"w": normal(0, 4, 4, 1, 1)})
    proto.graph.output.append(floats("i", None, TensorProto.INT64))
    assert kept(planned(proto))["MaxPool"] == "it also gives indices"


def test_padding_with_zero_said_aloud_is_integer() -> None:
    plan = sandwich(node("Pad", "c pads nought", "m"), result="m", more=CONSTANTS | {"nought": np.array(0, np.float32)})
    assert plan.kept_float == ()


def test_a_tail_that_leads_to_no_product_stays_float() -> None:
    weights = {"w": normal(0, 4, 4, 1, 1)}
    nodes = [node("Conv", "x w", "c"), node("Sigmoid", "c", "s"), node("Mul", "c s", "m"), node("Exp", "m", "y")]
    plan = planned(proto_of(nodes, {"x": [1, 4, 6, 6]}, {"y": None}, weights))
    assert results(plan) == ["c"]
    assert set(kept(plan)) == {"Sigmoid", "Mul", "Exp"} and "island" in kept(plan)["Mul"]


def test_of_a_swish_without_integer_kernel_both_factors_stay_float() -> None:
    gate, product = node("HardSigmoid", "c", "h"), node("Mul", "c h", "m")
    plan = sandwich(gate, product, result="m")
    assert set(kept(plan)) == {"HardSigmoid", "Mul"} and "of x f(x)" in kept(plan)["Mul"]
    assert results(plan) == ["c", "y"] and ("y", "m") in reads(plan)
    swapped = sandwich(gate, node("Mul", "h c", "m"), result="m")
    assert set(kept(swapped)) == {"HardSigmoid", "Mul"}
    gated = sandwich(node("HardSigmoid", "x", "h"), node("Mul", "c h", "m"), result="m")
    assert set(kept(gated)) == {"HardSigmoid"}, "the gate of another value"
    silu = sandwich(node("Sigmoid", "c", "h"), node("Mul", "c h", "m"), result="m")
    assert kept(silu) == {}, "Sigmoid has an integer kernel"


def depthwise(*nodes: onnx.NodeProto, result: str = "y") -> Plan:
    weights = {"w": normal(0, 4, 4, 1, 1), "d": normal(1, 4, 1, 3, 3), "e": normal(2, 8, 1, 3, 3)}
    return planned(proto_of(list(nodes), {"x": [1, 4, 6, 6]}, {result: None}, weights))


def test_a_depthwise_convolution_is_integer_between_others_only() -> None:
    first, last = node("Conv", "x w", "c"), node("Conv", "m w", "y")
    middle = node("Conv", "c d", "m", group=4)
    assert kept(depthwise(first, middle, last)) == {}
    swish = (node("HardSigmoid", "c", "h"), node("Mul", "c h", "s"), node("Conv", "s d", "m", group=4))
    plan = depthwise(first, *swish, last)
    assert kept(plan)["Conv"].startswith("no integer operator feeds it, and Conv alone does not pay")
    assert results(plan) == ["c", "y"]
    plan = depthwise(first, node("Conv", "c d", "y", group=4))
    assert kept(plan)["Conv"].startswith("it would be an integer island between float nodes")
    assert kept(depthwise(first, node("Conv", "c e", "y", group=4))).get("Conv"), "two results for each channel"


def test_an_island_between_float_nodes_is_refused() -> None:
    nodes = [
        node("Exp", "x", "e"),
        node("Add", "e x", "a"),
        node("MaxPool", "a", "m", kernel_shape=[1, 1]),
        node("Exp", "m", "f"),
    ]
    proto = proto_of([*nodes, node("Conv", "f w", "y")], {"x": [1, 4, 6, 6]}, {"y": None}, {"w": normal(0, 4, 4, 1, 1)})
    plan = planned(proto)
    assert results(plan) == ["y"] or results(plan) == []
    assert kept(plan)["Add"] == "no integer operator feeds it, and Add alone does not pay"
    assert kept(plan)["MaxPool"].startswith("no integer operator feeds it")


def test_shape_arithmetic_is_not_listed() -> None:
    weights = {"w": normal(0, 4, 4), "at": np.array([0]), "rest": np.array([-1])}
    nodes = [
        node("Shape", "x", "s"),
        node("Gather", "s at", "g"),
        node("Concat", "g rest", "to", axis=0),
        node("Reshape", "x to", "r"),
        node("Gemm", "r w", "y"),
    ]
    plan = planned(proto_of(nodes, {"x": ["n", 2, 2]}, {"y": ["n", 4]}, weights))
    assert {item.op for item in plan.kept_float} <= {"Reshape"}


def test_bodies_are_placed_like_the_main_graph() -> None:
    body = helper.make_graph([node("MatMul", "c v", "t"), node("Neg", "t", "u")], "then", [], [floats("u", None)])
    other = helper.make_graph([node("Neg", "c", "e")], "else", [], [floats("e", None)])
    nodes = [node("MatMul", "x w", "c"), node("If", "which", "y", then_branch=body, else_branch=other)]
    proto = proto_of(nodes, {"x": [2, 4]}, {"y": None}, {"w": normal(0, 4, 4), "v": normal(1, 4, 4)})
    proto.graph.input.append(floats("which", [], TensorProto.BOOL))
    plan = planned(proto)
    assert {item.node for item in plan.kept_float} == {"u", "e"}
    assert [entry.site.value for entry in plan.entries if entry.site.role is Role.WEIGHT] == ["w", "v"]
    assert reads(plan) == [("c", "x"), ("t", "c")], "a body quantizes for itself what it reads"


def test_a_body_reads_what_was_quantized() -> None:
    then_body = helper.make_graph([node("MatMul", "c v", "t")], "then", [], [floats("t", None)])
    else_body = helper.make_graph([node("Neg", "c", "e")], "else", [], [floats("e", None)])
    nodes = [node("Conv", "x w", "c"), node("If", "which", "y", then_branch=then_body, else_branch=else_body)]
    proto = proto_of(nodes, {"x": [1, 3, 4, 4]}, {"y": None}, {"w": normal(0, 4, 3, 1, 1), "v": normal(1, 4, 4)})
    proto.graph.input.append(floats("which", [], TensorProto.BOOL))
    samples = tuple({"x": normal(seed, 1, 3, 4, 4), "which": np.array(bool(seed % 2))} for seed in range(6))
    quantized = quantized_of(proto, stream=Stream(samples))
    for feeds in samples:
        assert_equal(run(proto, feeds), run(quantized.model, feeds), tolerance=0.05)
    onnx.checker.check_model(quantized.model.proto(), full_check=True)


LAYER_REFUSALS = {
    "its weight is not constant": (node("Conv", "x k", "y"), [1, 4, 6, 6], {"k": [4, 4, 1, 1]}),
    "integers do not pay between two activations": (node("MatMul", "x k", "y"), [2, 4], {"k": [4, 4]}),
    "its bias is not constant": (node("Gemm", "x w k", "y"), [2, 4], {"k": [4]}),
    "integer Gemm has no alpha, beta or transA": (node("Gemm", "x w", "y", alpha=0.5), [2, 4], {}),
    "its weight is not a matrix": (node("MatMul", "x w3", "y"), [2, 3, 4], {}),
}


@pytest.mark.parametrize("reason", LAYER_REFUSALS)
def test_layers_that_have_no_integer_form(reason: str) -> None:
    made, shape, more = LAYER_REFUSALS[reason]
    weights = {"w": normal(0, 4, 4), "w3": normal(1, 2, 4, 4), "v": normal(2, 4, 4)}
    anchor = node("Gemm", "z v", "other")
    proto = proto_of([made, anchor], {"x": shape, "z": [2, 4], **more}, {"y": None, "other": None}, weights)
    [found] = [item for item in planned(proto).kept_float if item.node == "y"]
    constant = sum(name in weights for name in made.input) > 0
    assert found.reason == reason + ("; its weight is too small for integers to save bytes" if constant else "")


def test_a_transposed_gemm_of_its_data_stays_float() -> None:
    proto = proto_of(
        [node("Gemm", "x w", "y", transA=1), node("Gemm", "x v", "z")],
        {"x": [4, 4]}, {"y": None, "z": None}, {"w": normal(0, 4, 4), "v": normal(1, 4, 4)},
    )  # fmt: skip
    [found] = planned(proto).kept_float
    assert "transA" in found.reason


def test_operators_of_other_domains_are_named() -> None:
    proto = proto_of(
        [node("Gemm", "x w", "g"), node("Gelu", "g", "y", domain="com.microsoft")],
        {"x": [2, 4]},
        {"y": None},
        {"w": normal(0, 4, 4)},
    )
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    [found] = planned(proto).kept_float
    assert "com.microsoft" in found.reason


def test_float64_layers_stay_float() -> None:
    weights = {"w": normal(0, 4, 4), "v": normal(1, 4, 4).astype(np.float64)}
    nodes = [node("MatMul", "x w", "y"), node("Cast", "x", "d", to=TensorProto.DOUBLE), node("MatMul", "d v", "e"),
             node("Cast", "e", "z", to=TensorProto.FLOAT)]  # fmt: skip
    plan = planned(proto_of(nodes, {"x": [2, 4]}, {"y": None, "z": None}, weights))
    assert kept(plan)["MatMul"] == "its data is not float32; its weight is not float32"


@pytest.mark.parametrize("activation", ["Relu", "Clip", "Max", "Min"])
def test_what_a_saturating_grid_does_is_swallowed(activation: str) -> None:
    bounds = {"low": np.array(0, np.float32), "high": np.array(6, np.float32)}
    made = {"Relu": "c", "Clip": "c low high", "Max": "low c", "Min": "c high"}[activation]
    plan = sandwich(node(activation, made, "m"), result="m", more=bounds)
    assert plan.kept_float == () and results(plan)[0] == "m"


@pytest.mark.parametrize("name", ["Max", "Min"])
def test_a_bound_that_adds_an_axis_or_varies_is_not_swallowed(name: str) -> None:
    for bound in (normal(0, 4, 1, 1), np.zeros((1, 1, 1, 1, 1), np.float32)):
        weights = {"w": normal(0, 4, 4, 1, 1), "bound": bound}
        proto = proto_of(
            [node("Conv", "x w", "c"), node(name, "c bound", "y")], {"x": [1, 4, 3, 3]}, {"y": None}, weights
        )
        quantized = quantized_of(proto)
        feeds = feeds_for(quantized.source)
        assert_equal(run(proto, feeds), run(quantized.model, feeds), tolerance=0.05)


def test_a_value_read_twice_is_not_swallowed() -> None:
    plan = sandwich(node("Relu", "c", "r"), node("Add", "c r", "m"), result="m")
    assert "c" in results(plan), "the Add reads what is in front of the Relu"
    assert kept(plan) == {"Relu": "onnxruntime's CPU provider has no integer kernel for it"}


def test_a_graph_output_in_the_middle_stays_readable() -> None:
    proto = conv_net()
    proto.graph.output.append(floats("a", None))
    quantized = quantized_of(proto)
    feeds = feeds_for(quantized.source)
    assert_equal(run(proto, feeds), run(quantized.model, feeds), tolerance=0.08)


def test_the_sample_models_exist() -> None:
    assert sorted(path.parent.name for path in SAMPLE_MODELS.glob("*/model.onnx")) == [
        "cnn",
        "gru",
        "mlp",
        "transformer",
    ]


def split_net(parts: int) -> onnx.ModelProto:
    """Conv, Split of the channels, a Conv behind each part, Concat."""
    names = [f"p{index}" for index in range(parts)]
    nodes = [node("Conv", "x w", "c"), node("Split", "c", " ".join(names), axis=1, num_outputs=parts)]
    nodes += [node("Conv", f"{name} v", f"{name}c") for name in names]
    nodes.append(node("Concat", " ".join(f"{name}c" for name in names), "y", axis=1))
    weights = {"w": normal(0, 4 * parts, 3, 3, 3), "v": normal(1, 8, 4, 1, 1)}
    return proto_of(nodes, {"x": [1, 3, 12, 12]}, {"y": None}, weights, opset=18)


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_a_split_between_convolutions_moves_codes_in_all_of_its_parts(parts: int) -> None:
    made = quantized_of(split_net(parts))
    tied = next(tie for tie in made.plan.ties if tie.node == "p0")
    assert tied.values == ("c", *(f"p{index}" for index in range(parts)))
    scales = {float(made.solution.scales["p0", "output", index].scale[0]) for index in range(parts)}
    scales.add(float(made.solution.scales["c", "output", 0].scale[0]))
    assert len(scales) == 1
    assert [kept.op for kept in made.plan.kept_float] == ["Concat"]
    feeds = feeds_for(made.source)
    kernels = read_kernels(made.model.serialize(), made.source, feeds)
    assert kernels.by_kernel["QuantizeLinear"] == 1, "codes pass through the Split"
    expected, given = run(made.source, feeds)["y"], run(made.model, feeds, optimize=True)["y"]
    assert np.abs(expected - given).max() < 0.05 * np.abs(expected).max()


def test_a_split_with_a_part_that_leaves_the_model_keeps_its_names() -> None:
    proto = split_net(2)
    proto.graph.output.append(floats("p1", None))
    made = quantized_of(proto)
    assert set(made.model.outputs()) == {"y", "p1"}
    assert run(made.model, feeds_for(made.source))["p1"].shape == (1, 4, 10, 10)
