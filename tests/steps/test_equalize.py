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


def equalized(proto: onnx.ModelProto, strength: float = 0.5, limit: float = 16.0) -> tuple[Model, int]:
    model = wrapped(proto)
    step = Equalize(strength=strength, limit=limit)
    requests = step.requests(model)
    if not requests:
        return model, 0
    statistics = collect(model, Statistics.empty(requests), stream_for(model))
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
    known = collect(model, Statistics.empty([request]), stream_for(model)).get(request).distribution()
    return np.maximum(np.abs(known.lower), np.abs(known.upper))


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(["Relu", "LeakyRelu"]), st.floats(0.0, 1.0), st.integers(2, 9))
def test_the_outputs_stay(activation: str, strength: float, channels: int) -> None:
    proto = residual(channels, activation)
    model, count = equalized(proto, strength)
    model.fix_names()
    assert count == 1
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


def test_a_clip_ends_the_attempt() -> None:
    weights = {"w1": uneven(0, 4, 3, 1, 1), "w2": normal(1, 2, 4, 1, 1), "six": np.array(6, np.float32)}
    nodes = [node("Conv", "x w1", "c"), node("Clip", "c - six", "a"), node("Conv", "a w2", "y")]
    _, count = equalized(proto_of(nodes, {"x": [1, 3, 4, 4]}, {"y": None}, weights))
    assert count == 0


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


def test_a_grouped_reader_is_left_alone() -> None:
    weights = {"w1": uneven(0, 4, 3, 1, 1), "w2": normal(1, 4, 2, 1, 1)}
    nodes = [node("Conv", "x w1", "c"), node("Conv", "c w2", "y", group=2)]
    _, count = equalized(proto_of(nodes, {"x": [1, 3, 4, 4]}, {"y": None}, weights))
    assert count == 0


def test_dead_channels_keep_their_scale() -> None:
    weight = uneven(0, 4, 3, 1, 1)
    weight[1] = 0
    nodes = [node("Conv", "x w1", "c"), node("Conv", "c w2", "y")]
    proto = proto_of(nodes, {"x": [1, 3, 4, 4]}, {"y": None}, {"w1": weight, "w2": normal(1, 2, 4, 1, 1)})
    model, count = equalized(proto)
    assert count == 1
    assert_same(proto, model)


def test_unknown_options_are_refused() -> None:
    with pytest.raises(UsageError, match="strenght"):
        create("steps", {"equalize": {"strenght": 1.0}})
