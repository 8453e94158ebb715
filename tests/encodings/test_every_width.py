"""Integers of 2 to 16 bits in every encoding: they run, on 8-bit kernels where there are any, packed or not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from codes import kernels_of, with_decoded_weights
from models import (
    Feeds,
    Quantized,
    assert_equal,
    feeds_for,
    finished,
    node,
    normal,
    proto_of,
    quantized_of,
    run,
    sample_model,
    stream_for,
    wrapped,
)

from qcli.errors import UnsupportedError
from qcli.existing import decodes, refuse_quantized
from qcli.graph import Model, constant_of, infer_shapes, load_model, normalize_graph, raise_opset, save_model
from qcli.inspect import inspect_model
from qcli.opsets import required_opset, written_opset
from qcli.pairs import pair_floor
from qcli.plan import make_plan
from qcli.recipe import load_recipe
from qcli.runtime import Session
from qcli.steps.fold_constants import FoldConstants
from qcli.types import Array, Role

WIDTHS = range(2, 17)
EIGHT = 8
ENCODINGS = ("qdq", "weight_only", "{weight_only: {decode: run}}", "dynamic")


def weight_rule(width: int, encoding: str = "qdq", sign: str = "", more: str = "granularity: channel") -> str:
    grid = f"{{format: {sign}int{width}, {more}}}"
    return f"{{match: {{role: weight}}, grid: {grid}, range: minmax, rounding: nearest, encoding: {encoding}}}"


def data_rule(width: int, sign: str = "u", symmetric: str = "false") -> str:
    return f"{{match: {{role: input}}, grid: {{format: {sign}int{width}, symmetric: {symmetric}}}, range: minmax}}"


def conv_net(opset: int = 17) -> onnx.ModelProto:
    """Conv, Relu, depthwise Conv, Add of a branch, MaxPool, GlobalAveragePool, Gemm; weights that are worth packing."""
    weights: dict[str, Array] = {
        "w1": normal(0, 32, 3, 3, 3) / 5,
        "b1": normal(1, 32) / 5,
        "w2": normal(2, 32, 1, 3, 3) / 3,
        "w3": normal(3, 32, 32, 1, 1) / 5,
        "w4": normal(4, 20, 32) / 5,
        "b4": normal(5, 20) / 3,
    }
    nodes = [
        node("Conv", "x w1 b1", "c1", pads=[1, 1, 1, 1]),
        node("Relu", "c1", "r1"),
        node("Conv", "r1 w2", "c2", pads=[1, 1, 1, 1], group=32),
        node("Conv", "c2 w3", "c3"),
        node("Add", "c3 r1", "a"),
        node("MaxPool", "a", "m", kernel_shape=[2, 2], strides=[2, 2]),
        node("GlobalAveragePool", "m", "g"),
        node("Flatten", "g", "f"),
        node("Gemm", "f w4 b4", "y", transB=1),
    ]
    return proto_of(nodes, {"x": ["n", 3, 8, 8]}, {"y": ["n", 20]}, weights, opset=opset)


def dense_net() -> onnx.ModelProto:
    """Rows of a table, MatMul, Add, Relu, Gemm."""
    weights: dict[str, Array] = {
        "w1": normal(0, 24, 32) / 3,
        "b1": normal(1, 32),
        "w2": normal(2, 32, 20) / 4,
        "b2": normal(3, 20),
    }
    nodes = [
        node("MatMul", "x w1", "m"),
        node("Add", "m b1", "a"),
        node("Relu", "a", "r"),
        node("Gemm", "r w2 b2", "y"),
    ]
    return proto_of(nodes, {"x": ["n", 24]}, {"y": ["n", 20]}, weights)


NETS = {"conv": conv_net, "dense": dense_net}


def made(net: onnx.ModelProto | Model, *rules: str) -> Quantized:
    """All stages, in the operator set that the recipe needs."""
    recipe = load_recipe("int8-minmax", (f"rules=[{', '.join(rules)}]",))
    source = net if isinstance(net, Model) else wrapped(net)
    normalize_graph(source)
    raise_opset(source, required_opset(recipe))
    plan = make_plan(source, recipe)
    assert written_opset(plan) == plan.opset == source.opset
    return finished(source, plan, stream_for(source))


def types_of(model: Model) -> set[str]:
    """The types of the weights in the file."""
    return {tensor.dtype.name for tensor in model.constants() if tensor.size >= 256}


def results(quantized: Quantized, feeds: Feeds, *, optimize: bool = True) -> Array:
    [result] = run(quantized.model, feeds, optimize=optimize).values()
    return np.asarray(result)


STORED = {2: "INT2", 3: "INT4", 4: "INT4", **dict.fromkeys(range(5, 9), "INT8"), **dict.fromkeys(range(9, 17), "INT16")}


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("net", sorted(NETS))
def test_every_encoding_runs_at_every_width(net: str, encoding: str, width: int) -> None:
    """Valid, near the float model with its weights rounded, the same with and without optimization and packing."""
    proto = NETS[net]()
    quantized = made(proto, weight_rule(width, encoding))
    onnx.checker.check_model(quantized.model.proto(), full_check=True)
    assert types_of(quantized.model) == {STORED[width]}
    feeds = feeds_for(quantized.source, seed=3)
    expected = run(with_decoded_weights(quantized), feeds)
    for optimize in (False, True):
        assert_equal(expected, run(quantized.model, feeds, optimize=optimize), tolerance=0.1)
    name = encoding.strip("{").partition(":")[0]
    plain = made(proto, weight_rule(width, encoding.replace("}}", ", pack: false}}") if ":" in encoding else
        f"{{{name}: {{pack: false}}}}"))  # fmt: skip
    assert types_of(plain.model) == {"INT8" if width <= EIGHT else "INT16"}
    if ":" not in encoding:  # MatMulNBits packs 2-bit weights by itself
        np.testing.assert_array_equal(results(plain, feeds), results(quantized, feeds))


@pytest.mark.parametrize("width", [2, 4, 6, 7, 8])
@pytest.mark.parametrize("sign", ["", "u"])
@pytest.mark.parametrize("net", sorted(NETS))
def test_up_to_eight_bits_run_on_integer_kernels(net: str, sign: str, width: int) -> None:
    for more in ("granularity: channel", "granularity: tensor", "symmetric: false"):
        quantized = made(NETS[net](), weight_rule(width, sign=sign, more=more))
        assert kernels_of(quantized).integer_share == 1.0
        feeds = feeds_for(quantized.source)
        expected = run(with_decoded_weights(quantized), feeds)
        assert_equal(expected, run(quantized.model, feeds, optimize=True), tolerance=0.06)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("sign", ["", "u"])
@pytest.mark.parametrize("net", sorted(NETS))
def test_activations_of_every_width(net: str, sign: str, width: int) -> None:
    """Codes stay within the grid's levels, whatever comes in, and kernels are integer as far as there are any."""
    quantized = made(NETS[net](), data_rule(width, sign))
    onnx.checker.check_model(quantized.model.proto(), full_check=True)
    feeds = {name: value * 50 for name, value in feeds_for(quantized.source, seed=4).items()}
    decoded = [item.outputs[0].name or "" for item in quantized.model.nodes() if item.name.endswith("_dq")]
    seen = Session(quantized.model.serialize(tuple(decoded)), optimize=False).run(feeds)
    activations = [
        np.unique(seen[name])
        for name in decoded
        if constant_of(quantized.model.graph.initializers.get(name.removesuffix("_dq") + "_q")) is None
    ]
    assert max(map(len, activations)) <= 2**width
    plain, fused = results(quantized, feeds, optimize=False), results(quantized, feeds)
    assert np.abs(fused - plain).mean() <= np.abs(plain).mean() / 2 ** min(width, EIGHT)
    assert kernels_of(quantized).integer_share == (1.0 if width <= EIGHT else 0.0)


@pytest.mark.parametrize("net", sorted(NETS))
@pytest.mark.parametrize(("weight", "data"), [(8, 16), (4, 16), (16, 16), (16, 8), (12, 10)])
def test_more_than_eight_bits_are_finer_and_float(net: str, weight: int, data: int) -> None:
    quantized = made(NETS[net](), weight_rule(weight), data_rule(data))
    assert not [entry for entry in quantized.plan.entries if entry.site.role is Role.BIAS]
    assert kernels_of(quantized).integer_share == 0.0
    feeds = feeds_for(quantized.source, seed=1)
    expected = run(with_decoded_weights(quantized), feeds)
    assert_equal(expected, run(quantized.model, feeds), tolerance=1e-3 if data > 10 else 2e-2)
    assert_equal(expected, run(quantized.model, feeds, optimize=True), tolerance=1e-3 if data > 10 else 2e-2)


@pytest.mark.parametrize("target", ["ort_cpu", "onnx"])
@pytest.mark.parametrize("large", [1.0, 300.0])
def test_biases_beside_codes_of_16_bits_fit_where_onnxruntime_stores_them(target: str, large: float) -> None:
    """It makes int32 of a float bias, in steps of s_x * s_w, without a look at its size."""
    weights = {"w": normal(0, 8, 8, 3, 3) / 8, "b": large * normal(1, 8), "v": normal(2, 8, 8) / 3, "c": normal(3, 8)}
    nodes = [
        node("Conv", "x w b", "h"),
        node("Relu", "h", "r"),
        node("GlobalAveragePool", "r", "g"),
        node("Flatten", "g", "f"),
        node("MatMul", "f v", "m"),
        node("Add", "m c", "a"),
        node("Relu", "a", "s"),
        node("MatMul", "s v", "y"),
    ]
    proto = proto_of(nodes, {"x": [1, 8, 9, 9]}, {"y": None}, weights, opset=21)
    asked = (f"target={target}", "prepare=[normalize]", f"rules=[{weight_rule(16)}, {data_rule(16)}]")
    quantized = quantized_of(proto, "int8-minmax", settings=asked)
    feeds = feeds_for(quantized.source, seed=1)
    written = run(quantized.model, feeds)
    assert_equal(run(quantized.source, feeds), written, tolerance=2e-3)
    assert_equal(written, run(quantized.model, feeds, optimize=True), tolerance=1e-3)


@pytest.mark.parametrize("name", ["transformer", "mlp", "gru", "cnn"])
@pytest.mark.parametrize("rules", [(4, 8), (2, 8), (8, 16), (6, 6)])
def test_the_sample_models(name: str, rules: tuple[int, int]) -> None:
    quantized = made(sample_model(name), weight_rule(rules[0]), data_rule(rules[1]))
    onnx.checker.check_model(quantized.model.proto(), full_check=True)
    plain = made(sample_model(name), weight_rule(rules[0], "{qdq: {pack: false}}"), data_rule(rules[1]))
    feeds = feeds_for(quantized.source)
    np.testing.assert_array_equal(results(quantized, feeds), results(plain, feeds))
    assert len(quantized.model.serialize()) <= len(plain.model.serialize())


def test_a_model_of_an_old_operator_set_is_raised() -> None:
    assert [made(conv_net(7), weight_rule(width)).model.opset for width in (2, 4, 8, 12)] == [25, 21, 13, 21]
    assert made(conv_net(11), weight_rule(4, "{qdq: {pack: false}}")).model.opset == 13
    assert made(conv_net(11), weight_rule(4, "weight_only")).model.opset == 21


def test_packed_weights_are_known_as_quantized_and_counted(tmp_path: Path) -> None:
    for encoding in ("qdq", "weight_only"):
        quantized = made(conv_net(), weight_rule(4, encoding))
        path = tmp_path / f"{encoding}.onnx"
        save_model(quantized.model, path)
        assert inspect_model(path).weight_bytes["int4"] == (864 + 288 + 1024 + 640) // 2
        loaded = load_model(path)
        with pytest.raises(UnsupportedError, match="already quantized"):
            refuse_quantized(loaded)
        casts = [item for item in loaded.nodes() if decodes(item)]
        assert len(casts) == 4
        normalize_graph(loaded)
        infer_shapes(loaded)
        FoldConstants().run(loaded)
        assert types_of(loaded) == {"INT4"}  # the step leaves them packed


def test_small_weights_are_not_packed() -> None:
    """The Cast in front would take more bytes than it saves."""
    proto = proto_of([node("MatMul", "x w", "y")], {"x": [2, 8]}, {"y": None}, {"w": normal(0, 8, 8)})
    quantized = made(proto, weight_rule(4))
    assert "Cast" not in {item.op_type for item in quantized.model.nodes()}


def test_shared_and_gathered_weights() -> None:
    """Rows of a table are fetched as 8-bit codes, and two readers share one packed constant."""
    weights: dict[str, Array] = {"t": normal(0, 64, 32), "rows": np.array([3, 1, 60])}
    nodes = [
        node("Gather", "t rows", "g"),
        node("MatMul", "x w", "m"),
        node("MatMul", "m w", "n"),
        node("Add", "n g", "y"),
    ]
    weights["w"] = normal(1, 32, 32)
    proto = proto_of(nodes, {"x": [3, 32]}, {"y": None}, weights)
    for encoding in ENCODINGS:
        quantized = made(proto, weight_rule(4, encoding))
        packed = [tensor for tensor in quantized.model.constants() if tensor.dtype.name == "INT4"]
        assert sorted(tensor.size for tensor in packed) == [32 * 32, 64 * 32]
        feeds = feeds_for(quantized.source)
        for optimize in (False, True):
            result = run(quantized.model, feeds, optimize=optimize)
            assert_equal(run(with_decoded_weights(quantized), feeds), result, tolerance=0.06)


@pytest.mark.parametrize(("name", "widens"), [("int8", True), ("int7", False), ("int4", False), ("int16", False)])
def test_only_codes_of_eight_bits_can_saturate_a_pair(name: str, widens: bool) -> None:
    quantized = made(dense_net(), weight_rule(int(name[3:])))
    [entry] = [one for one in quantized.plan.entries if one.site.value == "w1" and one.site.role is Role.WEIGHT]
    scale = quantized.solution.scales[(entry.site.node, "weight", 1)]
    layer = next(item for item in quantized.source.nodes() if item.op_type == "MatMul")
    assert (pair_floor(layer, np.asarray(constant_of(layer.inputs[1])), scale) > scale.scale).any() == widens
