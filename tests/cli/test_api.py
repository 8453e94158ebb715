"""The package as a library."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import qcli
from qcli.errors import QcliError


@pytest.mark.parametrize("name", qcli.__all__)
def test_every_public_name_is_there_and_explained(name: str) -> None:
    value = getattr(qcli, name)
    assert name in dir(qcli)
    if name != "__version__":
        assert inspect.getdoc(value)


def test_no_public_name_is_hidden_by_a_module() -> None:
    """`import qcli.plan` sets the attribute `plan` of the package; a function of that name would be lost."""
    modules = {path.stem for path in Path(qcli.__file__).parent.iterdir()}
    assert not modules & set(qcli.__all__)


def test_an_unknown_name() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'quantise'"):
        getattr(qcli, "quantise")  # noqa: B009


def test_every_error_is_public() -> None:
    kinds: list[type[QcliError]] = [QcliError, *QcliError.__subclasses__()]
    names = {kind.__name__ for kind in kinds if kind.__module__ == "qcli.errors"}
    assert names <= set(qcli.__all__)


def test_quantize_as_a_function(tmp_path: Path, mlp: Path, calib: Path) -> None:
    output = tmp_path / "out.onnx"
    report = qcli.quantize(qcli.QuantizeJob(model=mlp, calibration=calib, output=output, latency=False))
    assert isinstance(report, qcli.Report)
    assert qcli.inspect_model(output).dequantize_nodes > 0
    assert qcli.load_model(output).opset >= 13


@pytest.mark.skipif(sys.platform != "linux", reason="where the wheel's telemetry leaves traces")
def test_the_program_runs_without_telemetry(tmp_path: Path, mlp: Path) -> None:
    """onnxruntime's telemetry leaves a session file in the folder for temporary files."""
    environment = {
        "TMPDIR": str(tmp_path),
        "HOME": str(tmp_path),
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    command = [sys.executable, "-m", "qcli", "inspect", str(mlp)]
    subprocess.run(command, env=environment, cwd=tmp_path, check=True, capture_output=True)
    assert list(tmp_path.iterdir()) == []
