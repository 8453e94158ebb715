"""`qcli analyze` on the command line."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from cli import broken
from cli.conftest import SAMPLE_MODELS, Run

CNN = SAMPLE_MODELS / "cnn"


def test_a_table(run: Run, mlp: Path, calib: Path) -> None:
    outcome = run("analyze", mlp, "-d", calib, "--samples", 16, "--compare", 4, "--no-suggestions")
    assert outcome.code == 0 and outcome.err == ""
    for word in ("float check", "weights only", "activations only", "as onnxruntime runs it", "to blame", "/head"):
        assert word in outcome.out
    assert not any(line.endswith(" ") for line in outcome.out.splitlines())


def test_suggestions_can_be_pasted(run: Run, mlp: Path, calib: Path) -> None:
    outcome = run("analyze", mlp, "-d", calib, "--samples", 16, "--compare", 4)
    assert outcome.code == 0
    lines = outcome.out.splitlines()
    first = lines.index("rules:")
    assert lines[first - 1].startswith("+") and " dB, to " in lines[first - 1]
    end = next((index for index in range(first, len(lines)) if not lines[index]), len(lines))
    Path("mine.yaml").write_text("version: 1\nextends: int8\n" + "\n".join(lines[first:end]) + "\n")
    assert run("recipe", "check", "mine.yaml").code == 0
    assert run("plan", mlp, "-r", "mine.yaml").code == 0


def test_json_and_reports(run: Run, mlp: Path, calib: Path) -> None:
    reports = ("--report", "a.json", "--report", "a.csv", "--report", "a.md")
    outcome = run("analyze", mlp, "-d", calib, "--samples", 16, "--compare", 4, "--json", "--top", 1, *reports)
    found = json.loads(outcome.out)
    assert outcome.code == 0
    assert (found["schema"], found["command"], found["by"]) == (1, "analyze", "node")
    assert found["samples"] == {"calibration": 16, "compared": 4}
    assert json.loads(Path("a.json").read_text()) == found
    with Path("a.csv").open() as stream:
        assert [row["name"] for row in csv.DictReader(stream)] == [row["name"] for row in found["rows"]]
    assert Path("a.md").read_text().startswith("# qcli analyze")
    assert len(found["rows"]) > 1, "JSON and CSV hold all rows"


def test_the_second_time_says_the_same(run: Run, mlp: Path, calib: Path) -> None:
    arguments = ("analyze", mlp, "-d", calib, "--samples", 12, "--compare", 3, "--json")
    first = run(*arguments)
    assert run(*arguments).out == first.out
    assert run(*arguments, "--no-cache").out == first.out


def test_top_shows_the_worst_only(run: Run, mlp: Path, calib: Path) -> None:
    options = ("-d", calib, "--samples", 16, "--compare", 4, "--no-suggestions")
    every = run("analyze", mlp, *options).out.splitlines()
    worst = run("analyze", mlp, *options, "--top", 1).out.splitlines()
    head = next(index for index, line in enumerate(every) if line.startswith("part"))
    assert worst[head + 1].split()[0] == every[head + 1].split()[0]
    assert worst[-1] == f"and {len(every) - head - 2} more"


@pytest.mark.parametrize("by", ["node", "op", "block"])
def test_groupings(run: Run, by: str) -> None:
    settings = ("--set", "samples.calibration.preprocess={channels: gray, preset: unit}")
    arguments = ("-d", CNN / "calib", *settings, "--samples", 8, "--compare", 2, "--no-suggestions", "--json")
    found = json.loads(run("analyze", CNN / "model.onnx", "--by", by, *arguments).out)
    assert found["by"] == by
    assert {"node": 10, "op": 4, "block": 5}[by] == len(found["rows"])


def test_other_samples_to_compare_on(run: Run, mlp: Path, calib: Path, evaluation: Path) -> None:
    options = ("-d", calib, "--samples", 16, "--compare", 4, "--no-suggestions", "--json")
    here = json.loads(run("analyze", mlp, *options).out)
    there = json.loads(run("analyze", mlp, *options, "--eval", evaluation).out)
    assert here["samples"] == there["samples"]
    assert here["whole"] != there["whole"]


def test_a_weight_only_recipe(run: Run, mlp: Path, calib: Path) -> None:
    outcome = run("analyze", mlp, "-r", "int8-weights", "-d", calib, "--compare", 2, "--no-suggestions")
    assert outcome.code == 0
    assert "the weights are to blame" in outcome.out
    assert "activations only" not in outcome.out


def test_random_samples(run: Run, mlp: Path) -> None:
    outcome = run("analyze", mlp, "--random-samples", 4, "--no-suggestions", "--json")
    assert outcome.code == 0 and "random" in outcome.err
    assert json.loads(outcome.out)["samples"] == {"calibration": 4, "compared": 4}


def test_unknown_words(run: Run, mlp: Path, calib: Path) -> None:
    for arguments in (("--by", "layer"), ("--report", "a.html"), ("--compare", "0"), ("--top", "0"), ("-r", "int9")):
        outcome = run("analyze", mlp, "-d", calib, *arguments)
        assert outcome.code == 2, arguments
        assert outcome.out == "" and "error: " in outcome.err


def test_each_exit_code(run: Run, mlp: Path, calib: Path, quantized: Path, tmp_path: Path) -> None:
    cases = {
        3: (broken.missing_model(tmp_path), "-d", calib),
        4: (quantized, "-d", calib),
        5: (broken.nothing_to_quantize(tmp_path), "-d", calib),
        6: (broken.unknown_operator(tmp_path), "-d", calib),
        7: (mlp, "-d", calib, "--max-memory", "1KB"),
    }
    for code, arguments in cases.items():
        outcome = run("analyze", *arguments)
        assert outcome.code == code, outcome.err
        assert outcome.out == ""
        assert "error: " in outcome.err and "hint: " in outcome.err
    assert run("analyze", mlp).code == 5, "no samples"
    assert run("analyze", mlp, "-d", broken.empty_folder(tmp_path)).code == 5
    assert list(Path.cwd().iterdir()) == []
