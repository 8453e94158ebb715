"""Streams of channels are rescaled together, exactly."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import assert_same, node, normal, proto_of, stream_for, wrapped

from qcli.calibrate import collect
from qcli.errors import UsageError
from qcli.graph.model import Model
from qcli.plugins import create
from qcli.statistics import Statistics
from qcli.steps.equalize import Equalize
from qcli.types import Array, Request

SAMPLES = 200
"""Enough for the largest of channels to be known."""


def equalized(proto: onnx.ModelProto, strength: float = 0.5, limit: float = 16.0) -> tuple[Model, int]:
    model = wrapped(proto)
    step = Equalize(strength=strength, depthwise=strength, limit=limit)
    requests = step.requests(model)
    if not requests:
        return model, 0
    statistics = collect(model, Statistics.empty(requests), stream_for(model, SAMPLES))
    return model, step.run_measured(model, statistics)


def uneven(seed: int, *shape: int) -> Array:
    """A weight whose output channels differ in size by up to 30 times."""
    weight = normal(seed, *shape)
    factors = np.geomspace(0.1, 3.0, shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    return np.asarray(weight * factors, np.float32)


def residual(channels: int = 6, activation: str = "Relu") -> onnx.ModelProto:
    """Two branches that meet in an Add, an activation, pooling, and a depthwise and a plain convolution behind."""
    weights = {
        "w1": uneven(0, channels, 3, 1, 1),
        "b1": normal(1, channels),
        "w2": uneven(2, channels, 3, 3, 3),
        "w3": normal(3, channels, 1, 3, 3),
        "w4": normal(4, 4, channels, 1, 1),
    }
    nodes = [
        node("Conv", "x w1 b1", "c1"),
        node("Conv", "x w2", "c2", pads=[1, 1, 1, 1]),
        node("Add", "c1 c2", "sum"),
        node(activation, "sum", "act"),
        node("MaxPool", "act", "pooled", kernel_shape=[2, 2]),
        node("Conv", "pooled w3", "d", group=channels),
        node("Conv", "act w4", "z"),
    ]
    return proto_of(nodes, {"x": ["n", 3, 8, 8]}, {"d": None, "z": None}, weights)


def channel_ranges(model: Model, name: str) -> Array:
    request = Request(value=name, statistic="extrema", axis=1)
    known = collect(model, Statistics.empty([request]), stream_for(model, SAMPLES)).get(request).distribution()
    return np.maximum(np.abs(known.lower), np.abs(known.upper))


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(["Relu", "LeakyRelu"]), st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.integers(2, 9))
def test_the_outputs_stay(activation: str, strength: float, channels: int) -> None:
    proto = residual(channels, activation)
    model, count = equalized(proto, strength)
    model.fix_names()
    assert count == (strength > 0)
    assert_same(proto, model)


def test_channels_of_the_whole_stream_come_closer() -> None:
    before, after = wrapped(residual()), equalized(residual(), strength=1.0, limit=1e6)[0]
    spread = [(ranges := channel_ranges(model, "sum")).max() / ranges.min() for model in (before, after)]
    assert spread[1] < spread[0] / 3


def test_the_limit_bounds_each_factor() -> None:
    model, _ = equalized(residual(), strength=1.0, limit=2.0)
    ratio = channel_ranges(model, "c1") / channel_ranges(wrapped(residual()), "c1")
    assert ratio.max() <= 2.0 + 1e-5 and ratio.min() >= 1.0 - 1e-5


def test_strength_zero_changes_nothing() -> None:
    before, after = wrapped(residual()), equalized(residual(), strength=0.0)[0]
    np.testing.assert_array_equal(channel_ranges(before, "sum"), channel_ranges(after, "sum"))


@pytest.mark.parametrize("breaker", ["Sigmoid", "HardSwish", "Softmax"])
def test_a_function_that_does_not_scale_ends_the_attempt(breaker: str) -> None:
    weights = {"w1": uneven(0, 4, 3, 1, 1), "w2": normal(1, 2, 4, 1, 1)}
    nodes = [node("Conv", "x w1", "c"), node(breaker, "c", "a"), node("Conv", "a w2", "y")]
    _, count = equalized(proto_of(nodes, {"x": [1, 3, 4, 4]}, {"y": None}, weights))
    assert count == 0


def clipped(upper: float, lower: float = 0.0) -> onnx.ModelProto:
    weights = {
        "w1": uneven(0, 4, 3, 1, 1),
        "w2": normal(1, 2, 4, 1, 1),
        "low": np.array(lower, np.float32),
        "high": np.array(upper, np.float32),
    }
    nodes = [node("Conv", "x w1", "c"), node("Clip", "c low high", "a"), node("Conv", "a w2", "y")]
    return proto_of(nodes, {"x": [1, 3, 4, 4]}, {"y": None}, weights)


@pytest.mark.parametrize("lower", [0.0, -6.0])
def test_channels_grow_up_to_what_a_clip_lets_pass(lower: float) -> None:
    proto = clipped(6.0, lower)
    before = channel_ranges(wrapped(proto), "a")
    model, count = equalized(proto, strength=1.0, limit=1000.0)
    after = channel_ranges(model, "a")
    assert count == 1 and before.min() < 1.0
    assert after.max() <= 6.0 * (1 + 1e-6) and after.min() > before.min() * 2
    assert_same(proto, model)


@pytest.mark.parametrize(("lower", "upper"), [(0.0, 1e-3), (0.5, 6.0)])
def test_a_clip_that_cuts_all_channels_or_no_zero_ends_the_attempt(lower: float, upper: float) -> None:
    assert equalized(clipped(upper, lower))[1] == 0


def test_a_value_that_is_also_an_output_is_left_alone() -> None:
    weights = {"w1": uneven(0, 4, 3, 1, 1), "w2": normal(1, 2, 4, 1, 1)}
    nodes = [node("Conv", "x w1", "c"), node("Conv", "c w2", "y")]
    _, count = equalized(proto_of(nodes, {"x": [1, 3, 4, 4]}, {"y": None, "c": None}, weights))
    assert count == 0


def test_a_weight_that_another_layer_shares_is_left_alone() -> None:
    weights = {"w": uneven(0, 4, 4, 1, 1)}
    nodes = [node("Conv", "x w", "c"), node("Conv", "c w", "y")]
    _, count = equalized(proto_of(nodes, {"x": [1, 4, 4, 4]}, {"y": None}, weights))
    assert count == 0


@pytest.mark.parametrize("groups", [2, 4])
def test_grouped_readers_are_scaled_group_by_group(groups: int) -> None:
    weights = {"w1": uneven(0, 4, 3, 1, 1), "w2": normal(1, 8, 4 // groups, 3, 3), "w3": normal(2, 8, 2, 3, 3)}
    nodes = [
        node("Conv", "x w1", "c"),
        node("Conv", "c w2", "d", group=groups),
        node("ConvTranspose", "d w3", "y", group=2),
    ]
    proto = proto_of(nodes, {"x": [1, 3, 6, 6]}, {"y": None}, weights)
    model, count = equalized(proto, strength=1.0)
    assert count == 1
    assert_same(proto, model)


def mixed_up() -> onnx.ModelProto:
    """Concat, a gate, constants added and multiplied, pooling, Flatten and a Gemm behind it."""
    weights = {
        "w1": uneven(0, 4, 3, 1, 1),
        "w2": uneven(1, 3, 3, 1, 1),
        "add": normal(2, 7, 1, 1),
        "one": np.array(0.5, np.float32),
        "times": np.abs(normal(3, 7, 1, 1)),
        "gate": normal(4, 7, 7, 1, 1),
        "w5": normal(5, 28, 5),
        "b5": normal(6, 5),
        "slope": np.full((7, 1, 1), 0.1, np.float32),
    }
    nodes = [
        node("Conv", "x w1", "a"),
        node("Conv", "x w2", "b"),
        node("Concat", "a b", "c", axis=1),
        node("Add", "c add", "d"),
        node("Sub", "d one", "e"),
        node("Mul", "times e", "f"),
        node("PRelu", "f slope", "g"),
        node("GlobalAveragePool", "g", "h"),
        node("Conv", "h gate", "i"),
        node("Sigmoid", "i", "j"),
        node("Mul", "g j", "k"),
        node("AveragePool", "k", "l", kernel_shape=[2, 2], strides=[2, 2]),
        node("Flatten", "l", "m"),
        node("Gemm", "m w5 b5", "y"),
    ]
    return proto_of(nodes, {"x": [1, 3, 4, 4]}, {"y": None}, weights)


@pytest.mark.parametrize("by", ["activations", "weights"])
def test_everything_that_ties_channels_keeps_the_outputs(by: str) -> None:
    proto = mixed_up()
    model = wrapped(proto)
    step = Equalize(by=by, strength=0.7)
    before = channel_ranges(model, "g")
    statistics = collect(model, Statistics.empty(step.requests(model)), stream_for(model, SAMPLES))
    assert step.run_measured(model, statistics) == 1
    after = channel_ranges(model, "g")
    assert not np.allclose(before, after)
    if by == "activations":
        assert after.max() / after.min() < before.max() / before.min()
    assert_same(proto, model)


def test_weights_alone_balance_without_samples() -> None:
    weights = {"w1": uneven(0, 8, 3, 1, 1), "w2": normal(1, 2, 8, 1, 1)}
    nodes = [node("Conv", "x w1", "c"), node("Relu", "c", "r"), node("Conv", "r w2", "y")]
    proto = proto_of(nodes, {"x": [1, 3, 4, 4]}, {"y": None}, weights)
    model = wrapped(proto)
    assert Equalize(by="weights").run(model) == 1
    arrays = {name: np.abs(np.asarray(value.const_value)) for name, value in model.graph.initializers.items()}
    first, second = (next(array for name, array in arrays.items() if name.startswith(key)) for key in ("w1", "w2"))
    np.testing.assert_allclose(first.max(axis=(1, 2, 3)), second.max(axis=(0, 2, 3)), rtol=1e-2)
    assert_same(proto, model)


def test_few_values_allow_small_factors_only() -> None:
    """A channel that was rarely active may be ten times as large in the next sample."""
    proto, step = residual(), Equalize(strength=1.0)
    model = wrapped(proto)
    requests = step.requests(model)
    before = channel_ranges(model, "c1")
    step.run_measured(model, collect(model, Statistics.empty(requests), stream_for(model, 4)))
    growth = channel_ranges(model, "c1") / before
    assert 1 < growth.max() <= 4 * 64 / 100 * 1.001


def test_dead_channels_keep_their_scale() -> None:
    weight = uneven(0, 4, 3, 1, 1)
    weight[1] = 0
    nodes = [node("Conv", "x w1", "c"), node("Conv", "c w2", "y")]
    proto = proto_of(nodes, {"x": [1, 3, 4, 4]}, {"y": None}, {"w1": weight, "w2": normal(1, 2, 4, 1, 1)})
    model, count = equalized(proto)
    assert count == 1
    assert_same(proto, model)


@pytest.mark.parametrize("options", [{"strenght": 1.0}, {"strength": 2.0}, {"limit": 0.5}, {"by": "nothing"}])
def test_bad_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        create("steps", {"equalize": options})


@pytest.mark.parametrize(("lower", "upper"), [(0.0, 0.5), (-0.25, 0.5), (0.0, 6.0)])
@pytest.mark.parametrize("by", ["activations", "weights"])
def test_each_channel_gets_bounds_of_its_own(by: str, lower: float, upper: float) -> None:
    proto = clipped(upper, lower)
    model = wrapped(proto)
    step = Equalize(by=by, strength=1.0, clip="per_channel")
    before = channel_ranges(model, "a")
    assert step.run_measured(model, collect(model, Statistics.empty(step.requests(model)), stream_for(model, 64))) == 1
    after = channel_ranges(model, "a")
    assert not np.allclose(before, after)
    if by == "activations":
        assert after.max() / after.min() < before.max() / before.min()
    assert_same(proto, model)


def test_bounds_of_their_own_need_no_samples() -> None:
    proto = clipped(0.5)
    kept, freed = wrapped(proto), wrapped(proto)
    assert Equalize(by="weights").run(kept) == 0
    assert Equalize(by="weights", clip="per_channel").run(freed) == 1
    assert [item.op_type for item in freed.graph] == ["Conv", "Clip", "Min", "Conv"]
    assert [value.name for value in freed.graph.node("/a").outputs] == ["a"]
    assert_same(proto, freed)


def test_bounds_that_are_attributes_are_scaled_too() -> None:
    """As before operator set 11."""
    weights = {"w1": uneven(0, 4, 3, 1, 1), "w2": normal(1, 2, 4, 1, 1)}
    nodes = [node("Conv", "x w1", "c"), node("Clip", "c", "a", min=-0.5, max=1.0), node("Conv", "a w2", "y")]
    proto = proto_of(nodes, {"x": [1, 3, 4, 4]}, {"y": None}, weights, opset=10)
    model = wrapped(proto)
    assert Equalize(by="weights", clip="per_channel").run(model) == 1
    assert [item.op_type for item in model.graph] == ["Conv", "Clip", "Max", "Min", "Conv"]
    assert_same(proto, model)


def test_a_clip_that_cuts_the_same_stays() -> None:
    proto = clipped(1e6)
    model = wrapped(proto)
    step = Equalize(strength=1.0, clip="per_channel")
    step.run_measured(model, collect(model, Statistics.empty(step.requests(model)), stream_for(model, SAMPLES)))
    assert [item.op_type for item in model.graph] == ["Conv", "Clip", "Conv"]


@settings(max_examples=20, deadline=None)
@given(st.sampled_from([(-0.5, 1.0), (0.0, 0.1), (0.0, 1.0), (-np.inf, 0.3), (-0.2, np.inf)]), st.integers(0, 99))
def test_bounds_of_their_own_keep_a_residual_stream(bounds: tuple[float, float], seed: int) -> None:
    """Two clipped tensors that meet in an Add, with pads and pooling behind."""
    weights = {
        "w1": uneven(seed, 5, 3, 1, 1),
        "w2": uneven(seed + 1, 5, 5, 3, 3),
        "w3": normal(seed + 2, 5, 1, 3, 3),
        "low": np.array(bounds[0], np.float32),
        "high": np.array(bounds[1], np.float32),
    }
    nodes = [
        node("Conv", "x w1", "c1"),
        node("Clip", "c1 low high", "a1"),
        node("Conv", "a1 w2", "c2", pads=[1, 1, 1, 1]),
        node("Clip", "c2 low high", "a2"),
        node("Add", "a1 a2", "sum"),
        node("MaxPool", "sum", "pooled", kernel_shape=[2, 2]),
        node("Conv", "pooled w3", "y", group=5),
    ]
    proto = proto_of(nodes, {"x": [2, 3, 8, 8]}, {"y": None}, weights)
    model = wrapped(proto)
    Equalize(by="weights", clip="per_channel").run(model)
    assert_same(proto, model)
