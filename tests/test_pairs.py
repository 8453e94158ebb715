"""No pair of weights may saturate 16-bit sums, whatever the processor."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import finished, node, normal, proto_of, run, stream_for, wrapped
from onnx import TensorProto, helper, numpy_helper

from qcli.distribution import from_weights
from qcli.graph import Node, normalize_graph
from qcli.pairs import PAIR_LIMIT, kernel_rows, pair_floor
from qcli.plan import make_plan
from qcli.plugins import create
from qcli.recipe import load_recipe
from qcli.targets.ort_cpu import OrtCpu, detect_isa
from qcli.types import Array, Grid, Interval, Scale

AVX2 = ("target={ort_cpu: {isa: avx2}}",)


def first_node(proto: onnx.ModelProto) -> Node:
    return wrapped(proto).graph[0]


def layer(operator: str, weight: Array, **attributes: int) -> onnx.ModelProto:
    group = attributes.get("group", 1)
    transposed = attributes.get("transB", 0)
    data = {
        "Conv": [1, weight.shape[1] * group, *[5] * (weight.ndim - 2)],
        "Gemm": [3, weight.shape[transposed]],
        "MatMul": [3, weight.shape[0]],
    }[operator]
    return proto_of([node(operator, "x w", "y", **attributes)], {"x": data}, {"y": None}, {"w": weight})


def test_rows_of_a_matrix_are_its_columns() -> None:
    weight = np.arange(6, dtype=np.float32).reshape(2, 3)
    for operator in ("MatMul", "Gemm"):
        rows = kernel_rows(first_node(layer(operator, weight)), weight)
        assert rows is not None and rows.tolist() == [[0, 3], [1, 4], [2, 5]]


def test_rows_of_a_transposed_matrix_are_its_rows() -> None:
    weight = np.arange(6, dtype=np.float32).reshape(2, 3)
    rows = kernel_rows(first_node(layer("Gemm", weight, transB=1)), weight)
    assert rows is not None and rows.tolist() == [[0, 1, 2], [3, 4, 5]]


def test_rows_of_a_convolution_run_channel_by_channel_at_each_kernel_position() -> None:
    weight = np.arange(8, dtype=np.float32).reshape(1, 2, 2, 2)
    rows = kernel_rows(first_node(layer("Conv", weight)), weight)
    assert rows is not None and rows.tolist() == [[0, 4, 1, 5, 2, 6, 3, 7]]


def test_depthwise_convolutions_have_no_pairs() -> None:
    weight = normal(0, 4, 1, 3, 3)
    depthwise = first_node(layer("Conv", weight, group=4))
    assert kernel_rows(depthwise, weight) is None
    scale = scale_of(weight, 0)
    assert not pair_floor(depthwise, weight, scale).any()


def test_grouped_convolutions_have_pairs() -> None:
    weight = normal(0, 4, 2, 3, 3)
    assert kernel_rows(first_node(layer("Conv", weight, group=2)), weight) is not None
    doubled = normal(0, 4, 1, 3, 3)
    assert kernel_rows(first_node(layer("Conv", doubled, group=2)), doubled) is not None


def scale_of(weight: Array, axis: int | None) -> Scale:
    grid = Grid(format="int8", granularity="tensor" if axis is None else "channel", axis=axis, narrow=True)
    known = from_weights(weight, axis)
    scale: Scale = create("formats", "int8").scale(Interval(lower=known.lower, upper=known.upper), grid)
    return scale


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["Conv", "Gemm", "transposed", "MatMul"]),
    st.integers(0, 1 << 16),
    st.sampled_from(["nearest", "squant"]),
    st.booleans(),
    st.integers(1, 9),
    st.sampled_from(["normal", "positive", "sparse"]),
)
def test_codes_of_one_sign_in_a_pair_add_up_to_128_at_most(
    operator: str, seed: int, rounding: str, channels: bool, inner: int, kind: str
) -> None:
    weight = normal(seed, 5, inner, 3, 3) if operator == "Conv" else normal(seed, inner, 6)
    weight = {"normal": weight, "positive": np.abs(weight) + 1, "sparse": weight * (weight > 1)}[kind]
    axis = {"Conv": 0, "Gemm": 1, "transposed": 0, "MatMul": 1}[operator]
    attributes = {"transB": 1} if operator == "transposed" else {}
    made = first_node(layer("Gemm" if operator == "transposed" else operator, weight, **attributes))
    scale = scale_of(weight, axis if channels else None)
    floor = pair_floor(made, weight, scale)
    assert floor.shape == scale.scale.shape
    widened = Scale(
        scale=np.maximum(scale.scale, floor).astype(np.float32),
        zero_point=scale.zero_point,
        axis=scale.axis,
        lowest=scale.lowest,
        highest=scale.highest,
        dtype=scale.dtype,
    )
    codes = create("roundings", rounding).round(weight, widened).astype(int)
    rows = kernel_rows(made, codes)
    assert rows is not None
    padded = np.pad(rows, ((0, 0), (0, rows.shape[1] % 2)))
    pairs = padded.reshape(len(padded), -1, 2)
    assert np.maximum(pairs, 0).sum(axis=2).max(initial=0) <= PAIR_LIMIT
    assert np.maximum(-pairs, 0).sum(axis=2).max(initial=0) <= PAIR_LIMIT


def test_it_costs_less_than_the_eighth_bit() -> None:
    weight = normal(0, 64, 256).T.copy()
    scale = scale_of(weight, 1)
    growth = pair_floor(first_node(layer("MatMul", weight)), weight, scale) / scale.scale
    assert np.median(growth) < 1.35 and growth.max() < 2


def integer_twin(proto: onnx.ModelProto, codes: Array) -> tuple[onnx.ModelProto, str]:
    """The layer between u8 codes and float results, its scales one: exact integers, so that saturation shows."""
    first = proto.graph.node[0]
    weights: dict[str, Array] = {
        "w_q": codes.astype(np.int8),
        "one": np.array(1, np.float32),
        "zero": np.array(0, np.uint8),
        "w_zero": np.array(0, np.int8),
    }
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "one", "zero"], ["x_dq"]),
        helper.make_node("DequantizeLinear", ["w_q", "one", "w_zero"], ["w"]),
    ]
    layer_node = onnx.NodeProto.FromString(first.SerializeToString())
    layer_node.input[0] = "x_dq"
    layer_node.output[0] = "y_real"
    bound = float(np.abs(codes.astype(int)).sum() * 255) or 1.0
    weights["step"] = np.array(bound / 127, np.float32)
    weights["middle"] = np.array(128, np.uint8)
    nodes += [layer_node, helper.make_node("QuantizeLinear", ["y_real", "step", "middle"], ["y"])]
    shape = [item.dim_value for item in proto.graph.input[0].type.tensor_type.shape.dim]
    graph = helper.make_graph(
        nodes,
        "twin",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, None)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), "y"


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(["Conv", "Gemm", "MatMul", "depthwise", "grouped"]), st.integers(0, 1 << 16), st.integers(2, 24))
def test_this_processor_computes_the_same_optimized_and_not(kind: str, seed: int, inner: int) -> None:
    """The quantized model on inputs at the ends of their range, where sums are largest."""
    generator = np.random.default_rng(seed)
    groups = {"Conv": 1, "depthwise": 8, "grouped": 2}.get(kind, 0)
    if groups:
        weight = np.abs(normal(seed, 8, {"Conv": inner, "depthwise": 1, "grouped": 4}[kind], 3, 3)) + 1
        channels = weight.shape[1] * groups
        shape = [2, channels, 6, 6]
        made = node("Conv", "x w", "y", group=groups)
    else:
        weight = np.abs(normal(seed, inner, 9)) + 1
        shape = [4, inner]
        made = node(kind, "x w", "y")
    proto = proto_of([made, node("Relu", "y", "z")], {"x": shape}, {"z": None}, {"w": weight})
    feeds = tuple({"x": generator.choice([0.0, 1.0], shape).astype(np.float32)} for _ in range(3))
    source = wrapped(proto)
    normalize_graph(source)
    plan = make_plan(source, load_recipe("int8-minmax"))
    quantized = finished(source, plan, type(stream_for(source, 1))(feeds)).model
    written, optimized = (
        np.concatenate([run(quantized, feed, optimize=optimize)["z"] for feed in feeds]) for optimize in (False, True)
    )
    step = written.max() / 255
    np.testing.assert_allclose(optimized, written, rtol=0, atol=step * 1.01)


def test_the_limit_is_what_keeps_this_processor_right() -> None:
    """With weights of 127 an avx2 machine saturates; the same layer within the limit does not."""
    full, halved = np.full((32, 8), 127), np.full((32, 8), 64)
    feeds = {"x": np.full((3, 32), 255, np.uint8)}
    proto = layer("MatMul", full.astype(np.float32))
    for codes, wrong in ((full, detect_isa() == "avx2"), (halved, False)):
        twin, name = integer_twin(proto, codes)
        written, optimized = (run(twin, feeds, optimize=optimize)[name].astype(int) for optimize in (False, True))
        assert bool(np.abs(written - optimized).max() > 1) is wrong


@pytest.mark.parametrize(("isa", "limited"), [("avx2", True), ("vnni", False), ("arm64", False)])
def test_only_avx2_gives_anything_up(isa: str, limited: bool) -> None:
    assert create("targets", {"ort_cpu": {"isa": isa}}).pair_limited() is limited
    assert OrtCpu().resolved_isa() == detect_isa()


def test_a_model_for_avx2_can_be_made_anywhere() -> None:
    weight = np.abs(normal(0, 16, 8)) + 4
    source = wrapped(layer("MatMul", weight))
    for settings_, highest in ((AVX2, 64), (("target={ort_cpu: {isa: vnni}}",), 127)):
        plan = make_plan(source, load_recipe("int8-minmax", settings_))
        [codes] = finished(source, plan, stream_for(source)).solution.codes.values()
        pairs = codes.astype(int).T.reshape(8, -1, 2).sum(axis=2)
        assert codes.max() >= highest * 0.9 and (pairs.max() <= PAIR_LIMIT) == (settings_ is AVX2)
