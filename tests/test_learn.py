"""Weights that learn from samples, from the plan to the model that onnxruntime runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import (
    SAMPLE_MODELS,
    Quantized,
    Stream,
    conv_net,
    dense_net,
    node,
    normal,
    proto_of,
    quantized_of,
    run,
    saved,
    stream_for,
    wrapped,
)
from onnx import helper

from qcli import learn
from qcli.calibrate import collect
from qcli.errors import UsageError
from qcli.graph import Model, constant_of, node_key, normalize_graph
from qcli.job import QuantizeJob
from qcli.learn import Problem, doubts_about_learning, learned_requests, learners, unlearned
from qcli.measured import requests_of
from qcli.pipeline import calibrate_job, quantize
from qcli.plan import make_plan
from qcli.recipe import load_recipe
from qcli.roundings._quadratic import damped, error_of
from qcli.solve import solve
from qcli.statistics import Statistics, load_statistics
from qcli.types import Plan, Role
from qcli.watch import Watch
from qcli.windows import rows_of, window_of

LEARNED = ("gptq", "coordinate", "{adaround: {iterations: 50}}")


def learning(rounding: str, bits: int = 8, granularity: str = "channel") -> tuple[str, ...]:
    """A setting: all weights by `rounding`."""
    grid = f"{{format: int8, symmetric: true, granularity: {granularity}, bits: {bits}}}"
    return (f"rules=[{{match: {{role: weight}}, rounding: {rounding}, grid: {grid}}}]",)


def alike(shape: Sequence[int], count: int = 12) -> Stream:
    """Samples whose elements depend on each other, as those of images do."""
    samples = []
    for seed in range(count):
        noise = normal(seed, *shape)
        for axis in range(2, noise.ndim) if noise.ndim > 2 else [noise.ndim - 1]:
            noise = noise + np.roll(noise, 1, axis) + np.roll(noise, 2, axis)
        samples.append({"x": (noise + 0.7).astype(np.float32)})
    return Stream(tuple(samples))


def output_error(proto: onnx.ModelProto, quantized: Quantized, stream: Stream) -> float:
    """The mean squared error of the outputs."""
    errors = [np.square(run(proto, feeds)["y"] - run(quantized.model, feeds)["y"]).mean() for feeds in stream.samples]
    return float(np.mean(errors))


def one_layer(kind: str) -> tuple[onnx.ModelProto, Stream]:
    """A layer of each kind, and samples for it."""
    data: tuple[int, ...] = (1, 6, 9, 9)
    made = {
        "Conv": (node("Conv", "x w b", "y", pads=[1, 1, 1, 1]), (8, 6, 3, 3), 8),
        "grouped": (node("Conv", "x w b", "y", group=2, strides=[2, 1]), (8, 3, 3, 3), 8),
        "depthwise": (node("Conv", "x w b", "y", group=6, pads=[1, 1, 1, 1]), (6, 1, 3, 3), 6),
        "transposed": (node("ConvTranspose", "x w b", "y", strides=[2, 2]), (6, 5, 3, 3), 5),
        "transposed in groups": (node("ConvTranspose", "x w b", "y", group=2), (6, 4, 3, 3), 8),
        "1-d": (node("Conv", "x w b", "y", dilations=[2]), (8, 6, 3), 8),
        "Gemm": (node("Gemm", "x w b", "y"), (16, 8), 8),
        "Gemm transB": (node("Gemm", "x w b", "y", transB=1), (8, 16), 8),
        "MatMul": (node("MatMul", "x w", "y"), (16, 8), 8),
    }[kind]
    layer, shape, channels = made
    data = {"1-d": (1, 6, 20), "Gemm": (9, 16), "Gemm transB": (9, 16), "MatMul": (2, 5, 16)}.get(kind, data)
    weights = {"w": normal(1, *shape), **({"b": normal(2, channels)} if "b" in layer.input else {})}
    return proto_of([layer], {"x": data}, {"y": None}, weights), alike(data)


KINDS = (
    "Conv",
    "grouped",
    "depthwise",
    "transposed",
    "transposed in groups",
    "1-d",
    "Gemm",
    "Gemm transB",
    "MatMul",
)


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
@pytest.mark.parametrize("rounding", LEARNED)
@pytest.mark.parametrize("kind", KINDS)
def test_learning_lowers_the_error_of_a_layer(kind: str, rounding: str, granularity: str) -> None:
    proto, stream = one_layer(kind)
    recipe = "int8-minmax"
    nearest = quantized_of(proto, recipe, stream, learning("nearest", 5, granularity))
    better = quantized_of(proto, recipe, stream, learning(rounding, 5, granularity))
    assert learners(better.plan, better.source), "it learns"
    assert unlearned(better.plan, better.source, better.statistics) == {}
    assert output_error(proto, better, stream) < 0.9 * output_error(proto, nearest, stream)


@pytest.mark.parametrize("rounding", LEARNED)
def test_learning_lowers_the_error_of_a_network(rounding: str) -> None:
    proto, stream = conv_net(), alike((1, 3, 8, 8))
    nearest = quantized_of(proto, "int8-minmax", stream, learning("nearest", 5))
    better = quantized_of(proto, "int8-minmax", stream, learning(rounding, 5))
    assert len(learners(better.plan, better.source)) == 4
    assert output_error(proto, better, stream) < 0.7 * output_error(proto, nearest, stream)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_codes_stay_within_the_bits(bits: int) -> None:
    quantized = quantized_of(conv_net(), "int8-minmax", alike((1, 3, 8, 8)), learning("coordinate", bits))
    for entry in learners(quantized.plan, quantized.source):
        key = (entry.site.node, entry.site.role.value, entry.site.operand)
        codes, scale = np.asarray(quantized.solution.codes[key]), quantized.solution.scales[key]
        assert codes.dtype == np.int8 and scale.highest < 2 ** (bits - 1)
        assert codes.min() >= scale.lowest and codes.max() <= scale.highest


def layer_error(quantized: Quantized, name: str, damp: float = 0.01) -> float:
    """The quadratic of a layer's weight, in real units."""
    [entry] = [item for item in quantized.plan.entries if item.site.value == name]
    request = learned_requests(quantized.plan, quantized.source)[entry.site.node]
    nodes = {node_key(item): item for item in quantized.source.nodes()}
    layer, key = nodes[entry.site.node], (entry.site.node, entry.site.role.value, entry.site.operand)
    codes, scale = np.asarray(quantized.solution.codes[key], np.float64), quantized.solution.scales[key]
    shape = [1] * codes.ndim
    if scale.axis is not None:
        shape[scale.axis] = -1
    real = (codes - scale.zero_point.reshape(shape)) * scale.scale.astype(np.float64).reshape(shape)
    measured = quantized.statistics.get(request)
    products = damped(measured.moments()[0], damp)  # type: ignore[attr-defined]
    exact = np.asarray(constant_of(layer.inputs[1]), np.float64)
    assert request.window is not None
    rows = [rows_of(layer, part, request.window) for part in (real, exact)]
    return float(error_of(rows[0], rows[1], products).sum())


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
@pytest.mark.parametrize("kind", KINDS)
def test_refitting_the_scale_lowers_the_error(kind: str, granularity: str) -> None:
    proto, stream = one_layer(kind)
    once = quantized_of(proto, "int8-minmax", stream, learning("coordinate", 3, granularity))
    often = quantized_of(proto, "int8-minmax", stream, learning("{coordinate: {refit: 5}}", 3, granularity))
    assert layer_error(often, "w") <= layer_error(once, "w") * (1 + 1e-9)
    assert layer_error(often, "w") < layer_error(once, "w"), "there is something to gain"


def test_refitting_keeps_the_steps_that_biases_and_kernels_need() -> None:
    """Where a large bias makes the steps wide, they stay so."""
    proto, stream = one_layer("Conv")
    weights = {"w": normal(1, 8, 6, 3, 3) * np.float32(1e-6), "b": np.full(8, 1e4, np.float32)}
    layer = node("Conv", "x w b", "y", pads=[1, 1, 1, 1])
    proto = proto_of([layer], {"x": [1, 6, 9, 9]}, {"y": None}, weights)
    fixed = quantized_of(proto, "int8-minmax", stream, learning("gptq"))
    fitted = quantized_of(proto, "int8-minmax", stream, learning("{gptq: {refit: 3}}"))
    [floors] = [scale.scale for (_, role, _), scale in fixed.solution.scales.items() if role == "weight"]
    [steps] = [scale.scale for (_, role, _), scale in fitted.solution.scales.items() if role == "weight"]
    assert (steps >= floors * (1 - 1e-6)).all()
    codes = np.abs(next(np.asarray(c) for (_, role, _), c in fitted.solution.codes.items() if role == "bias"))
    assert codes.max() <= 2**30 * 1.001


def shared_net() -> onnx.ModelProto:
    weights = {"w": normal(0, 6, 6), "v": normal(1, 6, 6)}
    nodes = [
        node("MatMul", "x w", "a"),
        node("Relu", "a", "b"),
        node("MatMul", "b w", "c"),
        node("MatMul", "c v", "y"),
    ]
    return proto_of(nodes, {"x": [4, 6]}, {"y": [4, 6]}, weights)


def branching_net() -> onnx.ModelProto:
    """Two branches with a layer each, of which the samples take the first."""
    branches = [
        helper.make_graph(
            [node("MatMul", f"x {name}", f"{name}_out")],
            name,
            [],
            [helper.make_tensor_value_info(f"{name}_out", onnx.TensorProto.FLOAT, [4, 6])],
        )
        for name in ("u", "v")
    ]
    nodes = [
        node("MatMul", "x w", "a"),
        node("ReduceSum", "x", "s", keepdims=0),
        node("Greater", "s low", "t"),
        node("If", "t", "i", then_branch=branches[0], else_branch=branches[1]),
        node("Add", "a i", "y"),
    ]
    weights = {name: normal(seed, 6, 6) for seed, name in enumerate("wuv")}
    return proto_of(nodes, {"x": [4, 6]}, {"y": [4, 6]}, {**weights, "low": np.array(-1e9, np.float32)})


@pytest.mark.parametrize("rounding", LEARNED)
def test_a_weight_that_several_nodes_read_is_rounded_without_samples(rounding: str) -> None:
    plain = quantized_of(shared_net(), settings=learning("squant"))
    quantized = quantized_of(shared_net(), settings=learning(rounding))
    assert unlearned(quantized.plan, quantized.source, quantized.statistics) == {
        "as several nodes read them": ["w", "w"]
    }
    assert [entry.site.value for entry in learners(quantized.plan, quantized.source)] == ["v"]
    for key, codes in plain.solution.codes.items():
        if key[0] != "y":
            np.testing.assert_array_equal(np.asarray(codes), np.asarray(quantized.solution.codes[key]))


def test_weights_of_a_body_are_rounded_without_samples() -> None:
    quantized = quantized_of(branching_net(), settings=learning("coordinate"))
    reasons = unlearned(quantized.plan, quantized.source, quantized.statistics)
    assert [entry.site.value for entry in learners(quantized.plan, quantized.source)] == ["w"]
    assert set(reasons) == {"as they belong to the body of another node"}
    assert set(reasons["as they belong to the body of another node"]) <= {"u", "v"}
    run(quantized.model, {"x": normal(0, 4, 6)})


def test_what_is_said_of_weights_that_cannot_learn() -> None:
    quantized = quantized_of(shared_net(), settings=learning("gptq"))
    assert doubts_about_learning(quantized.plan, quantized.source, quantized.statistics) == [
        "2 weights are rounded without samples, as several nodes read them: w, w"
    ]


def test_weights_that_no_sample_reaches_are_rounded_without_samples() -> None:
    proto = proto_of([node("MatMul", "x w", "y")], {"x": ["n", 6]}, {"y": None}, {"w": normal(0, 6, 4)})
    empty = Stream(({"x": np.zeros((0, 6), np.float32)},))
    quantized = quantized_of(proto, stream=empty, settings=learning("coordinate"))
    assert unlearned(quantized.plan, quantized.source, quantized.statistics) == {"as no sample reaches them": ["w"]}
    plain = quantized_of(proto, stream=empty, settings=learning("nearest"))
    assert quantized.model.serialize() == plain.model.serialize()


def test_layers_that_are_no_such_product_are_rounded_without_samples() -> None:
    layer = node("ConvTranspose", "x w", "y", auto_pad="SAME_UPPER", strides=[2, 2])
    proto = proto_of([layer], {"x": [1, 16, 5, 5]}, {"y": None}, {"w": normal(0, 16, 16, 3, 3)})
    quantized = quantized_of(proto, settings=learning("gptq"))
    reasons = unlearned(quantized.plan, quantized.source, quantized.statistics)
    assert reasons == {"as this form of ConvTranspose is no product of patches": ["w"]}
    plain = quantized_of(proto, settings=learning("squant"))
    assert quantized.model.serialize() == plain.model.serialize()


def test_large_models_that_nobody_teaches_are_rounded_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    source = wrapped(dense_net())
    normalize_graph(source)
    plan = make_plan(source, load_recipe("int8-minmax", learning("gptq")))
    nearest = make_plan(source, load_recipe("int8-minmax", learning("nearest")))
    statistics = collect(source, Statistics.empty(requests_of(plan, source)), stream_for(source))
    monkeypatch.setattr(Model, "large", property(lambda _: True))
    found, usual = solve(source, plan, statistics), solve(source, nearest, statistics)
    assert found.codes.keys() == usual.codes.keys()
    for key, codes in found.codes.items():
        assert np.array_equal(np.asarray(codes), np.asarray(usual.codes[key]))


def test_large_models_are_rounded_without_samples_where_nobody_runs_their_parts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = wrapped(dense_net())
    normalize_graph(source)
    plan = make_plan(source, load_recipe("int8-minmax", learning("gptq")))
    monkeypatch.setattr(Model, "large", property(lambda _: True))
    assert learners(plan, source) and learned_requests(plan, source)
    assert not set(learned_requests(plan, source).values()) & set(requests_of(plan, source))
    statistics = collect(source, Statistics.empty(requests_of(plan, source)), stream_for(source))
    assert unlearned(plan, source, statistics) == {}
    solution = solve(source, plan, statistics)
    assert all(np.asarray(codes).size for codes in solution.codes.values())


def test_constant_and_zero_inputs() -> None:
    for value in (0.0, 0.5):
        stream = Stream(({"x": np.full((1, 3, 8, 8), value, np.float32)},) * 2)
        for rounding in ("gptq", "{coordinate: {refit: 2}}"):
            quantized = quantized_of(conv_net(), "int8-minmax", stream, learning(rounding))
            assert np.isfinite(run(quantized.model, stream.samples[0])["y"]).all()


def plan_of(proto: onnx.ModelProto, rounding: str) -> tuple[Model, Plan]:
    source = wrapped(proto)
    normalize_graph(source)
    return source, make_plan(source, load_recipe("int8-minmax", learning(rounding)))


def test_what_does_not_fit_is_seen_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    proto, stream = conv_net(channels=16), alike((1, 3, 8, 8))
    source, plan = plan_of(proto, "coordinate")
    whole = learned_requests(plan, source)
    assert {request.window.blocks for request in whole.values() if request.window} == {1}
    monkeypatch.setattr(learn, "_LARGEST", 10)
    cut = learned_requests(plan, source)
    blocks = {node: request.window.blocks for node, request in cut.items() if request.window}
    assert blocks == {"c1": 3, "c2": 1, "c3": 2, "y": 2}
    quantized = quantized_of(proto, "int8-minmax", stream, learning("coordinate", 5))
    nearest = quantized_of(proto, "int8-minmax", stream, learning("nearest", 5))
    assert output_error(proto, quantized, stream) < output_error(proto, nearest, stream)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 1 << 22))
def test_statistics_stay_within_the_budget_until_blocks_are_small(budget: int) -> None:
    proto = proto_of(
        [node("MatMul", "x w", "m"), node("MatMul", "m v", "y")],
        {"x": [2, 500]},
        {"y": None},
        {"w": np.ones((500, 300), np.float32), "v": np.ones((300, 10), np.float32)},
    )
    source, plan = plan_of(proto, "gptq")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learn, "_BUDGET", budget)
        requests = learned_requests(plan, source)
    statistics = Statistics.empty(requests.values())
    collect(source, statistics, Stream(({"x": normal(0, 2, 500)},)))
    kept = sum(array.nbytes for r in requests.values() for array in statistics.get(r).arrays().values())
    most = max(size / r.window.blocks for size, r in zip((500, 300), requests.values(), strict=True) if r.window)
    assert kept <= budget * 1.05 + 20_000 or most <= 32


def test_roundings_of_one_model_may_differ() -> None:
    rules = "rules=[{match: {value: w1}, rounding: gptq}, {match: {value: w3}, rounding: {coordinate: {refit: 1}}}]"
    quantized = quantized_of(conv_net(), settings=(rules,))
    assert [entry.site.value for entry in learners(quantized.plan, quantized.source)] == ["w1", "w3"]
    statistics = {request.statistic for request in requests_of(quantized.plan, quantized.source)}
    assert "gram" in statistics


def job(tmp_path: Path, **options: object) -> QuantizeJob:
    base = QuantizeJob(
        model=SAMPLE_MODELS / "cnn" / "model.onnx",
        recipe=str(SAMPLE_MODELS / "cnn" / "recipe.yaml"),
        calibration=SAMPLE_MODELS / "cnn" / "calib",
        output=tmp_path / "out.onnx",
        samples=12,
        latency=False,
        cache=False,
        threads=1,
        settings=("rules=[{match: {role: weight}, rounding: {coordinate: {refit: 1}}}]",),
    )
    return msgspec.structs.replace(base, **options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The cnn quantized in one run."""
    found = job(tmp_path_factory.mktemp("whole"))
    quantize(found)
    assert found.output is not None
    return found.output.read_bytes()


def test_bytes_do_not_depend_on_the_threads(tmp_path: Path, whole: bytes) -> None:
    quantize(job(tmp_path, threads=4))
    assert (tmp_path / "out.onnx").read_bytes() == whole


def test_shards_give_the_same_bytes(tmp_path: Path, whole: bytes) -> None:
    for index in (3, 1, 2):
        calibrate_job(job(tmp_path, shard=(index, 3))).save(tmp_path / f"{index}.npz")
    first, *others = (load_statistics(tmp_path / f"{index}.npz") for index in (2, 3, 1))
    for other in others:
        first = first.merge(other)
    first.save(tmp_path / "all.npz")
    quantize(job(tmp_path, stats=tmp_path / "all.npz"))
    assert (tmp_path / "out.onnx").read_bytes() == whole


def test_a_run_warns_of_weights_that_cannot_learn(tmp_path: Path) -> None:
    samples = tmp_path / "calib"
    samples.mkdir()
    for index in range(3):
        np.save(samples / f"{index}.npy", normal(index, 4, 6))
    watch = Watch()
    model = saved(shared_net(), tmp_path / "model.onnx")
    quantize(job(tmp_path, model=model, recipe="int8", calibration=samples), watch)
    assert "2 weights are rounded without samples, as several nodes read them: w, w" in watch.warnings


def test_statistics_that_lack_something_are_refused() -> None:
    quantized = quantized_of(dense_net(), settings=learning("gptq"))
    plain = quantized_of(dense_net(), settings=learning("nearest"))
    with pytest.raises(UsageError, match="the statistics lack the gram"):
        solve(quantized.source, quantized.plan, plain.statistics)


def test_weights_are_the_only_ones_that_learn() -> None:
    """A constant that is quantized like an activation is rounded to nearest."""
    source, plan = plan_of(dense_net(), "gptq")
    entries = tuple(msgspec.structs.replace(entry, rounding="gptq") for entry in plan.entries)
    learners_ = learners(msgspec.structs.replace(plan, entries=entries), source)
    assert {entry.site.role for entry in learners_} == {Role.WEIGHT}


def test_rows_know_what_becomes_of_the_product() -> None:
    quantized = quantized_of(conv_net(), "int8-minmax", alike((1, 3, 8, 8)), learning("gptq"))
    nodes = {node_key(item): item for item in quantized.source.nodes()}
    found = {}
    for name, request in learned_requests(quantized.plan, quantized.source).items():
        assert request.window is not None
        scale = quantized.solution.scales[(name, "weight", 1)]
        problem = Problem(nodes[name], np.asarray(constant_of(nodes[name].inputs[1])), request.window)
        found[name] = (problem.rows(scale).answer, problem.steps(scale)[..., 0])
    assert found["c3"][0] is None and found["y"][0] is None
    relu, steps = found["c1"]
    assert relu is not None and (relu.lower == 0).all() and (relu.upper == np.inf).all() and relu.slope == 1
    np.testing.assert_allclose(relu.bias * steps, normal(1, 8)[None] / 5, rtol=1e-6)
    clip, steps = found["c2"]
    assert clip is not None and not clip.bias.any()
    np.testing.assert_allclose(clip.upper * steps, np.full((8, 1), 6.0))


def test_blocks_are_parts_of_a_product_and_know_nothing_of_what_becomes_of_it() -> None:
    quantized = quantized_of(conv_net(), "int8-minmax", alike((1, 3, 8, 8)), learning("gptq"))
    layer = next(item for item in quantized.source.nodes() if node_key(item) == "c1")
    window = window_of(layer, 10)
    assert window is not None and window.blocks == 3
    rows = Problem(layer, np.asarray(constant_of(layer.inputs[1])), window).rows(
        quantized.solution.scales[("c1", "weight", 1)]
    )
    assert rows.answer is None and rows.exact.shape == (3, 8, 9)


def test_adaround_learns_layer_after_layer_too(tmp_path: Path) -> None:
    rounding = "{adaround: {sequential: true, iterations: 40}}"
    quantize(job(tmp_path, settings=(f"rules=[{{match: {{role: weight}}, rounding: {rounding}}}]",)))
    first = (tmp_path / "out.onnx").read_bytes()
    quantize(job(tmp_path, settings=(f"rules=[{{match: {{role: weight}}, rounding: {rounding}}}]",), threads=3))
    assert (tmp_path / "out.onnx").read_bytes() == first
