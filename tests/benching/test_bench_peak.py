"""Memory is measured in a process that does nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import first_sample, model_path

from qcli.benching.peak import measure_peak
from qcli.benching.work import bench
from qcli.latency import Effort

SHORT = Effort(least=0.0, most=0.0)
FEEDS = dict(first_sample("mlp").feeds)


def test_the_peak_is_above_what_python_took_before() -> None:
    peak = measure_peak(model_path("mlp"), FEEDS)
    assert peak is not None
    assert 0 < peak.base_mb <= peak.peak_mb


def test_files_beside_the_user_are_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("qcli", "numpy", "json"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported')\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert measure_peak(model_path("mlp"), FEEDS) is not None


def test_a_model_that_does_not_run_takes_an_unknown_amount(tmp_path: Path) -> None:
    assert measure_peak(tmp_path / "none.onnx", FEEDS) is None
    assert measure_peak(model_path("mlp"), {"pixels": np.zeros(3, np.float32)}) is None


def test_what_cannot_be_handed_over_is_not_measured() -> None:
    assert measure_peak(model_path("mlp"), {"pixels": np.array(["a"], dtype=object)}) is None


def test_an_interpreter_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "")
    report = bench([model_path("mlp")], effort=SHORT, memory=True)
    assert report.models[0].peak_memory_mb is None
    assert any("could not be measured" in warning for warning in report.warnings)


def test_every_row_has_its_memory() -> None:
    report = bench([model_path("mlp")], threads=(1, 2), effort=SHORT, memory=True)
    assert all(row.peak_memory_mb is not None and row.base_memory_mb is not None for row in report.models)
