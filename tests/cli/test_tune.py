"""`qcli tune` on the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cli.conftest import Run

QUICK = ("--samples", 16, "--time-limit", 2, "--threads", 1)


def test_the_best_is_written_and_shown(run: Run, mlp: Path, calib: Path, evaluation: Path) -> None:
    given = ("tune", mlp, "-d", calib, "--eval", evaluation, "--min-sqnr", 20, "-o", "best.onnx", *QUICK)
    outcome = run(*given)
    assert outcome.code == 0, outcome.err
    assert (
        "float, the model as it was" in outcome.out and "*" in outcome.out and "plans tried on 8 samples" in outcome.out
    )
    assert Path("best.onnx").is_file()
    assert not any(line.endswith(" ") for line in outcome.out.splitlines())
    assert outcome.out.count("F float") + outcome.out.count("* best: float") == 2, "a picture of speed, one of size"
    said = [line for line in outcome.err.splitlines() if line.startswith("best ")]
    assert said[0].startswith("best float, the model as it was: 1.00x, 200.0 dB, size 1.000; 1 tried, ")
    assert all(line.endswith(" s left") for line in said)


def test_json_and_reports(run: Run, mlp: Path, calib: Path) -> None:
    reports = ("--report", "t.json", "--report", "t.csv", "--report", "t.md")
    outcome = run("tune", mlp, "-d", calib, "-r", "int8", "--json", "-o", "best.onnx", *reports, *QUICK)
    found = json.loads(outcome.out)
    assert "best float" in outcome.err, "and nothing but the document on stdout"
    assert (found["command"], found["schema"], found["met"]) == ("tune", 1, True)
    assert json.loads(Path("t.json").read_text())["tried"] == found["tried"]
    assert {one["candidate"]["recipe"] for one in found["tried"]} == {"float", "int8"}
    assert Path("t.csv").is_file() and Path("t.md").is_file()


SOON = ("--threads", 1, "--time-limit", 0.01)


def test_quiet_says_the_result_alone(run: Run, mlp: Path, calib: Path) -> None:
    outcome = run("tune", mlp, "-d", calib, "-r", "int8", "-q", "-o", "best.onnx", *SOON)
    assert outcome.code == 0 and outcome.err == ""
    assert "plans tried on" in outcome.out


def test_too_little_time_is_said(run: Run, mlp: Path, calib: Path) -> None:
    outcome = run("tune", mlp, "-d", calib, "-o", "best.onnx", *SOON)
    assert outcome.code == 0
    assert "warning: the time limit of 0.01 s was over before int8-weights and int8-transformer were" in outcome.err


@pytest.mark.parametrize(("encoding", "drawn"), [("ascii", "|"), ("utf-8", "│")])
def test_a_picture_is_what_the_encoding_can_show(
    mlp: Path, calib: Path, tmp_path: Path, encoding: str, drawn: str
) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "qcli", "tune", str(mlp), "-d", str(calib), "-r", "int8", "-q", "-o", "best.onnx"]
    options = ["--samples", "16", *map(str, SOON)]
    done = subprocess.run([*command, *options], cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    out = done.stdout.decode(encoding)
    assert f"exact {drawn}" in out and "?" not in out.partition("exact")[2].partition("plans tried")[0]


def test_limits_that_nothing_keeps_end_with_1(run: Run, mlp: Path, calib: Path) -> None:
    outcome = run("tune", mlp, "-d", calib, "--max-size", 0.001, "-o", "best.onnx", *QUICK)
    assert outcome.code == 1 and "nothing that was tried keeps the limits" in outcome.out
    assert Path("best.onnx").is_file(), "never empty-handed"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--min-sqnr", -1), 2, "--min-sqnr must be above 0"),
        (("--max-drop", 2), 2, "--max-drop must be"),
        (("--max-size", 0), 2, "--max-size must be above 0"),
        (("--time-limit", 0), 2, "--time-limit must be above 0"),
        (("--objective", "latncy"), 2, "did you mean 'latency'?"),
        (("-r", "int9"), 2, "int9"),
        (("--report", "a.xml"), 2, "unknown format"),
    ],
)
def test_bad_words(run: Run, mlp: Path, calib: Path, arguments: tuple[object, ...], code: int, said: str) -> None:
    outcome = run("tune", mlp, "-d", calib, "-o", "best.onnx", *arguments)
    assert outcome.code == code and said in outcome.err
    assert outcome.err.count("error:") == 1 and not Path("best.onnx").exists()


def test_samples_are_needed(run: Run, mlp: Path) -> None:
    outcome = run("tune", mlp, "-o", "best.onnx")
    assert outcome.code == 5 and "there are none" in outcome.err and "hint: " in outcome.err
