"""A result that disappoints is said to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from models import node, normal, proto_of, saved

from qcli.check import check_job
from qcli.job import QuantizeJob
from qcli.pipeline import quantize


def small(folder: Path) -> Path:
    """Two convolutions of 72 and 64 weights: their Q/DQ nodes take more bytes than the weights did."""
    weights = {"w": normal(0, 8, 1, 3, 3), "v": normal(1, 8, 8, 1, 1)}
    nodes = [node("Conv", "x w", "h"), node("Relu", "h", "r"), node("Conv", "r v", "y")]
    return saved(proto_of(nodes, {"x": [1, 1, 8, 8]}, {"y": None}, weights), folder / "model.onnx")


def samples(folder: Path) -> Path:
    folder.mkdir()
    for seed in range(3):
        np.savez(folder / f"{seed}.npz", x=normal(seed, 1, 1, 8, 8))
    return folder


def test_a_model_that_grows_is_said_to(tmp_path: Path) -> None:
    job = QuantizeJob(
        model=small(tmp_path),
        calibration=samples(tmp_path / "calib"),
        output=tmp_path / "out.onnx",
        latency=False,
        cache=False,
    )
    report = quantize(job)
    assert report.size is not None and report.size.ratio > 1
    assert any("larger than the float one" in warning for warning in report.warnings)


@pytest.mark.parametrize(("recipe", "asks"), [("int8", True), ("int8-weights", False), ("int8-dynamic", False)])
def test_only_recipes_that_calibrate_ask_for_samples(tmp_path: Path, recipe: str, asks: bool) -> None:
    findings = check_job(QuantizeJob(model=small(tmp_path), recipe=recipe))
    assert any(problem.message == "no samples are named" for problem in findings.problems) is asks


@pytest.mark.parametrize(
    ("recipe", "said"), [("int8-dynamic", True), ("int8-transformer", True), ("int8-weights", False)]
)
def test_integers_that_were_asked_for_and_did_not_come_are_missed(tmp_path: Path, recipe: str, said: bool) -> None:
    """Convolutions have no dynamic form: of a network of them `int8-dynamic` stores the weights, at float's speed."""
    nodes = [node("Conv", "x w", "y")]
    net = proto_of(nodes, {"x": [1, 16, 8, 8]}, {"y": [1, 32, 6, 6]}, {"w": normal(0, 32, 16, 3, 3)})
    model = saved(net, tmp_path / "m.onnx")
    job = QuantizeJob(
        model=model, recipe=recipe, random_samples=4, output=tmp_path / "o.onnx", latency=False, cache=False
    )
    report = quantize(job)
    assert report.kernels is not None and report.kernels.integer_share == 0
    assert any(text.startswith("no work runs on integers") for text in report.warnings) is said


def lstm_behind_product(folder: Path) -> Path:
    """What TensorRT and QNN run in float holds nearly all of the weights."""
    weights = {"v": normal(0, 16, 16), "w": normal(1, 1, 256, 16), "r": normal(2, 1, 256, 64)}
    nodes = [node("MatMul", "x v", "h"), node("LSTM", "h w r", "y", hidden_size=64)]
    return saved(proto_of(nodes, {"x": [4, 1, 16]}, {"y": [4, 1, 1, 64]}, weights), folder / "m.onnx")


@pytest.mark.parametrize(("recipe", "said"), [("tensorrt", True), ("qnn", True), ("onnx-int8", False), ("fp16", False)])
def test_a_file_whose_weights_stay_float_is_said_to_be_hardly_smaller(tmp_path: Path, recipe: str, said: bool) -> None:
    report = quantize(
        QuantizeJob(
            model=lstm_behind_product(tmp_path), recipe=recipe, random_samples=4, output=tmp_path / "o.onnx",
            latency=False, cache=False,
        )
    )  # fmt: skip
    assert report.size is not None and (report.size.ratio > 0.8) is said
    assert any("hardly smaller than the float one" in text for text in report.warnings) is said


def test_a_file_that_grows_is_not_said_to_have_few_weights_where_none_was_touched(tmp_path: Path) -> None:
    nodes = [node("Relu", "x", "h"), node("LSTM", "h w r", "y", hidden_size=64)]
    weights = {"w": normal(1, 1, 256, 16), "r": normal(2, 1, 256, 64)}
    model = saved(proto_of(nodes, {"x": [4, 1, 16]}, {"y": [4, 1, 1, 64]}, weights), tmp_path / "m.onnx")
    job = QuantizeJob(
        model=model, recipe="qnn", random_samples=4, output=tmp_path / "o.onnx", latency=False, cache=False
    )
    report = quantize(job)
    assert any(text.endswith("none of its weights has fewer bits") for text in report.warnings)
