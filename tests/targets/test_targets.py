"""What is written for each runtime: types, zero points, places of Q and DQ, biases; and that onnxruntime runs it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from models import (
    SAMPLE_MODELS,
    assert_equal,
    conv_net,
    dense_net,
    feeds_for,
    node,
    normal,
    proto_of,
    quantized_of,
    run,
    sample_model,
    wrapped,
)

from qcli.errors import NothingToDoError
from qcli.graph import Model, Node, Value, constant_of, normalize_graph
from qcli.job import QuantizeJob
from qcli.metrics.sqnr import Sqnr
from qcli.pipeline import quantize
from qcli.plan import make_plan
from qcli.plugins import create
from qcli.recipe import load_recipe
from qcli.targets._support import Traits, traits_of
from qcli.types import Array, Plan

PRESETS = {"onnx-int8": "onnx", "tensorrt": "tensorrt", "qnn": "qnn", "openvino": "openvino"}
FLOAT_BIASES = ("tensorrt", "openvino")
PLAIN = "prepare=[normalize, fold_constants, fold_batchnorm]"
ZOO = Path(os.environ.get("QCLI_ZOO", ""))


def written(proto: onnx.ModelProto, preset: str, *settings: str) -> Model:
    return quantized_of(proto, preset, settings=settings).model


def is_operator(value: Value | None, operator: str) -> bool:
    producer = value.producer() if value is not None else None
    return producer is not None and producer.op_type == operator


def quantizers(model: Model) -> Iterator[tuple[Node, Array, Array | None]]:
    """QuantizeLinear and DequantizeLinear nodes with their scales and zero points."""
    for item in model.nodes():
        if item.op_type in ("QuantizeLinear", "DequantizeLinear"):
            steps = constant_of(item.inputs[1])
            assert steps is not None
            yield item, steps, constant_of(item.inputs[2]) if len(item.inputs) > 2 else None


def of_constant(item: Node) -> bool:
    return constant_of(item.inputs[0]) is not None


def codes_of(layer: Node, operand: int) -> tuple[Array, Node] | None:
    """The stored codes of an operand, and the DequantizeLinear in front of it."""
    value = layer.inputs[operand]
    producer = value.producer() if value is not None else None
    codes = constant_of(producer.inputs[0]) if producer is not None and producer.op_type == "DequantizeLinear" else None
    return None if codes is None or producer is None else (codes, producer)


def layers(model: Model) -> list[Node]:
    return [item for item in model.nodes() if item.op_type in ("Conv", "Gemm", "MatMul")]


def only_standard(model: Model) -> None:
    assert {item.domain for item in model.nodes()} <= {"", "ai.onnx"}


def fits_tensorrt(model: Model) -> None:
    """int8, symmetric, zero points 0; per-tensor activations; float biases; residual inputs alone."""
    only_standard(model)
    for item, steps, zero in quantizers(model):
        assert zero is None or (zero.dtype == np.int8 and not zero.any()), item.name
        if not of_constant(item):
            assert steps.size == 1 and zero is not None
    for layer in layers(model):
        stored = codes_of(layer, 1)
        if stored is not None:
            assert stored[0].dtype == np.int8
            assert is_operator(layer.inputs[0], "DequantizeLinear")
        if len(layer.inputs) > 2:
            bias = constant_of(layer.inputs[2])
            assert bias is not None and bias.dtype == np.float32
        for value in layer.outputs:
            readers = [reader.op_type for reader, _ in value.uses()]
            assert "QuantizeLinear" not in readers or set(readers) == {"QuantizeLinear"} or "Add" not in readers
    for add in (item for item in model.nodes() if item.op_type == "Add"):
        dequantized = [is_operator(value, "DequantizeLinear") for value in add.inputs]
        from_layer = [is_operator(value, "Conv") for value in add.inputs]
        assert not all(dequantized) or not any(from_layer)


def fits_qnn(model: Model) -> None:
    """Activations uint8 or uint16, Conv weights int8 without zero points, others uint8 per tensor, biases int32."""
    table = create("targets", "qnn")
    for item, steps, zero in quantizers(model):
        if not of_constant(item):
            assert zero is not None and zero.dtype in (np.uint8, np.uint16) and steps.size == 1
    for layer in layers(model):
        stored = codes_of(layer, 1)
        if layer.op_type == "Conv":
            assert stored is not None and stored[0].dtype == np.int8
            assert len(stored[1].inputs) == 2 and constant_of(stored[1].inputs[1]).size == stored[0].shape[0]  # type: ignore[union-attr]
        elif stored is not None:
            assert stored[0].dtype == np.uint8 and constant_of(stored[1].inputs[1]).size == 1  # type: ignore[union-attr]
        bias = codes_of(layer, 2) if len(layer.inputs) > 2 else None
        assert len(layer.inputs) < 3 or (bias is not None and bias[0].dtype == np.int32)
    swallowed = ("Relu", "Clip")
    for item in model.nodes():
        row = table.support(item.op_type, item.domain)
        data = item.inputs[0] if item.inputs else None
        if row is None or data is None or data.dtype is None or data.dtype.numpy().kind != "f":
            continue
        follows = data.producer()
        if item.op_type in swallowed and follows is not None and follows.op_type in ("Conv", "Gemm", "Add", "MatMul"):
            continue
        if item.op_type == "Add" and is_operator(data, "MatMul"):
            continue  # the bias of a MatMul
        assert is_operator(data, "DequantizeLinear"), f"{item.name} reads a float"


def fits_openvino(model: Model) -> None:
    for item, _, zero in quantizers(model):
        if not of_constant(item):
            assert zero is not None and zero.dtype == np.uint8
    for layer in layers(model):
        stored = codes_of(layer, 1)
        if stored is not None:
            assert stored[0].dtype == np.int8 and not any(
                (constant_of(value) != 0).any() for value in stored[1].inputs[2:]
            )  # type: ignore[union-attr]
        if len(layer.inputs) > 2:
            assert constant_of(layer.inputs[2]) is not None


FITS = {"tensorrt": fits_tensorrt, "qnn": fits_qnn, "openvino": fits_openvino, "onnx-int8": only_standard}


def ratio(source: Model, result: Model) -> float:
    metric = Sqnr()
    for seed in range(3):
        feeds = feeds_for(source, 20 + seed)
        reference, quantized = run(source, feeds), run(result, feeds)
        for name, value in reference.items():
            metric.update(value, quantized[name])
    return metric.value()


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("net", [conv_net, dense_net])
def test_small_networks(preset: str, net: object) -> None:
    made = quantized_of(net(), preset)  # type: ignore[operator]
    FITS[preset](made.model)
    assert ratio(made.source, made.model) > 20
    onnx.checker.check_model(made.model.proto(), full_check=True)
    assert made.plan.target == PRESETS[preset]


@pytest.mark.parametrize(
    ("preset", "name"),
    [
        *((preset, name) for preset in PRESETS for name in ("cnn", "transformer")),
        ("tensorrt", "gru"), ("openvino", "gru"), ("qnn", "mlp"),
    ],
)  # fmt: skip
def test_sample_models(preset: str, name: str, tmp_path: Path) -> None:
    folder, output = SAMPLE_MODELS / name, tmp_path / "q.onnx"
    settings = ("samples.calibration.preprocess={preset: unit, channels: gray}",) if name == "cnn" else ()
    settings = settings if name == "mlp" else (*settings, PLAIN)  # the steps of the preset take long
    job = QuantizeJob(
        model=folder / "model.onnx", recipe=preset, settings=settings, calibration=folder / "calib", samples=4,
        output=output, cache=False, threads=1, latency=name == "mlp",
    )  # fmt: skip
    report = quantize(job)
    assert report.accuracy is not None and report.accuracy.sqnr is not None and report.accuracy.sqnr > 15
    assert report.size is not None and report.size.ratio < (1.01 if name == "gru" else 0.45)
    assert not [text for text in report.warnings if "slower" in text or "runs on integers" in text]
    proto = onnx.load(output)
    FITS[preset](wrapped(proto))
    onnx.checker.check_model(proto, full_check=True)


@pytest.mark.zoo
@pytest.mark.skipif("QCLI_ZOO" not in os.environ, reason="QCLI_ZOO is not set")
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(("name", "floor"), [("resnet20_cifar10", 24.0), ("ultraface_rfb320", 25.0)])
def test_real_models(preset: str, name: str, floor: float, tmp_path: Path) -> None:
    folder, output = ZOO / name, tmp_path / "q.onnx"
    job = QuantizeJob(
        model=folder / "model.onnx", recipe=preset, calibration=folder / "calib", samples=8, output=output,
        latency=False, cache=False, settings=(PLAIN,),
    )  # fmt: skip
    report = quantize(job)
    assert report.accuracy is not None and report.accuracy.sqnr is not None and report.accuracy.sqnr > floor
    FITS[preset](wrapped(onnx.load(output)))


def test_residual_inputs_of_tensorrt() -> None:
    """The convolution's sum stays float in the Add; the other input is quantized, and the bias of the Gemm is not."""
    model = written(conv_net(), "tensorrt")
    add = next(item for item in model.nodes() if item.op_type == "Add")
    assert is_operator(add.inputs[0], "Conv") and is_operator(add.inputs[1], "DequantizeLinear")
    last = next(item for item in model.nodes() if item.op_type == "Gemm")
    assert last.outputs[0].is_graph_output() and constant_of(last.inputs[2]) is not None
    both = written(conv_net(), "openvino")
    add = next(item for item in both.nodes() if item.op_type == "Add")
    assert all(is_operator(value, "DequantizeLinear") for value in add.inputs)


def test_the_bias_add_of_a_matmul_stays_float_where_biases_do() -> None:
    for preset in PRESETS:
        model = written(dense_net(), preset)
        add = next(item for item in model.nodes() if item.op_type == "Add")
        assert (constant_of(add.inputs[1]) is not None) is (preset in FLOAT_BIASES), preset
        assert is_operator(add.inputs[0], "MatMul"), preset


def test_int8_activations_are_the_same_numbers_however_they_are_written() -> None:
    """onnxruntime's kernels get uint8, TensorRT int8: scales and results are equal."""
    rule = "rules=[{match: {role: input}, grid: {format: int8, symmetric: true}}]"
    plain = "prepare=[normalize]"
    here = quantized_of(conv_net(), "int8-minmax", settings=[rule, plain])
    there = quantized_of(conv_net(), "int8-minmax", settings=[rule, plain, "target=onnx"])
    shared = set(here.solution.scales) & set(there.solution.scales)
    activations = [key for key in shared if key[1] in ("input", "output")]
    assert activations
    for key in activations:
        one, other = here.solution.scales[key], there.solution.scales[key]
        assert (one.dtype, other.dtype) == ("uint8", "int8")
        np.testing.assert_array_equal(one.scale, other.scale)
        np.testing.assert_array_equal(one.zero_point - 128, other.zero_point)


def test_products_of_two_activations() -> None:
    weights = {"w": normal(1, 16, 16) / 4}
    nodes = [node("MatMul", "x w", "q"), node("Transpose", "q", "t", perm=[0, 2, 1]), node("MatMul", "q t", "y")]
    proto = proto_of(nodes, {"x": [2, 4, 16]}, {"y": [2, 4, 4]}, weights)
    for preset, both in (("qnn", True), ("openvino", True), ("tensorrt", False), ("int8", False)):
        made = quantized_of(proto, preset)
        product = list(made.model.nodes())[-1 if preset != "qnn" else -3]
        assert product.op_type == "MatMul"
        assert all(is_operator(value, "DequantizeLinear") for value in product.inputs) is both, preset
        assert ratio(made.source, made.model) > 15


def test_wide_activations_of_qnn_keep_integer_biases() -> None:
    wide = "rules=[{match: {role: input}, grid: {format: uint16, symmetric: false}}]"
    made = quantized_of(conv_net(), "qnn", settings=[wide])
    fits_qnn(made.model)
    assert made.model.opset == 17 or made.plan.opset >= 21
    assert any(entry.site.role == "bias" for entry in made.plan.entries)
    plain = quantized_of(conv_net(), "int8-minmax", settings=[wide])
    assert not any(entry.site.role == "bias" for entry in plain.plan.entries)


@pytest.mark.parametrize(("preset", "form"), [("tensorrt", "int4"), ("openvino", "uint4"), ("onnx-int8", "int4")])
def test_four_bits_in_blocks_are_read_as_they_are(preset: str, form: str, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    nodes = [node("MatMul", "x w", "h"), node("MatMul", "h v", "y")]
    weights = {"w": normal(1, 64, 64) / 8, "v": normal(2, 64, 16) / 8}
    onnx.save(proto_of(nodes, {"x": [4, 64]}, {"y": [4, 16]}, weights), path)
    grid = f"{{format: {form}, symmetric: {str(form == 'int4').lower()}, granularity: block, block: 32}}"
    rules = f"rules=[{{match: {{op: MatMul, role: weight}}, grid: {grid}, encoding: weight_only}}]"
    output = tmp_path / "q.onnx"
    report = quantize(
        QuantizeJob(model=path, recipe=preset, settings=(rules,), output=output, random_samples=4, latency=False)
    )
    assert report.accuracy is not None and (report.accuracy.sqnr or 0) > 12
    proto = onnx.load(output)
    assert [item.op_type for item in proto.graph.node] == ["DequantizeLinear", "MatMul"] * 2
    assert proto.opset_import[0].version == 21
    kinds = {tensor.data_type for tensor in proto.graph.initializer if tensor.name.endswith("_q")}
    assert kinds == {onnx.TensorProto.INT4 if form == "int4" else onnx.TensorProto.UINT4}


def test_what_tensorrt_reads_in_float_keeps_its_weights() -> None:
    """Recurrent layers and embeddings: not stored; what is stored is decoded by DequantizeLinear alone."""
    plan = make_plan(sample_model("transformer"), load_recipe("tensorrt"))
    stored = [entry for entry in plan.entries if entry.encoding != "qdq"]
    assert all(entry.encoding == {"weight_only": {"decode": "run"}} for entry in stored)
    assert not any(entry.site.op in ("Gather", "LSTM", "GRU") for entry in plan.entries if entry.site.role == "weight")
    table = proto_of([node("Gather", "w x", "y")], {"x": [4]}, {"y": None}, {"w": normal(1, 500, 32)})
    table.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    with pytest.raises(NothingToDoError, match="nothing in this model") as error:
        plan_of(table, "tensorrt")
    assert "does not take its weight as integers: it reads the weight in float" in error.value.hint
    assert plan_of(table, "openvino").entries[0].encoding == {"weight_only": {"decode": "run"}}


def test_a_target_without_traits_is_like_the_one_for_this_runtime() -> None:
    assert traits_of(object()) == Traits() == traits_of(create("targets", "ort_cpu"))
    for name in PRESETS.values():
        target = create("targets", name)
        assert not traits_of(target).here and not target.pair_limited()
        assert target.support("Conv", "com.microsoft") is None
        assert "com.microsoft" in target.refusal("Conv", "com.microsoft")
        assert target.refusal("Softmax", "") and set(target.formats("weight")) & {"int8"}


def test_same_results_optimized_and_as_written() -> None:
    """onnxruntime's own fusions change nothing: no node is hidden from them, unlike with ort_cpu."""
    for preset in PRESETS:
        made = quantized_of(dense_net(), preset)
        feeds = feeds_for(made.source, 3)
        assert_equal(run(made.model, feeds), run(made.model, feeds, optimize=True), tolerance=0.05, what=preset)
        assert "Sum" not in [item.op_type for item in made.model.nodes()]


def plan_of(proto: onnx.ModelProto, preset: str, *settings: str) -> Plan:
    model = wrapped(proto)
    normalize_graph(model)
    return make_plan(model, load_recipe(preset, settings))
