"""The sweep over a zoo ends with a row for every model, whatever it is."""

from __future__ import annotations

import re
import shutil
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.sweep import SweepReport, SweepRow, sweep, sweep_markdown

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SweepReport]:
    zoo = tmp_path_factory.mktemp("zoo")
    shutil.copytree(ROOT / "sample_models" / "mlp", zoo / "mlp")
    (zoo / "odd").mkdir()
    (zoo / "odd" / "pointer.onnx").write_text("version https://git-lfs.github.com/spec/v1\n")
    return zoo, sweep(zoo, None, Console(file=StringIO()))


@pytest.mark.slow
def test_every_model_has_a_row(report: tuple[Path, SweepReport]) -> None:
    rows = {(row.model, row.preset): row for row in report[1].rows}
    assert rows["mlp", "int8"].code == 0 and rows["mlp", "int8"].integer_share == 1.0
    assert rows["mlp", "int8-weights"].code == 0 and (rows["mlp", "int8-weights"].size_ratio or 1) < 0.5
    assert rows["odd/pointer.onnx", "int8"].code == 3
    assert ("odd/pointer.onnx", "int8-dynamic") not in rows, "it would be refused for the same reason"


@pytest.mark.slow
def test_the_table_names_no_place_on_this_machine(report: tuple[Path, SweepReport]) -> None:
    text = sweep_markdown(report[1])
    assert "| mlp | int8 | 0 |" in text and "Git LFS" in text
    assert str(report[0]) not in text


def test_the_page_in_the_repository_names_no_place_either() -> None:
    page = (ROOT / "docs" / "sweep.md").read_text(encoding="utf-8")
    assert not re.search(r"/(home|tmp|work|root)/", page)


def test_the_readme_names_every_key() -> None:
    words = set(re.findall(r"\w+", (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")))
    assert {*SweepReport.__struct_fields__, *SweepRow.__struct_fields__} <= words
