"""`qcli tune` on the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cli.conftest import Run
from qcli.latency import Effort

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
    assert (
        "warning: the time limit of 0.01 s was over before int8-weights, int8-transformer and int8-accurate were"
        in outcome.err
    )


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
        (("--search", "greedly"), 2, "did you mean 'greedy'?"),
        (("--search", "x"), 2, "'x' is no way to search"),
        (("--jobs", 0), 2, "--jobs must be from 1 to 64, is 0"),
        (("-j", 65), 2, "--jobs must be from 1 to 64, is 65"),
        (("--jobs", "two"), 2, "--jobs"),
        (("--cost-table", "nowhere.json"), 2, "nowhere.json"),
    ],
)
def test_bad_words(run: Run, mlp: Path, calib: Path, arguments: tuple[object, ...], code: int, said: str) -> None:
    outcome = run("tune", mlp, "-d", calib, "-o", "best.onnx", *arguments)
    assert outcome.code == code and said in outcome.err
    assert outcome.err.count("error:") == 1 and not Path("best.onnx").exists()


@pytest.mark.parametrize("way", ["front", "greedy", "exhaustive"])
def test_ways_to_search(run: Run, mlp: Path, calib: Path, way: str) -> None:
    given = ("tune", mlp, "-d", calib, "-r", "int8", "--min-sqnr", 20, "-o", "best.onnx", *QUICK)
    outcome = run(*given, "--search", way, "--json")
    assert outcome.code == 0, outcome.err
    assert len(json.loads(outcome.out)["tried"]) >= 2 and Path("best.onnx").is_file()


def test_several_jobs(run: Run, mlp: Path, calib: Path) -> None:
    outcome = run("tune", mlp, "-d", calib, "-r", "int8", "--min-sqnr", 30, "-j", 2, "-o", "best.onnx", *QUICK)
    assert outcome.code == 0, outcome.err
    assert "does not run" not in outcome.err


@pytest.fixture
def table(run: Run, mlp: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("qcli.costs.measuring.EFFORT", Effort(least=0.0, most=0.01))
    outcome = run("doctor", mlp, "--kernels", "--save", "table.json", "-q")
    assert outcome.code == 0, outcome.err
    return Path("table.json").absolute()


def test_a_cost_table_in_place_of_a_clock(run: Run, mlp: Path, calib: Path, table: Path) -> None:
    given = ("tune", mlp, "-d", calib, "-r", "int8", "--min-sqnr", 25, "--cost-table", table, "-o", "best.onnx")
    outcome = run(*given, "--samples", 16, "--json")
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    assert all(one["candidate"]["foretold"] == pytest.approx(1 / one["speedup"]) for one in found["tried"])
    assert found["result"] is None or found["result"]["latency"] is None
    shown = run(*given, "--samples", 16)
    assert shown.code == 0 and "plans tried on 8 samples" in shown.out


def test_tables_that_cannot_be(run: Run, mlp: Path, calib: Path, table: Path) -> None:
    given = ("tune", mlp, "-d", calib, "-r", "int8", "-o", "best.onnx")
    outcome = run(*given, "--cost-table", table, "--threads", 3)
    assert outcome.code == 2 and "is for 1 threads, not for 3" in outcome.err and "run with --threads 1" in outcome.err
    Path("garbage.json").write_bytes(b"\x00 no table")
    outcome = run(*given, "--cost-table", "garbage.json")
    assert outcome.code == 2 and "garbage.json" in outcome.err
    for same in (table, "garbage.json"):
        assert run(*given[:-1], same, "--cost-table", same).code == 2, "the table is no place for the model"
    assert not Path("best.onnx").exists() and Path("garbage.json").read_bytes() == b"\x00 no table"


def test_too_many_plans_to_try_all(run: Run, calib: Path) -> None:
    home = calib.parent.parent / "transformer"
    given = ("tune", home / "model.onnx", "-d", home / "calib", "-r", "int8-minmax", "--search", "exhaustive", *QUICK)
    outcome = run(*given, "--min-sqnr", 20, "--time-limit", 60, "-o", "best.onnx")
    assert outcome.code == 2 and "too many to try all" in outcome.err and "leave out --search exhaustive" in outcome.err


def test_samples_are_needed(run: Run, mlp: Path) -> None:
    outcome = run("tune", mlp, "-o", "best.onnx")
    assert outcome.code == 5 and "there are none" in outcome.err and "hint: " in outcome.err


ALLOWED = ("--metric", "mine.py", "--allow-code")
ONE = "def metric(expected, given, label): return 1.0\n"


def test_a_metric_of_ones_own(run: Run, mlp: Path, calib: Path, evaluation: Path) -> None:
    Path("mine.py").write_text(
        "print('not a result')\n"
        "def metric(expected, given, label):\n"
        "    return -float(abs(expected['logits'] - given['logits']).max())\n"
    )
    given = ("tune", mlp, "-d", calib, "--eval", evaluation, "-r", "int8-weights", "--max-size", 0.9, *ALLOWED, *QUICK)
    outcome = run(*given, "-o", "best.onnx", "--min-metric", -5.5, "--objective", "accuracy")
    assert outcome.code == 0, outcome.err
    assert "mine.py" in outcome.out.splitlines()[0] and "best.onnx: mine.py -" in outcome.out
    assert "not a result" not in outcome.out and "not a result" in outcome.err
    found = json.loads(run(*given, "-o", "best.onnx", "--json").out)
    assert found["metric"] == "mine.py" and found["result_metric"] < 0
    assert found["tried"][0]["metric"] == 0 and found["tried"][1]["metric"] < 0


def test_top1_with_labels_that_are_named(run: Run, mlp: Path, evaluation: Path) -> None:
    given = ("tune", mlp, "-d", evaluation, "--labels", evaluation / "labels.csv", "--max-size", 0.9, *QUICK)
    outcome = run(*given, "--metric", "top1", "--min-metric", 0.5, "-r", "int8-weights", "-o", "best.onnx")
    assert outcome.code == 0, outcome.err
    assert "top1" in outcome.out.splitlines()[0] and "best.onnx: top1 " in outcome.out


@pytest.mark.parametrize(
    ("code", "arguments", "said"),
    [
        (ONE, ("--min-metric", 0.5), "there is no --metric"),
        (ONE, ("--metric", "top1"), "needs labels"),
        (ONE, ("--metric", "f1"), "'f1' is no metric"),
        (ONE, ("--metric", "mine.py"), "runs only if it is allowed"),
        (ONE, ("--metric", "nowhere.py", "--allow-code"), "cannot be read"),
        (ONE, (*ALLOWED, "--min-metric", "nan"), "--min-metric must be a finite number"),
        (ONE, ("--metric", "agreement", "--min-metric", 2), "from 0 to 1"),
        (ONE, ("--time-limit", "nan"), "--time-limit must be above 0"),
        (ONE, ("--max-size", "inf"), "--max-size must be above 0 and at most 10"),
        (ONE, ("--max-latency", "nan"), "--max-latency must be above 0"),
        ("pass", ALLOWED, "has no function 'metric'"),
        ("def metric(", ALLOWED, "line 1: no valid Python"),
        ("def metric(expected, given, label):\n    return given['y']", ALLOWED, "mine.py, line 2: KeyError: 'y'"),
        ("def metric(expected, given, label): return None", ALLOWED, "returned NoneType"),
        ("def metric(expected, given, label): return float('inf')", ALLOWED, "returned inf"),
        ("def metric(expected, given, label): exit()", ALLOWED, "SystemExit"),
    ],
)
def test_metrics_that_cannot_be(
    run: Run, mlp: Path, calib: Path, code: str, arguments: tuple[object, ...], said: str
) -> None:
    Path("mine.py").write_text(code)
    outcome = run("tune", mlp, "-d", calib, "-o", "best.onnx", "--threads", 1, *arguments)
    assert outcome.code == 2 and said in outcome.err, outcome.err
    assert outcome.err.count("error:") == 1 and outcome.err.count("hint:") <= 1 and not Path("best.onnx").exists()


@pytest.mark.parametrize(
    "recipe",
    ["metric: mine.py", "metric: {python: mine.py}", "metrics: [mine.py]", "finish: [{python: mine.py}]"],
)
def test_a_recipe_names_no_code(run: Run, mlp: Path, calib: Path, recipe: str) -> None:
    Path("mine.py").write_text("open('ran', 'w')\n" + ONE)
    Path("r.yaml").write_text(f"version: 1\nextends: int8\n{recipe}\n")
    given = ("tune", mlp, "-d", calib, "-o", "best.onnx", "--allow-code", *QUICK)
    for extra in (("-r", "r.yaml"), ("--set", recipe.replace(": ", "=", 1))):
        outcome = run(*given, *extra)
        assert outcome.code == 2 and not Path("ran").exists() and not Path("best.onnx").exists(), outcome.err


def test_limits_that_exclude_each_other_are_named(run: Run, mlp: Path, calib: Path) -> None:
    limits = ("--min-sqnr", 150, "--max-size", 0.5)
    outcome = run("tune", mlp, "-d", calib, "-r", "int8-weights", "-o", "best.onnx", *limits, *QUICK)
    assert outcome.code == 1
    assert "--min-sqnr 150 and --max-size 0.5 exclude each other in what was tried" in outcome.out
    assert "of what keeps --min-sqnr the smallest has 1.000 of the size" in outcome.out
