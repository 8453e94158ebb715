"""`quantize()` from file to file: what is written, what is reported, what is left alone."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from models import SAMPLE_MODELS, conv_net, dense_net, node, normal, proto_of, saved

from qcli.depfile import write_depfile
from qcli.errors import InputError, NothingToDoError, QcliError, RuntimeFailure, UnsupportedError, UsageError
from qcli.graph import load_model
from qcli.job import QuantizeJob
from qcli.job_files import output_path
from qcli.pipeline import calibrate_job, prepare_job, quantize
from qcli.plan import plan_text
from qcli.report import Report
from qcli.watch import Watch

CNN_RECIPE = SAMPLE_MODELS / "cnn" / "recipe.yaml"


def job(name: str, output: Path, **options: Any) -> QuantizeJob:
    """A quick job on a sample model: 16 calibration samples, no latency."""
    base: dict[str, Any] = {
        "model": SAMPLE_MODELS / name / "model.onnx",
        "recipe": str(CNN_RECIPE) if name == "cnn" else "int8",
        "calibration": SAMPLE_MODELS / name / "calib",
        "output": output,
        "samples": 16,
        "latency": False,
        "cache": False,
        "threads": 1,
    }
    return QuantizeJob(**{**base, **options})


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    """The mlp, quantized once for several tests."""
    output = tmp_path_factory.mktemp("first") / "mlp.onnx"
    return output, quantize(job("mlp", output))


FLOORS = {"cnn": (20.0, 0.99), "transformer": (15.0, 0.5), "mlp": (30.0, 0.99)}
"""The least signal-to-noise ratio (dB) and share of multiply-accumulates in integers."""


@pytest.mark.parametrize("name", FLOORS)
def test_a_sample_model_from_end_to_end(tmp_path: Path, name: str) -> None:
    output = tmp_path / "out.onnx"
    report = quantize(job(name, output, evaluation=SAMPLE_MODELS / name / "eval"))
    onnx.checker.check_model(str(output), full_check=True)
    assert report.status == "passed" and report.accuracy is not None and report.kernels is not None
    sqnr, share = FLOORS[name]
    assert report.accuracy.sqnr is not None and report.accuracy.sqnr > sqnr
    assert report.accuracy.top1 is not None and report.accuracy.top1.drop < 0.03
    assert report.kernels.integer_share >= share
    assert report.size is not None and report.size.bytes == output.stat().st_size < report.size.float_bytes
    assert report.samples is not None and (report.samples.calibration, report.samples.validation) == (16, 360)
    assert report.output is not None and report.output.path == str(output)
    assert report.output.sha256 == load_model(output).sha256
    assert os.listdir(tmp_path) == ["out.onnx"]


def test_a_recurrent_network_quantizes_its_head_and_says_what_stayed_float(tmp_path: Path) -> None:
    report = quantize(job("gru", tmp_path / "out.onnx"))
    assert report.kernels is not None and report.plan is not None and report.plan.entries > 0
    assert [item.op for item in report.kernels.kept_float] == ["GRU"]
    assert report.kernels.kept_float[0].reason == (
        "onnxruntime's CPU provider has no integer kernel for it; its weight is stored as int8"
    )
    assert report.kernels.integer_share < 0.1


def test_two_runs_give_the_same_bytes(tmp_path: Path, first: tuple[Path, Report]) -> None:
    quantize(job("mlp", tmp_path / "out.onnx"))
    assert (tmp_path / "out.onnx").read_bytes() == first[0].read_bytes()


@pytest.mark.parametrize("threads", [2, 0])
def test_threads_do_not_change_a_byte(tmp_path: Path, first: tuple[Path, Report], threads: int) -> None:
    quantize(job("mlp", tmp_path / "out.onnx", threads=threads))
    assert (tmp_path / "out.onnx").read_bytes() == first[0].read_bytes()


def test_convolutions_on_two_threads_give_the_same_bytes_too(tmp_path: Path) -> None:
    for threads in (1, 2):
        quantize(job("cnn", tmp_path / f"{threads}.onnx", threads=threads, samples=8))
    assert (tmp_path / "1.onnx").read_bytes() == (tmp_path / "2.onnx").read_bytes()


def test_the_names_of_sample_files_do_not_matter(tmp_path: Path, first: tuple[Path, Report]) -> None:
    """The same 16 samples under names that reverse their order."""
    chosen = prepare_job(job("mlp", tmp_path / "x.onnx"), Watch()).calibration
    assert chosen is not None
    (tmp_path / "calib").mkdir()
    for index, file in enumerate(chosen.files()):
        shutil.copy(file, tmp_path / "calib" / f"{99 - index}.npz")
    quantize(job("mlp", tmp_path / "out.onnx", calibration=tmp_path / "calib"))
    assert (tmp_path / "out.onnx").read_bytes() == first[0].read_bytes()


def test_in_stages_on_several_machines_gives_the_same_bytes(tmp_path: Path, first: tuple[Path, Report]) -> None:
    """plan | calibrate --shard i/3 | merge | quantize --plan --stats"""
    prepared = prepare_job(job("mlp", tmp_path / "x.onnx"), Watch())
    (tmp_path / "plan.yaml").write_text(plan_text(prepared.plan), encoding="utf-8")
    shards = [calibrate_job(job("mlp", tmp_path / "x.onnx", shard=(index, 3))) for index in (3, 1, 2)]
    shards[0].merge(shards[1]).merge(shards[2]).save(tmp_path / "stats.npz")
    staged = job("mlp", tmp_path / "out.onnx", plan=tmp_path / "plan.yaml", stats=tmp_path / "stats.npz")
    report = quantize(staged)
    assert (tmp_path / "out.onnx").read_bytes() == first[0].read_bytes()
    assert report.accuracy == first[1].accuracy


def test_a_plan_that_was_written_and_read_gives_the_same_bytes(tmp_path: Path) -> None:
    """Also where the file leaves out the shape of its output, which only inference knows."""
    model = saved(
        proto_of([node("Gemm", "x w", "y")], {"x": ["n", 64]}, {"y": None}, {"w": normal(0, 64, 64)}),
        tmp_path / "m.onnx",
    )
    options = {"model": model, "calibration": None, "random_samples": 3}
    quantize(job("mlp", tmp_path / "made.onnx", **options))
    prepared = prepare_job(job("mlp", tmp_path / "x.onnx", **options), Watch())
    (tmp_path / "plan.yaml").write_text(plan_text(prepared.plan), encoding="utf-8")
    calibrate_job(job("mlp", tmp_path / "x.onnx", **options)).save(tmp_path / "stats.npz")
    quantize(job("mlp", tmp_path / "read.onnx", plan=tmp_path / "plan.yaml", stats=tmp_path / "stats.npz", **options))
    assert (tmp_path / "read.onnx").read_bytes() == (tmp_path / "made.onnx").read_bytes()


def test_statistics_of_another_model_are_refused(tmp_path: Path) -> None:
    calibrate_job(job("mlp", tmp_path / "x.onnx")).save(tmp_path / "stats.npz")
    with pytest.raises(UsageError, match="another model"):
        quantize(job("gru", tmp_path / "out.onnx", stats=tmp_path / "stats.npz"))
    assert os.listdir(tmp_path) == ["stats.npz"]


def test_a_plan_for_another_model_is_refused(tmp_path: Path) -> None:
    prepared = prepare_job(job("mlp", tmp_path / "x.onnx"), Watch())
    (tmp_path / "plan.yaml").write_text(plan_text(prepared.plan), encoding="utf-8")
    with pytest.raises(UsageError, match="another model"):
        quantize(job("gru", tmp_path / "out.onnx", plan=tmp_path / "plan.yaml"))


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "reports").mkdir()
    dry = job(
        "mlp",
        tmp_path / "out.onnx",
        dry_run=True,
        reports=(tmp_path / "reports" / "r.json",),
        depfile=tmp_path / "out.d",
    )
    report = quantize(dry)
    assert sorted(os.listdir(tmp_path)) == ["reports"] and os.listdir(tmp_path / "reports") == []
    assert report.plan is not None and report.plan.entries > 0 and report.accuracy is None


FAILING = ("accuracy.sqnr >= 300",)


def test_a_failed_gate_leaves_the_output_untouched(tmp_path: Path) -> None:
    output = tmp_path / "out.onnx"
    output.write_bytes(b"old")
    report = quantize(job("mlp", output, gates=FAILING, depfile=tmp_path / "out.d", reports=(tmp_path / "r.json",)))
    assert report.status == "failed" and [gate.passed for gate in report.gates] == [False]
    assert output.read_bytes() == b"old"
    assert sorted(os.listdir(tmp_path)) == ["out.onnx", "r.json"], (
        "the report says why; no depfile for what was not made"
    )


def test_a_failing_model_is_kept_under_another_name(tmp_path: Path) -> None:
    output = tmp_path / "out.onnx"
    quantize(job("mlp", output, gates=FAILING, keep_failing=True))
    assert os.listdir(tmp_path) == ["out.rejected.onnx"]
    onnx.checker.check_model(str(tmp_path / "out.rejected.onnx"), full_check=True)


def test_a_gate_that_holds_passes(tmp_path: Path) -> None:
    report = quantize(job("mlp", tmp_path / "out.onnx", gates=("size.ratio <= 0.5", "kernels.integer_share >= 0.9")))
    assert report.status == "passed" and len(report.gates) == 2


def test_a_gate_that_cannot_be_judged_is_refused_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        quantize(job("mlp", tmp_path / "out.onnx", gates=("latency.speedup >= 1",)))
    with pytest.raises(UsageError):
        quantize(job("mlp", tmp_path / "out.onnx", gates=("accuracy.sqnrr >= 1",)))


def test_random_samples_say_so(tmp_path: Path) -> None:
    watch = Watch()
    report = quantize(job("mlp", tmp_path / "out.onnx", calibration=None, random_samples=4), watch)
    assert any("random" in warning for warning in report.warnings), report.warnings
    assert report.samples is not None and report.samples.calibration == 4


def test_without_evaluation_samples_it_says_what_it_compared_on(first: tuple[Path, Report]) -> None:
    assert any("calibration samples" in warning for warning in first[1].warnings)
    assert first[1].samples is not None and first[1].samples.validation == 16


def test_without_samples_static_quantization_refuses(tmp_path: Path) -> None:
    with pytest.raises(NothingToDoError) as caught:
        quantize(job("mlp", tmp_path / "out.onnx", calibration=None))
    assert "-d" in caught.value.hint and os.listdir(tmp_path) == []


def test_an_empty_folder_of_samples_is_nothing_to_do(tmp_path: Path) -> None:
    (tmp_path / "calib").mkdir()
    with pytest.raises(NothingToDoError):
        quantize(job("mlp", tmp_path / "out.onnx", calibration=tmp_path / "calib"))


@pytest.mark.parametrize("form", ["same", "link", "other spelling"])
def test_the_input_is_never_written_over(tmp_path: Path, form: str) -> None:
    model = saved(dense_net(), tmp_path / "m.onnx")
    before = model.read_bytes()
    output = {"same": model, "link": tmp_path / "l.onnx", "other spelling": tmp_path / ".." / tmp_path.name / "m.onnx"}[
        form
    ]
    if form == "link":
        output.symlink_to(model)
    with pytest.raises(UsageError, match="is the input"):
        quantize(job("mlp", output, model=model, random_samples=2))
    assert model.read_bytes() == before


def test_nothing_is_written_beside_the_input(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    model = saved(dense_net(), tmp_path / "in" / "m.onnx")
    quantize(job("mlp", tmp_path / "out" / "q.onnx", model=model, calibration=None, random_samples=3))
    assert os.listdir(tmp_path / "in") == ["m.onnx"] and os.listdir(tmp_path / "out") == ["q.onnx"]


def test_a_name_for_the_output_is_made_from_the_model_and_the_recipe() -> None:
    assert output_path(QuantizeJob(model=Path("a/net.onnx"))) == Path("net.int8.onnx")
    assert output_path(QuantizeJob(model=Path("net.onnx"), recipe="r/mine.yaml")) == Path("net.mine.onnx")
    assert output_path(QuantizeJob(model=Path("net.onnx"), output=Path("x.onnx"))) == Path("x.onnx")


def test_an_output_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    watch = Watch()
    with pytest.raises(UsageError, match="does not exist"):
        quantize(job("mlp", tmp_path / "absent" / "out.onnx"), watch)
    with pytest.raises(UsageError):
        quantize(job("mlp", tmp_path / "out.onnx", reports=(tmp_path / "report.docx",)), watch)
    assert watch.seconds == {}


def test_labels_without_samples_are_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("file,label\n")
    with pytest.raises(UsageError, match="labels need samples"):
        quantize(job("mlp", tmp_path / "out.onnx", labels=tmp_path / "labels.csv"))


def test_a_quantized_model_is_recognised(first: tuple[Path, Report], tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="already quantized"):
        quantize(job("mlp", tmp_path / "out.onnx", model=first[0]))


def test_a_model_that_does_not_run_is_a_runtime_failure(tmp_path: Path) -> None:
    proto = proto_of([node("Gemm", "x w", "y")], {"x": [2, 4]}, {"y": None}, {"w": normal(0, 5, 5)})
    model = saved(proto, tmp_path / "m.onnx")
    with pytest.raises(RuntimeFailure):
        quantize(job("mlp", tmp_path / "out.onnx", model=model, calibration=None, random_samples=2))


def test_a_bad_sample_is_named(tmp_path: Path) -> None:
    model = saved(dense_net(), tmp_path / "m.onnx")
    (tmp_path / "calib").mkdir()
    for index in range(4):
        value = normal(index, 1, 12)
        value[0, 0] = np.nan if index == 2 else 0
        np.savez(tmp_path / "calib" / f"s{index}.npz", x=value)
    with pytest.raises(InputError, match=r"s2\.npz"):
        quantize(job("mlp", tmp_path / "out.onnx", model=model, calibration=tmp_path / "calib"))
    assert not (tmp_path / "out.onnx").exists()


def test_old_operator_sets_are_raised(tmp_path: Path) -> None:
    weights = {"w": normal(0, 8, 3, 3, 3), "v": normal(1, 4, 8, 1, 1)}
    nodes = [node("Conv", "x w", "c"), node("Clip", "c", "k", min=0.0, max=6.0), node("Conv", "k v", "y")]
    model = saved(proto_of(nodes, {"x": [1, 3, 8, 8]}, {"y": [1, 4, 6, 6]}, weights, opset=9), tmp_path / "m.onnx")
    report = quantize(job("mlp", tmp_path / "out.onnx", model=model, calibration=None, random_samples=8))
    assert report.output is not None and report.output.opset == 13
    assert report.kernels is not None and report.kernels.integer_share == 1


def test_phases_and_progress_are_told(tmp_path: Path) -> None:
    phases: list[str] = []
    steps: dict[str, int] = {}
    watch = Watch(
        on_phase=phases.append, on_progress=lambda phase, done, total: steps.__setitem__(phase, done * 100 // total)
    )
    report = quantize(job("mlp", tmp_path / "out.onnx"), watch)
    assert phases == ["prepare", "calibrate", "solve", "apply", "validate"]
    assert steps == {"calibrate": 100, "validate": 100}
    assert report.seconds is not None and report.seconds.total is not None and report.seconds.total > 0


def test_a_step_that_changes_the_outputs_is_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qcli.steps.fold_constants import FoldConstants

    def spoil(self: FoldConstants, model: Any) -> int:
        next(iter(model.graph.initializers.values())).const_value = __import__("onnx_ir").tensor(
            np.zeros((12, 16), np.float32)
        )
        return 1

    monkeypatch.setattr(FoldConstants, "run", spoil)
    model = saved(dense_net(), tmp_path / "m.onnx")
    report = quantize(job("mlp", tmp_path / "out.onnx", model=model, calibration=None, random_samples=4))
    assert "step 'fold_constants' changed the outputs and was undone" in report.warnings
    assert report.accuracy is not None and (report.accuracy.sqnr or 0) > 20


ODD_NAMES = [
    "plain.npz",
    "with space.npz",
    "dollar$x.npz",
    "hash#1.npz",
    "percent%.npz",
    "colon:1.npz",
    "back\\slash.npz",
]


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_reads_the_depfile(tmp_path: Path) -> None:
    inputs = [tmp_path / "calib dir" / name for name in ODD_NAMES[:4]]
    inputs[0].parent.mkdir()
    for path in inputs:
        path.touch()
    output = tmp_path / "out model.onnx"
    write_depfile(tmp_path / "out.d", output, inputs)
    (tmp_path / "Makefile").write_text("all: out\\ model.onnx\nout\\ model.onnx:\n\t@echo making\ninclude out.d\n")
    text = (tmp_path / "out.d").read_text().replace(f"{tmp_path}/".replace(" ", "\\ "), "")
    (tmp_path / "out.d").write_text(text)

    def made() -> str:
        done = subprocess.run(["make", "-n"], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=20)
        assert done.returncode == 0, done.stderr
        assert "warning" not in done.stderr
        return done.stdout

    assert "making" in made()
    output.touch()
    old = output.stat().st_mtime - 100  # all of it in the past, or make warns of the clock
    os.utime(output, (old, old))
    for path in inputs:
        os.utime(path, (old - 10, old - 10))
    assert "making" not in made()
    for path in inputs:
        os.utime(path, (old + 10, old + 10))
        assert "making" in made(), path.name
        path.unlink()
        assert made() is not None, "a deleted input is no error"
        path.touch()
        os.utime(path, (old - 10, old - 10))


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize("name", ODD_NAMES)
def test_make_reads_every_file_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    write_depfile(tmp_path / "out.d", Path("out.onnx"), [Path(name)])
    (tmp_path / "Makefile").write_text("out.onnx:\n\t@echo making\ninclude out.d\n")
    (tmp_path / "out.onnx").touch()
    before = (tmp_path / "out.onnx").stat().st_mtime - 10
    os.utime(tmp_path / "out.onnx", (before, before))
    done = subprocess.run(
        ["make", "-n", "out.onnx"], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=20
    )
    assert done.returncode == 0 and "making" in done.stdout, (tmp_path / "out.d").read_text() + done.stderr


def test_the_depfile_names_every_input(tmp_path: Path) -> None:
    recipe = tmp_path / "own.yaml"
    recipe.write_text("{version: 1, extends: int8}")
    quantize(job("mlp", tmp_path / "out.onnx", recipe=str(recipe), depfile=tmp_path / "out.d", samples=4))
    text = (tmp_path / "out.d").read_text()
    target, _, rest = text.partition(":")
    assert target == str(tmp_path / "out.onnx")
    assert str(SAMPLE_MODELS / "mlp" / "model.onnx") in rest and str(recipe) in rest and rest.count(".npz") == 8


@pytest.mark.parametrize("name", ["conv", "dense"])
def test_the_result_is_near_on_samples_it_never_saw(tmp_path: Path, name: str) -> None:
    proto, size = {"conv": (conv_net(), (1, 3, 8, 8)), "dense": (dense_net(), (1, 12))}[name]
    model = saved(proto, tmp_path / "m.onnx")
    for part, seeds in (("calib", range(24)), ("eval", range(100, 116))):
        (tmp_path / part).mkdir()
        for seed in seeds:
            np.savez(tmp_path / part / f"{seed}.npz", x=normal(seed, *size))
    report = quantize(
        job("mlp", tmp_path / "q.onnx", model=model, calibration=tmp_path / "calib", evaluation=tmp_path / "eval")
    )
    assert report.accuracy is not None and (report.accuracy.sqnr or 0) > 22
    assert report.samples is not None and report.samples.validation == 16


def test_every_error_of_a_job_is_one_for_people(tmp_path: Path) -> None:
    for options in (
        {"model": tmp_path / "absent.onnx"},
        {"recipe": "int9"},
        {"plan": tmp_path / "no.yaml"},
        {"stats": tmp_path / "no"},
    ):
        with pytest.raises(QcliError) as caught:
            quantize(job("mlp", tmp_path / "out.onnx", **options))
        assert caught.value.hint and "\n" not in caught.value.message
    assert os.listdir(tmp_path) == []
