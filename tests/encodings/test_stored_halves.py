"""Weights as float16 and bfloat16: every operator computes what the rounded weights say, at half the bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from codes import constants, node_at, reasons, stored_of, with_decoded_weights
from models import assert_equal, dense_net, node, normal, operators, proto_of, quantized_of, run, saved
from onnx import TensorProto, helper, numpy_helper

from qcli.errors import NothingToDoError, UsageError
from qcli.graph import load_model
from qcli.halves import doubts_about_halves, lost
from qcli.job import QuantizeJob
from qcli.pipeline import quantize
from qcli.types import Array

CASES: dict[str, tuple[onnx.NodeProto, tuple[int, ...], dict[str, Array]]] = {
    "Conv": (node("Conv", "x w b", "y"), (2, 8, 5, 5), {"w": normal(0, 6, 8, 3, 3), "b": normal(1, 6)}),
    "Conv depthwise": (node("Conv", "x w", "y", group=16), (1, 16, 5, 5), {"w": normal(0, 16, 1, 5, 5)}),
    "ConvTranspose": (node("ConvTranspose", "x w", "y"), (1, 8, 3, 3), {"w": normal(0, 8, 6, 3, 3)}),
    "Gemm": (node("Gemm", "x w", "y", transB=1), (3, 16), {"w": normal(0, 16, 16)}),
    "MatMul": (node("MatMul", "x w", "y"), (3, 16), {"w": normal(0, 16, 16)}),
    "MatMul on the left": (node("MatMul", "w x", "y"), (16, 4), {"w": normal(0, 16, 16)}),
    "Einsum": (node("Einsum", "x w", "y", equation="bi,io->bo"), (3, 16), {"w": normal(0, 16, 16)}),
    "LSTM": (
        node("LSTM", "x w r", "y", hidden_size=8),
        (4, 2, 8),
        {"w": normal(0, 1, 32, 8) / 3, "r": normal(1, 1, 32, 8) / 3},
    ),
    "Gather of columns": (node("Gather", "w x", "y", axis=1), (3,), {"w": normal(0, 16, 16)}),
}

TYPES = {"fp16": "float16", "bf16": "bfloat16"}
RULE = "rules=[{match: {role: weight}, grid: {format: float16}}]"


def product(weight: Array, opset: int = 17) -> onnx.ModelProto:
    """y [n, N] = x [n, K] times the weight [K, N]."""
    made = node("MatMul", "x w", "y")
    return proto_of([made], {"x": ["n", weight.shape[0]]}, {"y": ["n", weight.shape[1]]}, {"w": weight}, opset=opset)


@pytest.mark.parametrize("preset", TYPES)
@pytest.mark.parametrize("name", CASES)
def test_every_operator_computes_what_the_rounded_weights_say(name: str, preset: str) -> None:
    made, shape, weights = CASES[name]
    proto = proto_of([made], {"x": shape}, {"y": None}, weights)
    feeds: dict[str, Array] = {"x": normal(9, *shape)}
    if len(shape) == 1:
        proto.graph.input[0].type.tensor_type.elem_type = TensorProto.INT64
        feeds = {"x": np.array([0, 7, 3])}
    quantized = stored_of(proto, preset, feeds=feeds)
    kept = [array for array in constants(quantized.model).values() if array.dtype.name == TYPES[preset]]
    assert len(kept) == len(quantized.plan.entries) == sum(array.ndim > 1 for array in weights.values())
    reference = run(with_decoded_weights(quantized), feeds)
    assert_equal(reference, run(quantized.model, feeds, optimize=True), tolerance=1e-5)
    assert_equal(reference, run(quantized.model, feeds), tolerance=1e-5)


@pytest.mark.parametrize("preset", TYPES)
def test_onnxruntime_computes_the_cast_when_it_loads_the_model(preset: str, tmp_path: Path) -> None:
    path = saved(product(normal(0, 64, 64)), tmp_path / "m.onnx")
    report = quantize(QuantizeJob(model=path, recipe=preset, output=tmp_path / "o.onnx", latency=False))
    assert report.kernels is not None and report.kernels.by_kernel == {"MatMul": 1}
    assert report.size is not None and report.size.ratio < 0.52
    assert [tensor.data_type for tensor in onnx.load(tmp_path / "o.onnx").graph.initializer] == [
        {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}[preset]
    ]


def test_rows_are_fetched_in_16_bits() -> None:
    table = normal(0, 40, 16)
    proto = proto_of([node("Gather", "w i", "y")], {}, {"y": None}, {"w": table})
    proto.graph.input.append(helper.make_tensor_value_info("i", TensorProto.INT64, [3]))
    feeds = {"i": np.array([1, 39, 0])}
    quantized = stored_of(proto, "fp16", feeds=feeds)
    assert operators(quantized.model) == ["Gather", "Cast"]
    np.testing.assert_array_equal(run(quantized.model, feeds)["y"], table[[1, 39, 0]].astype(np.float16))
    running = stored_of(
        proto, "fp16", [RULE.replace("}}]", "}, encoding: {weight_only: {decode: run}}}]")], feeds=feeds
    )
    assert operators(running.model) == ["Gather", "Cast"]


@pytest.mark.parametrize(("preset", "reached"), [("fp16", 7e4), ("bf16", 3.4e38)])
def test_a_weight_beyond_the_type_stays_float32(preset: str, reached: float) -> None:
    large, small = normal(0, 32, 32), normal(1, 32, 32)
    large[3, 4] = -reached
    nodes = [node("MatMul", "x w1", "a"), node("MatMul", "x w2", "b"), node("Add", "a b", "y")]
    proto = proto_of(nodes, {"x": ["n", 32]}, {"y": None}, {"w1": large, "w2": small})
    quantized = stored_of(proto, preset)
    assert [entry.site.value for entry in quantized.plan.entries] == ["w2"]
    assert f"beyond {TYPES[preset]}, which ends at" in reasons(quantized)["a"]
    with pytest.raises(NothingToDoError, match="nothing in this model") as caught:
        stored_of(product(large), preset)
    assert "reaches" in caught.value.hint


def test_weights_that_fade_are_reported() -> None:
    proto = product(normal(0, 64, 64) * np.float32(1e-8))
    faded = stored_of(proto, "fp16")
    [text] = doubts_about_halves(faded.plan, faded.source)
    assert text.startswith("1 weights are so small that float16 rounds away more than 1 % of them: w; ")
    whole = stored_of(proto, "bf16")
    assert not doubts_about_halves(whole.plan, whole.source)


def test_what_is_lost_is_a_share_of_the_power() -> None:
    assert lost(np.full((4, 4), 1e-8, np.float32), "float16") == 1.0
    assert lost(np.zeros((4, 4), np.float32), "float16") == 0.0
    assert 1e-9 < lost(normal(0, 2000, 1000), "float16") < 2e-7
    assert 1e-7 < lost(normal(0, 64, 64), "bfloat16") < 1e-5


def test_a_decoding_at_every_run_is_refused() -> None:
    rule = RULE.replace("}}]", "}, encoding: {weight_only: {decode: run}}}]")
    with pytest.raises(UsageError, match="computes its Cast when it loads the model") as caught:
        stored_of(product(normal(0, 32, 32)), "fp16", [rule])
    assert caught.value.hint == "use encoding: {weight_only: {decode: load}}"


@pytest.mark.parametrize("setting", ["granularity: channel", "granularity: block, block: 32", "bits: 8"])
def test_grids_that_need_a_scale_are_refused_with_the_recipe(setting: str) -> None:
    with pytest.raises(UsageError, match="float16"):
        stored_of(product(normal(0, 32, 32)), "fp16", [RULE.replace("float16", f"float16, {setting}")])


def test_activations_have_no_such_format() -> None:
    with pytest.raises(UsageError, match="has no kernel for float16 as input"):
        quantized_of(dense_net(), settings=["rules=[{match: {role: input}, grid: {format: float16}}]"])


@pytest.mark.parametrize("preset", ["int8-minmax", "int8-dynamic"])
def test_a_layer_with_such_a_weight_computes_in_float(preset: str) -> None:
    proto = proto_of(
        [node("MatMul", "x w1", "a"), node("Relu", "a", "r"), node("MatMul", "r w2", "y")],
        {"x": ["n", 32]},
        {"y": None},
        {"w1": normal(0, 32, 32), "w2": normal(1, 32, 32)},
    )
    rule = "rules=[{match: {name: /y, role: weight}, grid: {format: float16}}]"
    quantized = quantized_of(proto, preset, settings=[rule])
    [entry] = [entry for entry in quantized.plan.entries if entry.site.value == "w2"]
    assert (entry.range, entry.rounding) == ("minmax", "nearest")
    cast = node_at(quantized.model, "y").inputs[1]
    assert cast is not None and cast.producer() is not None and cast.producer().op_type == "Cast"  # type: ignore[union-attr]


@pytest.mark.parametrize(("preset", "opset"), [("fp16", 9), ("bf16", 13)])
def test_an_old_operator_set_is_raised_if_the_cast_needs_it(preset: str, opset: int, tmp_path: Path) -> None:
    proto = product(normal(0, 32, 32), opset=9)
    path = saved(proto, tmp_path / "m.onnx")
    quantize(QuantizeJob(model=path, recipe=preset, output=tmp_path / "o.onnx", latency=False))
    assert load_model(tmp_path / "o.onnx").opset == opset


@pytest.mark.parametrize("settings", [(), ("convert.to=float16",)])
def test_a_model_in_float16_is_done_already(settings: tuple[str, ...], tmp_path: Path) -> None:
    proto = product(normal(0, 32, 32))
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    [weight] = proto.graph.initializer
    weight.CopyFrom(numpy_helper.from_array(normal(0, 32, 32).astype(np.float16), "w"))
    path = saved(proto, tmp_path / "m.onnx")
    with pytest.raises(NothingToDoError, match="weights are float16 already"):
        quantize(QuantizeJob(model=path, recipe="fp16", output=tmp_path / "o.onnx", settings=settings, latency=False))
    with pytest.raises(NothingToDoError, match="weights are float16 already"):  # the other 16 bits are no fewer
        quantize(QuantizeJob(model=path, recipe="bf16", output=tmp_path / "o.onnx", latency=False))
    report = quantize(QuantizeJob(model=path, recipe="int8-weights", output=tmp_path / "o.onnx", latency=False))
    assert report.status == "passed"
