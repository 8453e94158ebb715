"""BatchNormalization folds into every layer it can follow, and into none where that would change the result."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import assert_equal, assert_same, node, normal, operators, proto_of, run, wrapped

from qcli.graph.model import Model
from qcli.steps.fold_batchnorm import FoldBatchnorm
from qcli.types import Array

SLOW = settings(max_examples=25, deadline=None)


def norm(channels: int, seed: int = 9) -> dict[str, Array]:
    """The constants of a BatchNormalization; the factors have both signs."""
    return {
        "gamma": normal(seed, channels),
        "beta": normal(seed + 1, channels),
        "mean": normal(seed + 2, channels),
        "var": np.abs(normal(seed + 3, channels)) + np.float32(0.1),
    }


def folded(proto: onnx.ModelProto) -> tuple[Model, int]:
    model = wrapped(proto)
    count = FoldBatchnorm().run(model)
    model.fix_names()
    return model, count


def expect_folded(proto: onnx.ModelProto, left: list[str]) -> None:
    model, count = folded(proto)
    assert count == 1 and operators(model) == left
    assert_same(proto, model)


def expect_refused(proto: onnx.ModelProto) -> None:
    model, count = folded(proto)
    assert count == 0 and "BatchNormalization" in operators(model)
    assert_same(proto, model)


def bn(source: str, result: str, **attributes: Any) -> onnx.NodeProto:
    return node("BatchNormalization", f"{source} gamma beta mean var", result, **attributes)


@SLOW
@given(
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 3),
    st.booleans(),
    st.integers(1, 3),
    st.sampled_from([1e-5, 1e-3, 0.5]),
)
def test_conv(group: int, outs: int, ins: int, bias: bool, rank: int, epsilon: float) -> None:
    channels = group * outs
    weights = norm(channels) | {"w": normal(0, channels, ins, *[2] * rank), "b": normal(1, channels)}
    nodes = [node("Conv", "x w b" if bias else "x w", "c", group=group), bn("c", "y", epsilon=epsilon)]
    expect_folded(proto_of(nodes, {"x": [2, group * ins, *[4] * rank]}, {"y": None}, weights), ["Conv"])


@SLOW
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.booleans(), st.integers(1, 2))
def test_conv_transpose(group: int, outs: int, ins: int, bias: bool, rank: int) -> None:
    channels = group * outs
    weights = norm(channels) | {"w": normal(0, group * ins, outs, *[3] * rank), "b": normal(1, channels)}
    layer = node("ConvTranspose", "x w b" if bias else "x w", "c", group=group, strides=[2] * rank)
    proto = proto_of([layer, bn("c", "y")], {"x": [2, group * ins, *[3] * rank]}, {"y": None}, weights)
    expect_folded(proto, ["ConvTranspose"])


@SLOW
@given(
    st.booleans(),
    st.sampled_from([None, (), (1,), (1, 1), (-1,), (1, -1)]),
    st.integers(1, 5),
    st.sampled_from([1.0, 0.5]),
)
def test_gemm(transposed: bool, bias: tuple[int, ...] | None, channels: int, alpha: float) -> None:
    weight = normal(0, 4, channels)
    weights = norm(channels) | {"w": np.ascontiguousarray(weight.T) if transposed else weight}
    if bias is not None:
        weights["b"] = normal(1, *[channels if size == -1 else size for size in bias])
    layer = node("Gemm", "x w b" if bias is not None else "x w", "c", transB=int(transposed), alpha=alpha)
    expect_folded(proto_of([layer, bn("c", "y")], {"x": [3, 4]}, {"y": [3, channels]}, weights), ["Gemm"])


@SLOW
@given(st.integers(1, 5), st.integers(1, 5))
def test_matmul(inner: int, channels: int) -> None:
    weights = norm(channels) | {"w": normal(0, inner, channels)}
    proto = proto_of([node("MatMul", "x w", "c"), bn("c", "y")], {"x": ["n", inner]}, {"y": None}, weights)
    expect_folded(proto, ["MatMul", "Add"])


def test_matmul_in_the_middle_of_a_graph() -> None:
    weights = norm(4) | {"w": normal(0, 3, 4), "v": normal(1, 4, 2)}
    nodes = [node("MatMul", "x w", "c"), bn("c", "n"), node("Relu", "n", "r"), node("MatMul", "r v", "y")]
    expect_folded(proto_of(nodes, {"x": [2, 3]}, {"y": [2, 2]}, weights), ["MatMul", "Add", "Relu", "MatMul"])


def test_the_channels_of_a_product_of_rank_three_are_not_the_weight_s_columns() -> None:
    weights = norm(4) | {"w": normal(0, 3, 4)}
    expect_refused(proto_of([node("MatMul", "x w", "c"), bn("c", "y")], {"x": [2, 4, 3]}, {"y": [2, 4, 4]}, weights))


def test_the_graph_output_keeps_its_name() -> None:
    weights = norm(2) | {"w": normal(0, 2, 1, 1, 1)}
    proto = proto_of([node("Conv", "x w", "c"), bn("c", "y")], {"x": [1, 1, 2, 2]}, {"y": [1, 2, 2, 2]}, weights)
    model, _ = folded(proto)
    assert model.outputs() == ("y",)


def two_convs(
    *extra: onnx.NodeProto, outputs: dict[str, list[int]], more: dict[str, Array] | None = None
) -> onnx.ModelProto:
    weights = norm(2) | {"w": normal(0, 2, 2, 1, 1)} | (more or {})
    return proto_of([node("Conv", "x w", "c"), bn("c", "y"), *extra], {"x": [1, 2, 3, 3]}, outputs, weights)


def test_refused_where_the_value_has_other_readers() -> None:
    expect_refused(two_convs(node("Relu", "c", "z"), outputs={"y": [1, 2, 3, 3], "z": [1, 2, 3, 3]}))


def test_refused_where_the_value_is_a_graph_output() -> None:
    expect_refused(two_convs(outputs={"y": [1, 2, 3, 3], "c": [1, 2, 3, 3]}))


def test_the_other_reader_of_a_shared_weight_keeps_it() -> None:
    proto = two_convs(node("Conv", "x w", "z"), outputs={"y": [1, 2, 3, 3], "z": [1, 2, 3, 3]})
    expect_folded(proto, ["Conv", "Conv"])


def test_the_other_reader_of_a_shared_bias_keeps_it() -> None:
    weights = norm(2) | {"w": normal(0, 2, 2, 1, 1), "v": normal(1, 2, 2, 1, 1), "b": normal(2, 2)}
    nodes = [node("Conv", "x w b", "c"), bn("c", "y"), node("Conv", "x v b", "z")]
    proto = proto_of(nodes, {"x": [1, 2, 3, 3]}, {"y": [1, 2, 3, 3], "z": [1, 2, 3, 3]}, weights)
    expect_folded(proto, ["Conv", "Conv"])


def test_a_weight_that_is_an_output_keeps_its_value() -> None:
    expect_folded(two_convs(outputs={"y": [1, 2, 3, 3], "w": [2, 2, 1, 1]}), ["Conv"])


def test_one_norm_after_the_other() -> None:
    weights = norm(2) | {"w": normal(0, 2, 2, 1, 1)}
    proto = proto_of([node("Conv", "x w", "c"), bn("c", "n"), bn("n", "y")], {"x": [1, 2, 3, 3]}, {"y": None}, weights)
    model, count = folded(proto)
    assert count == 2 and operators(model) == ["Conv"]
    assert_same(proto, model)


def test_refused_while_training() -> None:
    weights = norm(2) | {"w": normal(0, 2, 2, 1, 1)}
    norms = node("BatchNormalization", "c gamma beta mean var", "y new_mean new_var", training_mode=1)
    proto = proto_of([node("Conv", "x w", "c"), norms], {"x": [2, 2, 3, 3]}, {"y": None}, weights)
    model, count = folded(proto)
    assert count == 0 and operators(model) == ["Conv", "BatchNormalization"]


@pytest.mark.parametrize("changing", ["gamma", "var", "w", "b"])
def test_refused_where_a_constant_is_none(changing: str) -> None:
    weights = norm(2) | {"w": normal(0, 2, 2, 1, 1), "b": normal(1, 2)}
    shape = list(weights.pop(changing).shape)
    source = node("Abs", "given", changing)
    nodes = [source, node("Conv", "x w b", "c"), bn("c", "y")]
    expect_refused(proto_of(nodes, {"x": [1, 2, 3, 3], "given": shape}, {"y": None}, weights))


def test_refused_without_a_layer_in_front() -> None:
    expect_refused(proto_of([node("Relu", "x", "r"), bn("r", "y")], {"x": [1, 2, 3, 3]}, {"y": None}, norm(2)))
    expect_refused(proto_of([bn("x", "y")], {"x": [1, 2, 3, 3]}, {"y": None}, norm(2)))


def test_refused_where_gemm_scales_its_bias_or_has_one_for_each_row() -> None:
    weights = norm(4) | {"w": normal(0, 3, 4), "b": normal(1, 4), "rows": normal(2, 2, 4)}
    for layer in (node("Gemm", "x w b", "c", beta=0.5), node("Gemm", "x w rows", "c")):
        expect_refused(proto_of([layer, bn("c", "y")], {"x": [2, 3]}, {"y": [2, 4]}, weights))


def test_refused_where_the_variance_has_no_root() -> None:
    weights = norm(2) | {"w": normal(0, 2, 2, 1, 1), "var": np.array([-1, 1], np.float32)}
    proto = proto_of([node("Conv", "x w", "c"), bn("c", "y")], {"x": [1, 2, 3, 3]}, {"y": None}, weights)
    assert folded(proto)[1] == 0


@pytest.mark.parametrize("taken", [True, False])
def test_a_layer_inside_a_body_is_folded_too(taken: bool) -> None:
    inner = onnx.helper.make_graph(
        [node("Conv", "x w", "k"), bn("k", "t")], "then", [], [onnx.helper.make_tensor_value_info("t", 1, None)]
    )
    other = onnx.helper.make_graph(
        [node("Neg", "x", "e")], "else", [], [onnx.helper.make_tensor_value_info("e", 1, None)]
    )
    choice = node("If", "c", "y", then_branch=inner, else_branch=other)
    proto = proto_of([choice], {"x": [1, 2, 3, 3]}, {"y": None}, norm(2) | {"w": normal(0, 2, 2, 1, 1)})
    proto.graph.input.append(onnx.helper.make_tensor_value_info("c", onnx.TensorProto.BOOL, []))
    model = wrapped(proto)
    assert FoldBatchnorm().run(model) == 1
    assert "BatchNormalization" not in operators(model)
    feeds = {"x": normal(1, 1, 2, 3, 3), "c": np.array(taken)}
    assert_equal(run(proto, feeds), run(model, feeds))
