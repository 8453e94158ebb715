"""Two models side by side, in real onnxruntime."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from conftest import dataset, first_sample, model_path
from onnx import TensorProto, helper, numpy_helper

from qcli.dataset import Sample
from qcli.errors import InputError, NothingToDoError, QcliError
from qcli.latency import Effort
from qcli.targets.ort_cpu import detect_isa
from qcli.types import Array
from qcli.validate import ValidateJob, Validation, validate
from qcli.watch import Watch

Build = Callable[..., Path]


def compare(left: Path | bytes, right: Path | bytes, samples: Iterable[Sample], **options: Any) -> Validation:
    return validate(ValidateJob(float_model=left, compressed=right, samples=samples, **{"latency": None, **options}))


def rows(*values: list[float], label: int | None = None) -> list[Sample]:
    return [
        Sample(file=f"{index}.npz", feeds={"x": np.array([value], np.float32)}, label=label)
        for index, value in enumerate(values)
    ]


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """Writes a model of the input x [n, size] from nodes, with an output for each (name, type)."""

    def write(
        name: str,
        nodes: list[onnx.NodeProto],
        outputs: dict[str, int],
        weights: dict[str, Array] | None = None,
        size: int = 2,
    ) -> Path:
        graph = helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", size])],
            [helper.make_tensor_value_info(key, kind, None) for key, kind in outputs.items()],
            [numpy_helper.from_array(value, key) for key, value in (weights or {}).items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.save(model, tmp_path / f"{name}.onnx")
        return tmp_path / f"{name}.onnx"

    return write


@pytest.fixture
def scaled(build: Build) -> Callable[[str, float], Path]:
    """y = factor * x"""

    def write(name: str, factor: float) -> Path:
        weights = {"factor": np.array([factor], np.float32)}
        return build(name, [helper.make_node("Mul", ["x", "factor"], ["y"])], {"y": TensorProto.FLOAT}, weights)

    return write


def test_a_model_is_itself() -> None:
    result = compare(model_path("mlp"), model_path("mlp"), dataset("mlp", limit=40))
    accuracy = result.accuracy
    assert (accuracy.sqnr, accuracy.agreement) == (200.0, 1.0)
    assert accuracy.cosine == pytest.approx(1.0)
    assert accuracy.top1 is not None
    assert accuracy.top1.drop == 0.0
    assert result.samples == 40
    assert result.size.ratio == 1.0
    assert result.warnings == ()


@pytest.mark.parametrize(("name", "worst_sqnr"), [("cnn", 20.0), ("transformer", 15.0), ("mlp", 25.0), ("gru", 30.0)])
def test_quantized_sample_models(name: str, worst_sqnr: float, request: pytest.FixtureRequest) -> None:
    quantized = request.getfixturevalue(f"quantized_{name}")
    result = compare(model_path(name), quantized, dataset(name))
    accuracy = result.accuracy
    assert result.samples == 360
    assert accuracy.sqnr is not None
    assert accuracy.sqnr > worst_sqnr
    assert accuracy.cosine is not None
    assert accuracy.cosine > 0.98
    assert accuracy.agreement is not None
    assert accuracy.agreement > 0.97
    assert accuracy.top1 is not None
    assert accuracy.top1.float_ > 0.97
    assert abs(accuracy.top1.drop) < 0.02
    assert accuracy.top5 is not None
    assert accuracy.top5.float_ >= accuracy.top1.float_
    assert list(accuracy.outputs) == ["logits"]
    assert accuracy.outputs["logits"].sqnr == accuracy.sqnr
    assert result.kernels.agreement_with_unoptimized is not None
    assert result.kernels.agreement_with_unoptimized.agree
    assert result.warnings == ()


def test_saturating_kernels_are_detected(saturating_cnn: Path) -> None:
    result = compare(model_path("cnn"), saturating_cnn, dataset("cnn", limit=8))
    found = result.kernels.agreement_with_unoptimized
    assert found is not None
    if detect_isa() == "avx2":
        assert not found.agree
        assert found.sqnr < 30
        assert found.max_abs > 0
        [warning] = result.warnings
        assert "saturate" in warning
    else:
        assert found.agree


def test_the_check_against_the_unoptimized_model_can_be_left_out(quantized_mlp: Path) -> None:
    result = compare(model_path("mlp"), quantized_mlp, dataset("mlp", limit=3), unoptimized_samples=0)
    assert result.kernels.agreement_with_unoptimized is None
    assert result.warnings == ()


def test_bytes_are_as_good_as_files(quantized_mlp: Path) -> None:
    samples = list(dataset("mlp", limit=10))
    files = compare(model_path("mlp"), quantized_mlp, samples)
    memory = compare(model_path("mlp").read_bytes(), quantized_mlp.read_bytes(), samples)
    assert memory.accuracy == files.accuracy
    assert memory.kernels == files.kernels
    assert memory.size == files.size
    assert (memory.output.path, memory.output.sha256) == ("", files.output.sha256)


def test_samples_are_streamed_once(quantized_mlp: Path) -> None:
    started = []

    def stream() -> Iterator[Sample]:
        for sample in dataset("mlp", limit=5):
            started.append(sample.file)
            yield sample

    assert compare(model_path("mlp"), quantized_mlp, stream()).samples == 5
    assert len(started) == 5


def test_progress_and_warnings_reach_the_watch(scaled: Callable[[str, float], Path]) -> None:
    seen: list[tuple[int, int]] = []
    watch = Watch(on_progress=lambda _, done, total: seen.append((done, total)))
    samples = rows([1, 2], [3, 4])
    job = ValidateJob(float_model=scaled("a", 1), compressed=scaled("b", np.inf), samples=samples, latency=None)
    result = validate(job, watch)
    assert seen == [(1, 2), (2, 2)]
    assert watch.warnings == list(result.warnings) != []


def test_figures_are_those_of_all_values_together(scaled: Callable[[str, float], Path]) -> None:
    result = compare(scaled("a", 1.0), scaled("b", 1.1), rows([1, 2], [30, 40]))
    output = result.accuracy.outputs["y"]
    assert output.sqnr == pytest.approx(20.0, abs=1e-3)
    assert output.cosine == pytest.approx(1.0)
    assert output.max_abs == pytest.approx(4.0, abs=1e-4)
    assert output.equal is None


def test_the_worst_output_is_the_overall_figure(build: Build) -> None:
    kinds = {"good": TensorProto.FLOAT, "bad": TensorProto.FLOAT}

    def two(name: str, factor: float) -> Path:
        nodes = [helper.make_node("Neg", ["x"], ["good"]), helper.make_node("Mul", ["x", "f"], ["bad"])]
        return build(name, nodes, kinds, {"f": np.array([factor], np.float32)})

    accuracy = compare(two("a", 1.0), two("b", 1.5), rows([1, 2])).accuracy
    assert accuracy.outputs["good"].sqnr == 200.0
    assert accuracy.sqnr == accuracy.outputs["bad"].sqnr == pytest.approx(-20 * np.log10(0.5))


def test_the_drop_of_a_wrong_model(scaled: Callable[[str, float], Path]) -> None:
    accuracy = compare(scaled("a", 1), scaled("b", -1), rows([0, 1], [0, 2], [5, 1], label=1)).accuracy
    assert accuracy.agreement == 0.0
    assert accuracy.top1 is not None
    assert accuracy.top5 is not None
    assert accuracy.top1.float_ == pytest.approx(2 / 3)
    assert accuracy.top1.quantized == pytest.approx(1 / 3)
    assert accuracy.top1.drop == 1 / 3, "the drop is exact, so that gates at its value hold"
    assert accuracy.top5.drop == 0.0


def test_labels_that_nothing_can_use_are_a_warning(build: Build) -> None:
    pool = build("pool", [helper.make_node("ReduceMean", ["x"], ["y"], keepdims=0)], {"y": TensorProto.FLOAT})
    result = compare(pool, pool, rows([1, 2], label=0))
    assert (result.accuracy.top1, result.accuracy.agreement) == (None, None)
    assert result.warnings == ("the labels are not used: no output is a float matrix [N, C] of scores",)


def test_outputs_that_are_not_float_count_equal_elements(build: Build) -> None:
    kinds = {"ids": TensorProto.INT64, "flags": TensorProto.BOOL, "words": TensorProto.STRING}

    def decided(name: str, factor: float) -> Path:
        nodes = [
            helper.make_node("Mul", ["x", "factor"], ["h"]),
            helper.make_node("Cast", ["h"], ["ids"], to=TensorProto.INT64),
            helper.make_node("Cast", ["h"], ["flags"], to=TensorProto.BOOL),
            helper.make_node("Cast", ["ids"], ["words"], to=TensorProto.STRING),
        ]
        return build(name, nodes, kinds, {"factor": np.array([factor], np.float32)})

    accuracy = compare(decided("a", 1.0), decided("b", 2.0), rows([0, 3], [0, 0])).accuracy
    assert {name: output.equal for name, output in accuracy.outputs.items()} == {
        "ids": 0.75,
        "flags": 1.0,
        "words": 0.75,
    }
    assert (accuracy.sqnr, accuracy.cosine, accuracy.agreement) == (None, None, None)


def test_nan_from_the_float_model_names_the_sample(scaled: Callable[[str, float], Path]) -> None:
    with pytest.raises(InputError, match=r"1\.npz: the float model's output 'y' holds NaN or Inf"):
        compare(scaled("a", 1.0), scaled("b", 1.0), rows([1, 2], [np.nan, 1]))


def test_nan_from_the_compressed_model_is_the_worst_result_and_a_warning(build: Build) -> None:
    kinds = {"y": TensorProto.FLOAT}
    left = build("a", [helper.make_node("Abs", ["x"], ["y"])], kinds)
    right = build("b", [helper.make_node("Sqrt", ["x"], ["y"])], kinds)
    result = compare(left, right, rows([1, 1], [1, -1], [-1, -1]))
    assert result.accuracy.sqnr == -200.0
    assert result.accuracy.cosine == -1.0
    assert result.accuracy.agreement == pytest.approx(1 / 3)
    assert result.warnings == ("the compressed model's output 'y' holds NaN or Inf for 2 of 3 samples, first '1.npz'",)
    msgspec.json.decode(msgspec.json.encode(result.accuracy))


def test_outputs_of_another_shape_are_the_worst_result(build: Build) -> None:
    kinds = {"y": TensorProto.FLOAT}
    left = build("a", [helper.make_node("Identity", ["x"], ["y"])], kinds)
    right = build("b", [helper.make_node("Transpose", ["x"], ["y"])], kinds)
    result = compare(left, right, rows([1, 2]))
    assert result.accuracy.sqnr == -200.0
    assert "another shape or type for 1 of 1 samples" in result.warnings[0]


@pytest.mark.parametrize("label", [-1, 10])
def test_a_label_that_is_no_class_names_the_sample(label: int) -> None:
    sample = msgspec.structs.replace(first_sample("mlp"), label=label)
    with pytest.raises(InputError, match=rf"{sample.file}: label {label} is none of the model's classes, 0 to 9"):
        compare(model_path("mlp"), model_path("mlp"), [sample])


def test_no_samples() -> None:
    with pytest.raises(NothingToDoError, match="no samples"):
        compare(model_path("mlp"), model_path("mlp"), [])


@pytest.mark.parametrize(("left", "right", "what"), [("mlp", "gru", "inputs"), ("cnn", "mlp", "inputs")])
def test_models_of_different_inputs(left: str, right: str, what: str) -> None:
    with pytest.raises(InputError, match=f"differ in their {what}"):
        compare(model_path(left), model_path(right), dataset(left, limit=1))


def test_models_of_different_shapes_and_outputs(build: Build) -> None:
    node = helper.make_node("Identity", ["x"], ["y"])
    small, large = (build(f"s{size}", [node], {"y": TensorProto.FLOAT}, size=size) for size in (2, 3))
    with pytest.raises(InputError, match=r"the input 'x' differs: float32 \[\?, 2\] and float32 \[\?, 3\]"):
        compare(small, large, rows([1, 2]))
    other = build("z", [helper.make_node("Identity", ["x"], ["z"])], {"z": TensorProto.FLOAT})
    with pytest.raises(InputError, match="differ in their outputs: 'y' and 'z'"):
        compare(small, other, rows([1, 2]))


def test_reasons_come_from_the_plan_where_it_has_one(quantized_gru: Path) -> None:
    samples = list(dataset("gru", limit=2))
    [kept] = compare(model_path("gru"), quantized_gru, samples).kernels.kept_float
    assert (kept.node, kept.op, kept.reason) == ("/gru", "GRU", "onnxruntime runs it as a float GRU")
    for key in ("/gru", "/gru_output"):  # its first output has no name in the file, normalize gives it one
        reasons = {"": "another node's", key: "too dear"}
        [kept] = compare(model_path("gru"), quantized_gru, samples, reasons=reasons).kernels.kept_float
        assert kept.reason == "too dear"


def test_latency_is_measured_on_request(quantized_mlp: Path) -> None:
    effort = Effort(least=0.0, most=0.0)
    result = compare(model_path("mlp"), quantized_mlp, dataset("mlp", limit=2), latency=effort, threads=2)
    assert result.latency is not None
    assert result.latency.threads == 2
    assert result.latency.speedup == pytest.approx(result.latency.float_ms / result.latency.ms)
    assert compare(model_path("mlp"), quantized_mlp, dataset("mlp", limit=2)).latency is None


def test_unsteady_latencies_are_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qcli.latency.Latency.steady", False)
    effort = Effort(least=0.0, most=0.0)
    result = compare(model_path("mlp"), model_path("mlp"), dataset("mlp", limit=2), latency=effort)
    assert "vary by more than their medians" in result.warnings[0]


def test_sections_name_the_file_as_it_will_be(quantized_mlp: Path) -> None:
    result = compare(model_path("mlp"), quantized_mlp, dataset("mlp", limit=2))
    sections = result.sections(Path("mlp.int8.onnx"))
    assert set(sections) == {"model", "output", "size", "accuracy", "kernels", "latency"}
    assert sections["output"].path == "mlp.int8.onnx"
    assert result.sections()["output"].path == str(quantized_mlp)


def test_a_missing_model_is_an_error_for_people(tmp_path: Path) -> None:
    with pytest.raises(QcliError, match="not found"):
        compare(tmp_path / "none.onnx", model_path("mlp"), [])
