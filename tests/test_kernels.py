"""What runs on integer kernels, asked of real onnxruntime on models that its own quantizer wrote."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import first_sample, model_path
from onnx import TensorProto, helper, numpy_helper

from qcli.errors import RuntimeFailure
from qcli.graph import load_model
from qcli.graph.optimized import OptimizedGraph, RuntimeNode
from qcli.kernels import Kernels, count_kernels, is_integer, read_kernels
from qcli.types import Array

COMPUTE = {"Conv", "ConvTranspose", "Gemm", "MatMul", "GRU", "LSTM", "RNN"}


def kernels_of(name: str, quantized: Path | bytes) -> Kernels:
    return read_kernels(quantized, load_model(model_path(name)), first_sample(name).feeds)


def runtime_node(op: str, name: str = "", **options: object) -> RuntimeNode:
    base = {"domain": "", "inputs": (), "outputs": (f"{name}_out",), "integers": {}, "nested": False}
    return RuntimeNode(op=op, name=name, **{**base, **options})  # type: ignore[arg-type]


def save(
    path: Path,
    nodes: list[onnx.NodeProto],
    weights: dict[str, Array],
    shapes: dict[str, list[int | str | None]],
) -> Path:
    """A model of float inputs and outputs; `shapes` names the inputs first, then the one output."""
    *inputs, output = (helper.make_tensor_value_info(key, TensorProto.FLOAT, dims) for key, dims in shapes.items())
    constants = [numpy_helper.from_array(value, key) for key, value in weights.items()]
    graph = helper.make_graph(nodes, "g", inputs, [output], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.mark.parametrize("name", ["cnn", "transformer", "mlp"])
def test_a_fully_quantized_model_is_all_integer(name: str, request: pytest.FixtureRequest) -> None:
    found = kernels_of(name, request.getfixturevalue(f"quantized_{name}"))
    expected = sum(node.op_type in COMPUTE for node in load_model(model_path(name)).nodes())
    assert (found.integer, found.float_nodes, found.integer_share) == (expected, 0, 1.0)
    assert found.stayed_float == ()
    assert found.unmatched == ()


@pytest.mark.parametrize("name", ["cnn", "transformer", "mlp", "gru"])
def test_a_float_model_is_all_float_and_every_node_is_traced(name: str) -> None:
    found = kernels_of(name, model_path(name))
    assert found.integer == 0
    assert found.integer_share == 0
    assert found.unmatched == ()
    assert all(node.kernel for node in found.stayed_float), "fusions must not hide a node"
    assert sum(node.mac_share for node in found.stayed_float) == pytest.approx(1.0)
    assert len(found.stayed_float) == found.float_nodes


def test_a_recurrent_layer_that_stays_float_weighs_what_it_computes(quantized_gru: Path) -> None:
    found = kernels_of("gru", quantized_gru)
    [kept] = found.stayed_float
    gru, gemm = 8 * 3 * 96 * (8 + 96), 96 * 10  # 8 steps, 3 gates, 96 units, 8 inputs; the head
    assert (kept.node, kept.op, kept.kernel) == ("/gru", "GRU", "GRU")
    assert kept.mac_share == pytest.approx(gru / (gru + gemm))
    assert found.integer_share == pytest.approx(gemm / (gru + gemm))


def test_operators_are_counted_most_frequent_first(quantized_cnn: Path) -> None:
    found = kernels_of("cnn", quantized_cnn)
    assert found.by_kernel["QLinearConv"] == 7
    assert found.by_kernel["QGemm"] == 1
    counts = list(found.by_kernel.values())
    assert counts == sorted(counts, reverse=True)


def test_bytes_give_the_same_as_the_file(quantized_mlp: Path) -> None:
    assert kernels_of("mlp", quantized_mlp.read_bytes()) == kernels_of("mlp", quantized_mlp)


def test_reading_leaves_the_float_model_as_it_was(quantized_mlp: Path) -> None:
    model = load_model(model_path("mlp"))
    before = model.serialize()
    read_kernels(quantized_mlp, model, first_sample("mlp").feeds)
    assert model.serialize() == before


def test_dynamic_quantization_is_traced(tmp_path: Path) -> None:
    from onnxruntime.quantization import quantize_dynamic

    generator = np.random.default_rng(0)
    weights = {f"w{index}": generator.normal(size=(16, 16)).astype(np.float32) for index in (1, 10)}
    weights["b"] = np.ones(16, np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h1"], "mm_1"),
        helper.make_node("Add", ["h1", "b"], ["h"], "add"),
        helper.make_node("Relu", ["h"], ["r"], "relu"),
        helper.make_node("MatMul", ["r", "w10"], ["y"], "mm_10"),
    ]
    path = save(tmp_path / "float.onnx", nodes, weights, {"x": ["n", 16], "y": ["n", 16]})
    quantize_dynamic(path, tmp_path / "dynamic.onnx")
    found = read_kernels(tmp_path / "dynamic.onnx", load_model(path), {"x": np.ones((3, 16), np.float32)})
    assert (found.integer, found.integer_share, found.unmatched) == (2, 1.0, ())


def test_nodes_without_names_are_found_by_their_outputs(quantized_cnn: Path, tmp_path: Path) -> None:
    nameless = onnx.load(model_path("cnn"))
    for node in nameless.graph.node:
        node.name = ""
    onnx.save(nameless, tmp_path / "float.onnx")
    quantized = onnx.load(quantized_cnn)
    for node in quantized.graph.node:
        node.name = ""
    model = load_model(tmp_path / "float.onnx")
    found = read_kernels(quantized.SerializeToString(), model, first_sample("cnn").feeds)
    assert (found.integer, found.integer_share, found.unmatched) == (8, 1.0, ())
    partly = read_kernels(tmp_path / "float.onnx", model, first_sample("cnn").feeds)
    assert all(node.kernel for node in partly.stayed_float)
    assert {node.node for node in partly.stayed_float} == {
        node.outputs[0].name for node in model.graph if node.op_type in COMPUTE
    }


def test_a_half_quantized_model_gets_the_share_of_its_half(tmp_path: Path) -> None:
    """Two layers of 16x16 and 16x48 multiplications a row, of which the second is quantized."""
    from onnxruntime.quantization import quantize_dynamic

    weights = {"small": np.eye(16, dtype=np.float32), "large": np.ones((16, 48), np.float32)}
    nodes = [
        helper.make_node("MatMul", ["x", "small"], ["h"], "first"),
        helper.make_node("Relu", ["h"], ["r"], "relu"),
        helper.make_node("MatMul", ["r", "large"], ["y"], "second"),
    ]
    path = save(tmp_path / "float.onnx", nodes, weights, {"x": ["n", 16], "y": ["n", 48]})
    quantize_dynamic(path, tmp_path / "half.onnx", nodes_to_exclude=["first"])
    found = read_kernels(tmp_path / "half.onnx", load_model(path), {"x": np.ones((5, 16), np.float32)})
    assert (found.integer, found.float_nodes) == (1, 1)
    assert found.integer_share == pytest.approx(0.75)
    [kept] = found.stayed_float
    assert (kept.node, kept.output) == ("first", "h")
    assert kept.mac_share == pytest.approx(0.25)


def test_layers_inside_branches_are_counted(tmp_path: Path) -> None:
    def branch(name: str) -> onnx.GraphProto:
        node = helper.make_node("MatMul", ["x", "w"], [f"{name}_y"], f"{name}_mm")
        return helper.make_graph([node], name, [], [helper.make_tensor_value_info(f"{name}_y", 1, None)])

    choose = [
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Cast", ["sum"], ["yes"], to=TensorProto.BOOL),
        helper.make_node("If", ["yes"], ["y"], then_branch=branch("then"), else_branch=branch("else")),
    ]
    weights = {"w": np.eye(4, dtype=np.float32)}
    path = save(tmp_path / "if.onnx", choose, weights, {"x": [1, 4], "y": [1, 4]})
    found = read_kernels(path, load_model(path), {"x": np.ones((1, 4), np.float32)})
    assert (found.integer, found.float_nodes, found.integer_share) == (0, 2, 0.0)
    assert {node.node for node in found.stayed_float} == {"then_mm", "else_mm"}


def test_a_model_without_layers_has_no_integer_share(tmp_path: Path) -> None:
    path = save(tmp_path / "relu.onnx", [helper.make_node("Relu", ["x"], ["y"])], {}, {"x": [1, 4], "y": [1, 4]})
    found = read_kernels(path, load_model(path), {"x": np.ones((1, 4), np.float32)})
    assert (found.integer, found.float_nodes, found.integer_share, found.by_kernel) == (
        0,
        0,
        0.0,
        {"Relu": 1},
    )


def test_a_file_that_does_not_load_is_a_runtime_failure(tmp_path: Path) -> None:
    with pytest.raises(RuntimeFailure, match="cannot load"):
        read_kernels(b"not a model", load_model(model_path("mlp")), first_sample("mlp").feeds)


@pytest.mark.parametrize(
    ("op", "integers", "expected"),
    [
        ("QLinearConv", {}, True),
        ("DynamicQuantizeLSTM", {}, True),
        ("Conv", {}, False),
        ("FusedGemm", {}, False),
        ("MatMulNBits", {}, False),
        ("MatMulNBits", {"accuracy_level": 1}, False),
        ("MatMulNBits", {"accuracy_level": 4}, True),
    ],
)
def test_which_kernels_are_integer(op: str, integers: dict[str, int], expected: bool) -> None:
    assert is_integer(runtime_node(op, integers=integers)) is expected


def mlp_graph(*nodes: RuntimeNode, **fields: object) -> OptimizedGraph:
    return OptimizedGraph(nodes=nodes, **{"weights": {}, "shapes": {}, **fields})  # type: ignore[arg-type]


def test_what_cannot_be_traced_counts_as_float() -> None:
    feeds = first_sample("mlp").feeds
    stranger = mlp_graph(runtime_node("QGemm", "completely_different"))
    found = count_kernels(stranger, load_model(model_path("mlp")), feeds)
    assert (found.integer, found.integer_share) == (1, 0.0)
    assert found.unmatched == ("completely_different",)
    assert [node.kernel for node in found.stayed_float] == ["", "", ""]


def test_an_untraced_integer_node_counts_by_its_own_shapes_but_never_for_more_than_is_missing() -> None:
    model, feeds = load_model(model_path("mlp")), first_sample("mlp").feeds
    unknown = runtime_node("QGemm", "fused_elsewhere", inputs=("x", "packed"))
    fields = {"weights": {"packed": (64, 96)}, "shapes": {"fused_elsewhere_out": (1, 96)}}
    total = 64 * 128 + 128 * 64 + 64 * 10
    found = count_kernels(mlp_graph(unknown, **fields), model, feeds)
    assert found.integer_share == pytest.approx(64 * 96 / total)
    known = [runtime_node("Gemm", name) for name in ("/first/matmul", "/second")]
    found = count_kernels(mlp_graph(*known, unknown, **fields), model, feeds)
    assert found.integer_share == pytest.approx(64 * 10 / total)


def test_a_node_that_runs_as_two_is_integer_only_if_both_are() -> None:
    """The shape of an outlier split: most of a product in integers, a few columns in float."""
    model, feeds = load_model(model_path("mlp")), first_sample("mlp").feeds
    halves = [runtime_node("QLinearMatMul", "/second_integer"), runtime_node("MatMul", "/second_outliers")]
    found = count_kernels(mlp_graph(*halves), model, feeds)
    assert ("/second", "MatMul") in [(node.node, node.kernel) for node in found.stayed_float]
    found = count_kernels(mlp_graph(halves[0]), model, feeds)
    assert "/second" not in [node.node for node in found.stayed_float]


def test_shapes_of_the_sample_decide_the_share(tmp_path: Path) -> None:
    """x [n, 16] times a weight costs 256 n, the result times its own transpose 16 n²."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], "layer"),
        helper.make_node("Transpose", ["h"], ["t"], "turn"),
        helper.make_node("MatMul", ["h", "t"], ["y"], "scores"),
    ]
    path = save(tmp_path / "m.onnx", nodes, {"w": np.eye(16, dtype=np.float32)}, {"x": ["n", 16], "y": ["n", "n"]})
    for length, share in ((4, 0.8), (64, 0.2)):
        found = read_kernels(path, load_model(path), {"x": np.ones((length, 16), np.float32)})
        assert {node.node: node.mac_share for node in found.stayed_float}["layer"] == pytest.approx(share)
