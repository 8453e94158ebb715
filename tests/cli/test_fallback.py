"""A recipe's `fallback` on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli.conftest import SAMPLE_MODELS, Run

QUICK = ("--samples", 16, "--no-latency", "--threads", 1, "-o", "out.onnx")

COARSE = """\
version: 1
extends: int8-minmax
rules:
  - {match: {role: [input, output]}, grid: {format: uint4, symmetric: false}}
fallback: {min_sqnr: 23}
"""


def test_it_is_shown_and_reported(run: Run, mlp: Path, calib: Path) -> None:
    Path("coarse.yaml").write_text(COARSE)
    outcome = run("quantize", mlp, "-r", "coarse.yaml", "-d", calib, *QUICK)
    assert outcome.code == 0 and "fallback" in outcome.out and "kept, " in outcome.out
    outcome = run("quantize", mlp, "-r", "coarse.yaml", "-d", calib, *QUICK, "--json")
    found = json.loads(outcome.out)["fallback"]
    assert found["met"] and found["returned"] == len(found["parts"]) > 0 and found["samples"] == 8
    assert found["sqnr_before"] < 23 < found["sqnr_after"]


def test_what_cannot_be_kept_is_a_warning_and_the_gates_decide(run: Run, mlp: Path, calib: Path) -> None:
    told = ("quantize", mlp, "--set", "fallback={min_sqnr: 190, max_parts: 1}", "-d", calib, *QUICK)
    outcome = run(*told)
    assert outcome.code == 0 and Path("out.onnx").is_file() and "NOT kept" in outcome.out
    assert "warning: the recipe's fallback (min_sqnr 190 with 0.5 dB or more to spare) is not kept" in outcome.err
    assert run(*told, "--gate", "fallback.met == 1").code == 1


@pytest.mark.parametrize(
    ("fallback", "said"),
    [
        ("{max_drop: 2}", "fallback.max_drop"),
        ("{max_drp: 0.1}", "did you mean 'max_drop'?"),
        ("{max_parts: 2}", "there is no limit to keep"),
        ("float", "fallback: expected"),
    ],
)
def test_bad_words_are_code_2(run: Run, mlp: Path, calib: Path, fallback: str, said: str) -> None:
    outcome = run("quantize", mlp, "--set", f"fallback={fallback}", "-d", calib, *QUICK)
    assert (outcome.code, outcome.out) == (2, "") and said in outcome.err
    assert outcome.err.count("error:") == 1 and "hint:" in outcome.err and not Path("out.onnx").exists()
    assert run("recipe", "check", "int8", "--set", f"fallback={fallback}").code == 2


def test_without_samples_it_is_code_5(run: Run, mlp: Path) -> None:
    outcome = run("quantize", mlp, "-r", "int8-weights", "--set", "fallback={max_drop: 0.1}", "-o", "out.onnx")
    assert outcome.code == 5 and "a fallback compares models on samples" in outcome.err and "hint: name" in outcome.err
    outcome = run("check", mlp, "-r", "int8-weights", "--set", "fallback={max_drop: 0.1}")
    assert "no samples are named" in outcome.out


def test_the_recipe_says_where_it_comes_from(run: Run) -> None:
    Path("coarse.yaml").write_text(COARSE)
    outcome = run("recipe", "show", "coarse.yaml", "--set", "fallback.max_parts=0.5")
    rows = [line.split() for line in outcome.out.splitlines() if line.startswith("fallback")]
    assert rows == [["fallback.min_sqnr", "23", "coarse.yaml"], ["fallback.max_parts", "0.5", "--set"]]
    shown = json.loads(run("recipe", "show", "coarse.yaml", "--json").out)
    assert shown["fallback"]["min_sqnr"] == 23 and shown["origins"]["fallback.min_sqnr"] == "coarse.yaml"


def test_a_plan_before_it_is_said_to_be_one(run: Run) -> None:
    model = SAMPLE_MODELS / "mlp" / "model.onnx"
    outcome = run("plan", model, "--set", "fallback={max_drop: 0.1}")
    assert outcome.code == 0 and "this is the plan before it" in outcome.err
