"""`range: auto` on the command line: in one process, in shards, from a plan, and with statistics alone."""

from __future__ import annotations

from pathlib import Path

from cli.conftest import SAMPLE_MODELS, Run


def test_one_process_and_shards_give_the_same_bytes(run: Run) -> None:
    model, calib, evaluation = (SAMPLE_MODELS / "mlp" / name for name in ("model.onnx", "calib", "eval"))
    common = ("-r", "int8-auto", "-d", calib)
    told = ("--eval", evaluation, "--no-latency", "--no-cache")
    assert run("quantize", model, *common, *told, "-o", "one.onnx").code == 0
    for part in (1, 2):
        assert run("calibrate", model, *common, "--shard", f"{part}/2", "-o", f"{part}.npz").code == 0
    assert run("merge", "1.npz", "2.npz", "-o", "all.npz").code == 0
    assert run("quantize", model, *common, *told, "--stats", "all.npz", "-o", "two.onnx").code == 0
    assert Path("one.onnx").read_bytes() == Path("two.onnx").read_bytes()
    assert run("plan", model, "-r", "int8-auto", "-o", "plan.yaml").code == 0
    assert run("quantize", model, *common, *told, "--plan", "plan.yaml", "-o", "three.onnx").code == 0
    assert Path("one.onnx").read_bytes() == Path("three.onnx").read_bytes()


def test_statistics_alone_are_enough_with_a_warning(run: Run) -> None:
    model, calib, evaluation = (SAMPLE_MODELS / "mlp" / name for name in ("model.onnx", "calib", "eval"))
    assert run("calibrate", model, "-r", "int8-auto", "-d", calib, "-o", "s.npz").code == 0
    outcome = run(
        "quantize", model, "-r", "int8-auto", "--stats", "s.npz", "--eval", evaluation, "-o", "o.onnx", "--no-latency"
    )
    assert outcome.code == 0
    assert "chosen by the error of the values alone" in outcome.err
