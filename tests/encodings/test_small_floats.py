"""Floats of eight bits on both sides of a product: QuantizeLinear and DequantizeLinear that onnxruntime computes."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from codes import constants, decoded, reasons
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from models import (
    SAMPLE_MODELS,
    Quantized,
    Stream,
    assert_equal,
    conv_net,
    dense_net,
    feeds_for,
    node,
    normal,
    operators,
    proto_of,
    quantized_of,
    run,
    saved,
)

from qcli.aimet import encodings_json
from qcli.analysis.simulate import simulate
from qcli.encodings._native import as_numbers
from qcli.errors import NothingToDoError, UsageError
from qcli.graph import Node, constant_of
from qcli.job import QuantizeJob
from qcli.opsets import required_opset
from qcli.pipeline import quantize
from qcli.recipe import load_recipe
from qcli.runtime import Session
from qcli.small_floats import doubts_about_saturation
from qcli.types import Array, Deferred, FloatArray, Role, Scale

TYPES = {"float8_e4m3fn": ml_dtypes.float8_e4m3fn, "float8_e5m2": ml_dtypes.float8_e5m2}
ENDS = {"float8_e4m3fn": 448.0, "float8_e5m2": 57344.0}
TARGETS = ("ort_cpu", "onnx", "tensorrt")


def rules(format_: str = "float8_e4m3fn", range_: str = "minmax", weight: str | None = None) -> str:
    data = f"{{match: {{role: input}}, grid: {{format: {format_}}}, range: {range_}}}"
    grid = f"format: {weight or format_}, granularity: channel"
    return f"rules=[{data}, {{match: {{role: weight}}, grid: {{{grid}}}, range: minmax}}]"


def of_21(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model in the operator set that `output_dtype` needs; `prepare` would raise it."""
    proto.opset_import[0].version, proto.ir_version = 21, 10
    return proto


def small(proto: onnx.ModelProto, *asked: str, target: str = "onnx", stream: Stream | None = None) -> Quantized:
    asked = (f"target={target}", "prepare=[normalize]", *asked)
    return quantized_of(of_21(proto), "onnx-fp8", stream=stream, settings=asked)


def product(rows: int = 4, size: int = 16) -> onnx.ModelProto:
    weights = {"w": normal(1, size, 8)}
    return proto_of([node("MatMul", "x w", "y")], {"x": [rows, size]}, {"y": [rows, 8]}, weights)


def rounded(values: Array, scale: Scale, kind: type) -> Array:
    """What QuantizeLinear and DequantizeLinear make of values, in numpy."""
    end = float(np.asarray(scale.levels)[-1])
    quotient = np.clip(np.asarray(values, np.float32) / scale.scale[0], -end, end)
    return np.asarray(quotient.astype(kind).astype(np.float32) * scale.scale[0])


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("net", [conv_net, dense_net])
def test_it_computes_the_same_optimized_and_as_written(net: object, target: str) -> None:
    quantized = small(net(), target=target)  # type: ignore[operator]
    weights = [entry for entry in quantized.plan.entries if entry.site.role is Role.WEIGHT]
    assert weights and all("qdq" in str(entry.encoding) for entry in weights)
    feeds = feeds_for(quantized.source, seed=5)
    written = run(quantized.model, feeds)
    assert_equal(written, run(quantized.model, feeds, optimize=True), tolerance=1e-5)
    assert_equal(run(quantized.source, feeds), written, tolerance=0.2)
    onnx.checker.check_model(quantized.model.proto(), full_check=True)


@settings(max_examples=40, deadline=None)
@given(
    values=hnp.arrays(np.float32, (4, 16), elements=st.floats(-1e6, 1e6, width=32)),
    name=st.sampled_from(sorted(TYPES)),
)
def test_activations_go_to_the_nearest_number_of_the_type_or_its_end(values: FloatArray, name: str) -> None:
    """Beyond the type's end values saturate: they become its largest number, not Inf and not NaN."""
    if name == "float8_e4m3fn":
        fixed = "{fixed: {lower: -448, upper: 448}}"
    else:
        fixed = "{fixed: {lower: -57344, upper: 57344}}"
    quantized = small(product(), rules(name, fixed))
    scale = quantized.solution.scales["y", "input", 0]
    assert float(scale.scale[0]) == 1.0
    expected = rounded(values, scale, TYPES[name]) @ decoded(quantized.plan, quantized.solution, "y", 1)
    feeds = {"x": values}
    for optimize in (False, True):
        got = run(quantized.model, feeds, optimize=optimize)["y"]
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=float(np.abs(expected).max()) * 1e-5 + 1e-6)


BEFORE = {
    "Relu": (node("Relu", "x", "r"), {}),
    "Clip": (node("Clip", "x lo hi", "r"), {"lo": np.array(-0.5, np.float32), "hi": np.array(0.75, np.float32)}),
    "MaxPool": (node("MaxPool", "x", "r", kernel_shape=[1, 1]), {}),
    "Slice": (node("Slice", "x b e", "r"), {"b": np.array([0, 0]), "e": np.array([1, 8])}),
    "Transpose": (node("Transpose", "x", "r", perm=[0, 1, 3, 2]), {}),
    "Pad": (node("Pad", "x p", "r"), {"p": np.zeros(8, np.int64)}),
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("before", BEFORE)
def test_what_stands_in_front_is_not_lost(before: str, target: str) -> None:
    """With a zero point of 8-bit floats, onnxruntime 1.31.1 drops the Relu and does not load the others."""
    first, extra = BEFORE[before]
    weights: dict[str, Array] = {"w": normal(1, 8, 8, 1, 1), **extra}
    nodes = [first, node("Conv", "r w", "c"), node("Relu", "c", "y")]
    quantized = small(proto_of(nodes, {"x": [1, 8, 5, 5]}, {"y": None}, weights), target=target)
    feeds = {"x": normal(3, 1, 8, 5, 5)}
    written = run(quantized.model, feeds)
    assert_equal(written, run(quantized.model, feeds, optimize=True), tolerance=1e-5)
    assert_equal(run(quantized.source, feeds), written, tolerance=0.2)


def readers(quantized: Quantized, operator: str) -> list[Node]:
    return [item for item in quantized.model.nodes() if item.op_type == operator]


@pytest.mark.parametrize(
    ("target", "conv", "matmul"),
    [
        ("ort_cpu", "Mul", "Mul"),
        ("onnx", "DequantizeLinear", "Sum"),
        ("tensorrt", "DequantizeLinear", "DequantizeLinear"),
    ],
)
def test_weights_are_decoded_as_the_runtime_wants_it(target: str, conv: str, matmul: str) -> None:
    for net, operator, decoder in ((conv_net, "Conv", conv), (dense_net, "MatMul", matmul)):
        quantized = small(net(), target=target)
        for item in readers(quantized, operator):
            producer = item.inputs[1].producer()  # type: ignore[union-attr]
            assert producer is not None and producer.op_type == decoder
            data = item.inputs[0].producer()  # type: ignore[union-attr]
            assert data is not None and data.op_type == "DequantizeLinear"
        stored = [array for array in constants(quantized.model).values() if array.dtype.name == "float8_e4m3fn"]
        assert len(stored) == sum(entry.site.role is Role.WEIGHT for entry in quantized.plan.entries)


def test_only_what_products_read_is_rounded_and_biases_stay_float() -> None:
    quantized = small(conv_net())
    assert not [entry for entry in quantized.plan.entries if entry.site.role in (Role.BIAS, Role.OUTPUT)]
    assert {entry.site.op for entry in quantized.plan.entries} <= {"Conv", "Gemm"}
    why = {kept.op: kept.reason for kept in quantized.plan.kept_float}
    assert "Conv, Gemm and MatMul multiply" in why["Add"] and "Conv, Gemm and MatMul multiply" in why["MaxPool"]
    for item in readers(quantized, "QuantizeLinear"):
        assert len(item.inputs) == 2 and item.attributes["output_dtype"].as_int() == onnx.TensorProto.FLOAT8E4M3FN
    for item in [*readers(quantized, "Conv"), *readers(quantized, "Gemm")]:
        if len(item.inputs) > 2:
            assert constant_of(item.inputs[2]) is not None


def test_one_pair_serves_all_who_read_a_value() -> None:
    nodes = [node("Relu", "x", "r"), node("MatMul", "r w", "a"), node("MatMul", "r v", "b"), node("Add", "a b", "y")]
    weights = {"w": normal(1, 16, 8), "v": normal(2, 16, 8)}
    quantized = small(proto_of(nodes, {"x": [4, 16]}, {"y": [4, 8]}, weights))
    assert operators(quantized.model).count("QuantizeLinear") == 1


def test_integers_and_floats_do_not_meet_in_one_product() -> None:
    mixed = small(dense_net(), rules(weight="int8"))
    assert all(entry.encoding == {"weight_only": {"decode": "run"}} for entry in mixed.plan.entries)
    assert all("nothing multiplies by floats of 8 bits" in reason for reason in _of_matmul(mixed))
    other = quantized_of(of_21(dense_net()), "onnx-int8", settings=("prepare=[normalize]", _WEIGHTS))
    assert {str(entry.encoding) for entry in other.plan.entries} == {"{'lookup_table': {'decode': 'run'}}"}
    assert all("which no integer kernel multiplies" in reason for reason in _of_matmul(other))


_WEIGHTS = "rules=[{match: {role: weight}, grid: {format: float8_e4m3fn, granularity: channel}, range: minmax}]"


def _of_matmul(quantized: Quantized) -> list[str]:
    matmuls = {item.outputs[0].name for item in quantized.source.nodes() if item.op_type in ("MatMul", "Gemm")}
    found = [reason for key, reason in reasons(quantized).items() if key in matmuls]
    assert found
    return found


@pytest.mark.parametrize("base", ["int8-minmax", "onnx-int8"])
def test_a_float_layer_among_integers(base: str) -> None:
    """What an integer layer gives goes through its own grid and then through that of the next layer's floats."""
    nodes = [node("Conv", "x w", "a"), node("Relu", "a", "r"), node("Conv", "r v", "y")]
    weights = {"w": normal(1, 8, 8, 3, 3) / 8, "v": normal(2, 8, 8, 3, 3) / 8}
    asked = (
        "rules=[{match: {name: /y, role: input}, grid: {format: float8_e4m3fn}, range: minmax}, "
        "{match: {name: /y, role: output}, grid: {format: uint8, symmetric: false}}, "
        "{match: {name: /y, role: weight}, grid: {format: float8_e4m3fn, granularity: channel}, range: minmax}]"
    )
    proto = proto_of(nodes, {"x": [1, 8, 9, 9]}, {"y": None}, weights)
    quantized = quantized_of(of_21(proto), base, settings=("prepare=[normalize]", asked))
    formats = {(entry.site.node, entry.site.role.value): str(entry.grid.format) for entry in quantized.plan.entries}
    assert formats["y", "input"] == formats["y", "weight"] == "float8_e4m3fn" and formats["a", "weight"] == "int8"
    feeds = feeds_for(quantized.source)
    written = run(quantized.model, feeds)
    assert_equal(written, run(quantized.model, feeds, optimize=True), tolerance=0.02)
    assert_equal(run(quantized.source, feeds), written, tolerance=0.2)


def test_the_operator_set_that_it_needs() -> None:
    assert required_opset(load_recipe("onnx-fp8")) == required_opset(load_recipe("tensorrt-fp8")) == 21
    assert required_opset(load_recipe("fp8")) == 19
    assert required_opset(load_recipe("fp8", ("target=onnx",))) == 19


@pytest.mark.parametrize(
    ("preset", "asked", "said"),
    [
        ("onnx-fp8", "{match: {role: input}, grid: {format: float8_e4m3fn, symmetric: false}}", "symmetric: false"),
        ("onnx-fp8", "{match: {role: input}, grid: {format: float8_e4m3fn, granularity: channel}}", "one scale"),
        ("onnx-fp8", "{match: {role: input}, range: entropy}", "evenly spaced"),
        ("onnx-fp8", "{match: {role: input}, range: auto}", "evenly spaced"),
        ("onnx-fp8", "{match: {role: input}, range: octav}", "evenly spaced"),
        ("tensorrt-fp8", "{match: {role: input}, grid: {format: float8_e5m2}}", "no kernel for float8_e5m2"),
        ("qnn", "{match: {role: input}, grid: {format: float8_e4m3fn}}", "no kernel for float8_e4m3fn"),
        ("openvino", "{match: {role: input}, grid: {format: float8_e4m3fn}}", "no kernel for float8_e4m3fn"),
    ],
)
def test_what_is_refused(preset: str, asked: str, said: str) -> None:
    whole = asked if preset.endswith("fp8") else f"{asked}, {_WEIGHTS[7:-1]}"
    with pytest.raises(UsageError) as caught:
        quantized_of(of_21(conv_net()), preset, settings=("prepare=[normalize]", f"rules=[{whole}]"))
    assert said in caught.value.message and caught.value.hint


def test_blocks_are_stored_for_a_float_layer() -> None:
    blocks = "rules=[{match: {role: weight}, grid: {format: float8_e4m3fn, granularity: block, block: 32}}]"
    asked = (blocks, "prepare=[normalize]")
    proto = proto_of([node("MatMul", "x w", "y")], {"x": [4, 64]}, {"y": [4, 64]}, {"w": normal(1, 64, 64)})
    [entry] = quantized_of(of_21(proto), "onnx-fp8", settings=asked).plan.entries
    assert entry.encoding == {"lookup_table": {"decode": "run"}}
    with pytest.raises(NothingToDoError) as caught:
        quantized_of(of_21(proto), "tensorrt-fp8", settings=asked)
    assert "one scale, or one for each channel" in caught.value.hint


def test_weights_alone_for_tensorrt_are_dequantized() -> None:
    proto = proto_of([node("MatMul", "x w", "y")], {"x": [4, 64]}, {"y": [4, 64]}, {"w": normal(1, 64, 64)})
    quantized = quantized_of(of_21(proto), "fp8", settings=("target=tensorrt", "prepare=[normalize]"))
    assert operators(quantized.model) == ["DequantizeLinear", "MatMul"]
    gathered = proto_of([node("Gather", "w x", "y")], {"x": [4]}, {"y": None}, {"w": normal(1, 64, 64)})
    gathered.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    with pytest.raises(NothingToDoError) as caught:
        quantized_of(of_21(gathered), "fp8", settings=("target=tensorrt", "prepare=[normalize]"))
    assert "reads the weight in float" in caught.value.hint


def outlying(factor: float) -> Stream:
    """Samples with one value that is `factor` times as large as it usually is."""
    feeds = [normal(seed, 4, 16) for seed in range(8)]
    feeds[3][2, 5] = factor
    return Stream(tuple({"x": array} for array in feeds))


@pytest.mark.parametrize(
    ("range_", "factor", "said"),
    [
        ("minmax", 1e6, None),
        ("{fixed: {lower: -448, upper: 448}}", 400.0, None),
        ("{fixed: {lower: -448, upper: 448}}", 900.0, "'x' reaches 900, the grid 448 (float8_e4m3fn)"),
        ("{fixed: {lower: -448, upper: 448}}", -900.0, "'x' reaches -900, the grid -448"),
        ("{percentile: {keep: 90}}", 4.0, "10.0% saturates"),
        ("{percentile: {keep: 99.9}}", 4.0, None),
    ],
)
def test_what_saturates_on_the_samples_is_said(range_: str, factor: float, said: str | None) -> None:
    quantized = small(product(), rules(range_=range_), stream=outlying(factor))
    doubts = doubts_about_saturation(quantized.plan, quantized.solution, quantized.statistics)
    if said is None:
        assert doubts == []
    else:
        [doubt] = doubts
        assert said in doubt or (said == "10.0% saturates" and "% saturates" in doubt)
    outputs = run(quantized.model, {"x": np.full((4, 16), 1e30, np.float32)})["y"]
    assert np.isfinite(outputs).all(), "what is far beyond the samples saturates too"


def test_the_range_mse_looks_at_the_levels_themselves() -> None:
    errors = {}
    stream = outlying(30.0)
    for range_ in ("minmax", "mse"):
        quantized = small(product(), rules(range_=range_), stream=stream)
        scale = quantized.solution.scales["y", "input", 0]
        seen = np.concatenate([feeds["x"] for feeds in stream.samples])
        errors[range_] = float(((rounded(seen, scale, TYPES["float8_e4m3fn"]) - seen) ** 2).sum())
    assert errors["mse"] <= errors["minmax"] * 1.001


def test_the_plan_and_the_report_say_where_it_computes(tmp_path: Path) -> None:
    folder = SAMPLE_MODELS / "mlp"
    job = QuantizeJob(
        model=folder / "model.onnx", recipe="onnx-fp8", settings=("target=ort_cpu",), calibration=folder / "calib",
        output=tmp_path / "q.onnx", latency=False, cache=False,
    )  # fmt: skip
    report = quantize(job)
    assert report.accuracy is not None and (report.accuracy.sqnr or 0) > 20
    assert any("compute in float" in warning and "preset fp8" in warning for warning in report.warnings)
    assert not any("runs on integers" in warning for warning in report.warnings)
    assert report.kernels is not None
    assert all("multiplies no floats of 8 bits" in item.reason for item in report.kernels.kept_float)
    there = quantize(QuantizeJob(**{**_fields(job), "settings": (), "output": tmp_path / "there.onnx"}))
    assert not any("compute in float" in warning for warning in there.warnings)


def _fields(job: QuantizeJob) -> dict[str, object]:
    return {name: getattr(job, name) for name in job.__struct_fields__}


def test_a_model_that_onnxruntime_would_fuse_wrongly_is_run_without_that_fusion(tmp_path: Path) -> None:
    quantized = small(dense_net(), target="tensorrt")
    proto = quantized.model.proto()
    assert any(item.op_type == "MatMul" for item in proto.graph.node)
    path = saved(proto, tmp_path / "m.onnx")
    feeds = feeds_for(quantized.source)
    assert_equal(run(quantized.model, feeds), Session(path).run(feeds), tolerance=1e-5)


def test_files_of_encodings_hold_integers_alone() -> None:
    quantized = small(product())
    with pytest.raises(UsageError, match="'x' gets float8_e4m3fn") as caught:
        encodings_json(quantized.plan, quantized.solution)
    assert caught.value.hint


def test_quantizers_can_be_switched_off() -> None:
    """What `qcli analyze` runs: with all switches on it is the quantized model, with all off the float one."""
    quantized = small(conv_net(), target="ort_cpu")
    simulation = simulate(quantized.source, quantized.plan, quantized.solution)
    feeds = feeds_for(quantized.source)
    every = frozenset(switch for layer in simulation.layers for switch in layer.switches())
    for on, expected in ((frozenset[str](), quantized.source), (every, quantized.model)):
        got = run(simulation.model, {**feeds, **simulation.feeds(on)})
        assert_equal(run(expected, feeds), got, tolerance=1e-4)


def test_numbers_that_are_computed_when_they_are_needed() -> None:
    quantized = small(product())
    codes, scale = quantized.solution.codes["y", "weight", 1], quantized.solution.scales["y", "weight", 1]
    later = as_numbers(Deferred(codes.shape, "uint8", lambda: np.asarray(codes)), scale)
    assert isinstance(later, Deferred) and later.dtype == "float8_e4m3fn"
    np.testing.assert_array_equal(later.make(), np.asarray(as_numbers(codes, scale)))
