"""Biases corrected without samples, by the means that BatchNormalization foretells."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from cli.conftest import Run, run  # noqa: F401 - a fixture
from models import conv_net, node, normal, proto_of, quantized_of, saved, wrapped
from models import run as run_model
from test_data_free import batchnorm, normalized

from qcli.apply import apply_plan
from qcli.data_free import ends_of_inputs, fill_in
from qcli.foretold import correct_as_foretold
from qcli.graph import infer_shapes
from qcli.plan import make_plan
from qcli.recipe import load_recipe
from qcli.solve import solve
from qcli.statistics import Statistics
from qcli.types import Array

COARSE = (
    "rules=[{match: {role: weight}, grid: {format: int8, bits: 4}, rounding: nearest, encoding: {qdq: {pack: false}}}]"
)


def offs(proto: onnx.ModelProto, feeds: dict[str, Array], settings: tuple[str, ...] = ()) -> tuple[float, float]:
    """How far the mean of each channel of y is off, before and after."""
    model, recipe = wrapped(proto), load_recipe("int8-data-free", (COARSE, *settings))
    infer_shapes(model)
    plan = fill_in(model, make_plan(model, recipe), recipe, lambda _: None)
    solution = solve(model, plan, Statistics.empty(()))
    better = correct_as_foretold(model, plan, solution, ends_of_inputs(model, plan, recipe))
    wanted = run_model(proto, feeds)["y"]
    given = [run_model(apply_plan(model, plan, item), feeds)["y"] for item in (solution, better)]
    axes = (0, *range(2, wanted.ndim))
    first, second = (float(np.abs((item - wanted).mean(axis=axes)).mean()) for item in given)
    return first, second


def constant(channels: int) -> dict[str, Array]:
    """A BatchNormalization behind which each channel has one value everywhere, one that the grid holds exactly."""
    beta = np.array([0, 255, 13, 77, 150, 4, 201, 99][:channels], np.float32) / 64
    return {**batchnorm(0, channels, "n"), "ng": np.zeros(channels, np.float32), "nb": beta}


FORMS = [
    {"pads": [1, 1, 1, 1]},
    {"pads": [0, 2, 1, 0], "strides": [2, 1]},
    {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
    {"pads": [2, 2, 2, 2], "dilations": [2, 2]},
    {"group": 2, "pads": [1, 1, 1, 1]},
    {"group": 4},
]


@pytest.mark.parametrize("attributes", FORMS)
def test_padding_counts(attributes: dict[str, object]) -> None:
    """Behind a constant that the grid holds, little is left but the rounding of the result."""
    group = attributes.get("group", 1)
    assert isinstance(group, int)
    weights = {**constant(8), "w": normal(5, 8, 8 // group, 3, 3), "b": normal(6, 8)}
    nodes = [normalized("n", "x", "h"), node("Conv", "h w b", "y", **attributes)]
    proto = proto_of([*nodes], {"x": [2, 8, 6, 6]}, {"y": None}, weights)
    before, after = offs(proto, {"x": normal(0, 2, 8, 6, 6)})
    assert after < before / 5


def test_an_unknown_size_and_a_matrix() -> None:
    weights = {**constant(8), "w": normal(5, 8, 8, 3, 3), "b": normal(6, 8), "v": normal(7, 8, 5), "c": normal(8, 5)}
    first = [normalized("n", "x", "h"), node("Conv", "h w b", "y")]
    feeds = {"x": normal(0, 2, 8, 9, 9)}
    small = {key: weights[key] for key in weights if key not in "vc"}
    before, after = offs(proto_of(first, {"x": ["n", 8, "h", "w"]}, {"y": None}, small), feeds)
    assert after < before / 5
    second = [
        normalized("n", "x", "h"),
        node("GlobalAveragePool", "h", "g"),
        node("Flatten", "g", "f"),
        node("Gemm", "f v c", "y"),
    ]
    small = {key: weights[key] for key in weights if key not in "wb"}
    before, after = offs(proto_of(second, {"x": ["n", 8, 9, 9]}, {"y": None}, small), feeds)
    assert after < before / 5


def trained(seed: int = 0) -> onnx.ModelProto:
    """Three convolutions whose BatchNormalization says what standard normal inputs really give."""
    weights: dict[str, Array] = {}
    nodes: list[onnx.NodeProto] = []
    source, data = "x", {"x": normal(seed + 99, 64, 3, 12, 12)}
    for layer, (reads, writes) in enumerate(((3, 16), (16, 16), (16, 8))):
        weights[f"w{layer}"] = normal(seed + layer, writes, reads, 3, 3)
        convolution = node("Conv", f"{source} w{layer}", f"c{layer}", pads=[1, 1, 1, 1])
        nodes.append(convolution)
        known = {name: array for name, array in weights.items() if any(name in item.input for item in nodes)}
        result = run_model(proto_of(nodes, {"x": ["n", 3, 12, 12]}, {f"c{layer}": None}, known), data)[f"c{layer}"]
        said = batchnorm(10 * layer + seed, writes, f"n{layer}")
        said[f"n{layer}m"], said[f"n{layer}v"] = result.mean(axis=(0, 2, 3)), result.var(axis=(0, 2, 3))
        weights |= said
        nodes.append(normalized(f"n{layer}", f"c{layer}", f"b{layer}"))
        nodes.append(node("Relu", f"b{layer}", "y" if layer == 2 else f"r{layer}"))
        source = f"r{layer}"
    return proto_of(nodes, {"x": ["n", 3, 12, 12]}, {"y": None}, weights)


def sqnr(run: Run, path: Path, evaluation: Path, finish: str) -> float:  # noqa: F811
    rules = "rules=[{match: {role: weight}, grid: {format: int4}, rounding: nearest}]"
    settings = ("--set", f"finish=[{finish}]", "--set", rules)
    outcome = run(
        "quantize", path, "-r", "int8-data-free", *settings, "--eval", evaluation, "-o", "o.onnx", "--no-latency",
        "--json",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    report = json.loads(outcome.out)
    assert not any("skipped" in warning for warning in report["warnings"])
    return float(report["accuracy"]["sqnr"])


def test_a_trained_network_gains_without_samples(run: Run, tmp_path: Path) -> None:  # noqa: F811
    evaluation = tmp_path / "eval"
    evaluation.mkdir()
    for place in range(8):
        np.savez(evaluation / f"{place}.npz", x=normal(700 + place, 1, 3, 12, 12))
    path = saved(trained(), tmp_path / "net.onnx")
    before, after = (sqnr(run, path, evaluation, finish) for finish in ("", "correct_bias"))
    assert after > before + 0.3


def test_the_preset_corrects_biases() -> None:
    assert load_recipe("int8-data-free").finish == ("correct_bias",)


def test_without_batchnorm_it_is_skipped(run: Run, tmp_path: Path) -> None:  # noqa: F811
    """Nothing is assumed of the input."""
    path = saved(conv_net(), tmp_path / "net.onnx")
    calib = tmp_path / "calib"
    calib.mkdir()
    for place in range(4):
        np.savez(calib / f"{place}.npz", x=normal(place, 1, 3, 8, 8))
    settings = ("-r", "int8", "--set", "finish=[correct_bias]")
    assert run("calibrate", path, *settings, "-d", calib, "-o", "stats.npz").code == 0
    outcome = run("quantize", path, *settings, "--stats", "stats.npz", "--eval", calib, "-o", "o.onnx", "--no-latency")
    assert outcome.code == 0, outcome.err
    assert "step 'correct_bias' needs samples to run the model on and was skipped" in outcome.err


def test_nothing_to_correct_gives_the_solution_back() -> None:
    proto = proto_of([node("Conv", "x w", "y")], {"x": [1, 3, 4, 4]}, {"y": None}, {"w": normal(0, 4, 3, 1, 1)})
    known = quantized_of(proto)
    assert correct_as_foretold(known.source, known.plan, known.solution, {"x": (0.0, 1.0)}) is known.solution
