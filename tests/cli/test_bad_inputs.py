"""Whatever is wrong is named in one line with a hint and the right code, and nothing is left behind."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cli import broken
from cli.conftest import SAMPLE_MODELS, Outcome, Run

Builder = Callable[[Path], Path]


def assert_refused(outcome: Outcome, code: int, *names: str) -> None:
    assert outcome.code == code, outcome.err
    assert outcome.out == ""
    lines = outcome.err.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1
    assert "Traceback" not in outcome.err
    for name in names:
        assert name in outcome.err


def assert_hinted(outcome: Outcome) -> None:
    hints = [line for line in outcome.err.splitlines() if line.startswith("hint: ")]
    assert len(hints) == 1
    assert len(hints[0]) > len("hint: ")


def assert_nothing_left(folder: Path) -> None:
    assert list(folder.iterdir()) == []


MODELS: list[tuple[Builder, int, str]] = [
    (broken.missing_model, 3, "nowhere.onnx"),
    (broken.text_model, 3, "text.onnx"),
    (broken.truncated_model, 3, "short.onnx"),
    (broken.missing_external_data, 3, "weights.bin"),
    (broken.escaping_external_data, 3, "../weights.bin"),
    (broken.unknown_operator, 6, "Teleport"),
    (broken.nothing_to_quantize, 5, "nothing in this model"),
]


@pytest.mark.parametrize(("builder", "code", "name"), MODELS, ids=lambda item: getattr(item, "__name__", ""))
def test_a_bad_model(run: Run, tmp_path: Path, calib: Path, builder: Builder, code: int, name: str) -> None:
    outcome = run("quantize", builder(tmp_path), "-d", calib, "-o", "out.onnx", "--json")
    assert_refused(outcome, code, name)
    assert_hinted(outcome)
    assert_nothing_left(Path.cwd())


SAMPLES: list[tuple[Builder, int, tuple[str, ...]]] = [
    (broken.empty_folder, 5, ("empty",)),
    (broken.wrong_name, 3, ("bad.npz", "'pixel'", "pixels")),
    (broken.wrong_shape, 3, ("bad.npz", "pixels", "63", "64")),
    (broken.wrong_dtype, 3, ("bad.npz", "pixels", "float64", "float32")),
    (broken.not_a_number, 3, ("bad.npz", "pixels", "NaN")),
    (broken.infinite, 3, ("bad.npz", "pixels", "Inf")),
    (broken.pickled, 3, ("bad.npz",)),
]


@pytest.mark.parametrize("option", ["-d", "--eval"])
@pytest.mark.parametrize(("builder", "code", "names"), SAMPLES, ids=lambda item: getattr(item, "__name__", ""))
def test_bad_samples(
    run: Run,
    tmp_path: Path,
    mlp: Path,
    calib: Path,
    option: str,
    builder: Builder,
    code: int,
    names: tuple[str, ...],
) -> None:
    good = () if option == "-d" else ("-d", calib)
    outcome = run("quantize", mlp, *good, option, builder(tmp_path), "-o", "out.onnx")
    assert_refused(outcome, code, *names)
    assert_nothing_left(Path.cwd())


def test_an_image_that_is_none(run: Run, tmp_path: Path) -> None:
    cnn = SAMPLE_MODELS / "cnn"
    samples = broken.no_image(tmp_path)
    outcome = run("quantize", cnn / "model.onnx", "-r", cnn / "recipe.yaml", "-d", samples, "-o", "out.onnx")
    assert_refused(outcome, 3, "bad.png")
    assert_nothing_left(Path.cwd())


def test_labels_that_match_no_sample(run: Run, tmp_path: Path, mlp: Path, calib: Path, evaluation: Path) -> None:
    labels = broken.labels_of_others(tmp_path)
    outcome = run("quantize", mlp, "-d", calib, "--eval", evaluation, "--labels", labels, "-o", "out.onnx")
    assert_refused(outcome, 3, "somewhere_else.npz")
    assert_nothing_left(Path.cwd())


RECIPES = [
    ("rulez: []", ("rulez", "did you mean 'rules'?")),
    ("prepare: 3", ("recipe.yaml", "prepare")),
    ("rules: [{match: {op: Konv}, keep: float}]", ("rules[0]", "matches nothing")),
    ("rules: [{range: percentil}]", ("percentil", "did you mean 'percentile'?")),
    ("rules: [{range: {percentile: {kep: 99}}}]", ("kep", "did you mean 'keep'?")),
    ("gates: ['accuracy.sqrn > 3']", ("accuracy.sqrn", "accuracy.sqnr")),
    ("gates: [enough]", ("enough",)),
    ("rules: [", ("recipe.yaml", "line")),
    ("rules: [{grid: {granularity: block}}]", ("rules[0]", "needs the size of a block", "block: 32")),
    ("rules: [{grid: {granularity: block, block: 1}}]", ("rules[0]", "block must be 2 or more, is 1")),
    ("rules: [{grid: {granularity: channel, block: 32}}]", ("rules[0]", "'block' with granularity channel")),
]


@pytest.mark.parametrize(("text", "names"), RECIPES, ids=[text for text, _ in RECIPES])
def test_a_bad_recipe(run: Run, tmp_path: Path, mlp: Path, calib: Path, text: str, names: tuple[str, ...]) -> None:
    outcome = run("quantize", mlp, "-r", broken.recipe(tmp_path, text), "-d", calib, "-o", "out.onnx")
    assert_refused(outcome, 2, *names)
    assert_hinted(outcome)
    assert_nothing_left(Path.cwd())


def test_an_unknown_preset(run: Run, mlp: Path) -> None:
    outcome = run("plan", mlp, "-r", "int8-entropi")
    assert_refused(outcome, 2, "int8-entropi", "did you mean 'int8-entropy'?")


@pytest.mark.parametrize("gate", ["acuracy.sqnr > 3", "size.ratio", "size.ratio < many"])
def test_a_bad_gate(run: Run, mlp: Path, calib: Path, gate: str) -> None:
    outcome = run("quantize", mlp, "-d", calib, "-o", "out.onnx", "--gate", gate)
    assert_refused(outcome, 2, gate)
    assert_hinted(outcome)
    assert_nothing_left(Path.cwd())


@pytest.mark.parametrize("setting", ["nothing", "rulez=3", "samples.calibration.limit=many"])
def test_a_bad_setting(run: Run, mlp: Path, setting: str) -> None:
    outcome = run("plan", mlp, "--set", setting)
    assert_refused(outcome, 2, "--set")
    assert_hinted(outcome)


def test_an_already_quantized_model(run: Run, calib: Path, quantized: Path) -> None:
    outcome = run("quantize", quantized, "-d", calib, "-o", "out.onnx")
    assert_refused(outcome, 4, "already quantized", "QuantizeLinear")
    assert_hinted(outcome)
    assert_nothing_left(Path.cwd())


def test_no_samples(run: Run, mlp: Path) -> None:
    outcome = run("quantize", mlp, "-o", "out.onnx")
    assert_refused(outcome, 5, "samples")
    assert_hinted(outcome)


@pytest.mark.parametrize("option", ["-o", "--report", "--depfile"])
def test_a_place_that_cannot_be_written(run: Run, tmp_path: Path, mlp: Path, calib: Path, option: str) -> None:
    place = broken.below_a_file(tmp_path).with_suffix(".json")
    outcome = run("quantize", mlp, "-d", calib, option, place)
    assert_refused(outcome, 2, str(place))
    assert_hinted(outcome)
    assert_nothing_left(Path.cwd())


@pytest.mark.parametrize(
    ("grid", "name", "hint"),
    [
        ("{format: int1}", "one bit has two levels", "use format binary or residual_binary"),
        ("{format: int17}", "int17", "did you mean 'int7'"),
        ("{format: uint3x}", "uint3x", "did you mean 'uint3'"),
        ("{format: int4, bits: 5}", "bits must be 2 to 4, is 5", ""),
        ("{format: int16, bits: 1}", "one bit has two levels", "use format binary or residual_binary"),
        ("{format: int16, bits: 17}", "bits must be 2 to 16, is 17", ""),
    ],
)
def test_a_width_that_does_not_exist(run: Run, mlp: Path, calib: Path, grid: str, name: str, hint: str) -> None:
    rule = f"rules=[{{match: {{role: weight}}, grid: {grid}}}]"
    outcome = run("quantize", mlp, "-d", calib, "-o", "out.onnx", "--set", rule)
    assert_refused(outcome, 2, name, hint)
    assert_hinted(outcome)
    assert_nothing_left(Path.cwd())


def test_a_report_of_unknown_format(run: Run, mlp: Path, calib: Path) -> None:
    outcome = run("quantize", mlp, "-d", calib, "-o", "out.onnx", "--report", "report.pdf")
    assert_refused(outcome, 2, "report.pdf", ".json")
    assert_nothing_left(Path.cwd())


def test_the_output_is_the_input(run: Run, tmp_path: Path, calib: Path) -> None:
    model = broken.copy_of_mlp(tmp_path)
    before = model.read_bytes()
    outcome = run("quantize", model, "-d", calib, "-o", model)
    assert_refused(outcome, 2, str(model))
    assert model.read_bytes() == before


def test_a_full_disk(run: Run, mlp: Path, calib: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("out.onnx").write_bytes(b"as it was")

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("qcli.files.os.fsync", full)
    outcome = run("quantize", mlp, "-d", calib, "-o", "out.onnx", "--no-latency")
    assert_refused(outcome, 7, "no space left")
    assert_hinted(outcome)
    assert Path("out.onnx").read_bytes() == b"as it was"
    assert [path.name for path in Path.cwd().iterdir()] == ["out.onnx"]


def test_statistics_of_another_model(run: Run, mlp: Path, calib: Path) -> None:
    cnn = SAMPLE_MODELS / "cnn"
    run("calibrate", mlp, "-d", calib, "-o", "a.npz")
    run("calibrate", cnn / "model.onnx", "-r", cnn / "recipe.yaml", "-o", "b.npz", "--samples", 2)
    outcome = run("merge", "a.npz", "b.npz", "-o", "c.npz")
    assert_refused(outcome, 2, "differ in model or recipe")
    assert not Path("c.npz").exists()


def test_a_file_that_holds_no_statistics(run: Run, tmp_path: Path, mlp: Path) -> None:
    other = broken.text_model(tmp_path)
    assert_refused(run("merge", other, other, "-o", "c.npz"), 3, "text.onnx")
    assert_refused(run("quantize", mlp, "--stats", other, "-o", "out.onnx"), 3, "text.onnx")
    assert_nothing_left(Path.cwd())


@pytest.mark.parametrize("shard", ["3", "0/4", "5/4", "a/b", "1/"])
def test_a_shard_that_is_none(run: Run, mlp: Path, calib: Path, shard: str) -> None:
    outcome = run("calibrate", mlp, "-d", calib, "-o", "a.npz", "--shard", shard)
    assert_refused(outcome, 2, shard)
    assert_nothing_left(Path.cwd())
