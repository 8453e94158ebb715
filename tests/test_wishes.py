"""Dynamic kernels need no samples; where there are some, they may speak against a kernel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from models import node, normal, proto_of, saved

from qcli.job import QuantizeJob
from qcli.measured import requests_of, wishes_of
from qcli.pipeline import prepare_job, quantize
from qcli.watch import Watch


def power_net() -> onnx.ModelProto:
    """A square, a product of it and its logarithm, as spectrograms are computed."""
    nodes = [node("Mul", "x x", "p"), node("MatMul", "p w", "m"), node("Log", "m", "y")]
    return proto_of(nodes, {"x": ["n", 64]}, {"y": None}, {"w": np.abs(normal(0, 64, 32)) + 0.1})


def samples(folder: Path, spread: float) -> Path:
    """Positive numbers over `spread` powers of e."""
    folder.mkdir()
    for seed in range(4):
        x = np.exp(spread * np.random.default_rng(seed).uniform(-0.5, 0.5, (8, 64))).astype(np.float32)
        np.savez(folder / f"{seed}.npz", x=x)
    return folder


def job(folder: Path, calibration: Path | None) -> QuantizeJob:
    return QuantizeJob(
        model=saved(power_net(), folder / "model.onnx"),
        recipe="int8-dynamic",
        calibration=calibration,
        output=folder / "out.onnx",
        latency=False,
        cache=False,
        threads=1,
    )


def test_a_dynamic_plan_asks_for_no_samples_but_looks_at_those_it_gets(tmp_path: Path) -> None:
    prepared = prepare_job(job(tmp_path, None), Watch())
    assert requests_of(prepared.plan, prepared.model) == ()
    assert [(wish.value, wish.statistic) for wish in wishes_of(prepared.plan, prepared.model)] == [("p", "histogram")]


def test_data_over_many_magnitudes_is_not_quantized_as_it_runs(tmp_path: Path) -> None:
    report = quantize(job(tmp_path, samples(tmp_path / "calib", 16.0)))
    assert report.kernels is not None and report.accuracy is not None and report.accuracy.sqnr is not None
    assert report.kernels.integer == 0
    assert "would round to zero" in report.kernels.kept_float[0].reason
    assert report.kernels.kept_float[0].reason.endswith("its weight is stored as int8")
    assert report.accuracy.sqnr > 40


def test_ordinary_data_is(tmp_path: Path) -> None:
    report = quantize(job(tmp_path, samples(tmp_path / "calib", 1.0)))
    assert report.kernels is not None
    assert (report.kernels.integer, report.kernels.float_) == (1, 0)


def test_without_samples_nothing_speaks_against_it(tmp_path: Path) -> None:
    report = quantize(job(tmp_path, None))
    assert report.kernels is not None
    assert (report.kernels.integer, report.kernels.float_) == (1, 0)
    assert any("random inputs" in warning for warning in report.warnings)
