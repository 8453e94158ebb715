"""Presets that need no samples: with none, with some to judge by, and what still refuses without them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from models import Shape, assert_equal, node, normal, proto_of, saved
from models import run as run_model
from onnx import helper

from cli.conftest import SAMPLE_MODELS, Run
from qcli.graph import load_model
from qcli.types import Array

PRESETS = ("int8-weights", "int8-dynamic", "int8-transformer")
RANDOM = "no samples: compared on 4 random inputs, which says little about accuracy"


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", ["cnn", "transformer", "gru", "mlp"])
def test_without_any_samples(run: Run, name: str, preset: str) -> None:
    outcome = run(
        "quantize", SAMPLE_MODELS / name / "model.onnx", "-r", preset, "-o", "out.onnx", "--no-latency", "--json"
    )
    assert outcome.code == 0, outcome.err
    report = json.loads(outcome.out)
    assert RANDOM in report["warnings"] and RANDOM in outcome.err
    assert report["samples"] == {"calibration": None, "validation": 4}
    assert report["accuracy"]["sqnr"] > 15
    assert 0.2 < report["size"]["ratio"] < 0.45
    if preset == "int8-transformer":
        assert any("'split_outliers' needs samples and was skipped" in line for line in report["warnings"])


@pytest.mark.parametrize("preset", PRESETS)
def test_judged_by_samples(run: Run, evaluation: Path, mlp: Path, preset: str) -> None:
    outcome = run("quantize", mlp, "-r", preset, "--eval", evaluation, "-o", "out.onnx", "--no-latency", "--json")
    report = json.loads(outcome.out)
    assert outcome.code == 0
    assert report["samples"]["validation"] == 360 and RANDOM not in report["warnings"]
    assert report["accuracy"]["top1"]["drop"] < 0.01
    kernels = report["kernels"]["by_kernel"]
    integers = kernels.get("DynamicQuantizeMatMul", 0) + kernels.get("MatMulIntegerToFloat", 0)
    assert (integers > 0) == (preset != "int8-weights")


def test_weights_alone_are_not_warned_about_for_running_in_float(run: Run, mlp: Path) -> None:
    outcome = run("quantize", mlp, "-r", "int8-weights", "-o", "out.onnx", "--no-latency")
    assert outcome.code == 0 and "runs on integers" not in outcome.err


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_static_quantization_still_refuses_without_samples(run: Run, name: str) -> None:
    outcome = run("quantize", SAMPLE_MODELS / name / "model.onnx", "-r", "int8", "-o", "out.onnx")
    assert outcome.code == 5
    assert "static quantization needs samples" in outcome.err and "int8-weights" in outcome.err
    assert not list(Path.cwd().iterdir())


def test_a_recipe_that_mixes_refuses_as_long_as_one_layer_is_static(run: Run, mlp: Path) -> None:
    mixed = "rules=[{match: {op: Gemm, role: input}, grid: {format: uint8, symmetric: false}}]"
    static = "rules=[{match: {op: Gemm, role: input}, grid: {format: uint8, symmetric: false}}, " \
             "{match: {role: weight}, encoding: qdq}]"  # fmt: skip
    arguments = ("quantize", mlp, "-r", "int8-weights", "-o", "out.onnx", "--no-latency", "--set")
    assert run(*arguments, mixed).code == 0, "its weights are still stored only"
    assert run(*arguments, static).code == 5


def test_the_same_bytes_each_time(run: Run, mlp: Path) -> None:
    for name in ("1.onnx", "2.onnx"):
        assert run("quantize", mlp, "-r", "int8-dynamic", "-o", name, "--no-latency").code == 0
    assert Path("1.onnx").read_bytes() == Path("2.onnx").read_bytes()


def test_labels_need_samples(run: Run, mlp: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("file,label\na.npz,1\n")
    outcome = run("quantize", mlp, "-r", "int8-weights", "-o", "o.onnx", "--labels", tmp_path / "labels.csv")
    assert outcome.code == 2 and "labels need samples" in outcome.err


def old_model(opset: int, ir_version: int) -> onnx.ModelProto:
    """Conv, Flatten, Gemm; before IR version 4 weights are inputs with a value."""
    weights: dict[str, Array] = {"w": normal(0, 8, 4, 3, 3) / 6, "v": normal(1, 32, 12) / 6, "b": normal(2, 12)}
    nodes = [node("Conv", "x w", "c"), node("Relu", "c", "r"), node("Flatten", "r", "f"), node("Gemm", "f v b", "y")]
    data: dict[str, Shape] = {"x": [1, 4, 4, 4]}
    proto = proto_of(nodes, data, {"y": [1, 12]}, weights, opset=opset)
    proto.ir_version = ir_version
    if ir_version < 4:
        for name, array in weights.items():
            proto.graph.input.append(helper.make_tensor_value_info(name, 1, array.shape))
    return proto


@pytest.mark.parametrize(
    ("preset", "opset", "result"),
    [
        ("int8-weights", 7, 7),
        ("int8-weights", 9, 9),
        ("int8-dynamic", 7, 11),
        ("int8-dynamic", 12, 12),
        ("int8-weights", 21, 21),
    ],
)
@pytest.mark.parametrize("ir_version", [3, 8])
def test_the_operator_set_stays_as_low_as_it_can(
    run: Run, tmp_path: Path, preset: str, opset: int, result: int, ir_version: int
) -> None:
    proto = old_model(opset, ir_version if opset < 21 else 10)
    path = saved(proto, tmp_path / "old.onnx")
    outcome = run("quantize", path, "-r", preset, "-o", "out.onnx", "--no-latency", "--json")
    assert outcome.code == 0, outcome.err
    assert load_model(Path("out.onnx")).opset == result
    feeds = {"x": normal(5, 1, 4, 4, 4)}
    assert_equal(run_model(proto, feeds), run_model(Path("out.onnx").read_bytes(), feeds), tolerance=0.05)
    onnx.checker.check_model(onnx.load("out.onnx"))


def test_decoding_at_each_run_asks_for_opset_13(run: Run, tmp_path: Path) -> None:
    path = saved(old_model(7, 8), tmp_path / "old.onnx")
    rule = "rules=[{match: {role: weight}, encoding: {weight_only: {decode: run}}}]"
    assert run("quantize", path, "-r", "int8-weights", "--set", rule, "-o", "out.onnx", "--no-latency").code == 0
    assert load_model(Path("out.onnx")).opset == 13


@pytest.mark.parametrize("kind", [np.float16, np.float64])
@pytest.mark.parametrize("preset", PRESETS)
def test_models_in_other_floats(run: Run, tmp_path: Path, preset: str, kind: type) -> None:
    """Their weights are stored as integers too."""
    weights = {"w": (normal(0, 32, 32) / 6).astype(kind), "v": (normal(1, 32, 24) / 6).astype(kind)}
    nodes = [node("MatMul", "x w", "m"), node("Tanh", "m", "t"), node("MatMul", "t v", "y")]
    proto = proto_of(nodes, {}, {}, weights)
    proto.graph.input.append(
        helper.make_tensor_value_info("x", helper.np_dtype_to_tensor_dtype(np.dtype(kind)), [4, 32])
    )
    proto.graph.output.append(
        helper.make_tensor_value_info("y", helper.np_dtype_to_tensor_dtype(np.dtype(kind)), [4, 24])
    )
    path = saved(proto, tmp_path / "model.onnx")
    outcome = run("quantize", path, "-r", preset, "-o", "out.onnx", "--no-latency", "--json")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["plan"]["entries"] == 2
    feeds = {"x": normal(5, 4, 32).astype(kind)}
    found = run_model(Path("out.onnx").read_bytes(), feeds)
    assert found["y"].dtype == kind
    assert_equal(run_model(proto, feeds), found, tolerance=0.05)
