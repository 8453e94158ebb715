"""Fused operators written out compute what they did, and become integer."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from models import assert_equal, feeds_for, node, normal, operators, proto_of, quantized_of, run, wrapped
from onnx import helper

from qcli.graph import Model
from qcli.steps.unfuse import Unfuse
from qcli.types import Array

MICROSOFT = "com.microsoft"


def model_of(nodes: list[onnx.NodeProto], shape: list[int | str], weights: dict[str, Array]) -> Model:
    proto = proto_of(nodes, {"x": shape}, {"y": None}, weights)
    proto.opset_import.append(helper.make_opsetid(MICROSOFT, 1))
    return wrapped(proto)


def check(model: Model, expected: list[str]) -> None:
    after = model.copy()
    assert Unfuse().run(after) >= 1
    assert operators(after) == expected
    assert after.outputs() == model.outputs()
    feeds = feeds_for(model)
    for optimize in (False, True):
        assert_equal(run(model, feeds, optimize=optimize), run(after, feeds, optimize=optimize))


@pytest.mark.parametrize(
    ("activation", "parameters"),
    [
        ("Relu", []),
        ("Sigmoid", []),
        ("Tanh", []),
        ("LeakyRelu", [0.2]),
        ("Clip", [-0.5, 1.5]),
        ("HardSigmoid", [0.2, 0.5]),
    ],
)
def test_a_fused_convolution_is_written_out(activation: str, parameters: list[float]) -> None:
    extra = {"activation_params": parameters} if parameters else {}
    fused = node("FusedConv", "x w b", "y", domain=MICROSOFT, activation=activation, pads=[1, 1, 1, 1], **extra)
    check(model_of([fused], [1, 3, 8, 8], {"w": normal(0, 4, 3, 3, 3), "b": normal(1, 4)}), ["Conv", activation])


def test_a_fused_convolution_adds_its_fourth_input_before_the_activation() -> None:
    weights = {"w": normal(0, 4, 3, 1, 1), "b": normal(1, 4), "z": normal(2, 1, 4, 8, 8)}
    fused = node("FusedConv", "x w b z", "y", domain=MICROSOFT, activation="Relu")
    check(model_of([fused], [1, 3, 8, 8], weights), ["Conv", "Add", "Relu"])


def test_a_fused_gemm_is_written_out() -> None:
    fused = node("FusedGemm", "x w b", "y", domain=MICROSOFT, activation="Relu", alpha=0.5, transB=1)
    model = model_of([fused], ["n", 16], {"w": normal(0, 8, 16), "b": normal(1, 8)})
    check(model, ["Gemm", "Relu"])


@pytest.mark.parametrize("transposed", [0, 1])
def test_the_factor_and_the_transposition_of_a_fused_product_join_its_weight(transposed: int) -> None:
    weight = normal(0, 8, 16) if transposed else normal(0, 16, 8)
    fused = node("FusedMatMul", "x w", "y", domain=MICROSOFT, alpha=0.25, transB=transposed)
    check(model_of([fused], [2, 3, 16], {"w": weight}), ["MatMul"])


@pytest.mark.parametrize("extra", [{"transA": 1}, {"transBatchA": 1}])
def test_a_fused_product_that_turns_its_data_stays(extra: dict[str, int]) -> None:
    model = model_of([node("FusedMatMul", "x w", "y", domain=MICROSOFT, **extra)], [16, 16], {"w": normal(0, 16, 8)})
    assert Unfuse().run(model) == 0


def test_an_activation_that_nobody_knows_stays_fused() -> None:
    fused = node("FusedConv", "x w", "y", domain=MICROSOFT, activation="Softplus")
    assert Unfuse().run(model_of([fused], [1, 3, 8, 8], {"w": normal(0, 4, 3, 1, 1)})) == 0


def test_the_factors_of_a_gemm_join_its_constants() -> None:
    gemm = node("Gemm", "x w b", "y", alpha=0.5, beta=2.0)
    check(model_of([gemm], ["n", 16], {"w": normal(0, 16, 8), "b": normal(1, 8)}), ["Gemm"])


def test_the_factors_of_a_gemm_with_a_computed_bias_stay() -> None:
    nodes = [node("Gemm", "x w x", "y", alpha=0.5, beta=2.0)]
    assert Unfuse().run(model_of(nodes, [16, 16], {"w": normal(0, 16, 16)})) == 0


def test_a_weight_with_another_reader_keeps_its_value_there() -> None:
    nodes = [node("Gemm", "x w", "g", alpha=0.5), node("Add", "g w", "y")]
    check(model_of(nodes, [16, 16], {"w": normal(0, 16, 16)}), ["Gemm", "Add"])


def test_written_out_it_runs_on_integers() -> None:
    weights = {"w": normal(0, 8, 3, 3, 3), "b": normal(1, 8), "v": normal(2, 8, 8, 3, 3)}
    nodes = [
        node("FusedConv", "x w b", "h", domain=MICROSOFT, activation="Relu"),
        node("FusedConv", "h v", "y", domain=MICROSOFT, activation="Relu"),
    ]
    model = model_of(nodes, [1, 3, 12, 12], weights)
    Unfuse().run(model)
    made = quantized_of(model.proto())
    assert {entry.site.op for entry in made.plan.entries} == {"Conv"}
    assert not made.plan.kept_float
    feeds = feeds_for(model)
    expected, given = run(model, feeds)["y"], run(made.model, feeds)["y"]
    assert np.abs(expected - given).max() < 0.1 * np.abs(expected).max()
