"""Large models from end to end, with the thresholds lowered until small ones count as large."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from models import assert_equal, assert_same, feeds_for, node, normal, proto_of, run, stream_for
from onnx import helper, numpy_helper

from qcli import blocks, pieces, validate
from qcli.cli import main
from qcli.distribution import from_weights
from qcli.errors import ResourceError, UsageError
from qcli.graph import load_model, normalize_graph, on_disk
from qcli.graph.on_disk import StoredTensor, TurnedTensor
from qcli.job import QuantizeJob
from qcli.pipeline import calibrate_job, quantize
from qcli.plugins import create
from qcli.report import Report
from qcli.runtime import Session
from qcli.side_by_side import CompareJob, compare_models
from qcli.solve import Solution
from qcli.statistics import Statistics
from qcli.steps import fold_constants
from qcli.steps.fold_batchnorm import FoldBatchnorm
from qcli.steps.fold_constants import FoldConstants
from qcli.types import Deferred, Grid, Interval, Runnable
from qcli.watch import Watch

SIZE = 64
WEIGHTS = 4 * SIZE * SIZE * 4


@pytest.fixture(autouse=True)
def _low_thresholds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_disk, "LARGE_BYTES", 10_000)
    monkeypatch.setattr(on_disk, "STORED_BYTES", 4_000)


def chain(count: int = 4) -> onnx.ModelProto:
    weights = {f"w{index}": normal(index, SIZE, SIZE) / 8 for index in range(count)}
    names = ["x", *(f"h{index}" for index in range(count - 1)), "y"]
    nodes = [node("MatMul", f"{names[index]} w{index}", names[index + 1]) for index in range(count)]
    return proto_of(nodes, {"x": ["n", SIZE]}, {"y": ["n", SIZE]}, weights)


def outside(proto: onnx.ModelProto, folder: Path) -> Path:
    """The model in a file whose constants lie beside it."""
    copy = onnx.ModelProto.FromString(proto.SerializeToString())
    path = folder / "m.onnx"
    onnx.save(copy, str(path), save_as_external_data=True, location="m.bin", size_threshold=0, convert_attribute=True)
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return outside(chain(), tmp_path)


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    folder = tmp_path / "samples"
    folder.mkdir()
    for seed in range(4):
        np.savez(folder / f"{seed}.npz", x=normal(seed, 2, SIZE))
    return folder


def quantized(model: Path, **settings: object) -> Report:
    output = model.parent / "out" / "q.onnx"
    output.parent.mkdir(exist_ok=True)
    job = {"model": model, "recipe": "int8-weights", "output": output, "latency": False, **settings}
    return quantize(QuantizeJob(**job))  # type: ignore[arg-type]


def test_a_large_model_is_quantized_like_a_small_one(
    model: Path, samples: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Static int8, every stage: the codes and scales are those of the model read at once."""
    large = quantized(model, recipe="int8-minmax", calibration=samples)
    weights = load_model(model.parent / "out" / "q.onnx")
    feeds = feeds_for(weights)
    result = run(weights, feeds)["y"]
    assert large.accuracy is not None and (large.accuracy.sqnr or 0) > 20
    assert large.kernels is not None and large.kernels.integer_share == 1
    monkeypatch.setattr(on_disk, "LARGE_BYTES", 1 << 30)
    small = quantized(model, recipe="int8-minmax", calibration=samples)
    assert small.accuracy == large.accuracy
    again = load_model(model.parent / "out" / "q.onnx")
    np.testing.assert_array_equal(result, run(again, feeds)["y"])
    assert len(list((model.parent / "out").iterdir())) == 1


def test_its_weights_lie_beside_the_result_and_run(model: Path) -> None:
    report = quantized(model)
    output = model.parent / "out" / "q.onnx"
    names = sorted(path.name for path in output.parent.iterdir())
    assert len(names) == 2 and names[1].endswith(".data")
    written = sum(path.stat().st_size for path in output.parent.iterdir())
    assert report.output is not None and report.output.bytes == written
    assert report.size is not None and report.size.ratio < 0.35
    assert report.accuracy is not None and (report.accuracy.sqnr or 0) > 30
    assert report.output.sha256 == load_model(output).sha256
    feeds = feeds_for(load_model(output))
    assert Session(output).run(feeds)["y"].shape == (2, SIZE)


@pytest.mark.parametrize("recipe", ["w4a8", "int8-weights"])
def test_four_bits_are_packed_as_they_are_written(model: Path, samples: Path, recipe: str) -> None:
    """Codes of a large model are made while the file is written, and onnxruntime reads them from there."""
    rule = "rules=[{match: {role: weight}, grid: {format: int4, granularity: channel}}]"
    report = quantized(model, recipe=recipe, calibration=samples, settings=(rule,))
    output = model.parent / "out" / "q.onnx"
    [data] = output.parent.glob("*.data")
    codes = [tensor for tensor in load_model(output).constants() if tensor.dtype.name == "INT4"]
    assert [tensor.nbytes for tensor in codes] == [SIZE * SIZE // 2] * 4
    assert data.stat().st_size <= 8 * 4096
    assert report.accuracy is not None and (report.accuracy.sqnr or 0) > 10
    assert report.kernels is not None and report.kernels.integer_share == float(recipe == "w4a8")
    feeds = feeds_for(load_model(output))
    assert_equal(run(load_model(output), feeds), Session(output).run(feeds), tolerance=0.02)


@pytest.mark.parametrize("decode", ["load", "run"])
@pytest.mark.parametrize("symmetric", ["true", "false"])
def test_blocks_are_written_one_weight_after_the_other(model: Path, decode: str, symmetric: str) -> None:
    grid = f"{{format: int4, symmetric: {symmetric}, granularity: block, block: 20}}"
    rule = f"rules=[{{match: {{role: weight}}, grid: {grid}, encoding: {{weight_only: {{decode: {decode}}}}}}}]"
    report = quantized(model, settings=(rule,))
    output = model.parent / "out" / "q.onnx"
    codes = [tensor for tensor in load_model(output).constants() if tensor.dtype.name == "INT4" and tensor.nbytes > 999]
    assert [tensor.nbytes for tensor in codes] == [SIZE * SIZE // 2] * 4
    assert report.accuracy is not None and (report.accuracy.sqnr or 0) > 13
    feeds = feeds_for(load_model(output))
    assert_equal(run(load_model(output), feeds), Session(output).run(feeds), tolerance=0.02)


@pytest.mark.parametrize("symmetric", ["true", "false"])
def test_codes_of_matmul_nbits_are_packed_as_they_are_written(model: Path, symmetric: str) -> None:
    grid = f"{{format: uint4, symmetric: {symmetric}, granularity: block, block: 32}}"
    report = quantized(model, settings=(f"rules=[{{match: {{role: weight}}, grid: {grid}, encoding: matmul_nbits}}]",))
    output = model.parent / "out" / "q.onnx"
    codes = [tensor for tensor in load_model(output).constants() if tensor.nbytes == SIZE * SIZE // 2]
    assert [tuple(tensor.shape.numpy()) for tensor in codes] == [(SIZE, 2, 16)] * 4
    assert report.accuracy is not None and (report.accuracy.sqnr or 0) > 13
    assert report.kernels is not None and report.kernels.by_kernel == {"MatMulNBits": 4}
    feeds = feeds_for(load_model(output))
    assert_equal(run(load_model(output), feeds), Session(output).run(feeds), tolerance=1e-5)


def test_a_second_run_gives_the_same_bytes(model: Path) -> None:
    folder = model.parent / "out"
    quantized(model)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    quantized(model)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_the_input_stays_as_it_is_and_nothing_is_written_beside_it(model: Path) -> None:
    before = {path.name: path.read_bytes() for path in model.parent.iterdir()}
    quantized(model)
    assert {path.name: path.read_bytes() for path in model.parent.iterdir() if path.is_file()} == before


def test_codes_of_a_large_model_are_kept_by_nobody(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qcli import pipeline

    found: list[Solution] = []
    monkeypatch.setattr(pipeline, "apply_plan", lambda *given: (found.append(given[2]), original(*given))[1])
    from qcli.apply import apply_plan as original

    quantized(model)
    assert len(found[0].codes) == 4 and all(isinstance(codes, Deferred) for codes in found[0].codes.values())
    [codes, *_] = found[0].codes.values()
    assert isinstance(codes, Deferred) and codes.ndim == 2 and codes.size == SIZE * SIZE
    np.testing.assert_array_equal(np.asarray(codes), codes.make())
    np.testing.assert_array_equal(codes.T, codes.make().T)
    assert np.array(codes, dtype=np.int16, copy=True).dtype == np.int16


def test_every_preset_without_samples_takes_large_models(model: Path) -> None:
    for recipe in ("int8-weights", "int8-dynamic", "codebook8"):
        report = quantized(model, recipe=recipe)
        assert report.accuracy is not None and (report.accuracy.sqnr or 0) > 20, recipe


# A budget


def test_beyond_the_budget_nothing_runs_and_the_report_says_so(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Session.__init__

    def only_tiny(self: Session, given: bytes | Path | Runnable, **options: Any) -> None:
        assert isinstance(given, bytes), "a session was made of more than a probe of the processor"
        original(self, given, **options)

    monkeypatch.setattr(Session, "__init__", only_tiny)
    report = quantized(model, max_memory=30_000)
    assert report.status == "passed" and report.size is not None and report.size.ratio < 0.35
    assert (report.accuracy, report.kernels, report.latency) == (None, None, None)
    assert len(report.warnings) == 2
    assert "steps before quantization are unchecked" in report.warnings[0] and "--max-memory" in report.warnings[0]
    assert "not run and not compared" in report.warnings[1]
    assert report.samples is not None and report.samples.validation is None


def test_what_it_writes_is_the_same(model: Path) -> None:
    quantized(model)
    folder = model.parent / "out"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    quantized(model, max_memory=30_000)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("finder", ["minmax", "mse"])
@pytest.mark.parametrize("grid", ["int4, granularity: block, block: 16", "int8, granularity: channel"])
def test_what_it_writes_does_not_depend_on_the_threads(
    grid: str, finder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor on how many rows are worked on at a time."""
    monkeypatch.setattr(fold_constants, "_LARGE", 4000)
    model = outside(computed_chain("Transpose"), tmp_path)
    rule = f"rules=[{{match: {{role: weight}}, grid: {{format: {grid}}}, range: {finder}}}]"
    contents = []
    for threads, elements in ((1, 1 << 20), (1, 600), (3, 600)):
        monkeypatch.setattr(pieces, "_ELEMENTS", elements)
        quantized(model, settings=(rule,), threads=threads)
        contents.append({path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()})
    assert contents[0] == contents[1] == contents[2]


def test_a_large_model_in_blocks_of_its_extrema_has_the_codes_of_a_small_one(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule = "rules=[{match: {role: weight}, grid: {format: int4, granularity: block, block: 32}, range: minmax}]"
    found = []
    for bytes_ in (10_000, 1 << 30):
        monkeypatch.setattr(on_disk, "LARGE_BYTES", bytes_)
        quantized(model, settings=(rule,))
        tensors = load_model(model.parent / "out" / "q.onnx").constants()
        found.append({tensor.name: tensor.tobytes() for tensor in tensors})
    assert found[0] == found[1]


def test_its_file_is_hashed_beside_and_the_report_waits_for_it(model: Path) -> None:
    content = b"".join(path.read_bytes() for path in (model, model.with_name("m.bin")))
    assert quantized(model).model.sha256 == hashlib.sha256(content).hexdigest()  # type: ignore[union-attr]


def test_with_less_than_usual_they_run_without_copies_and_without_latency(model: Path) -> None:
    report = quantized(model, max_memory=3 * WEIGHTS, latency=True)
    assert report.accuracy is not None and (report.accuracy.sqnr or 0) > 30
    assert report.kernels is not None and report.latency is None
    assert any("latency was not measured" in warning for warning in report.warnings)


@pytest.mark.parametrize("limit", [30_000, 3 * WEIGHTS])
def test_gates_on_what_will_not_be_measured_are_refused_before_the_work(model: Path, limit: int) -> None:
    with pytest.raises(UsageError, match="will not be measured") as caught:
        quantized(model, max_memory=limit, latency=True, gates=("latency.speedup >= 1",))
    assert "--max-memory" in caught.value.hint
    assert not list((model.parent / "out").iterdir())


def test_gates_on_the_size_hold_without_a_run(model: Path) -> None:
    report = quantized(model, max_memory=30_000, gates=("size.ratio <= 0.5", "size.ratio <= 0.01"), keep_failing=True)
    assert [gate.passed for gate in report.gates] == [True, False]
    rejected = model.parent / "out" / "q.rejected.onnx"
    assert report.output is not None and report.output.path == str(rejected)
    assert report.output.sha256 == load_model(rejected).sha256


def test_static_quantization_says_that_it_cannot_measure(model: Path, samples: Path) -> None:
    for work in (quantize, calibrate_job):
        job = QuantizeJob(model=model, recipe="int8", calibration=samples, max_memory=30_000, cache=False)
        with pytest.raises(ResourceError, match="calibrating needs to run the model") as caught:
            work(job)
        assert "int8-weights" in caught.value.hint


def test_statistics_made_elsewhere_do_without_a_run(model: Path, samples: Path, tmp_path: Path) -> None:
    job = QuantizeJob(model=model, recipe="int8-minmax", calibration=samples, cache=False)
    statistics = calibrate_job(job)
    assert isinstance(statistics, Statistics)
    statistics.save(tmp_path / "s.npz")
    report = quantized(model, recipe="int8-minmax", stats=tmp_path / "s.npz", max_memory=30_000)
    assert report.status == "passed" and report.accuracy is None


def test_steps_that_measure_are_skipped_with_a_reason(model: Path, samples: Path) -> None:
    watch = Watch()
    job = QuantizeJob(
        model=model,
        recipe="int8-weights",
        settings=("prepare=[normalize, equalize]",),
        calibration=samples,
        output=model.parent / "q.onnx",
        max_memory=30_000,
    )
    quantize(job, watch)
    assert any("'equalize' needs to run the model" in warning for warning in watch.warnings)


def test_validate_keeps_to_the_budget_too(model: Path, samples: Path) -> None:
    quantized(model)
    compressed = model.parent / "out" / "q.onnx"
    job = CompareJob(float_model=model, compressed=compressed, evaluation=samples, latency=False)
    usual = compare_models(job)
    assert usual.accuracy is not None and usual.warnings == ()
    lean = compare_models(CompareJob(**{**_fields(job), "max_memory": 3 * WEIGHTS}))
    assert lean.accuracy is not None and lean.accuracy.sqnr == pytest.approx(usual.accuracy.sqnr, abs=0.1)
    none = compare_models(CompareJob(**{**_fields(job), "max_memory": 1000}))
    assert none.accuracy is None and none.size == usual.size and "not run" in none.warnings[0]
    with pytest.raises(UsageError, match="accuracy"):
        compare_models(CompareJob(**{**_fields(job), "max_memory": 1000, "gates": ("accuracy.sqnr >= 10",)}))


def _fields(job: CompareJob) -> dict[str, object]:
    return {name: getattr(job, name) for name in job.__struct_fields__}


def test_small_models_keep_to_it_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_disk, "LARGE_BYTES", 1 << 30)
    model = tmp_path / "m.onnx"
    model.write_bytes(chain().SerializeToString())
    assert quantized(model, max_memory=5 * WEIGHTS + 1000).warnings == (
        "no samples: compared on 4 random inputs, which says little about accuracy",
    )
    assert "not run" in quantized(model, max_memory=3 * WEIGHTS).warnings[-1]


def test_the_free_memory_is_the_budget_where_none_is_named(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qcli import memory

    monkeypatch.setattr(memory, "available_memory", lambda: 30_000)
    report = quantized(model)
    assert report.accuracy is None and "that is free" in report.warnings[0]


def test_the_command_line_reads_sizes(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(model.parent)
    assert main(["quantize", "m.onnx", "-r", "int8-weights", "-o", "q.onnx", "-q", "--max-memory", "30KB"]) == 0
    assert main(["quantize", "m.onnx", "-r", "int8-weights", "-o", "q.onnx", "-q", "--max-memory", "much"]) == 2
    assert main(["quantize", "m.onnx", "-r", "int8", "--random-samples", "2", "-q", "--max-memory", "30KB"]) == 7
    assert main(["calibrate", "m.onnx", "-o", "s.npz", "--random-samples", "2", "-q", "--max-memory", "30KB"]) == 7


# Steps


def computed_chain(operator: str) -> onnx.ModelProto:
    """Weights in Constant nodes behind an operator, as some exporters leave them, and a small computed constant."""
    nodes: list[onnx.NodeProto] = []
    names = ["x", "h0", "h1", "y"]
    for index in range(3):
        tensor = numpy_helper.from_array(normal(index, SIZE, SIZE) / 8, f"c{index}")
        nodes.append(helper.make_node("Constant", [], [f"c{index}"], value=tensor))
        nodes.append(node(operator, f"c{index}", f"t{index}"))
        nodes.append(node("MatMul", f"{names[index]} t{index}", f"p{index}"))
        nodes.append(node("Mul", "half half", f"q{index}"))
        nodes.append(node("Mul", f"p{index} q{index}", names[index + 1]))
    return proto_of(nodes, {"x": ["n", SIZE]}, {"y": ["n", SIZE]}, {"half": np.array(0.5, np.float32)})


@pytest.mark.parametrize(
    ("operator", "parts", "kept"), [("Neg", [1, 1, 1, 3], StoredTensor), ("Transpose", [3], TurnedTensor)]
)
def test_constants_are_folded_one_by_one_onto_the_shelf_or_turned(
    operator: str, parts: list[int], kept: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fold_constants, "_LARGE", 4000)
    model = load_model(outside(computed_chain(operator), tmp_path))
    normalize_graph(model)
    read: list[int] = []
    original = model.constant_part
    monkeypatch.setattr(model, "constant_part", lambda *given: (read.append(len(given[0])), original(*given))[1])
    assert FoldConstants().run(model) == 6
    assert sorted(read) == parts
    assert [item.op_type for item in model.nodes()] == ["MatMul", "Mul"] * 3
    weights = [item.inputs[1] for item in model.nodes() if item.op_type == "MatMul"]
    assert all(isinstance(value.const_value, kept) for value in weights if value is not None)
    assert_same(computed_chain(operator), model)


@pytest.mark.parametrize("operator", ["Neg", "Transpose"])
def test_such_a_model_is_quantized_whole(operator: str, tmp_path: Path) -> None:
    report = quantized(outside(computed_chain(operator), tmp_path))
    assert report.plan is not None and report.plan.entries == 3
    assert report.accuracy is not None and (report.accuracy.sqnr or 0) > 30


def test_layers_are_folded_one_at_a_time_onto_the_shelf(tmp_path: Path) -> None:
    weights = {
        "w": normal(0, SIZE, SIZE) / 8,
        "scale": normal(1, SIZE),
        "shift": normal(2, SIZE),
        "mean": normal(3, SIZE),
        "var": np.abs(normal(4, SIZE)) + 1,
        "v": normal(5, SIZE, SIZE) / 8,
    }
    nodes = [
        node("Gemm", "x w", "a"),
        node("BatchNormalization", "a scale shift mean var", "b"),
        node("MatMul", "b v", "y"),
    ]
    proto = proto_of(nodes, {"x": [2, SIZE]}, {"y": [2, SIZE]}, weights)
    model = load_model(outside(proto, tmp_path))
    assert FoldBatchnorm().run(model) == 1
    folded = next(item for item in model.nodes() if item.op_type == "Gemm").inputs[1]
    assert folded is not None and isinstance(folded.const_value, StoredTensor) and not folded.const_value.location
    assert_same(proto, model)


def test_half_precision_weights_are_widened_onto_the_shelf(tmp_path: Path) -> None:
    weights = {f"w{index}": (normal(index, SIZE, SIZE) / 8).astype(np.float16) for index in range(4)}
    nodes = [node("MatMul", f"h{index} w{index}", f"h{index + 1}") for index in range(4)]
    proto = proto_of(nodes, {"h0": ["n", SIZE]}, {"h4": ["n", SIZE]}, weights)
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    report = quantized(outside(proto, tmp_path), settings=("prepare=[normalize, float32]",))
    assert report.accuracy is not None and (report.accuracy.sqnr or 0) > 30


# Blocks


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("finder", ["minmax", "mse", {"percentile": {"keep": 99.9}}])
def test_ranges_do_not_depend_on_the_blocks(axis: int, finder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = normal(0, 40, 50)
    grid = Grid(granularity="channel", axis=axis)
    find = create("ranges", finder).interval
    whole = find(from_weights(weight, axis), grid)
    monkeypatch.setattr(blocks, "_BLOCK_BYTES", 1000)
    parts, dead = blocks.interval_of(weight, grid, lambda part: find(part, grid))
    np.testing.assert_array_equal(parts.lower, whole.lower)
    np.testing.assert_array_equal(parts.upper, whole.upper)
    assert dead.shape == whole.lower.shape and not dead.any()


@pytest.mark.parametrize("shape", [(40, 50), (40, 5, 3, 3), (40,), (1, 2000)])
@pytest.mark.parametrize("rounding", ["nearest", "squant"])
@pytest.mark.parametrize("channels", [True, False])
def test_codes_do_not_depend_on_the_blocks(
    shape: tuple[int, ...], rounding: str, channels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = normal(1, *shape)
    grid = Grid(granularity="channel", axis=0) if channels else Grid()
    most = np.abs(weight).reshape(shape[0], -1).max(axis=1) if channels else np.abs(weight).max(keepdims=True).ravel()
    scale = create("formats", "int8").scale(Interval(lower=-most.astype(float), upper=most.astype(float)), grid)
    encode = create("roundings", rounding).round
    whole = encode(weight, scale)
    monkeypatch.setattr(blocks, "_BLOCK_BYTES", 64)
    np.testing.assert_array_equal(blocks.rounded(weight, scale, encode), whole)


def test_a_part_of_the_middle_says_where_to_clip() -> None:
    """Of long channels with heavy tails: the error of the range found is that of the best one, to a per cent."""
    weight = np.random.default_rng(0).standard_t(4, (8, 4096)).astype(np.float32)
    grid = Grid(granularity="channel", axis=0, narrow=True)
    find = create("ranges", "mse").interval
    number = create("formats", "int8")
    errors = []
    for thin in (False, True):
        interval, _ = blocks.interval_of(weight, grid, lambda part: find(part, grid), thin=thin)
        scale = number.scale(interval, grid)
        errors.append(float(np.square(number.decode(number.encode(weight, scale), scale) - weight).sum()))
    assert errors[1] <= 1.01 * errors[0]


def test_short_channels_are_taken_whole() -> None:
    weight = normal(0, 4, 1000)
    find = create("ranges", "mse").interval
    grid = Grid(granularity="channel", axis=0)
    whole, _ = blocks.interval_of(weight, grid, lambda part: find(part, grid))
    thin, _ = blocks.interval_of(weight, grid, lambda part: find(part, grid), thin=True)
    np.testing.assert_array_equal(whole.upper, thin.upper)


# Memory


_CHILD = (
    "import sys; from qcli.graph import on_disk; on_disk.LARGE_BYTES = 1 << 20\n"
    "from qcli.cli import main; sys.exit(main(sys.argv[1:]))"
)
_BARE = "import numpy, onnx, onnx_ir, onnxruntime, qcli.pipeline, qcli.cli"


def _peak_mb(folder: Path, program: str, *arguments: str) -> float:
    """The peak of a child's memory as `ru_maxrss` counts it, files that it maps included."""
    watcher = Path(__file__).parent.parent / "benchmarks" / "stopwatch.py"
    cost = folder / "cost.json"
    command = [sys.executable, str(watcher), str(cost), sys.executable, "-c", program, *arguments]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    return float(json.loads(cost.read_text())["peak_bytes"]) / 1e6


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "wait4"), reason="POSIX")
def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """200 MB of weights: read, quantized and written in a fraction of that."""
    from benchmarks.large import write_chain

    model = write_chain(tmp_path, size=2048, layers=12)
    assert (tmp_path / "m.onnx.data").stat().st_size > 200e6
    bare = _peak_mb(tmp_path, _BARE)
    arguments = ("quantize", str(model), "-r", "int8-weights", "-o", str(tmp_path / "q.onnx"), "-q")
    peak = _peak_mb(tmp_path, _CHILD, *arguments, "--max-memory", "40MB")
    assert peak - bare < 120
    assert load_model(tmp_path / "q.onnx").parameter_count() > 12 * 2048 * 2048


def test_means_follow_the_budget(model: Path) -> None:
    from qcli.memory import Budget

    large = load_model(model)
    assert validate.means_of(Budget(5 * WEIGHTS), large) == validate.Means()
    lean = validate.means_of(Budget(2 * WEIGHTS), large)
    assert lean.runs and lean.lean and lean.unmeasured == ("latency",)
    none = validate.means_of(Budget(2 * WEIGHTS - 1), large)
    assert not none.runs and none.unmeasured == ("accuracy", "kernels", "latency")


def test_calibration_of_a_large_model_taps_values_like_any_other(model: Path) -> None:
    large = load_model(model)
    [(_, feeds), *_] = stream_for(large, 1).feeds()
    found = Session(large.runnable(("h0", "h2"))).run(feeds, ("h0", "h2", "y"))
    np.testing.assert_allclose(found["h0"], feeds["x"] @ (normal(0, SIZE, SIZE) / 8), atol=1e-4)
