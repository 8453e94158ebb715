"""Each command as it is meant to be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cli import broken
from cli.conftest import SAMPLE_MODELS, Outcome, Run

CNN = SAMPLE_MODELS / "cnn"


def document(outcome: Outcome) -> Any:
    """The JSON on stdout, of a run that said nothing else."""
    assert "Traceback" not in outcome.err
    return json.loads(outcome.out)


def test_quantize_prints_a_table(run: Run, mlp: Path, calib: Path, evaluation: Path) -> None:
    outcome = run("quantize", mlp, "-d", calib, "--eval", evaluation, "-o", "out.onnx", "--no-latency")
    assert outcome.code == 0
    assert Path("out.onnx").is_file()
    assert "accuracy" in outcome.out
    assert "top-1" in outcome.out
    assert not any(line.endswith(" ") for line in outcome.out.splitlines())


def test_quantize_prints_json(run: Run, mlp: Path, calib: Path, evaluation: Path) -> None:
    arguments = ("-d", calib, "--eval", evaluation, "--samples", 20, "--json", "--report", "r.json")
    outcome = run("quantize", mlp, *arguments)
    report = document(outcome)
    assert outcome.code == 0
    assert (report["schema"], report["command"], report["status"]) == (1, "quantize", "passed")
    assert report["samples"] == {"calibration": 20, "validation": 360}
    assert Path("model.int8.onnx").stat().st_size == report["size"]["bytes"]
    assert json.loads(Path("r.json").read_text()) == report


def test_a_failed_gate_is_code_1(run: Run, mlp: Path, calib: Path) -> None:
    gates = ("--gate", "size.ratio < 0.1", "--gate", "accuracy.sqnr > 10")
    outcome = run("quantize", mlp, "-d", calib, "-o", "out.onnx", *gates, "--json", "--report", "r.xml")
    report = document(outcome)
    assert (outcome.code, report["status"]) == (1, "failed")
    assert [gate["passed"] for gate in report["gates"]] == [False, True]
    assert sorted(path.name for path in Path.cwd().iterdir()) == ["r.xml"]


def test_a_failing_model_can_be_kept(run: Run, mlp: Path, calib: Path) -> None:
    outcome = run("quantize", mlp, "-d", calib, "-o", "o.onnx", "--gate", "size.ratio < 0.1", "--keep-failing")
    assert outcome.code == 1
    assert [path.name for path in Path.cwd().iterdir()] == ["o.rejected.onnx"]


def test_a_dry_run_writes_nothing(run: Run, mlp: Path, calib: Path) -> None:
    outcome = run("quantize", mlp, "-d", calib, "-o", "out.onnx", "--dry-run", "--json")
    assert document(outcome)["plan"]["entries"] > 0
    assert outcome.code == 0
    assert list(Path.cwd().iterdir()) == []


def test_a_depfile(run: Run, mlp: Path, calib: Path) -> None:
    outcome = run("quantize", mlp, "-d", calib, "-o", "out.onnx", "--depfile", "out.d", "--no-latency")
    text = Path("out.d").read_text()
    assert outcome.code == 0
    assert text.startswith("out.onnx: ")
    assert str(mlp) in text


def test_random_samples_are_said_to_be_random(run: Run, mlp: Path) -> None:
    outcome = run("quantize", mlp, "--random-samples", 4, "-o", "out.onnx", "--no-latency")
    assert outcome.code == 0
    assert "warning: " in outcome.err
    assert "random" in outcome.err


def test_quiet_says_nothing_beside_the_result(run: Run, mlp: Path, calib: Path) -> None:
    outcome = run("quantize", mlp, "-d", calib, "-o", "out.onnx", "-q", "--no-latency")
    assert (outcome.code, outcome.err) == (0, "")
    assert "accuracy" in outcome.out


def test_verbose_names_the_phases(run: Run, mlp: Path, calib: Path) -> None:
    outcome = run("quantize", mlp, "-d", calib, "-o", "out.onnx", "-v", "--no-latency")
    lines = outcome.err.splitlines()
    phases = [line for line in lines if line in ("prepare", "calibrate", "solve", "apply", "validate")]
    assert phases == ["prepare", "calibrate", "solve", "apply", "validate"]


def test_stages_give_the_same_bytes_as_one_run(run: Run, mlp: Path, calib: Path) -> None:
    for part in ("1/3", "2/3", "3/3"):
        assert run("calibrate", mlp, "-d", calib, "-o", f"{part[0]}.npz", "--shard", part).code == 0
    merged = run("merge", "3.npz", "1.npz", "2.npz", "-o", "all.npz", "--json")
    assert document(merged)["samples"] == 100
    assert run("plan", mlp, "-o", "plan.yaml").code == 0
    stages = run("quantize", mlp, "--plan", "plan.yaml", "--stats", "all.npz", "-d", calib, "-o", "a.onnx")
    assert stages.code == 0, stages.err
    assert run("quantize", mlp, "-d", calib, "-o", "b.onnx", "--threads", 2).code == 0
    assert Path("a.onnx").read_bytes() == Path("b.onnx").read_bytes()


def test_plan_shows_sites_and_reasons(run: Run) -> None:
    outcome = run("plan", SAMPLE_MODELS / "transformer" / "model.onnx")
    assert (outcome.code, outcome.err) == (0, "")
    assert "because" in outcome.out
    assert "int8 rules[0]" in outcome.out
    assert "LayerNormalization" in outcome.out.partition("stays float")[2]


def test_plan_as_yaml_and_json(run: Run, mlp: Path) -> None:
    plan = document(run("plan", mlp, "--json", "-o", "plan.yaml"))
    assert plan["entries"]
    assert "because:" in Path("plan.yaml").read_text()


def test_calibrate_shows_what_was_measured(run: Run, mlp: Path, calib: Path) -> None:
    outcome = run("calibrate", mlp, "-d", calib, "-o", "stats.npz", "--samples", 7)
    assert outcome.code == 0
    assert outcome.out.splitlines()[0].split() == ["samples", "7"]


def test_validate_judges_any_pair(run: Run, mlp: Path, evaluation: Path, quantized: Path) -> None:
    outcome = run("validate", mlp, quantized, "-d", evaluation, "--json", "--no-latency")
    report = document(outcome)
    assert outcome.code == 0
    assert report["command"] == "validate"
    assert report["accuracy"]["top1"]["drop"] < 0.02
    assert report["kernels"]["integer_share"] == 1
    assert report["size"]["ratio"] < 0.5


def test_validate_fails_with_its_gates(run: Run, mlp: Path, evaluation: Path, quantized: Path) -> None:
    gate = ("--gate", "accuracy.sqnr > 200", "--report", "r.md", "--report", "r.html")
    outcome = run("validate", mlp, quantized, "-d", evaluation, *gate, "--no-latency")
    assert outcome.code == 1
    assert "FAILED" in outcome.out
    assert Path("r.md").exists()
    assert Path("r.html").exists()


def test_validate_needs_samples(run: Run, mlp: Path, quantized: Path) -> None:
    outcome = run("validate", mlp, quantized)
    assert outcome.code == 5
    assert "hint: " in outcome.err


def test_inspect_a_float_model(run: Run) -> None:
    seen = document(run("inspect", CNN / "model.onnx", "--json"))
    assert seen["operators"]["Conv"] == 7
    assert seen["weight_bytes"]["float32"] == 236720
    assert sum(seen["weight_bytes"].values()) + seen["graph_bytes"] == seen["model"]["bytes"]
    assert seen["multiply_accumulates"] > 2_000_000
    assert (seen["kernels"]["integer"], seen["kernels"]["float"]) == (0, 8)


def test_inspect_a_quantized_model(run: Run, quantized: Path) -> None:
    outcome = run("inspect", quantized)
    assert outcome.code == 0
    assert "3 integer, 0 float" in outcome.out
    assert "int8" in outcome.out


def test_inspect_a_model_that_does_not_run(run: Run, tmp_path: Path) -> None:
    seen = document(run("inspect", broken.unknown_operator(tmp_path), "--json"))
    assert seen["kernels"] is None
    assert "Teleport" in seen["problem"]


def test_check_finds_nothing_wrong(run: Run) -> None:
    outcome = run("check", CNN / "model.onnx", "-r", CNN / "recipe.yaml", "--json")
    assert outcome.code == 0
    assert document(outcome) == {"schema": 1, "command": "check", "status": "passed", "problems": []}


def test_check_finds_everything_wrong(run: Run, tmp_path: Path, mlp: Path) -> None:
    rules = "rules: [{match: {op: Konv}, keep: float}, {match: {name: nobody}, keep: float}]"
    recipe = broken.recipe(tmp_path, f"{rules}\ngates: ['size.ration < 1']")
    outcome = run("check", mlp, "-r", recipe, "-d", broken.wrong_shape(tmp_path), "--gate", "what", "--json")
    problems = document(outcome)["problems"]
    said = " ".join(problem["message"] for problem in problems)
    assert outcome.code == 1
    assert len(problems) == 5
    for word in ("rules[0]", "rules[1]", "size.ration", "'what'", "63"):
        assert word in said


def test_check_goes_on_after_a_missing_model(run: Run) -> None:
    outcome = run("check", "nowhere.onnx", "-r", "nothing")
    assert outcome.code == 1
    assert "nowhere.onnx" in outcome.out
    assert "'nothing'" in outcome.out


def test_check_an_already_quantized_model(run: Run, quantized: Path) -> None:
    outcome = run("check", quantized)
    assert outcome.code == 1
    assert "already quantized" in outcome.out


def test_bench_compares(run: Run, mlp: Path, quantized: Path) -> None:
    report = document(run("bench", mlp, quantized, "--json"))
    assert [row["path"] for row in report["models"]] == [str(mlp), str(quantized)]
    assert report["models"][0]["speedup"] == 1
    outcome = run("bench", mlp, quantized)
    assert "made-up samples" in outcome.out


def test_doctor_knows_the_kernels(run: Run) -> None:
    seen = document(run("doctor", "--json"))
    kernels = {one["op"]: one["kernel"] for one in seen["kernels"]}
    assert kernels["Conv"] == "QLinearConv"
    assert kernels["LayerNormalization"] == ""
    outcome = run("doctor")
    assert "onnxruntime" in outcome.out
    assert seen["environment"]["isa"] in outcome.out


def test_recipe_list(run: Run) -> None:
    names = [preset["name"] for preset in document(run("recipe", "list", "--json"))["presets"]]
    assert "int8" in names
    assert all(name in run("recipe", "list").out for name in names)


def test_recipe_show_names_the_origin(run: Run) -> None:
    outcome = run("recipe", "show", "int8", "--set", "samples.calibration.limit=7")
    line = next(line for line in outcome.out.splitlines() if "samples.calibration.limit" in line)
    assert line.split() == ["samples.calibration.limit", "7", "--set"]
    assert "origins" in document(run("recipe", "show", "int8", "--json"))


def test_recipe_schema_is_a_schema(run: Run) -> None:
    schema = document(run("recipe", "schema"))
    assert schema["$ref"] == "#/$defs/RecipeFile"


@pytest.mark.parametrize("model", [None, "mlp", "gru"])
def test_recipe_init_makes_what_check_accepts(run: Run, model: str | None) -> None:
    named = [SAMPLE_MODELS / model / "model.onnx"] if model else []
    assert run("recipe", "init", *named, "-o", "mine.yaml") == Outcome(0, "", "")
    checked = run("recipe", "check", "mine.yaml")
    assert (checked.code, checked.err) == (0, "")
    assert run("recipe", "init", *named).out == Path("mine.yaml").read_text()


def test_recipe_init_with_its_comments_taken_out(run: Run) -> None:
    text = run("recipe", "init").out
    lines = [line.removeprefix("# ") if ":" in line or "- " in line else line for line in text.splitlines()[3:]]
    Path("all.yaml").write_text("\n".join(lines))
    outcome = run("recipe", "check", "all.yaml")
    assert outcome.code == 0, outcome.err


def test_recipe_check_checks_gates(run: Run, tmp_path: Path) -> None:
    outcome = run("recipe", "check", broken.recipe(tmp_path, "gates: ['size.ration < 1']"))
    assert outcome.code == 2
    assert "did you mean 'size.ratio'?" in outcome.err
