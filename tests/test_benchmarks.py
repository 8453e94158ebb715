"""The benchmarks run, and their JSON has the keys that benchmarks/README.md names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest

from benchmarks.acceptance import accept
from benchmarks.calibration import CalibrationReport, Cost, CostRow, _met, measure_calibration
from benchmarks.children import Child, interleaved, run_child
from benchmarks.commands import heavy_imports
from benchmarks.compare import QUICK, CompareReport, Ratios, Row, compare_one, ratios
from benchmarks.contenders import FULL_RANGE, REFERENCE, Contender, contenders
from benchmarks.outcome import AcceptanceReport, Check
from benchmarks.peer import free_initializers
from benchmarks.subjects import ZOO_VARIABLE, Subject, chosen_subjects, required_zoo, subject, zoo_folder
from benchmarks.tables import acceptance_markdown, calibration_table
from benchmarks.targets import TARGETS
from qcli.errors import UsageError
from qcli.gates import parse_gate
from qcli.report import Environment

README = Path(__file__).parent.parent / "benchmarks" / "README.md"

ENVIRONMENT = Environment(qcli="0", onnxruntime="1", onnx="1", numpy="2", python="3", cpu="a cpu", isa="vnni")


@pytest.fixture(autouse=True)
def without_a_zoo(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the machine names one, these tests still measure the sample models."""
    monkeypatch.delenv(ZOO_VARIABLE, raising=False)


def row(**changes: Any) -> Row:
    usual = Row(name="a", status="ok", wall_s=2.0, wall_runs_s=(2.0,), peak_mb=100.0)
    full = msgspec.structs.replace(usual, bytes=1000, ms=1.0, sqnr=20.0)
    return msgspec.structs.replace(full, **changes)


def cost(**changes: Any) -> Cost:
    usual = Cost(samples=25, wall_s=1.0, wall_runs_s=(1.0,), wall_ratio=1.0, peak_mb=300.0)
    return msgspec.structs.replace(usual, **changes)


@pytest.mark.slow
def test_a_quick_run_writes_the_figures_of_every_contender(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    child = run_child(["-m", "benchmarks", "--models", "mlp", "--samples", "4", "--quick", "--json", str(file)])
    assert child.exit_code == 0, child.stderr
    report = msgspec.json.decode(file.read_bytes(), type=CompareReport)
    (table,) = report.models
    assert (report.schema, report.benchmark, report.options.samples) == (1, "compare", 4)
    assert [each.name for each in table.contenders] == [each.name for each in contenders()]
    for each in table.contenders:
        assert each.status == "ok", each.message
        assert each.name in child.stdout
        assert each.bytes is not None and each.bytes < table.float_bytes
        assert each.sqnr is not None and each.sqnr > 10
        assert each.agreement is not None and each.agreement > 0.8
        assert each.integer_nodes == 3 and each.speedup is not None
        assert each.against_onnxruntime is not None


@pytest.mark.slow
def test_a_contender_that_fails_is_a_row(tmp_path: Path) -> None:
    real = subject(None, "mlp")
    bad = tmp_path / "bad"
    bad.mkdir()
    np.savez(bad / "a.npz", nothing=np.zeros(3, np.float32))
    table = compare_one(msgspec.structs.replace(real, calibration=bad), QUICK)
    assert {each.status for each in table.contenders} == {"failed"}
    assert all(each.message and each.sqnr is None and each.against_onnxruntime is None for each in table.contenders)


@pytest.mark.slow
def test_calibration_measures_each_number_of_samples() -> None:
    report = measure_calibration(subject(None, "mlp"), repeats=1, counts=(2, 4))
    assert report.contenders[0].name == REFERENCE.name
    for each in report.contenders:
        assert [at.samples for at in each.costs] == [2, 4]
        assert all(at.wall_s > 0 and not at.message for at in each.costs)
    assert report.contenders[0].met is None
    calibration_table(report)


@pytest.mark.slow
def test_a_child_is_not_charged_with_its_parent_s_memory() -> None:
    ballast = np.ones(40_000_000)  # 320 MB, resident
    child = run_child(["-c", "pass"])
    assert child.exit_code == 0
    assert child.peak_mb is not None and child.peak_mb < 100 < ballast.nbytes / 1e6


@pytest.mark.slow
def test_a_child_is_charged_with_its_own_memory_and_time() -> None:
    child = run_child(["-c", "import time; block = b'x' * 200_000_000; time.sleep(0.3)"])
    assert child.peak_mb is not None and child.peak_mb > 200
    assert child.seconds > 0.3


@pytest.mark.slow
def test_a_child_that_fails_says_why() -> None:
    child = run_child(["-c", "import sys; sys.exit('error: no such thing')"])
    assert child.exit_code == 1
    assert child.complaint == "error: no such thing"


def test_runs_are_interleaved() -> None:
    order: list[str] = []

    def runner(name: str) -> Child:
        order.append(name)
        return Child(exit_code=0, seconds=1.0, peak_mb=None, stdout=name, stderr="")

    runs = interleaved([lambda: runner("a"), lambda: runner("b")], 3)
    assert "".join(order) == "abbaab"
    assert [[each.stdout for each in of] for of in runs] == [["a"] * 3, ["b"] * 3]


def test_ratios_are_against_the_reference() -> None:
    found = ratios(row(wall_s=3.0, ms=0.5, sqnr=26.0, bytes=900, peak_mb=150.0), row())
    assert found == Ratios(wall=1.5, peak=1.5, bytes=0.9, ms=0.5, sqnr_gain=6.0)


def test_there_are_no_ratios_without_a_model() -> None:
    assert ratios(row(bytes=None), row()) is None
    assert ratios(row(), row(ms=None)) is None


@pytest.mark.parametrize(
    ("costs", "growth", "met"),
    [
        ((cost(), cost(samples=100)), 0.05, True),
        ((cost(), cost(samples=100, wall_ratio=2.1)), 0.05, False),
        ((cost(peak_mb=451.0), cost()), 0.05, False),
        ((cost(), cost()), 0.11, False),
        ((cost(peak_mb=None), cost()), None, False),
        ((cost(message="error: x"), cost()), 0.0, False),
    ],
)
def test_calibration_targets(costs: tuple[Cost, ...], growth: float | None, met: bool) -> None:
    assert _met(costs, growth, 2.0) is met


def test_every_acceptance_gate_is_a_path_of_the_report() -> None:
    for target in TARGETS:
        for gate in target.gates:
            parse_gate(gate)


def test_acceptance_refuses_a_model_that_is_not_in_its_list(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nonsense"):
        accept(tmp_path, ["nonsense"])


def test_the_acceptance_table_is_markdown() -> None:
    good = Check(subject="m", what="size.ratio", target="<= 0.28", measured=0.27, met=True, onnxruntime=0.276)
    bad = Check(subject="m", what="exit code", target="== 0", measured=None, met=False, note="error: a | b")
    text = acceptance_markdown(AcceptanceReport(environment=ENVIRONMENT, met=False, checks=(good, bad)))
    assert text.startswith("1 of 2 met; a cpu (vnni)")
    assert "| m | size.ratio | 0.270 | <= 0.28 | yes | 0.276 |  |" in text
    assert "| m | exit code | - | == 0 | **no** | - | error: a / b |" in text


def test_heavy_imports_are_read_from_importtime() -> None:
    traced = "import time: 1 | 2 |   numpy.lib\nimport time: 1 | 2 | onnx\nimport time: 1 | 2 |     typer\n"
    assert heavy_imports(Child(exit_code=0, seconds=0, peak_mb=None, stdout="", stderr=traced)) == ["onnx"]


def test_subjects_exist_and_an_unknown_one_is_refused() -> None:
    assert [each.name for each in chosen_subjects(None, None)] == ["cnn", "mlp", "transformer"]
    for each in chosen_subjects(None, None):
        assert each.calibration.is_dir() and each.evaluation.is_dir()
    with pytest.raises(UsageError) as caught:
        chosen_subjects(None, "mpl")
    assert "mlp" in caught.value.hint


def test_the_zoo_may_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QCLI_ZOO", raising=False)
    assert zoo_folder(None) is None
    with pytest.raises(UsageError):
        required_zoo(None)
    monkeypatch.setenv("QCLI_ZOO", str(tmp_path))
    assert required_zoo(None) == tmp_path.resolve()
    with pytest.raises(UsageError):
        zoo_folder(tmp_path / "nowhere")


def test_commands_name_the_same_samples() -> None:
    made = Subject(
        name="m", model=Path("m.onnx"), calibration=Path("c"), evaluation=Path("e"), preprocess={"preset": "unit"}
    )
    for contender in (REFERENCE, Contender(tool="qcli", mode="int8")):
        command = contender.command(made, Path("out.onnx"), 7)
        assert command[-2:] == ["--samples", "7"]
        assert {"m.onnx", "c", "out.onnx"} <= set(command)
        assert any('{"preset":"unit"}' in word for word in command)


def test_the_peer_s_initializers_are_no_inputs() -> None:
    value = onnx.helper.make_tensor_value_info
    weight = onnx.numpy_helper.from_array(np.ones(2, np.float32), "w")
    inputs = [value(name, onnx.TensorProto.FLOAT, [2]) for name in ("x", "w")]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Add", ["x", "w"], ["y"])],
        "g",
        inputs,
        [value("y", onnx.TensorProto.FLOAT, [2])],
        [weight],
    )
    model = onnx.helper.make_model(graph, ir_version=3)
    free_initializers(model)
    assert [each.name for each in model.graph.input] == ["x"]
    assert model.ir_version >= 4


@pytest.mark.parametrize("kind", [CompareReport, CalibrationReport, CostRow, Cost, Row, AcceptanceReport, Check])
def test_the_readme_names_every_key(kind: type[msgspec.Struct]) -> None:
    words = set(re.findall(r"\w+", README.read_text(encoding="utf-8").partition("## JSON")[2]))
    assert set(kind.__struct_fields__) <= words


@pytest.mark.parametrize(("narrow", "words"), [(True, [True, False]), (False, [False])])
def test_the_peer_gives_up_a_bit_only_where_it_should(
    narrow: bool, words: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.contenders.reduces_range", lambda: narrow)
    minmax = [each for each in contenders() if each.mode.startswith("minmax")]
    assert minmax == ([REFERENCE, FULL_RANGE] if narrow else [REFERENCE])
    made = [each.command(subject(None, "mlp"), Path("out.onnx"), 7) for each in minmax]
    assert ["--reduce-range" in command for command in made] == words
    assert all(command[command.index("--method") + 1] == "minmax" for command in made)
