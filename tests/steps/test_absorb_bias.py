"""Channels are centred, and biases take in the difference, exactly."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from models import assert_same, node, normal, proto_of, stream_for, wrapped

from qcli.calibrate import collect
from qcli.errors import UsageError
from qcli.graph.model import Model
from qcli.plugins import create
from qcli.statistics import Statistics
from qcli.steps.absorb_bias import AbsorbBias
from qcli.types import Array, Request


def absorbed(proto: onnx.ModelProto, step: AbsorbBias | None = None, samples: int = 50) -> tuple[Model, int]:
    model, step = wrapped(proto), step or AbsorbBias()
    requests = step.requests(model)
    if not requests:
        return model, 0
    return model, step.run_measured(model, collect(model, Statistics.empty(requests), stream_for(model, samples)))


def extrema(model: Model, name: str) -> tuple[Array, Array]:
    request = Request(value=name, statistic="extrema", axis=1)
    known = collect(model, Statistics.empty([request]), stream_for(model, 50)).get(request).distribution()
    return known.lower, known.upper


def width(model: Model, name: str) -> float:
    lower, upper = extrema(model, name)
    return float(upper.max() - lower.min())


def mean(model: Model, name: str) -> Array:
    lower, upper = extrema(model, name)
    return np.asarray((lower + upper) / 2)


def stream(tail: str = "pads=0", offset: float = 20.0) -> onnx.ModelProto:
    """A residual stream of three tensors, whose channels lie far apart."""
    weights = {
        "w1": normal(0, 6, 3, 1, 1), "b1": np.linspace(-offset, offset, 6, dtype=np.float32),
        "w2": normal(1, 8, 6, 1, 1), "b2": normal(2, 8), "w3": normal(3, 6, 8, 1, 1),
        "b3": np.linspace(offset, -offset / 2, 6, dtype=np.float32), "w4": normal(4, 4, 6, 3, 3),
    }  # fmt: skip
    nodes = [
        node("Conv", "x w1 b1", "x0"),
        node("Conv", "x0 w2 b2", "e"),
        node("Relu", "e", "a"),
        node("Conv", "a w3 b3", "f"),
        node("Add", "x0 f", "x1"),
        node("Conv", "x1 w4", "y", pads=[1, 1, 1, 1] if tail == "pads" else [0, 0, 0, 0]),
    ]
    return proto_of(nodes, {"x": ["n", 3, 6, 6]}, {"y": None}, weights)


def test_a_residual_stream_is_centred() -> None:
    proto = stream()
    before, (after, count) = wrapped(proto), absorbed(proto)
    assert count == 1
    for name in ("x0", "f", "x1"):
        assert width(after, name) < width(before, name) / 2
    assert_same(proto, after)


def test_a_bias_is_made_where_there_was_none() -> None:
    proto = stream()
    last = next(item for item in absorbed(proto)[0].graph if item.outputs[0].name == "y")
    assert len(last.inputs) == 3 and np.abs(np.asarray(last.inputs[2].const_value)).max() > 1


def test_what_a_padded_convolution_reads_stays_and_its_operands_cancel() -> None:
    proto = stream("pads")
    before, (after, count) = wrapped(proto), absorbed(proto)
    assert count == 1
    np.testing.assert_allclose(mean(after, "x1"), mean(before, "x1"), atol=1e-4)
    moved = [mean(after, name) - mean(before, name) for name in ("x0", "f")]
    np.testing.assert_allclose(moved[0], -moved[1], atol=1e-4)
    assert_same(proto, after)


def behind(activation: str, bias: Array, upper: float = 1e3) -> onnx.ModelProto:
    weights = {
        "w1": normal(0, 4, 3, 1, 1) / 10, "b1": bias, "w2": normal(1, 2, 4, 1, 1),
        "low": np.array(0, np.float32), "high": np.array(upper, np.float32),
    }  # fmt: skip
    bounds = " low high" if activation == "Clip" else ""
    nodes = [
        node("Conv", "x w1 b1", "c"),
        node(activation, f"c{bounds}", "a"),
        node("Conv", "a w2", "y"),
    ]
    kept = {name: array for name, array in weights.items() if bounds or name not in ("low", "high")}
    return proto_of(nodes, {"x": ["n", 3, 4, 4]}, {"y": None}, kept)


@pytest.mark.parametrize("activation", ["Relu", "Clip"])
def test_high_biases_pass_an_activation_that_is_never_reached(activation: str) -> None:
    proto = behind(activation, np.array([10, 0, 20, -3], np.float32))
    before, (after, count) = wrapped(proto), absorbed(proto)
    moved = mean(before, "a") - mean(after, "a")
    assert count == 1
    assert (moved[[0, 2]] > 4).all() and not moved[[1, 3]].any()
    least = extrema(before, "c")[0]
    assert (moved[[0, 2]] <= 0.5 * least[[0, 2]] + 1e-5).all()
    assert_same(proto, after)


def test_an_upper_bound_that_is_reached_keeps_a_channel() -> None:
    _, count = absorbed(behind("Clip", np.full(4, 10, np.float32), upper=10.0))
    assert count == 0


def test_a_margin_of_one_leaves_activations_alone() -> None:
    proto = behind("Relu", np.full(4, 10, np.float32))
    assert absorbed(proto, AbsorbBias(margin=1.0))[1] == 0


def test_an_encoder_is_centred_behind_its_normalization() -> None:
    """LayerNormalization gives the shift, three products with a bias behind them take it in."""
    weights: dict[str, Array] = {"gain": normal(0, 8), "shift": 10 * normal(1, 8)}
    nodes = [node("LayerNormalization", "x gain shift", "n")]
    for name in "qkv":
        weights |= {f"w{name}": normal(ord(name), 8, 8), f"b{name}": normal(ord(name) + 1, 8)}
        nodes += [node("MatMul", f"n w{name}", f"m{name}"), node("Add", f"b{name} m{name}", name)]
    proto = proto_of(nodes, {"x": ["b", 5, 8]}, {"q": None, "k": None, "v": None}, weights)
    after, count = absorbed(proto)
    bias = next(item for item in after.graph if item.outputs[0].name == "n").inputs[2]
    assert count == 1
    assert np.abs(np.asarray(bias.const_value)).max() < np.abs(weights["shift"]).max() / 3
    assert_same(proto, after)


def test_nothing_is_measured_where_nothing_can_be_shifted() -> None:
    weights = {"w1": normal(0, 4, 3, 1, 1), "w2": normal(1, 2, 4, 1, 1)}
    nodes = [node("Conv", "x w1", "c"), node("Sigmoid", "c", "a"), node("Conv", "a w2", "y")]
    assert not AbsorbBias().requests(wrapped(proto_of(nodes, {"x": [1, 3, 4, 4]}, {"y": None}, weights)))


def test_dead_channels_are_no_trouble() -> None:
    weights = {"w1": np.zeros((4, 3, 1, 1), np.float32), "w2": normal(1, 2, 4, 1, 1)}
    nodes = [node("Conv", "x w1", "c"), node("Conv", "c w2", "y")]
    proto = proto_of(nodes, {"x": [1, 3, 4, 4]}, {"y": None}, weights)
    model, count = absorbed(proto)
    assert count == 0
    assert_same(proto, model)


@pytest.mark.parametrize("options", [{"margin": 2.0}, {"margin": -0.1}, {"centre": "middle"}, {"strength": 1.0}])
def test_bad_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        create("steps", {"absorb_bias": options})
