"""The ablation measures every row once, survives what fails and what interrupts it, and writes between its markers."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import numpy as np
import pytest

from benchmarks.ablation import (
    AblationReport,
    Cell,
    Limits,
    Variant,
    ablate,
    alone,
    baseline,
    one_by_one,
    presets,
    variants,
)
from benchmarks.ablation_table import BEGIN, END, ablation_markdown, check_page, falls, write_page
from benchmarks.subjects import Subject, sampled_subjects, subject
from qcli.errors import UsageError
from qcli.recipe import load_recipe
from qcli.report import Environment

ROOT = Path(__file__).parent.parent

ENVIRONMENT = Environment(qcli="0", onnxruntime="1", onnx="1", numpy="2", python="3", cpu="a cpu", isa="vnni")

FEW = Limits(calibration=4, evaluation=4)

SHORT = (baseline(), next(row for row in alone() if row.step == "octav"))


def cell(variant: Variant, sqnr: float | None, **changes: object) -> Cell:
    usual = Cell(
        model="m", preset=variant.preset, settings=variant.settings, made_by="x", sqnr=sqnr, agreement=0.5, seconds=1.25
    )
    return msgspec.structs.replace(usual, **changes)


def report(*cells: Cell) -> AblationReport:
    return AblationReport(environment=ENVIRONMENT, cells=cells)


def row(step: str) -> Variant:
    return next(each for each in alone() if each.step == step)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.ablation.variants", lambda: SHORT)


@pytest.mark.parametrize("variant", variants(), ids=lambda each: f"{each.preset} {each.name}")
def test_every_row_is_a_valid_recipe(variant: Variant) -> None:
    recipe = load_recipe(variant.preset, variant.settings)
    assert len(set(map(str, recipe.prepare))) == len(recipe.prepare)


def test_rows_of_one_recipe_are_measured_once() -> None:
    rows = [(each.preset, each.settings) for each in variants()]
    assert len(set(rows)) == len(rows)
    every = (*one_by_one(), *presets(), baseline(), *alone())
    assert {(each.preset, each.settings) for each in every} == set(rows)


@pytest.mark.slow
def test_a_model_is_measured_and_what_is_known_is_not_measured_again(tmp_path: Path, short: None) -> None:
    kept = tmp_path / "kept.json"
    saved: list[AblationReport] = []

    def save(each: AblationReport) -> None:
        saved.append(each)
        kept.write_bytes(msgspec.json.encode(each))

    mlp = subject(None, "mlp")
    first = ablate([mlp], FEW, kept, save)
    assert [len(each.cells) for each in saved] == [1, 2, 2]
    assert all(each.sqnr is not None and each.sqnr > 20 and not each.error for each in first.cells)
    assert "| mlp |" in ablation_markdown(first, ["mlp"])
    assert ablate([mlp], FEW, kept, save).cells == first.cells
    other = ablate([mlp], Limits(calibration=5, evaluation=4), kept, save)
    assert {each.made_by for each in other.cells}.isdisjoint(each.made_by for each in first.cells)
    assert len(other.cells) == len(SHORT)


@pytest.mark.slow
def test_a_cell_that_fails_is_a_line_and_is_tried_again(tmp_path: Path, short: None) -> None:
    bad = tmp_path / "zoo" / "mlp" / "calib"
    bad.mkdir(parents=True)
    np.savez(bad / "a.npz", nothing=np.zeros(3, np.float32))
    kept = tmp_path / "kept.json"
    broken = msgspec.structs.replace(subject(None, "mlp"), calibration=bad)
    found = ablate([broken], FEW, kept, lambda each: kept.write_bytes(msgspec.json.encode(each)) and None)
    assert len(found.cells) == len(SHORT)
    assert all(each.error and "\n" not in each.error and each.sqnr is None for each in found.cells)
    assert f"error: {found.cells[0].error}" in ablation_markdown(found, ["mlp"])
    mended = ablate([subject(None, "mlp")], FEW, kept, lambda each: None)
    assert not any(each.error for each in mended.cells)


def test_a_bug_is_a_cell_too(tmp_path: Path, short: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def buggy(*_: object) -> None:
        raise ZeroDivisionError("by\nzero")

    monkeypatch.setattr("benchmarks.ablation.quantize", buggy)
    found = ablate([subject(None, "mlp")], FEW, tmp_path / "kept.json", lambda each: None)
    assert {each.error for each in found.cells} == {"ZeroDivisionError: by zero"}


def test_what_is_no_ablation_is_not_overwritten(tmp_path: Path) -> None:
    kept = tmp_path / "kept.json"
    kept.write_text("{}")
    with pytest.raises(UsageError, match="holds no ablation"):
        ablate([], FEW, kept, lambda each: None)


def test_changes_are_against_int8() -> None:
    undone = ("step 'equalize' was undone: on calibration samples held out for it, …",)
    cells = (
        cell(baseline(), 30.0),
        cell(row("equalize"), 30.0, warnings=undone),
        cell(row("smooth"), 30.0, warnings=undone),
        cell(row("gptq"), 31.25),
        cell(row("octav"), 29.6),
        cell(row("auto"), 29.8),
        cell(row("correct_bias"), None, error="no | such"),
    )
    text = ablation_markdown(report(*cells), ["m"])
    for line in (
        "| `equalize` | 0 *undone* |", "| `smooth` | 0 |", "| `gptq` | +1.2 |", "| `octav` | **-0.4** |",
        "| `auto` | -0.2 |", "| `correct_bias` | error: no \\| such |", "| `split_outliers` |  |",
        "| + `mse` | 30.0 / 50.0% / 1.2 |",
    ):  # fmt: skip
        assert f"\n{line}\n" in text
    assert falls(report(*cells), ["m"]) == ["octav on m: -0.4 dB"]


def test_models_stand_side_by_side_as_far_as_can_be_read() -> None:
    text = ablation_markdown(report(), [f"m{number}" for number in range(8)])
    assert text.count("| | m0 | m1 | m2 | m3 | m4 | m5 |\n") == text.count("| | m6 | m7 |\n") == 2


def test_a_page_keeps_what_is_around_the_markers(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n\n{BEGIN}\nold\n{END}\n\nafter\n")
    text = ablation_markdown(report(), ["m"])
    for _ in range(2):
        check_page(page)
        write_page(page, text)
        assert page.read_text() == f"before\n\n{text}\nafter\n"
    page.write_text("no markers\n")
    with pytest.raises(UsageError, match="no place"):
        check_page(page)
    fresh = tmp_path / "fresh.md"
    check_page(fresh)
    write_page(fresh, text)
    assert fresh.read_text() == text


def test_the_page_in_the_repository_has_its_markers_and_names_no_place() -> None:
    page = ROOT / "docs" / "accuracy.md"
    check_page(page)
    assert not re.search(r"/(home|tmp|work|root)/", page.read_text(encoding="utf-8"))


def test_all_models_with_samples_are_measured(tmp_path: Path) -> None:
    for name, samples in (("a", True), ("b", False), ("mobilenetv2_imagenet", False)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.onnx").touch()
        if samples:
            (tmp_path / name / "calib").mkdir()
    (tmp_path / "imagenet" / "calib").mkdir(parents=True)
    assert [each.name for each in sampled_subjects(tmp_path, None)] == ["a", "mobilenetv2_imagenet"]
    assert [each.name for each in sampled_subjects(tmp_path, "b")] == ["b"]
    assert all(isinstance(each, Subject) for each in sampled_subjects(None, None))


@pytest.mark.parametrize("kind", [AblationReport, Cell])
def test_the_readme_names_every_key(kind: type[msgspec.Struct]) -> None:
    text = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8").partition("## JSON")[2]
    assert set(kind.__struct_fields__) <= set(re.findall(r"\w+", text))
