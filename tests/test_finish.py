"""What follows a solved plan: learning in order, and the steps under `finish`, each judged on held-out samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from cli.conftest import Run, run  # noqa: F401 - a fixture
from models import conv_net, dense_net, node, normal, proto_of, quantized_of, saved

import qcli.finish
from qcli.graph import Model
from qcli.solve import Solution, site_key, with_fitting_biases
from qcli.types import Plan, Role

RECIPE = """version: 1
extends: int8-minmax
rules:
  - {match: {role: weight}, grid: {format: int4, symmetric: true, granularity: channel}, rounding: ROUNDING}
finish: [FINISH]
"""


def recipe(folder: Path, rounding: str = "nearest", finish: str = "correct_bias") -> Path:
    path = folder / f"{len(list(folder.iterdir()))}.yaml"
    path.write_text(RECIPE.replace("ROUNDING", rounding).replace("FINISH", finish))
    return path


def samples(folder: Path, *shape: int, count: int = 12, seed: int = 0) -> Path:
    """Inputs whose mean is far from zero."""
    made = folder / f"samples{seed}_{count}"
    made.mkdir()
    for place in range(count):
        np.savez(made / f"{place:02}.npz", x=np.abs(normal(seed + place, *shape)) + np.float32(0.5))
    return made


@pytest.fixture
def shifted(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A convolutional network, samples, and others to judge by."""
    path = saved(conv_net(), tmp_path / "net.onnx")
    return path, samples(tmp_path, 2, 3, 8, 8), samples(tmp_path, 2, 3, 8, 8, seed=500)


def reported(run: Run, *arguments: object) -> dict[str, Any]:  # noqa: F811
    outcome = run("quantize", *arguments, "-o", "out.onnx", "--no-latency", "--json")
    assert outcome.code == 0, outcome.err
    report: dict[str, Any] = json.loads(outcome.out)
    return report


def told(report: dict[str, Any], text: str) -> bool:
    return any(text in warning for warning in report["warnings"])


def test_correct_bias_gains(run: Run, shifted: tuple[Path, Path, Path], tmp_path: Path) -> None:  # noqa: F811
    path, calib, evaluation = shifted
    found = [
        reported(run, path, "-r", recipe(tmp_path, finish=finish), "-d", calib, "--eval", evaluation)
        for finish in ("", "correct_bias")
    ]
    assert found[1]["accuracy"]["sqnr"] > found[0]["accuracy"]["sqnr"] + 0.5
    assert not told(found[1], "correct_bias")


@pytest.mark.parametrize("rounding", ["coordinate", "gptq"])
@pytest.mark.parametrize("finish", ["", "correct_bias"])
def test_sequential_roundings_gain(
    run: Run, shifted: tuple[Path, Path, Path], tmp_path: Path, rounding: str, finish: str  # noqa: F811
) -> None:  # fmt: skip
    path, calib, evaluation = shifted
    found = [
        reported(run, path, "-r", recipe(tmp_path, spec, after), "-d", calib, "--eval", evaluation)
        for spec, after in (("nearest", ""), (f"{{{rounding}: {{sequential: true}}}}", finish))
    ]
    assert found[1]["accuracy"]["sqnr"] > found[0]["accuracy"]["sqnr"]


SEQUENTIAL = "{coordinate: {sequential: true}}"


def test_the_same_bytes_on_any_number_of_threads(
    run: Run, shifted: tuple[Path, Path, Path], tmp_path: Path  # noqa: F811
) -> None:  # fmt: skip
    path, calib, _ = shifted
    given = recipe(tmp_path, SEQUENTIAL)
    contents = []
    for threads in (1, 2, 2):
        reported(run, path, "-r", given, "-d", calib, "--threads", threads)
        contents.append(Path("out.onnx").read_bytes())
    assert contents[0] == contents[1] == contents[2]


@pytest.mark.parametrize("count", [1, 3])
def test_too_few_samples(run: Run, shifted: tuple[Path, Path, Path], tmp_path: Path, count: int) -> None:  # noqa: F811
    few = samples(tmp_path, 2, 3, 8, 8, count=count, seed=50)
    report = reported(run, shifted[0], "-r", recipe(tmp_path, SEQUENTIAL), "-d", few)
    assert told(report, "step 'correct_bias' needs more samples and was skipped")
    assert told(report, "learning layer after layer needs more samples and was skipped")


def test_statistics_of_an_earlier_run(run: Run, shifted: tuple[Path, Path, Path], tmp_path: Path) -> None:  # noqa: F811
    path, calib, evaluation = shifted
    given = recipe(tmp_path, SEQUENTIAL)
    assert run("calibrate", path, "-r", given, "-d", calib, "-o", "stats.npz").code == 0
    both = reported(run, path, "-r", given, "-d", calib, "--stats", "stats.npz")
    assert not told(both, "skipped")
    content = Path("out.onnx").read_bytes()
    reported(run, path, "-r", given, "-d", calib)
    assert content == Path("out.onnx").read_bytes()
    alone = reported(run, path, "-r", given, "--stats", "stats.npz", "--eval", evaluation)
    assert told(alone, "step 'correct_bias' needs samples to run the model on and was skipped")
    assert told(alone, "learning layer after layer needs samples to run the model on and was skipped")


def spoiling(model: Model, plan: Plan, solution: Solution, *_: object, **__: object) -> Solution:
    """In place of learning: all biases become something else."""
    codes = dict(solution.codes)
    for entry in plan.entries:
        if entry.site.role is Role.BIAS:
            codes[site_key(entry)] = np.asarray(codes[site_key(entry)]) * 3 + 1000
    return Solution(solution.scales, codes)


def test_what_makes_it_worse_is_undone(
    run: Run, shifted: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:  # fmt: skip
    path, calib, _ = shifted
    reported(run, path, "-r", recipe(tmp_path, finish=""), "-d", calib)
    content = Path("out.onnx").read_bytes()
    monkeypatch.setattr(qcli.finish, "learn_in_order", spoiling)
    report = reported(run, path, "-r", recipe(tmp_path), "-d", calib)
    assert told(report, "step 'correct_bias' was undone: on calibration samples held out for it, the result went from")
    assert Path("out.onnx").read_bytes() == content


def test_learning_in_order_is_undone_too(
    run: Run, shifted: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:  # fmt: skip
    path, calib, _ = shifted
    monkeypatch.setattr(qcli.finish, "learn_in_order", spoiling)
    report = reported(run, path, "-r", recipe(tmp_path, SEQUENTIAL, finish=""), "-d", calib)
    assert told(report, "learning layer after layer was undone")


def test_nothing_to_change_is_said(run: Run, tmp_path: Path) -> None:  # noqa: F811
    proto = proto_of([node("MatMul", "x w", "y")], {"x": [4, 12]}, {"y": None}, {"w": normal(0, 12, 8)})
    calib = samples(tmp_path, 4, 12)
    report = reported(run, saved(proto, tmp_path / "m.onnx"), "-r", recipe(tmp_path), "-d", calib)
    assert told(report, "step 'correct_bias' found nothing that it could change")


@pytest.mark.parametrize(
    ("key", "spec", "hint"), [("finish", "equalize", "prepare"), ("prepare", "correct_bias", "finish")]
)
def test_steps_stand_where_they_run(
    run: Run, shifted: tuple[Path, Path, Path], key: str, spec: str, hint: str  # noqa: F811
) -> None:  # fmt: skip
    path, calib, _ = shifted
    outcome = run("quantize", path, "-r", "int8", "-d", calib, "--set", f"{key}=[{spec}]", "-o", "out.onnx")
    assert outcome.code == 2 and not Path("out.onnx").exists()
    assert f"step '{spec}' stands under '{key}', where it cannot run" in outcome.err
    assert f"put it under '{hint}'" in outcome.err


def test_floats_that_onnxruntime_lacks(run: Run, tmp_path: Path) -> None:  # noqa: F811
    """The reference is then the float32 form, as it is for validation."""
    proto = dense_net()
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.BFLOAT16
    for tensor in proto.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        codes = (array.view(np.uint32) >> 16).astype(np.uint16)
        tensor.CopyFrom(
            onnx.helper.make_tensor(tensor.name, onnx.TensorProto.BFLOAT16, array.shape, codes.tobytes(), raw=True)
        )
    path = saved(proto, tmp_path / "half.onnx")
    calib = samples(tmp_path, 4, 12)
    outcome = run("quantize", path, "-r", recipe(tmp_path), "-d", calib, "-o", "out.onnx", "--no-latency", "--json")
    assert outcome.code == 0, outcome.err


def test_other_ranges_keep_corrected_biases(tmp_path: Path) -> None:
    """A search over scales stores biases anew, and must not begin again with those of the float model."""
    known = quantized_of(conv_net())
    codes, scales = dict(known.solution.codes), dict(known.solution.scales)
    biases = [site_key(entry) for entry in known.plan.entries if entry.site.role is Role.BIAS]
    for key in biases:
        codes[key] = np.asarray(codes[key]) + np.arange(np.asarray(codes[key]).size, dtype=np.int32) * 100
    for key, scale in scales.items():
        if key[1] in ("input", "output"):
            scales[key] = msgspec.structs.replace(scale, scale=scale.scale * np.float32(0.7))
    settled = with_fitting_biases(known.source, known.plan, Solution(scales, codes))
    assert settled is not None
    for key in biases:
        before, after = np.asarray(codes[key]) * scales[key].scale, settled.codes[key] * settled.scales[key].scale
        np.testing.assert_allclose(after, before, atol=float(scales[key].scale.max()))
        assert not np.array_equal(settled.codes[key], codes[key])
    again = with_fitting_biases(known.source, known.plan, known.solution)
    assert again is not None and all(np.array_equal(again.codes[key], known.solution.codes[key]) for key in biases)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ([30.0, 31.0, 29.0], [31.0, 32.0, 30.0], ""),
        ([30.0, 31.0, 29.0], [30.1, 31.1, 29.1], "which may be chance"),
        ([30.0, 31.0, 29.0], [29.0, 31.0, 29.0], "went from 30.0 to 29.7 dB"),
        ([30.0, 30.0, 30.0, 30.0], [36.0, 29.0, 29.5, 29.5], "which may be chance"),
        ([30.0], [31.0], ""),
    ],
)
def test_a_gain_has_to_be_more_than_chance(before: list[float], after: list[float], said: str) -> None:
    old, new = (qcli.finish._Heard(float(np.mean(each)), np.array(each)) for each in (before, after))
    refusal = qcli.finish._refusal(old, new)
    assert (said in refusal) if said else refusal == ""
    assert qcli.finish._refusal(None, new) == "" and qcli.finish._refusal(old, None) == "could not be compared"
