"""`qcli doctor --kernels`: the table on the screen, as JSON and as a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cli.conftest import SAMPLE_MODELS, Run
from qcli.costs import measuring
from qcli.costs.table_file import read_table
from qcli.graph import add_initializer, make_node
from qcli.graph.blank import add_input, add_output, blank_model
from qcli.latency import Effort


@pytest.fixture(autouse=True)
def _little_effort(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QCLI_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(measuring, "EFFORT", Effort(least=0.0, most=0.01))


def document(outcome: Any) -> dict[str, Any]:
    assert outcome.code == 0, outcome.err
    found: dict[str, Any] = json.loads(outcome.out)
    return found


def test_the_kernels_of_a_model(run: Run, mlp: Path) -> None:
    seen = document(run("doctor", "--kernels", mlp, "--json"))
    assert seen["schema"] == 1 and seen["command"] == "doctor" and seen["missing"] == 0
    assert set(seen["environment"]) == {"cpu", "isa", "onnxruntime", "threads"}
    layers = [row for row in seen["rows"] if row["op"] in ("Gemm", "MatMul")]
    assert layers and all(row["ms"]["float"] >= 0 and row["ms"]["static"] >= 0 for row in layers)
    assert {row["op"] for row in seen["conversions"]} == {"QuantizeLinear", "DequantizeLinear"}
    outcome = run("doctor", "--kernels", mlp)
    assert outcome.code == 0 and outcome.err == ""
    assert "static float result" in outcome.out and "1 thread" in outcome.out


def test_common_operators(run: Run) -> None:
    seen = document(run("doctor", "--kernels", "--json"))
    operators = {row["op"] for row in seen["rows"]}
    assert {"Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Softmax"} <= operators
    assert all(time is not None for row in seen["rows"] for time in row["ms"].values())


def test_what_cannot_be_measured_says_why(run: Run) -> None:
    model = blank_model(17)
    node = make_node("NonZero", [add_input(model, "x", "float32", (2, 8))], name="n", output="z")
    cast = make_node("Cast", node.outputs, name="c", output="c", attributes={"to": 1})
    gain = add_initializer(model.graph, "g", np.ones((1,), np.float32))
    scaled = make_node("Mul", [cast.outputs[0], gain], name="m", output="y")
    for one in (node, cast, scaled):
        model.graph.append(one)
    add_output(model, scaled.outputs[0])
    Path("model.onnx").write_bytes(model.serialize())
    seen = document(run("doctor", "--kernels", "model.onnx", "--json"))
    assert all(row["ms"][mode] is None for row in seen["rows"] for mode in row["why"])
    assert run("doctor", "--kernels", "model.onnx").code == 0


def test_a_second_run_measures_nothing(run: Run, mlp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run("doctor", "--kernels", mlp, "--json")

    def refuse(*_: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(measuring, "measure", refuse)
    assert run("doctor", "--kernels", mlp, "--json").out == first.out


def test_a_table_is_used_elsewhere(run: Run, mlp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = document(run("doctor", "--kernels", mlp, "--threads", 2, "--save", "costs.json", "--json"))
    table = read_table(Path("costs.json"))
    assert table.environment.threads == 2 and table.rows
    monkeypatch.setenv("QCLI_CACHE_DIR", "empty")
    monkeypatch.setattr(measuring, "measure", lambda *_: 1 / 0)
    second = document(run("doctor", "--kernels", mlp, "--cost-table", "costs.json", "--json"))
    assert second == first  # its number of threads is that of the table


def test_a_table_that_lacks_kernels_says_so(run: Run, mlp: Path) -> None:
    run("doctor", "--kernels", mlp, "-o", "costs.json")
    outcome = run("doctor", "--kernels", "--cost-table", "costs.json")
    assert outcome.code == 0
    assert "warning: the cost table lacks" in outcome.err
    assert "are not in the table" in outcome.out


def test_a_table_for_other_threads_is_refused(run: Run, mlp: Path) -> None:
    run("doctor", "--kernels", mlp, "-o", "costs.json")
    outcome = run("doctor", "--kernels", mlp, "--cost-table", "costs.json", "--threads", 2)
    assert outcome.code == 2
    assert "for 1 threads, not for 2" in outcome.err and "hint:" in outcome.err


@pytest.mark.parametrize(
    "content",
    ["", "{}", '{"schema": 99}', '{"schema": 1}', '{"schema": 1, "environment": {}, "rows": [{"ms": NaN}]}', "[[["],
)
def test_a_bad_table_is_a_usage_error(run: Run, mlp: Path, content: str) -> None:
    Path("costs.json").write_text(content)
    outcome = run("doctor", "--kernels", mlp, "--cost-table", "costs.json", "--json")
    assert outcome.code == 2
    assert outcome.out == ""
    assert "error: cost table 'costs.json'" in outcome.err
    assert len(outcome.err.splitlines()) == 2


def test_a_table_that_is_not_there(run: Run) -> None:
    outcome = run("doctor", "--kernels", "--cost-table", "none.json")
    assert outcome.code == 2 and "cannot be read" in outcome.err


def test_a_model_that_cannot_be_read(run: Run) -> None:
    Path("damaged.onnx").write_bytes(b"not a model")
    assert run("doctor", "--kernels", "damaged.onnx").code == 3


def test_a_quantized_model_is_refused(run: Run, quantized: Path) -> None:
    outcome = run("doctor", "--kernels", quantized)
    assert outcome.code == 4 and "already quantized" in outcome.err


def test_a_place_that_cannot_be_written_is_refused_before_the_work(
    run: Run, mlp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "measure", lambda *_: 1 / 0)
    assert run("doctor", "--kernels", mlp, "-o", "nowhere/costs.json").code == 2


def test_inputs_are_not_overwritten(run: Run, mlp: Path) -> None:
    before = mlp.read_bytes()
    assert run("doctor", "--kernels", mlp, "-o", mlp).code == 2
    assert mlp.read_bytes() == before


@pytest.mark.parametrize("options", [["--threads", "2"], ["-o", "costs.json"], ["--cost-table", "costs.json"]])
def test_options_of_the_table_need_kernels(run: Run, options: list[str]) -> None:
    outcome = run("doctor", *options)
    assert outcome.code == 2 and "--kernels" in outcome.err


def test_a_model_needs_kernels(run: Run, mlp: Path) -> None:
    outcome = run("doctor", mlp)
    assert outcome.code == 2 and "add --kernels" in outcome.err


def test_shapes_are_those_of_the_first_sample(run: Run) -> None:
    model = blank_model(17)
    weight = add_initializer(model.graph, "w", np.ones((16, 16), np.float32))
    node = make_node("MatMul", [add_input(model, "x", "float32", (None, 16)), weight], name="n", output="y")
    model.graph.append(node)
    add_output(model, node.outputs[0])
    Path("model.onnx").write_bytes(model.serialize())
    Path("calib").mkdir()
    np.savez("calib/0.npz", x=np.ones((5, 16), np.float32))
    for options, shape in (([], "1x16"), (["-d", "calib"], "5x16")):
        seen = document(run("doctor", "--kernels", "model.onnx", *options, "--json"))
        assert [row["inputs"] for row in seen["rows"]] == [f"{shape}, 16x16"]


def test_the_graph_is_that_after_the_steps(run: Run) -> None:
    cnn = SAMPLE_MODELS / "cnn" / "model.onnx"
    operators = {row["op"] for row in document(run("doctor", "--kernels", cnn, "--json"))["rows"]}
    assert "Conv" in operators and "BatchNormalization" not in operators
    assert run("doctor", "--kernels", cnn, "-r", "no-such-recipe").code == 2
