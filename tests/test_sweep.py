"""The sweep over a zoo ends with a row for every model and preset, whatever they are, and keeps rows as they come."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import onnx
import pytest
from models import node, normal, proto_of, saved

from benchmarks.sweep import Options, sweep
from benchmarks.sweep_child import fault_of, row
from benchmarks.sweep_page import sweep_page
from benchmarks.sweep_rows import Case, SweepReport, SweepRow, claims_speed, learns
from qcli.errors import UsageError
from qcli.recipe import preset_names
from qcli.report import environment

ROOT = Path(__file__).parent.parent
PRESETS = ("int8", "int8-data-free", "int8-weights")


def made_zoo(folder: Path) -> Path:
    shutil.copytree(ROOT / "sample_models" / "mlp", folder / "mlp")
    (folder / "odd").mkdir()
    (folder / "odd" / "pointer.onnx").write_text("version https://git-lfs.github.com/spec/v1\n")
    return folder


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, SweepReport]:
    zoo = made_zoo(tmp_path_factory.mktemp("zoo"))
    kept = tmp_path_factory.mktemp("kept") / "sweep.json"
    saved: list[SweepReport] = []

    def save(report: SweepReport) -> None:
        saved.append(report)
        kept.write_bytes(msgspec.json.encode(report))

    report = sweep(zoo, Options(presets=PRESETS), kept, save)
    assert [len(each.rows) for each in saved[:6]] == [1, 2, 3, 4, 5, 6], "a row is saved as soon as it is there"
    return zoo, kept, report


@pytest.mark.slow
def test_every_model_has_a_row_for_every_preset(swept: tuple[Path, Path, SweepReport]) -> None:
    rows = {(row.model, row.preset): row for row in swept[2].rows}
    assert {name for name, _ in rows} == {"mlp", "odd/pointer.onnx"} and len(rows) == 2 * len(PRESETS)
    assert rows["mlp", "int8"].code == 0 and rows["mlp", "int8"].integer_share == 1.0
    assert rows["mlp", "int8"].speedup is not None and rows["mlp", "int8-weights"].speedup is None
    assert rows["mlp", "int8-weights"].code == 0 and (rows["mlp", "int8-weights"].size_ratio or 1) < 0.5
    assert rows["mlp", "int8-data-free"].code == 5 and rows["mlp", "int8-data-free"].reason
    assert {rows["odd/pointer.onnx", preset].code for preset in PRESETS} == {3}
    assert not any(row.fault for row in swept[2].rows)
    assert not any(swept[1].with_suffix("").iterdir()), "models go once they were timed"


@pytest.mark.slow
def test_a_sweep_goes_on_where_it_was(swept: tuple[Path, Path, SweepReport]) -> None:
    zoo, kept, report = swept
    first = report.rows[0]
    gone = (*report.rows[:1], msgspec.structs.replace(report.rows[1], fault="made up"), *report.rows[3:])
    kept.write_bytes(msgspec.json.encode(msgspec.structs.replace(report, rows=gone)))
    again = sweep(zoo, Options(presets=PRESETS, resume=True, latency=False), kept, lambda _: None)
    assert again.rows[0] == first and again.rows[3:] == report.rows[3:], "these were there"
    assert not again.rows[1].fault and again.rows[1].code == 5, "one at fault is measured again"
    assert again.rows[2].code == 0 and again.rows[2].speedup is None, "one that was not there"


@pytest.mark.slow
def test_what_takes_too_long_is_a_row_and_the_others_go_on(tmp_path: Path) -> None:
    zoo = made_zoo(tmp_path / "zoo")
    options = Options(models=("mlp",), presets=PRESETS[:2], time_limit=0.01, latency=False)
    report = sweep(zoo, options, tmp_path / "s.json", lambda _: None)
    assert [(row.code, row.fault) for row in report.rows] == [(7, "took more than 0 seconds")] * 2


@pytest.mark.slow
def test_the_page_names_no_place_on_this_machine(swept: tuple[Path, Path, SweepReport]) -> None:
    text = sweep_page(swept[2])
    assert "* odd/pointer.onnx: every preset: 3, model 'odd/pointer.onnx' is a Git LFS pointer, not a model" in text
    assert "## mlp" in text and "* `int8-data-free`: 5, " in text
    assert str(swept[0]) not in text and "/tmp" not in text


def test_a_page_has_a_table_for_each_model_and_one_of_the_presets() -> None:
    def result(model: str, preset: str, sqnr: float, speedup: float | None = None, samples: str = "") -> SweepRow:
        figures = {"size_ratio": 0.25, "sqnr": sqnr, "speedup": speedup}
        return SweepRow(model=model, preset=preset, code=0, samples=samples, **figures)

    refused = SweepRow(model="b", preset="w4a8", code=4, reason="it is quantized")
    broken = msgspec.structs.replace(result("b", "fp16", 50), fault="the output 'y' holds NaN or Inf")
    rows = (
        result("a", "int8", 30, 2.0), result("a", "w4a8", 20, 1.0), broken, result("b", "int8", 40, 3.0), refused,
        result("c", "int8", 1, 0.1, "random"),
    )  # fmt: skip
    lines = sweep_page(SweepReport(environment=environment(), rows=rows)).splitlines()
    assert "| `int8` | 3 | 0 | 0.25 | 35.0 | 30.0 | 2.50 | 2.00 |" in lines, "without the model on random inputs"
    assert "| `w4a8` | 1 | 1 | 0.25 | 20.0 | 20.0 | 1.00 | 1.00 |" in lines
    assert lines[lines.index("## a") + 2] == "| preset | size | SQNR, dB | speedup |", "agreement would be empty"
    assert lines[lines.index("## c") + 2].startswith("| preset* |")
    assert "* `w4a8`: 4, it is quantized" in lines
    assert "* `fp16`: at fault, the output 'y' holds NaN or Inf" in lines


def test_the_page_in_the_repository_has_all_presets_and_names_no_place() -> None:
    page = (ROOT / "docs" / "sweep.md").read_text(encoding="utf-8")
    assert not re.search(r"/(home|tmp|work|root)/", page)
    assert "at fault" not in page
    head = page[page.index("## Presets") : page.index("\n## ", page.index("## Presets") + 3)]
    assert re.findall(r"^\| `([\w-]+)`", head, re.MULTILINE) == list(preset_names())


def untold(model: Path) -> onnx.ModelProto:
    """The same model without its outputs' shapes."""
    proto = onnx.load(model)
    for output in proto.graph.output:
        output.type.tensor_type.ClearField("shape")
    return proto


def test_a_result_that_is_wrong_as_a_file_is_a_fault(tmp_path: Path) -> None:
    """As somebody else would see it: it is checked, loaded and run on a sample beside the float model."""
    weights = {"w": normal(0, 16, 16)}
    good = saved(proto_of([node("MatMul", "x w", "y")], {"x": [4, 16]}, {"y": [4, 16]}, weights), tmp_path / "m.onnx")
    job = Case(zoo=str(tmp_path), model=str(good), presets=("int8",), kept=str(tmp_path)).job("int8")

    def fault(*nodes: onnx.NodeProto) -> str:
        bad = saved(proto_of(list(nodes), {"x": [4, 16]}, {"y": [4, 16]}, weights), tmp_path / "bad.onnx")
        return fault_of(msgspec.structs.replace(job, output=bad))

    assert fault(node("MatMul", "x w", "y")) == ""
    assert fault(node("MatMul", "x w", "a"), node("Sub", "a a", "b"), node("Div", "a b", "y")).endswith("NaN or Inf")
    free = proto_of([node("MatMul", "x w", "a"), node("Transpose", "a", "y")], {"x": [4, 16]}, {"y": None}, weights)
    turned = msgspec.structs.replace(job, output=saved(free, tmp_path / "turned.onnx"))
    assert fault_of(turned).startswith("onnx.checker: "), "an output without a shape, which the float model has"
    assert fault_of(msgspec.structs.replace(turned, model=turned.output)) == "", "no checker takes either of them"
    both = msgspec.structs.replace(turned, model=saved(untold(good), tmp_path / "untold.onnx"))
    assert fault_of(both).endswith("another shape or type")


def test_a_model_that_runs_but_whose_result_does_not_is_at_fault(tmp_path: Path) -> None:
    """Exit code 6 is an answer where onnxruntime cannot run the float model, and nowhere else."""
    nodes = [node("MatMul", "x w", "a"), node("NoSuch", "a", "y", domain="nowhere")]
    unknown = proto_of(nodes, {"x": [4, 64]}, {"y": [4, 64]}, {"w": normal(0, 64, 64)})
    unknown.opset_import.append(onnx.helper.make_opsetid("nowhere", 1))
    model = saved(unknown, tmp_path / "m.onnx")
    found = row(Case(zoo=str(tmp_path), model=str(model), presets=("fp16",), kept=str(tmp_path)), "fp16")
    assert found.code == 6 and not found.fault and found.reason and str(tmp_path) not in found.reason


def test_presets_are_sorted_by_what_their_recipes_say() -> None:
    learners = {name for name in preset_names() if learns(name)}
    assert {"int8-accurate", "int8-auto", "w4a8", "int4-accurate"} <= learners
    assert not learners & {"int8", "int8-weights", "int4-weights", "fp16", "codebook8"}
    fast = {name for name in preset_names() if claims_speed(name)}
    assert {"int8", "int8-accurate", "w4a8", "int8-dynamic", "int8-transformer"} <= fast
    assert not fast & {"int8-weights", "int4-weights", "fp16", "ternary", "tensorrt", "qnn", "openvino"}


def test_presets_and_models_that_are_not_there(tmp_path: Path) -> None:
    zoo = made_zoo(tmp_path / "zoo")
    with pytest.raises(UsageError, match="no preset 'int9'"):
        sweep(zoo, Options(presets=("int9",)), tmp_path / "s.json", lambda _: None)
    with pytest.raises(UsageError, match="no model"):
        sweep(zoo, Options(models=("nothing",)), tmp_path / "s.json", lambda _: None)
    (tmp_path / "s.json").write_text("{}")
    with pytest.raises(UsageError, match="holds no sweep"):
        sweep(zoo, Options(presets=("int8",), resume=True), tmp_path / "s.json", lambda _: None)


@pytest.mark.slow
def test_the_command_writes_page_and_rows(tmp_path: Path) -> None:
    zoo = made_zoo(tmp_path / "zoo")
    command = [sys.executable, "-m", "benchmarks", "sweep", "--zoo", str(zoo), "--presets", "int8-weights,fp16"]
    command += ["-o", str(tmp_path / "page.md"), "--json", str(tmp_path / "rows.json"), "--jobs", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "mlp fp16: exit code 0" in done.stderr
    report = msgspec.json.decode((tmp_path / "rows.json").read_bytes(), type=SweepReport)
    assert sweep_page(report) == (tmp_path / "page.md").read_text(encoding="utf-8")


def test_the_readme_names_every_key() -> None:
    words = set(re.findall(r"\w+", (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")))
    assert {*SweepReport.__struct_fields__, *SweepRow.__struct_fields__} <= words
