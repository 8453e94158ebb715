"""Smoothing: the same products in float, better ones in integers, and nothing where nothing is to be gained."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import Stream, assert_equal, floats, node, normal, operators, proto_of, run, wrapped
from onnx import TensorProto, helper

from qcli.apply import apply_plan
from qcli.calibrate import collect
from qcli.errors import UsageError
from qcli.graph import Model, infer_shapes, normalize_graph
from qcli.measured import requests_of
from qcli.metrics.sqnr import Sqnr
from qcli.plan import make_plan
from qcli.plugins import create
from qcli.prepare import prepare
from qcli.recipe import load_recipe
from qcli.solve import solve
from qcli.statistics import Statistics
from qcli.steps.smooth import Smooth, _factors
from qcli.types import Array
from qcli.watch import Watch

WIDE = 48


def samples(count: int = 6, rows: int = 64, size: int = WIDE) -> Stream:
    return Stream(tuple({"x": normal(seed, rows, size)} for seed in range(count)))


def gains(times: float = 30.0) -> Array:
    """A gain that makes every fifth channel so many times the others."""
    gain = 1 + np.abs(normal(7, WIDE)) / 4
    gain[::5] *= times
    return gain.astype(np.float32)


def network(
    front: Sequence[onnx.NodeProto], weights: dict[str, Array], outputs: tuple[str, ...] = ()
) -> onnx.ModelProto:
    """What stands in `front` writes `h`, which two products read."""
    size = np.maximum(gains(), 1)[:, None]  # rows that make up for the large channels, as training leaves them
    given = {"w": normal(1, WIDE, 32) / size, "v": normal(2, WIDE, 24) / size, **weights}
    nodes = [*front, node("MatMul", "h w", "y"), node("MatMul", "h v", "z")]
    return proto_of(nodes, {"x": ["n", WIDE]}, {"y": None, "z": None, **dict.fromkeys(outputs)}, given)


def normalized(times: float = 30.0, outputs: tuple[str, ...] = ()) -> onnx.ModelProto:
    weights = {"g": gains(times), "b": normal(4, WIDE) * gains(times) / 10}
    return network([node("LayerNormalization", "x g b", "h", axis=-1)], weights, outputs)


def written_out() -> onnx.ModelProto:
    front = [
        node("ReduceMean", "x", "mean", axes=[-1]),
        node("Sub", "x mean", "centred"),
        node("Mul", "centred centred", "squares"),
        node("ReduceMean", "squares", "variance", axes=[-1]),
        node("Sqrt", "variance", "deviation"),
        node("Div", "centred deviation", "unit"),
        node("Mul", "unit g", "scaled"),
        node("Add", "scaled b", "h"),
    ]
    return network(front, {"g": gains(), "b": normal(4, WIDE)})


def gated() -> onnx.ModelProto:
    front = [
        node("MatMul", "x a", "gate"),
        node("Sigmoid", "gate", "open"),
        node("MatMul", "x c", "linear"),
        node("Mul", "open linear", "h"),
    ]
    return network(
        front, {"a": normal(5, WIDE, WIDE) / 8, "c": (normal(6, WIDE, WIDE) / 8 * gains()).astype(np.float32)}
    )


def layered(turned: bool = False) -> onnx.ModelProto:
    weight = (normal(5, WIDE, WIDE) / 8 * gains()).astype(np.float32)
    front = [
        node("Gemm", "x a c", "m", transB=int(turned)),
        node("LeakyRelu", "m", "h", alpha=0.1),
    ]
    return network(front, {"a": np.ascontiguousarray(weight.T) if turned else weight, "c": normal(6, WIDE) * gains()})


def smooth(proto: onnx.ModelProto, stream: Stream | None = None, step: Smooth | None = None) -> tuple[Model, int]:
    step = step or Smooth()
    model = wrapped(proto)
    normalize_graph(model)
    infer_shapes(model)
    statistics = collect(model, Statistics.empty(step.requests(model)), stream or samples())
    return model, step.run_measured(model, statistics)


FOLDED = {
    "LayerNormalization": normalized(),
    "written out": written_out(),
    "gated": gated(),
    "Gemm": layered(),
    "Gemm, transB": layered(turned=True),
}


@pytest.mark.parametrize("name", FOLDED)
def test_the_factors_join_what_stands_in_front(name: str) -> None:
    proto = FOLDED[name]
    model, count = smooth(proto)
    assert count == 1
    assert sorted(operators(model)) == sorted(item.op_type for item in proto.graph.node), "no node more"
    for seed in (0, 90):
        feeds = {"x": normal(seed, 5, WIDE)}
        assert_equal(run(proto, feeds), run(model, feeds), tolerance=2e-6)
    onnx.checker.check_model(model.proto(), full_check=True)


def test_another_reader_keeps_its_numbers_and_the_products_get_a_div() -> None:
    proto = normalized()
    proto.graph.node.append(node("Relu", "h", "r"))
    proto.graph.output.append(floats("r", None))
    model, count = smooth(proto)
    assert count == 1 and operators(model).count("Div") == 1, "one for both products"
    feeds = {"x": normal(90, 5, WIDE)}
    assert_equal(run(proto, feeds), run(model, feeds), tolerance=2e-6)
    assert smooth(proto, step=Smooth(div_gain_db=90))[1] == 0, "it has to pay"


def test_an_output_of_the_graph_keeps_its_numbers() -> None:
    proto = normalized(outputs=("h",))
    model, _ = smooth(proto)
    feeds = {"x": normal(90, 5, WIDE)}
    assert_equal(run(proto, feeds), run(model, feeds), tolerance=2e-6)


def test_nothing_happens_where_nothing_is_gained() -> None:
    even = network([node("Sin", "x", "h")], {"w": normal(1, WIDE, 32), "v": normal(2, WIDE, 24)})
    assert smooth(even)[1] == 0
    assert smooth(normalized(), step=Smooth(alphas=()))[1] == 0


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_constant_inputs(value: float) -> None:
    proto = normalized()
    model, _ = smooth(proto, Stream(({"x": np.full((4, WIDE), value, np.float32)},)))
    feeds = {"x": normal(90, 5, WIDE)}
    assert_equal(run(proto, feeds), run(model, feeds), tolerance=2e-6)


def test_dead_channels_and_dead_rows() -> None:
    proto = layered()
    for tensor in proto.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor).copy()
        if tensor.name == "w":
            array[3] = 0
        if tensor.name in ("a", "c"):
            array[..., 7] = 0
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    model, count = smooth(proto)
    assert count == 1
    feeds = {"x": normal(90, 5, WIDE)}
    assert_equal(run(proto, feeds), run(model, feeds), tolerance=2e-6)


def test_an_input_that_is_empty_in_every_sample_and_a_single_sample() -> None:
    assert smooth(normalized(), Stream(({"x": np.empty((0, WIDE), np.float32)},)))[1] == 0
    assert smooth(normalized(), samples(1))[1] == 1


def test_channels_that_are_silent_in_the_samples_are_not_blown_up() -> None:
    """As the border of few images: whatever comes there later must not outgrow what was seen."""
    rng = np.random.default_rng(0)
    peaks = np.zeros(WIDE)
    peaks[: WIDE // 3] = rng.uniform(1, 30, WIDE // 3)
    factors = _factors(peaks, rng.uniform(0.5, 2, WIDE), 0.8)
    seen, silent = factors[: WIDE // 3], factors[WIDE // 3 :]
    assert silent.min() > seen.min() / 4, "a channel is divided by its factor"


def test_a_weight_that_two_nodes_read_is_not_rescaled() -> None:
    """It would be copied; and rescaled twice it would be wrong."""
    front = [node("LayerNormalization", "x g b", "h", axis=-1), node("LayerNormalization", "x g2 b", "i", axis=-1)]
    weights = {"g": gains(), "g2": gains(3), "b": normal(4, WIDE), "w": normal(1, WIDE, 32) / 8}
    nodes = [*front, node("MatMul", "h w", "y"), node("MatMul", "i w", "z")]
    proto = proto_of(nodes, {"x": ["n", WIDE]}, {"y": None, "z": None}, weights)
    assert Smooth().requests(wrapped(proto)) == ()


def test_a_gain_that_two_normalizations_share_is_divided_for_one() -> None:
    front = [node("LayerNormalization", "x g b", "h", axis=-1), node("LayerNormalization", "x g b", "i", axis=-1)]
    proto = network([*front, node("Exp", "i", "e")], {"g": gains(), "b": normal(4, WIDE)}, ("e",))
    model, count = smooth(proto)
    assert count == 1
    feeds = {"x": normal(90, 5, WIDE) / 30}
    assert_equal(run(proto, feeds), run(model, feeds), tolerance=1e-5)


def test_a_scalar_stays_a_scalar() -> None:
    """The half of a Gelu that is written out is what runtimes know it by."""
    proto = network([node("Sin", "x", "s"), node("Mul", "s half", "h")], {"half": np.array(0.5, np.float32)})
    model, _ = smooth(proto, step=Smooth(gain_db=0, div_gain_db=90))
    assert model.graph.initializers["half"].shape is not None and len(model.graph.initializers["half"].shape) == 0


def test_behind_a_convolution_no_div_stands() -> None:
    """Its result has a grid of its own already."""
    front = [node("Conv", "image k", "m"), node("Relu", "m", "h")]
    weights = {"k": normal(3, 4, 4, 1, 1), "w": normal(1, WIDE, 32), "v": normal(2, WIDE, 24)}
    nodes = [*front, node("MatMul", "h w", "y"), node("MatMul", "h v", "z")]
    proto = proto_of(nodes, {"image": [1, 4, 6, WIDE]}, {"y": None, "z": None}, weights)
    assert Smooth().requests(wrapped(proto)) == ()


def test_products_in_bodies_and_values_that_bodies_read() -> None:
    bodies = [
        helper.make_graph([node("MatMul", f"h {weight}", f"{way}_y")], way, [], [floats(f"{way}_y", None)])
        for way, weight in (("then", "w"), ("else", "u"))
    ]
    front = [
        node("LayerNormalization", "x g b", "h", axis=-1),
        node("If", "which", "y", then_branch=bodies[0], else_branch=bodies[1]),
        node("MatMul", "h v", "z"),
    ]
    weights = {"g": gains(), "b": normal(4, WIDE), "w": normal(1, WIDE, 8), "u": normal(2, WIDE, 8)}
    proto = proto_of(front, {"x": ["n", WIDE]}, {"y": None, "z": None}, {**weights, "v": normal(5, WIDE, 24)})
    proto.graph.input.append(floats("which", [], TensorProto.BOOL))
    stream = Stream(tuple({"x": normal(seed, 32, WIDE), "which": np.array(bool(seed % 2))} for seed in range(4)))
    watch = Watch()
    model = prepare(wrapped(proto), 17, ("normalize", "smooth"), stream, watch)
    assert watch.warnings == []
    for which in (True, False):
        feeds = {"x": normal(90, 5, WIDE), "which": np.array(which)}
        assert_equal(run(proto, feeds), run(model, feeds), tolerance=2e-6)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**20), times=st.floats(1, 1e4), name=st.sampled_from(sorted(FOLDED)))
def test_exact_in_float_whatever_the_inputs(seed: int, times: float, name: str) -> None:
    stream = Stream(tuple({"x": (normal(seed + index, 16, WIDE) * times).astype(np.float32)} for index in range(3)))
    model, _ = smooth(FOLDED[name], stream)
    for feeds in ({"x": normal(seed, 4, WIDE)}, {"x": (normal(seed + 9, 4, WIDE) * times).astype(np.float32)}):
        assert_equal(run(FOLDED[name], feeds), run(model, feeds), tolerance=5e-6)


def quantized(model: Model, preset: str) -> Model:
    recipe = load_recipe(preset)
    plan = make_plan(model, recipe)
    requests = requests_of(plan, model)
    statistics = collect(model, Statistics.empty(requests), samples()) if requests else Statistics.empty(())
    return apply_plan(model, plan, solve(model, plan, statistics))


def ratio(reference: onnx.ModelProto, model: Model) -> float:
    metric = Sqnr()
    for seed in range(50, 53):
        feeds = {"x": normal(seed, 64, WIDE)}
        metric.update(run(reference, feeds)["y"], run(model, feeds, optimize=True)["y"])
    return metric.value()


@pytest.mark.parametrize("preset", ["int8-dynamic", "int8"])
@pytest.mark.parametrize("name", ["LayerNormalization", "gated", "Gemm"])
def test_integers_gain_by_it(preset: str, name: str) -> None:
    """A few channels are large, which the rows of the weights make up for."""
    proto = FOLDED[name]
    plain = wrapped(proto)
    normalize_graph(plain)
    infer_shapes(plain)
    better, _ = smooth(proto)
    assert ratio(proto, quantized(better, preset)) > ratio(proto, quantized(plain, preset)) + 6


def test_alphas_lie_between_nothing_and_everything() -> None:
    with pytest.raises(UsageError):
        create("steps", {"smooth": {"alphas": [1.5]}})
