"""Scales and codes: biases fit, zero is a level, natural ranges hold, tied values share."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import (
    Quantized,
    Stream,
    assert_equal,
    conv_net,
    dense_net,
    feeds_for,
    node,
    normal,
    proto_of,
    quantized_of,
    run,
)

from qcli.measured import requests_of
from qcli.plugins import create
from qcli.types import Array, Role, Scale

INT32 = 2**31 - 1


def weights_of(quantized: Quantized, name: str) -> tuple[Array, Scale]:
    """Codes and scale of a constant."""
    [entry] = [item for item in quantized.plan.entries if item.site.value == name]
    key = (entry.site.node, entry.site.role.value, entry.site.operand)
    return quantized.solution.codes[key], quantized.solution.scales[key]


LAYERS: dict[str, tuple[onnx.NodeProto, str, int]] = {
    "Conv": (node("Conv", "x w b", "y"), "nk11", 0),
    "grouped Conv": (node("Conv", "x w b", "y", group=2), "nh11", 0),
    "Gemm": (node("Gemm", "x w b", "y"), "kn", 1),
    "Gemm transB": (node("Gemm", "x w b", "y", transB=1), "nk", 0),
}
"""Node, axes of the weight (n outputs, k inputs, h half of them), axis of the output channels."""


def layer(kind: str, weight_scales: Array, bias: Array, seed: int = 0) -> onnx.ModelProto:
    """A layer with 4 inputs whose output channels have weights of the given sizes."""
    made, axes, axis = LAYERS[kind]
    channels = len(weight_scales)
    sizes_by_axis = {"n": channels, "k": 4, "h": 2, "1": 1}
    weight = normal(seed, *(sizes_by_axis[letter] for letter in axes))
    sizes = weight_scales.reshape([-1 if at == axis else 1 for at in range(weight.ndim)])
    data = [2, 4, 3, 3] if "Conv" in kind else [2, 4]
    return proto_of([made], {"x": data}, {"y": None}, {"w": (weight * sizes).astype(np.float32), "b": bias})


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(LAYERS)),
    st.lists(st.sampled_from([0.0, 1e-30, 1e-12, 1e-7, 1e-3, 1.0, 1e4]), min_size=4, max_size=4),
    st.lists(st.sampled_from([0.0, 1e-9, -1e-3, 0.5, -3.0, 1e3, -1e6]), min_size=4, max_size=4),
    st.sampled_from(["int8", "int8-per-tensor"]),
)
def test_biases_are_right_to_half_a_step_and_never_overflow(
    kind: str, sizes: list[float], bias_values: list[float], recipe: str
) -> None:
    """FIELD B 11: weights near zero make the bias scale so small that its codes leave int32."""
    bias = np.array(bias_values, np.float32)
    proto = layer(kind, np.array(sizes), bias)
    quantized = quantized_of(proto, recipe, Stream(({"x": normal(9, *([2, 4, 3, 3] if "Conv" in kind else [2, 4]))},)))
    codes, scale = weights_of(quantized, "b")
    assert codes.dtype == np.int32 and codes.shape == (4,)
    assert np.abs(codes.astype(np.int64)).max() <= INT32 * 0.501, "room for the sum"
    decoded = codes.astype(np.float64) * scale.scale.astype(np.float64)
    tolerance = scale.scale.astype(np.float64) / 2 + np.abs(bias) * 2e-7
    assert (np.abs(decoded - bias) <= tolerance).all()


@pytest.mark.parametrize("kind", sorted(LAYERS))
def test_a_dead_channel_with_a_bias_keeps_it(kind: str) -> None:
    proto = layer(kind, np.array([1, 0, 0, 1e-20]), np.array([0.1, -2.5, 0, 1.5], np.float32))
    stream = Stream(({"x": normal(9, *([2, 4, 3, 3] if "Conv" in kind else [2, 4]))},))
    quantized = quantized_of(proto, "int8", stream)
    for optimize in (False, True):
        result = run(quantized.model, stream.samples[0], optimize=optimize)["y"]
        channels = np.moveaxis(result, 1, 0).reshape(4, -1)
        step = float(np.abs(result).max()) / 100
        np.testing.assert_allclose(channels[1], -2.5, atol=step)
        np.testing.assert_allclose(channels[2], 0, atol=step)
        np.testing.assert_allclose(channels[3], 1.5, atol=step)


def test_a_dead_channel_costs_the_others_nothing() -> None:
    alive = quantized_of(layer("Conv", np.array([1, 1, 1, 1]), np.zeros(4, np.float32)))
    dead = quantized_of(layer("Conv", np.array([1, 0, 1, 1]), np.array([0, 5, 0, 0], np.float32)))
    np.testing.assert_array_equal(weights_of(alive, "w")[1].scale[[0, 2, 3]], weights_of(dead, "w")[1].scale[[0, 2, 3]])


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (4,), (1, 4), (2, 4), (2, 1)])
def test_a_bias_of_gemm_may_have_any_shape_that_broadcasts(shape: tuple[int, ...]) -> None:
    """FIELD B 12: a bias with one element crashed the very fix of row 11."""
    proto = proto_of(
        [node("Gemm", "x w b", "y")], {"x": [2, 4]}, {"y": None}, {"w": normal(0, 4, 4), "b": normal(1, *shape)}
    )
    quantized = quantized_of(proto)
    feeds = feeds_for(quantized.source)
    for optimize in (False, True):
        assert_equal(run(proto, feeds), run(quantized.model, feeds, optimize=optimize), tolerance=0.05)
    onnx.checker.check_model(quantized.model.proto(), full_check=True)


def test_a_bias_for_each_row_leaves_room_for_the_largest() -> None:
    weights = {"w": normal(0, 4, 2) * np.array([1e-9, 1], np.float32), "b": np.array([[1.0], [900.0]], np.float32)}
    proto = proto_of([node("Gemm", "x w b", "y")], {"x": [2, 4]}, {"y": None}, weights)
    codes, scale = weights_of(quantized_of(proto), "b")
    decoded = codes.astype(np.float64) * scale.scale.astype(np.float64)
    np.testing.assert_allclose(decoded, np.broadcast_to(weights["b"], decoded.shape), rtol=1e-4)


def test_one_bias_read_by_two_layers_fits_both() -> None:
    weights = {"w": normal(0, 4, 4), "v": normal(1, 4, 4) * 50, "b": normal(2, 4)}
    proto = proto_of(
        [node("Gemm", "x w b", "p"), node("Gemm", "x v b", "q")], {"x": [2, 4]}, {"p": None, "q": None}, weights
    )
    quantized = quantized_of(proto)
    feeds = feeds_for(quantized.source)
    for optimize in (False, True):
        assert_equal(run(proto, feeds), run(quantized.model, feeds, optimize=optimize), tolerance=0.03)


@settings(max_examples=30, deadline=None)
@given(
    st.floats(-5, 5), st.floats(0.01, 10), st.sampled_from(["int8", "int8-minmax", "int8-entropy", "int8-percentile"])
)
def test_zero_is_always_a_level(offset: float, spread: float, recipe: str) -> None:
    samples = tuple({"x": (normal(seed, 2, 12) * spread + offset).astype(np.float32)} for seed in range(3))
    quantized = quantized_of(dense_net(), recipe, Stream(samples))
    for scale in quantized.solution.scales.values():
        assert (scale.lowest <= scale.zero_point).all() and (scale.zero_point <= scale.highest).all()
        assert (scale.scale > 0).all() and np.isfinite(scale.scale).all()


def test_a_value_that_is_always_zero_has_a_scale() -> None:
    samples = ({"x": np.zeros((2, 12), np.float32)},)
    quantized = quantized_of(dense_net(), "int8", Stream(samples))
    assert_equal(run(dense_net(), samples[0]), run(quantized.model, samples[0]), tolerance=0.05)


def test_sigmoid_has_its_natural_range_whatever_the_samples_show() -> None:
    weights = {"w": normal(0, 4, 3, 1, 1) / 100, "v": normal(1, 4, 4, 1, 1)}
    nodes = [node("Conv", "x w", "c"), node("Sigmoid", "c", "s"), node("Conv", "s v", "y")]
    quantized = quantized_of(proto_of(nodes, {"x": [1, 3, 4, 4]}, {"y": None}, weights))
    scale = quantized.solution.scales[("s", "output", 0)]
    assert (scale.scale[0], scale.zero_point[0]) == (pytest.approx(1 / 255), 0)


def test_tied_values_share_the_union_of_their_ranges() -> None:
    weights = {"w": normal(0, 4, 3, 1, 1), "v": normal(1, 4, 3, 1, 1) * 20, "u": normal(2, 4, 8, 1, 1)}
    nodes = [
        node("Conv", "x w", "a"),
        node("Conv", "x v", "b"),
        node("Concat", "a b", "j", axis=1),
        node("Conv", "j u", "y"),
    ]
    quantized = quantized_of(proto_of(nodes, {"x": [1, 3, 4, 4]}, {"y": None}, weights))
    scales = [quantized.solution.scales[(name, "output", 0)] for name in ("a", "b", "j")]
    assert len({(float(scale.scale[0]), int(scale.zero_point[0])) for scale in scales}) == 1
    known = quantized.statistics.get
    spans = [
        known(request).distribution()
        for request in requests_of(quantized.plan, quantized.source)
        if request.value in "abj"
    ]
    width = max(span.upper[0] for span in spans) - min(span.lower[0] for span in spans)
    assert scales[0].scale[0] == pytest.approx(width / 255, rel=0.02)


def test_the_bias_scale_is_the_product_of_the_input_s_and_the_weight_s() -> None:
    quantized = quantized_of(conv_net())
    scales = quantized.solution.scales
    product = float(scales[("c1", "input", 0)].scale[0]) * scales[("c1", "weight", 1)].scale.astype(np.float64)
    np.testing.assert_allclose(scales[("c1", "bias", 2)].scale, product, rtol=1e-6)


@pytest.mark.parametrize("recipe", ["int8", "int8-minmax", "int8-entropy", "int8-percentile", "int8-per-tensor"])
def test_every_preset_gives_codes_that_decode_near_their_weights(recipe: str) -> None:
    quantized = quantized_of(conv_net(), recipe)
    for entry in quantized.plan.entries:
        key = (entry.site.node, entry.site.role.value, entry.site.operand)
        if entry.site.role is Role.WEIGHT:
            scale = quantized.solution.scales[key]
            decoded = create("formats", entry.grid.format).decode(quantized.solution.codes[key], scale)
            weight = quantized.source.graph.initializers[entry.site.value].const_value.numpy()  # type: ignore[union-attr]
            error = 10 * np.log10((weight**2).sum() / ((weight - decoded) ** 2).sum())
            assert error > 28 and (np.abs(weight - decoded).max() <= scale.scale.max() * 8)
