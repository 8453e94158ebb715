"""The benchmark of formats measures every row once, keeps what it has, and finds the front."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.formats import CASES, Case, FormatReport, FormatRow, Limits, formats_markdown, front_of, measure_formats
from benchmarks.subjects import subject
from qcli.errors import UsageError
from qcli.files import replace_file
from qcli.recipe import load_recipe, preset_names
from qcli.report import Environment, encode_report

ENVIRONMENT = Environment(qcli="0", onnxruntime="1", onnx="1", numpy="2", python="3", cpu="a cpu", isa="vnni")

FEW = Limits(calibration=4, evaluation=8)

SOME = tuple(case for case in CASES if case.name in ("`int8-weights`", "`codebook8`", "int4, channels"))


def row(size: float | None, sqnr: float | None, **changes: object) -> FormatRow:
    usual = FormatRow(model="m", case=SOME[0], made_by="x", size_ratio=size, sqnr=sqnr)
    return msgspec.structs.replace(usual, **changes)


@pytest.mark.parametrize("case", CASES, ids=lambda each: each.name)
def test_every_row_is_a_valid_recipe(case: Case) -> None:
    recipe = load_recipe(case.preset, case.settings)
    assert recipe.rules


def test_rows_named_like_presets_are_presets() -> None:
    named = [case for case in CASES if case.name.startswith("`")]
    assert {case.preset for case in named} <= set(preset_names())
    assert all(case.name == f"`{case.preset}`" and not case.settings for case in named)


def test_no_row_stands_twice() -> None:
    assert len({(case.preset, case.settings) for case in CASES}) == len({case.name for case in CASES}) == len(CASES)


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(-5, 5)), max_size=12))
def test_the_front_is_what_nothing_beats(figures: list[tuple[int, int]]) -> None:
    rows = [row(size / 10, float(sqnr)) for size, sqnr in figures]
    front = front_of(rows)
    for one, other in product(front, rows):
        assert not (other.size_ratio <= one.size_ratio and other.sqnr > one.sqnr)
        assert not (other.size_ratio < one.size_ratio and other.sqnr >= one.sqnr)
    for other in rows:
        assert any(one.size_ratio <= other.size_ratio and one.sqnr >= other.sqnr for one in front)


def test_what_failed_is_on_no_front() -> None:
    assert front_of([row(None, None, error="no"), row(0.5, 20.0)]) == (row(0.5, 20.0),)


def test_the_page_has_the_smallest_first_and_the_reason_of_what_failed() -> None:
    rows = (
        row(0.5, 20.0),
        row(0.3, 25.0, case=SOME[1], agreement=0.99, nll=0.015, bits_per_weight=8.1),
        row(None, None, case=SOME[2], error="no | way"),
    )
    text = formats_markdown(FormatReport(environment=ENVIRONMENT, rows=rows), ["m"], FEW)
    lines = [line for line in text.splitlines() if line.startswith("| ")][1:]
    assert [line.split(" | ")[0].strip("| ") for line in lines] == [SOME[1].name, SOME[0].name, SOME[2].name]
    assert "| 0.300 | 8.10 | 25.0 | 99.0% | +1.5% |" in lines[0] and lines[0].endswith("| yes |")
    assert not lines[1].endswith("| yes |")
    assert lines[2].endswith("| no / way |")


def test_rows_are_measured_once_and_again_when_they_failed(tmp_path: Path) -> None:
    kept, saved = tmp_path / "formats.json", []

    def save(report: FormatReport) -> None:
        saved.append(len(report.rows))
        replace_file(kept, encode_report(report))

    models = [subject(None, "mlp")]
    first = measure_formats(models, FEW, kept, save, SOME)
    assert saved == [1, 2, 3, 3]
    assert all(not each.error and each.size_ratio is not None for each in first.rows)
    by_name = {each.case.name: each for each in first.rows}
    assert by_name["`int8-weights`"].sqnr > by_name["int4, channels"].sqnr + 10
    assert by_name["`int8-weights`"].size_ratio > by_name["int4, channels"].size_ratio

    failed = msgspec.structs.replace(first.rows[0], error="no", sqnr=None)
    replace_file(kept, encode_report(msgspec.structs.replace(first, rows=(failed, *first.rows[1:]))))
    saved.clear()
    again = measure_formats(models, FEW, kept, save, SOME)
    assert saved == [3, 3]
    known = {each.case.name: msgspec.structs.replace(each, seconds=0.0) for each in first.rows}
    assert {each.case.name: msgspec.structs.replace(each, seconds=0.0) for each in again.rows} == known


def test_a_format_that_is_refused_is_a_row(tmp_path: Path) -> None:
    wrong = Case(name="wrong", preset="int8-weights", settings=("rules=[{match: {op: Nothing}, range: mse}]",))
    report = measure_formats([subject(None, "mlp")], FEW, tmp_path / "kept.json", lambda _: None, [wrong])
    assert "matches nothing" in report.rows[0].error


def test_another_file_is_refused(tmp_path: Path) -> None:
    kept = tmp_path / "kept.json"
    kept.write_text("[]")
    with pytest.raises(UsageError, match="holds no formats"):
        measure_formats([subject(None, "mlp")], FEW, kept, lambda _: None, SOME)
