"""Ranges of weights weighted by input energy, from the recipe to the model that onnxruntime runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from models import Quantized, Stream, conv_net, node, normal, proto_of, quantized_of, run, saved, stream_for, wrapped

from qcli.distribution import from_weights
from qcli.energies import doubts_about_energies, energies_of, energy_requests
from qcli.errors import UsageError
from qcli.graph import constant_of, node_key, normalize_graph
from qcli.measured import requests_of
from qcli.plan import make_plan
from qcli.plugins import create
from qcli.ranges.minmax import MinMax
from qcli.ranges.mse import Mse
from qcli.recipe import load_recipe
from qcli.statistics import Statistics
from qcli.types import Array, Grid, Interval
from qcli.windows import patches_of, rows_of, window_of

ENERGY = st.floats(0, 1e3, width=32)
WEIGHTS = st.integers(1, 30).flatmap(
    lambda n: st.tuples(
        hnp.arrays(np.float32, (2, n), elements=st.floats(-100, 100, width=32)),
        hnp.arrays(np.float64, (2, n), elements=ENERGY),
    )
)
GRIDS = (
    Grid(bits=4, narrow=True),
    Grid(),
    Grid(format="uint8", symmetric=False),
    Grid(format="int8", symmetric=False, bits=3),
)


def weighing(bits: int = 4, granularity: str = "channel", symmetric: str = "true", range_: str = "") -> tuple[str, ...]:
    """A setting: all weights to nearest levels, in a range found by energies."""
    grid = f"{{format: int8, symmetric: {symmetric}, granularity: {granularity}, bits: {bits}}}"
    wanted = range_ or "{mse: {weighted: true}}"
    return (f"rules=[{{match: {{role: weight}}, rounding: nearest, range: {wanted}, grid: {grid}}}]",)


def uneven(shape: tuple[int, ...], axis: int, count: int = 8) -> Stream:
    """Independent inputs around zero whose channels differ in size."""
    sizes = np.geomspace(0.05, 20, shape[axis]).reshape([-1 if at == axis else 1 for at in range(len(shape))])
    return Stream(tuple({"x": (normal(seed, *shape) * sizes).astype(np.float32)} for seed in range(count)))


def one_layer(kind: str) -> tuple[onnx.ModelProto, Stream]:
    data: tuple[int, ...] = (1, 6, 9, 9)
    made = {
        "Conv": (node("Conv", "x w", "y", pads=[1, 1, 1, 1]), (8, 6, 3, 3)),
        "grouped": (node("Conv", "x w", "y", group=2, strides=[2, 1]), (8, 3, 3, 3)),
        "depthwise": (node("Conv", "x w", "y", group=6), (6, 1, 3, 3)),
        "transposed": (node("ConvTranspose", "x w", "y", strides=[2, 2]), (6, 5, 3, 3)),
        "transposed in groups": (node("ConvTranspose", "x w", "y", group=2), (6, 4, 3, 3)),
        "Gemm": (node("Gemm", "x w", "y"), (16, 8)),
        "Gemm transB": (node("Gemm", "x w", "y", transB=1), (8, 16)),
        "MatMul": (node("MatMul", "x w", "y"), (16, 8)),
    }[kind]
    data = {"Gemm": (9, 16), "Gemm transB": (9, 16), "MatMul": (2, 5, 16)}.get(kind, data)
    weights = {"w": (normal(1, *made[1]) ** 3).astype(np.float32)}
    return proto_of([made[0]], {"x": data}, {"y": None}, weights), uneven(data, 1 if len(data) == 4 else len(data) - 1)


KINDS = ("Conv", "grouped", "depthwise", "transposed", "transposed in groups", "Gemm", "Gemm transB", "MatMul")


def weighted_error(quantized: Quantized, proto: onnx.ModelProto, stream: Stream) -> float:
    """The squared error of the weight in the model, each element times the energy of its input."""
    layer = next(iter(quantized.source.nodes()))
    key = (node_key(layer), "weight", 1)
    scale, codes = quantized.solution.scales[key], np.asarray(quantized.solution.codes[key])
    real = np.asarray(create("formats", "int8").decode(codes, scale), np.float64)
    window = window_of(layer, 1 << 62)
    assert window is not None
    patches = np.concatenate([patches_of(np.asarray(feeds["x"]), window) for feeds in stream.samples], axis=2)
    energies = np.square(patches.astype(np.float64)).mean(axis=2)
    energies += 0.01 * energies.mean(axis=1, keepdims=True)
    wrong = rows_of(layer, np.asarray(constant_of(layer.inputs[1])) - real, window)
    return float((energies[:, None] * wrong**2).sum())


@pytest.mark.parametrize("kind", KINDS)
def test_energies_belong_to_the_elements_that_meet_them(kind: str) -> None:
    """The diagonal of the inputs' products, by the patches that the layer reads; in the weight's own shape."""
    proto, stream = one_layer(kind)
    quantized = quantized_of(proto, "int8-minmax", stream, weighing())
    [(name, request)] = energy_requests(quantized.plan, quantized.source).items()
    layer = next(item for item in quantized.source.nodes() if node_key(item) == name)
    assert request.window is not None
    window = request.window
    patches = np.concatenate([patches_of(np.asarray(feeds["x"]), window) for feeds in stream.samples], axis=2)
    expected = np.square(patches.astype(np.float64)).mean(axis=2)
    expected += 0.01 * expected.mean(axis=1, keepdims=True)
    spread = energies_of(layer, request, quantized.statistics)
    assert spread is not None and spread.shape == np.asarray(constant_of(layer.inputs[1])).shape
    rows = rows_of(layer, spread, window)
    np.testing.assert_allclose(rows, np.broadcast_to(expected[:, None], rows.shape), rtol=1e-5)


@pytest.mark.parametrize("symmetric", ["true", "false"])
@pytest.mark.parametrize("granularity", ["channel", "tensor"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_weighted_error_is_smaller_than_that_of_mse_and_minmax(kind: str, granularity: str, symmetric: str) -> None:
    proto, stream = one_layer(kind)
    errors = []
    for range_ in ("{mse: {weighted: true}}", "mse", "minmax"):
        found = quantized_of(proto, "int8-minmax", stream, weighing(4, granularity, symmetric, range_))
        errors.append(weighted_error(found, proto, stream))
    assert errors[0] <= 1.001 * min(errors[1:])


@pytest.mark.parametrize("kind", ("Conv", "Gemm", "MatMul"))
def test_independent_inputs_of_uneven_size_give_better_outputs(kind: str) -> None:
    proto, stream = one_layer(kind)
    errors = []
    for range_ in ("{mse: {weighted: true}}", "mse"):
        found = quantized_of(proto, "int8-minmax", stream, weighing(5, range_=range_))
        pairs = [(run(proto, feeds)["y"], run(found.model, feeds)["y"]) for feeds in stream.samples]
        errors.append(float(np.mean([np.square(exact - result).mean() for exact, result in pairs])))
    assert errors[0] < 0.95 * errors[1]


def weighted(values: Array, energies: Array, interval: Interval, grid: Grid) -> Array:
    """The weighted error [channels] of encoding and decoding values [channels, n]."""
    number_format = create("formats", grid.format)
    scale = number_format.scale(interval, grid)
    scale = msgspec.structs.replace(scale, axis=0)
    decoded = number_format.decode(number_format.encode(values, scale), scale)
    return np.asarray((energies * (decoded.astype(np.float64) - values) ** 2).sum(axis=1))


@settings(deadline=None)
@given(WEIGHTS, st.sampled_from(GRIDS))
def test_the_search_is_never_worse_than_minmax(drawn: tuple[Array, Array], grid: Grid) -> None:
    values, energies = drawn
    known = from_weights(values, 0, energies)
    found, widest = (weighted(values, energies, range_.interval(known, grid), grid) for range_ in (Mse(), MinMax()))
    assert (found <= widest * 1.0001 + 1e-12).all()


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("seed", range(4))
def test_the_search_is_about_as_good_as_trying_everything(grid: Grid, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.laplace(size=(1, 400)).astype(np.float32)
    energies = rng.lognormal(0, 2, (1, 400))
    found = weighted(values, energies, Mse().interval(from_weights(values, 0, energies), grid), grid)[0]
    low, high = float(values.min()), float(values.max())
    shares = np.linspace(0.02, 1, 60)
    pairs = [(low * first, high * second) for first in shares for second in (shares if not grid.symmetric else [first])]
    tried = [Interval(lower=np.array([first]), upper=np.array([second])) for first, second in pairs]
    best = min(float(weighted(values, energies, bound, grid)[0]) for bound in tried)
    assert found <= 1.05 * best


def test_large_weights_taken_as_a_whole_are_weighted_in_bins() -> None:
    rng = np.random.default_rng(0)
    values, energies = rng.laplace(size=(300, 300)).astype(np.float32), rng.lognormal(0, 1, (300, 300))
    known = from_weights(values, None, energies)
    assert known.resolution > 0
    np.testing.assert_allclose(known.counts.sum(), energies.sum(), rtol=1e-9)
    np.testing.assert_allclose((known.counts * known.points**2).sum(), (energies * values**2).sum(), rtol=0.01)


def test_conv_net_runs_and_asks_for_energies(tmp_path: Path) -> None:
    found = quantized_of(conv_net(), "int8-minmax", None, weighing(8))
    assert {request.statistic for request in requests_of(found.plan, found.source)} == {"extrema", "energy"}
    assert doubts_about_energies(found.plan, found.source, found.statistics) == []
    feeds = stream_for(found.source).samples[0]
    assert np.isfinite(run(found.model, feeds)["y"]).all()


def test_weights_that_several_nodes_read_are_not_weighted() -> None:
    layers = [node("Conv", "x w", "h", pads=[1, 1, 1, 1]), node("Conv", "h w", "y", pads=[1, 1, 1, 1])]
    proto = proto_of(layers, {"x": (1, 4, 5, 5)}, {"y": None}, {"w": normal(0, 4, 4, 3, 3)})
    found = quantized_of(proto, "int8-minmax", None, weighing())
    plain = quantized_of(proto, "int8-minmax", None, weighing(range_="mse"))
    [doubt] = doubts_about_energies(found.plan, found.source, found.statistics)
    assert "not weighted, as several nodes read them: w, w" in doubt
    for key, codes in plain.solution.codes.items():
        assert np.array_equal(np.asarray(codes), np.asarray(found.solution.codes[key]))


def test_weights_that_no_sample_reaches_are_not_weighted() -> None:
    source = wrapped(one_layer("Conv")[0])
    normalize_graph(source)
    plan = make_plan(source, load_recipe("int8-minmax", weighing()))
    [doubt] = doubts_about_energies(plan, source, Statistics.empty(requests_of(plan, source)))
    assert "as no sample reaches them: w" in doubt


def test_activations_cannot_be_weighted() -> None:
    source = wrapped(one_layer("Conv")[0])
    with pytest.raises(UsageError, match="no weight") as caught:
        make_plan(
            source, load_recipe("int8-minmax", ("rules=[{match: {role: input}, range: {mse: {weighted: true}}}]",))
        )
    assert "role: weight" in caught.value.hint


def test_auto_cannot_choose_it() -> None:
    with pytest.raises(UsageError, match="more than a histogram"):
        create("ranges", {"auto": {"methods": ["minmax", {"mse": {"weighted": True}}]}})


def test_without_samples_the_command_refuses(tmp_path: Path) -> None:
    model = saved(one_layer("MatMul")[0], tmp_path / "m.onnx")
    rule = "rules=[{match: {role: weight}, range: {mse: {weighted: true}}}]"
    for recipe, said, code in (("int8-weights", rule, 5), ("int8", rule.replace("weight}", "input}"), 2)):
        finished = subprocess.run(
            [sys.executable, "-m", "qcli", "quantize", str(model), "-r", recipe, "--set", said],
            check=False,
            capture_output=True,
            text=True,
        )
        assert finished.returncode == code, finished.stderr
