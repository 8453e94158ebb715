"""What fuzzing and reviews found: each case once ended with exit code 70, or worse, in silence."""

from __future__ import annotations

import io
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from cli.conftest import SAMPLE_MODELS
from models import conv_net, dense_net, node, normal, proto_of, saved
from onnx import TensorProto, helper
from PIL import Image

from qcli.cache import find_statistics
from qcli.check import check_job
from qcli.cli import main
from qcli.cookbook import write_starter
from qcli.errors import InputError, QcliError, RuntimeFailure, UnsupportedError, UsageError
from qcli.graph import infer_shapes, load_model, raise_opset
from qcli.inspect import inspect_model
from qcli.job import QuantizeJob
from qcli.latency import made_up_feeds
from qcli.pipeline import quantize
from qcli.side_by_side import CompareJob, compare_models
from qcli.stages import make_plan_file, make_statistics_file, merge_statistics
from qcli.statistics import load_statistics
from qcli.yaml_file import parse_yaml


def job(model: Path, **options: Any) -> QuantizeJob:
    base: dict[str, Any] = {"model": model, "output": model.parent / "out.onnx", "random_samples": 2, "latency": False}
    return QuantizeJob(**{**base, "threads": 1, "cache": False, **options})


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    return saved(dense_net(), tmp_path / "model.onnx")


# Plans


def changed_plan(model: Path, change: Any, recipe: str = "int8-minmax") -> Path:
    path = model.parent / "plan.yaml"
    make_plan_file(QuantizeJob(model=model, recipe=recipe, output=path))
    plan = yaml.safe_load(path.read_text())
    change(plan["entries"])
    path.write_text(yaml.safe_dump(plan))
    return path


@pytest.mark.parametrize("axis", [0, 2, -1, 99])
def test_a_plan_with_another_axis(dense: Path, axis: int) -> None:
    def change(entries: list[dict[str, Any]]) -> None:
        for entry in entries:
            if entry["site"]["role"] == "weight":
                entry["grid"]["axis"] = axis

    with pytest.raises(UsageError, match=f"axis {axis}; its output channels lie along 1"):
        quantize(job(dense, recipe="int8-minmax", plan=changed_plan(dense, change)))


def test_a_plan_with_an_entry_twice(dense: Path) -> None:
    plan = changed_plan(dense, lambda entries: entries.append(deepcopy(entries[0])))
    with pytest.raises(UsageError, match="two entries"):
        quantize(job(dense, recipe="int8-minmax", plan=plan))


# The command line


@pytest.mark.parametrize("option", ["--threads", "--random-samples"])
def test_numbers_beyond_reason_are_usage_errors(dense: Path, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quantize", str(dense), option, "9" * 30]) == 2
    assert main(["calibrate", str(dense), "-o", "s.npz", "--shard", f"1/{'9' * 5000}"]) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("place", ["-o", "--report", "--depfile", "-r", "--plan", "--stats", "-d", "--labels"])
def test_a_name_too_long_for_the_disk(dense: Path, place: str, capsys: pytest.CaptureFixture[str]) -> None:
    name = "n" * 300 + ".json"
    common = ["--random-samples", "2"] if place != "-d" else []
    assert main(["quantize", str(dense), *common, "-o", str(dense.parent / "o.onnx"), place, name]) in (2, 3)
    assert main(["quantize", "n" * 300, "--random-samples", "2"]) in (2, 3)
    assert capsys.readouterr().err.count("error: ") == 2


def test_a_cache_that_cannot_be_looked_into(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QCLI_CACHE_DIR", "/" + "n" * 300)
    assert find_statistics("0" * 64) is None


def test_a_folder_for_temporary_files_that_is_none(
    dense: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(dense))
    assert main(["inspect", str(dense)]) == 7
    assert "TMPDIR" in capsys.readouterr().err


def test_what_is_read_is_never_overwritten_by_any_command(dense: Path, tmp_path: Path) -> None:
    report = tmp_path / "model.json"
    dense.rename(report)
    before = report.read_bytes()
    for attempt in (
        lambda: write_starter(report, report),
        lambda: compare_models(CompareJob(float_model=report, compressed=report, reports=(report,))),
    ):
        with pytest.raises(UsageError, match="read or written otherwise"):
            attempt()
    assert report.read_bytes() == before


def test_a_shard_is_merged_once(dense: Path, tmp_path: Path) -> None:
    make_statistics_file(job(dense, output=tmp_path / "a.npz"))
    (tmp_path / "b.npz").write_bytes((tmp_path / "a.npz").read_bytes())
    for again in ("a.npz", "b.npz"):
        with pytest.raises(UsageError, match="the same statistics"):
            merge_statistics([tmp_path / "a.npz", tmp_path / again], tmp_path / "c.npz")
    assert not (tmp_path / "c.npz").exists()


def test_gates_on_seconds_and_memory_are_judged(dense: Path) -> None:
    report = quantize(job(dense, gates=("seconds.total > 0", "seconds.prepare >= 0", "peak_memory_mb > 1")))
    assert report.status == "passed" and [gate.passed for gate in report.gates] == [True] * 3


def test_a_depfile_names_every_file(tmp_path: Path) -> None:
    model, weights = tmp_path / "model.onnx", tmp_path / "w.bin"
    onnx.save_model(dense_net(), model, save_as_external_data=True, location=weights.name, size_threshold=0)
    (tmp_path / "base.yaml").write_text("version: 1\nextends: int8\n")
    (tmp_path / "own.yaml").write_text("version: 1\nextends: base.yaml\n")
    for folder in ("calib", "eval"):
        (tmp_path / folder).mkdir()
        np.savez(tmp_path / folder / "a.npz", x=normal(0, 1, 12))
    (tmp_path / "eval" / "labels.csv").write_text("file,label\na.npz,1\n")
    samples = {"calibration": tmp_path / "calib", "evaluation": tmp_path / "eval", "random_samples": None}
    quantize(job(model, recipe=str(tmp_path / "own.yaml"), depfile=tmp_path / "deps.d", **samples))
    text = (tmp_path / "deps.d").read_text()
    for name in ("model.onnx", "w.bin", "own.yaml", "base.yaml", "calib/a.npz", "eval/a.npz", "eval/labels.csv"):
        assert f"{tmp_path.as_posix()}/{name}:" in text, name


def test_check_goes_on_behind_images_without_preprocess(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    found = check_job(QuantizeJob(model=SAMPLE_MODELS / "cnn" / "model.onnx", calibration=tmp_path, gates=("nothing",)))
    places = {problem.place for problem in found.problems if problem.level == "error"}
    assert {"gates", "calibration"} <= places


@pytest.mark.parametrize("first", [True, False])
def test_a_failed_run_names_its_sample(tmp_path: Path, first: bool) -> None:
    reshape = node("Reshape", "x shape", "r")
    nodes = [reshape, node("MatMul", "r w", "y")]
    weights = {"shape": np.array([2, 6], np.int64), "w": normal(0, 6, 6)}
    model = saved(proto_of(nodes, {"x": ["n", 12]}, {"y": None}, weights), tmp_path / "model.onnx")
    (tmp_path / "calib").mkdir()
    np.savez(tmp_path / "calib" / ("b.npz" if first else "a.npz"), x=normal(0, 1, 12))
    np.savez(tmp_path / "calib" / ("a.npz" if first else "b.npz"), x=normal(0, 3, 12))
    with pytest.raises(RuntimeFailure, match="sample 'a.npz'" if first else "sample 'b.npz'"):
        quantize(job(model, calibration=tmp_path / "calib", random_samples=None))


# Models


def test_an_input_without_a_type(tmp_path: Path) -> None:
    proto = dense_net()
    proto.graph.input[0].type.tensor_type.elem_type = 0
    with pytest.raises(InputError, match="no known type"):
        load_model(saved(proto, tmp_path / "model.onnx"))


def test_a_graph_that_onnxruntime_refuses_is_not_planned(tmp_path: Path) -> None:
    proto = conv_net(channels=4)
    del proto.graph.node[5].input[1]  # an Add of one value
    with pytest.raises(RuntimeFailure):
        make_plan_file(QuantizeJob(model=saved(proto, tmp_path / "model.onnx")))


def test_a_body_that_reads_what_is_not_there(tmp_path: Path) -> None:
    result = helper.make_tensor_value_info("b", TensorProto.FLOAT, None)
    body = helper.make_graph([helper.make_node("Relu", ["nowhere"], ["b"])], "body", [], [result])
    nodes = [node("MatMul", "x w", "h"), node("If", "c", "y", then_branch=body, else_branch=body)]
    proto = proto_of(nodes, {"x": ["n", 12]}, {"y": None}, {"w": normal(0, 12, 12), "c": np.array(True)})
    with pytest.raises(QcliError):
        quantize(job(saved(proto, tmp_path / "model.onnx")))


def test_a_conversion_that_cannot_be_inferred(tmp_path: Path) -> None:
    proto = conv_net(channels=4, opset=11)
    proto.graph.node[1].domain = "com.microsoft"
    model = load_model(saved(proto, tmp_path / "model.onnx"))
    with pytest.raises(UnsupportedError):
        raise_opset(model, 13)


def test_text_is_not_invented(tmp_path: Path) -> None:
    proto = proto_of([node("Identity", "s", "y")], {"s": [1]}, {"y": None})
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.elem_type = TensorProto.STRING
    path = saved(proto, tmp_path / "model.onnx")
    with pytest.raises(UnsupportedError, match="text"):
        made_up_feeds(load_model(path).inputs())
    assert inspect_model(path).multiply_accumulates is None


def test_an_offset_of_thousands_of_digits(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save_model(dense_net(), path, save_as_external_data=True, location="w.bin", size_threshold=0)
    proto = onnx.load(path, load_external_data=False)
    proto.graph.initializer[0].external_data[1].value = "9" * 5000
    with pytest.raises(InputError, match="is no number"):
        load_model(saved(proto, path))


def test_inference_of_a_sound_model_loses_nothing(dense: Path) -> None:
    model = load_model(dense)
    before = set(model.graph.initializers)
    infer_shapes(model, follow_data=False)
    assert set(model.graph.initializers) == before


# Statistics and recipes


@pytest.mark.parametrize("change", ["infinite", "shorter", "crossed"])
def test_statistics_that_do_not_fit_together(dense: Path, tmp_path: Path, change: str) -> None:
    path = tmp_path / "stats.npz"
    make_statistics_file(job(dense, recipe="int8-minmax", output=path))
    arrays = dict(np.load(io.BytesIO(path.read_bytes())))
    key = next(name for name in arrays if name.endswith("upper"))
    arrays[key] = {
        "infinite": np.full_like(arrays[key], np.inf),
        "shorter": arrays[key][:0],
        "crossed": np.full_like(arrays[key], -1e30),
    }[change]
    np.savez(path, allow_pickle=False, **arrays)
    with pytest.raises(InputError, match="damaged"):
        load_statistics(path)


@pytest.mark.parametrize(
    "text",
    [
        "a: " + "1:" * 200_000 + "1",
        "a: " + "9" * 5000,
        "[" * 5000,
        "- " * 5000,
        "a: &x [1]\nb: *x",
        "{" + ", ".join(f"k{index}: 1" for index in range(20_000)) + ", k0: 2}",
    ],
    ids=["sixties", "digits", "brackets", "dashes", "alias", "keys"],
)
def test_yaml_that_would_take_for_ever(text: str) -> None:
    with pytest.raises(UsageError):
        parse_yaml(text, "recipe")
