"""What goes where: a terminal sees progress and colours, a pipe and a CI log see neither."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cli.conftest import SAMPLE_MODELS, Run

pytestmark = pytest.mark.skipif(os.name == "nt", reason="terminals as POSIX has them")

_ESCAPE = "\x1b"


def _on_a_terminal(folder: Path, *options: str, **variables: str) -> tuple[str, str]:
    """stdout (a pipe) and stderr (a terminal) of a run that works for a moment."""
    import pty

    mlp = SAMPLE_MODELS / "mlp"
    command = [sys.executable, "-m", "qcli", "quantize", str(mlp / "model.onnx"), "-d", str(mlp / "calib")]
    inherited = {key: value for key, value in os.environ.items() if key not in ("CI", "NO_COLOR", "FORCE_COLOR")}
    environment = {**inherited, "PYTHONPATH": str(Path(__file__).parents[2]), "TERM": "xterm", **variables}
    controller, terminal = pty.openpty()
    with subprocess.Popen(
        [*command, "-o", "out.onnx", "--no-cache", *options],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=terminal,
    ) as process:
        os.close(terminal)
        shown = _read_all(controller)
        out = process.stdout.read().decode() if process.stdout is not None else ""
    os.close(controller)
    assert process.returncode == 0, shown
    return out, shown


def _read_all(descriptor: int) -> str:
    parts = []
    while True:
        try:
            part = os.read(descriptor, 65536)
        except OSError:  # Linux says so when the other end has closed
            break
        if not part:
            break
        parts.append(part)
    return b"".join(parts).decode()


def test_a_terminal_sees_progress(tmp_path: Path) -> None:
    out, shown = _on_a_terminal(tmp_path, "--json")
    assert json.loads(out)["status"] == "passed"
    assert "calibrate" in shown
    assert "16/16" in shown, "the last phase, when all is done"
    assert "warning: " in shown.replace(f"{_ESCAPE}[0m", "")


@pytest.mark.parametrize("how", ["quiet", "ci"])
def test_no_progress_when_nobody_looks_on(tmp_path: Path, how: str) -> None:
    options, variables = (("-q",), {}) if how == "quiet" else ((), {"CI": "true"})
    out, shown = _on_a_terminal(tmp_path, *options, **variables)
    assert "16/16" not in shown and "calibrate" not in shown
    assert "accuracy" in out
    assert _ESCAPE not in out


def test_no_color(tmp_path: Path) -> None:
    _, shown = _on_a_terminal(tmp_path, CI="true", NO_COLOR="1")
    bold_alone = shown.replace(f"{_ESCAPE}[1m", "").replace(f"{_ESCAPE}[0m", "")
    assert "warning: " in bold_alone
    assert _ESCAPE not in bold_alone


def test_forced_color(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    outcome = run("plan", "nowhere.onnx")
    assert outcome.code == 3
    assert _ESCAPE in outcome.err


def test_names_are_never_taken_for_markup(run: Run) -> None:
    outcome = run("plan", "[red]nowhere[/red].onnx")
    assert "'[red]nowhere[/red].onnx'" in outcome.err


def test_a_pipe_gets_whole_lines(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    outcome = run("plan", SAMPLE_MODELS / "cnn" / "model.onnx")
    assert any("/residual/depthwise/conv_bias" in line and "bias" in line for line in outcome.out.splitlines())


def test_an_odd_encoding_is_no_reason_to_fail(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "qcli", "validate"]
    models = [str(SAMPLE_MODELS / "mlp" / "model.onnx")] * 2
    options = ["-d", str(SAMPLE_MODELS / "mlp" / "calib"), "--no-latency"]
    done = subprocess.run(
        [*command, *models, *options],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "accuracy" in done.stdout


def test_json_is_utf8_whatever_the_terminal(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(Path(__file__).parents[2])}
    model = tmp_path / "größer.onnx"
    model.write_bytes((SAMPLE_MODELS / "mlp" / "model.onnx").read_bytes())
    command = [sys.executable, "-m", "qcli", "inspect", str(model), "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, check=True)
    assert json.loads(done.stdout.decode("utf-8"))["model"]["path"] == str(model)
