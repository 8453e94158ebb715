"""Usage errors, bugs, interrupts, broken pipes: what comes out when a command does not end well."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cli import broken
from cli.conftest import Run


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["quantise"], "no such command 'qcli quantise'", "did you mean 'quantize'?"),
        (["recipe", "lisst"], "no such command 'qcli recipe lisst'", "did you mean 'list'?"),
        (["plan", "m.onnx", "--recipi", "int8"], "no such option '--recipi'", "did you mean '--recipe'?"),
        (["plan"], "missing argument 'MODEL'", "see 'qcli plan --help'"),
        (["calibrate", "m.onnx"], "missing option", "see 'qcli calibrate --help'"),
        (
            ["quantize", "m.onnx", "--samples", "0"],
            "invalid value for '--samples'",
            "see 'qcli quantize --help'",
        ),
        (["quantize", "m.onnx", "-r"], "option '-r' requires an argument", "see 'qcli"),
        (["plan", "a.onnx", "b.onnx"], "unexpected extra argument", "see 'qcli plan --help'"),
        (["recipe"], "missing command", "see 'qcli recipe --help'"),
    ],
)
def test_usage_errors(run: Run, arguments: list[str], message: str, hint: str) -> None:
    outcome = run(*arguments)
    lines = outcome.err.splitlines()
    assert (outcome.code, outcome.out, len(lines)) == (2, "", 2)
    assert message in lines[0]
    assert lines[0].startswith("error: ")
    assert lines[1].startswith(f"hint: {hint}")


def _fail(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def work(*_: object) -> None:
        raise error

    monkeypatch.setattr("qcli.pipeline.quantize", work)


def test_a_bug_says_how_to_report_it(run: Run, mlp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _fail(monkeypatch, ValueError("the sky\nfell"))
    outcome = run("quantize", mlp)
    assert (outcome.code, outcome.out) == (70, "")
    assert outcome.err.startswith("error: internal: ValueError: the sky fell\nhint: ")
    assert "--debug" in outcome.err
    assert "Traceback" not in outcome.err


def test_debug_adds_the_traceback(run: Run, mlp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _fail(monkeypatch, ValueError("the sky fell"))
    outcome = run("quantize", mlp, "--debug")
    assert outcome.code == 70
    assert "Traceback" in outcome.err
    assert "error: internal: ValueError: the sky fell" in outcome.err


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (MemoryError(), 7, "out of memory"),
        (OSError(errno.ENOSPC, "No space left on device", "/tmp/x"), 7, "no space left to write '/tmp/x'"),
        (OSError(errno.EIO, "Input/output error"), 70, "internal: OSError"),
        (EOFError("Ran out of input"), 70, "internal: EOFError: Ran out of input"),
    ],
)
def test_what_the_system_raises(
    run: Run, mlp: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, message: str
) -> None:
    _fail(monkeypatch, error)
    outcome = run("quantize", mlp)
    assert (outcome.code, outcome.out) == (code, "")
    assert f"error: {message}" in outcome.err


def test_signal_handlers_are_put_back(run: Run) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    run("recipe", "list")
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.skipif(os.name == "nt", reason="signals as POSIX has them")
@pytest.mark.parametrize(("number", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_an_interrupt_that_a_library_turns_into_its_own_error(
    run: Run, mlp: Path, monkeypatch: pytest.MonkeyPatch, number: str, code: int
) -> None:
    def work(*_: object) -> None:
        try:
            signal.raise_signal(getattr(signal, number))
        except BaseException as interrupt:
            raise SystemError("a function returned a result with an exception set") from interrupt

    monkeypatch.setattr("qcli.pipeline.quantize", work)
    outcome = run("quantize", mlp)
    assert (outcome.code, outcome.out, outcome.err) == (code, "", "error: interrupted\n")


@pytest.mark.skipif(os.name == "nt", reason="signals as POSIX has them")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_leaves_nothing_behind(tmp_path: Path, mlp: Path, number: signal.Signals, code: int) -> None:
    samples = broken.many_samples(tmp_path, 5000)
    work = tmp_path / "work"
    work.mkdir()
    command = [sys.executable, "-m", "qcli", "quantize", str(mlp), "-d", str(samples), "-o", "out.onnx", "-v"]
    environment = {**os.environ, "TMPDIR": str(work), "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(
        command, cwd=work, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        while (line := process.stderr.readline()) and "calibrate" not in line:
            pass
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (code, "", "error: interrupted\n")
    assert list(work.iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="pipes as POSIX has them")
def test_a_reader_that_goes_away_changes_nothing(tmp_path: Path, mlp: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "qcli", "plan", str(mlp), "-o", "plan.yaml"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, stdout=write, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "plan.yaml").exists()
