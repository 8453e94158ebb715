"""`qcli bench` as a program: options, tables, exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli.conftest import Run


def test_threads_profile_and_memory(run: Run, mlp: Path, quantized: Path, evaluation: Path) -> None:
    outcome = run(
        "bench", mlp, quantized, "--threads", "1,2", "--profile", "--memory", "-d", evaluation,
        "--min-time", "0", "--warm-up", "1", "--report", "b.json", "--report", "b.csv", "--report", "b.md",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    heads = [line.split() for line in outcome.out.splitlines()]
    assert ["model", "bytes", "threads", "ms", "spread", "speed", "memory"] in heads
    assert ["node", "operator", "model.onnx", "mlp.int8.onnx", "speed"] in heads
    assert "rounds, samples: 8" in outcome.out
    report = json.loads(Path("b.json").read_text(encoding="utf-8"))
    assert [row["threads"] for row in report["models"]] == [1, 1, 2, 2]
    assert {cost["op"] for cost in report["nodes"]} >= {"Gemm"}
    assert Path("b.csv").read_text(encoding="utf-8").startswith("kind,path,threads,")
    assert Path("b.md").read_text(encoding="utf-8").startswith("# qcli bench")


def test_json_alone_on_stdout(run: Run, mlp: Path) -> None:
    outcome = run("bench", mlp, "--json", "--min-time", "0", "--threads", "2")
    report = json.loads(outcome.out)
    assert (report["threads"], report["invented_samples"], report["nodes"]) == (2, True, [])


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--threads", "0"], 2),
        (["--threads", "1,,2"], 2),
        (["--threads", "many"], 2),
        (["--threads", "1025"], 2),
        (["--min-time", "-1"], 2),
        (["--min-time", "nan"], 2),
        (["--min-time", "inf"], 2),
        (["--warm-up", "-1"], 2),
        (["--report", "bench.html"], 2),
        (["--recipe", "int9"], 2),
        (["-d", "nowhere"], 3),
        (["none.onnx"], 3),
    ],
)
def test_bad_input(run: Run, mlp: Path, arguments: list[str], code: int) -> None:
    outcome = run("bench", mlp, *arguments)
    assert outcome.code == code
    assert outcome.out == ""
    error, hint = outcome.err.splitlines()
    assert error.startswith("error: ") and hint.startswith("hint: ")
    assert not list(Path().iterdir()), "nothing is written"


def test_bad_samples(run: Run, mlp: Path) -> None:
    Path("calib").mkdir()
    outcome = run("bench", mlp, "-d", "calib")
    assert outcome.code == 5, "no samples"
    Path("calib/1.npz").write_bytes(b"no archive")
    assert run("bench", mlp, "-d", "calib").code == 3
