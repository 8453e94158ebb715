"""Running the program in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from qcli.cli import main

SAMPLE_MODELS = Path(__file__).parent.parent.parent / "sample_models"


class Outcome(NamedTuple):
    """What a run leaves behind."""

    code: int
    out: str
    err: str


Run = Callable[..., Outcome]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs qcli with the given arguments in an empty folder."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def call(*arguments: object) -> Outcome:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return Outcome(code, *capsys.readouterr())

    return call


@pytest.fixture
def mlp() -> Path:
    return SAMPLE_MODELS / "mlp" / "model.onnx"


@pytest.fixture
def calib() -> Path:
    return SAMPLE_MODELS / "mlp" / "calib"


@pytest.fixture
def evaluation() -> Path:
    return SAMPLE_MODELS / "mlp" / "eval"


@pytest.fixture(scope="session")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The mlp as qcli quantizes it."""
    from qcli import QuantizeJob, quantize

    output = tmp_path_factory.mktemp("quantized") / "mlp.int8.onnx"
    folder = SAMPLE_MODELS / "mlp"
    quantize(QuantizeJob(model=folder / "model.onnx", calibration=folder / "calib", output=output, latency=False))
    return output
