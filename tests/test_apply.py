"""The quantized graph: the right axis, everything stored once, names kept, and onnxruntime agrees with itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from models import (
    Quantized,
    Stream,
    assert_equal,
    conv_net,
    dense_net,
    feeds_for,
    finished,
    floats,
    node,
    normal,
    operators,
    proto_of,
    quantized_of,
    recipe_of,
    run,
    sample_model,
    stream_for,
    wrapped,
)
from onnx import TensorProto, helper

from qcli.apply import apply_plan
from qcli.graph import Node
from qcli.kernels import read_kernels
from qcli.plan import make_plan
from qcli.plugins import create
from qcli.recipe import load_recipe
from qcli.types import Array


def reader_of(quantized: Quantized, name: str) -> Node:
    return next(item for item in quantized.model.nodes() if item.outputs[0].name == name)


def dequantizer(quantized: Quantized, codes: str) -> Node:
    [found] = [
        item for item in quantized.model.nodes() if item.inputs and item.inputs[0] and item.inputs[0].name == codes
    ]
    assert found.op_type == "DequantizeLinear"
    return found


def checked(proto: onnx.ModelProto, quantized: Quantized, tolerance: float = 0.06) -> dict[str, Array]:
    """Valid, and near the float model with the runtime's optimizations on and off, which agree."""
    onnx.checker.check_model(quantized.model.proto(), full_check=True)
    result: dict[str, Array] = {}
    for seed in (0, 1):  # two of the calibration samples, so that nothing is clipped
        feeds = feeds_for(quantized.source, seed)
        written, optimized = (run(quantized.model, feeds, optimize=optimize) for optimize in (False, True))
        assert_equal(run(proto, feeds), written, tolerance=tolerance)
        assert_equal(written, optimized, tolerance=0.02)
        result = written
    return result


AXES = {
    "Conv": (node("Conv", "x w", "y"), [2, 4, 5, 5], (6, 4, 3, 3), 0),
    "Conv in groups": (node("Conv", "x w", "y", group=2), [2, 4, 5, 5], (6, 2, 3, 3), 0),
    "Conv in one dimension": (node("Conv", "x w", "y"), [2, 4, 9], (6, 4, 3), 0),
    "Gemm": (node("Gemm", "x w", "y"), [2, 4], (4, 6), 1),
    "Gemm transB": (node("Gemm", "x w", "y", transB=1), [2, 4], (6, 4), 0),
    "MatMul": (node("MatMul", "x w", "y"), [2, 3, 4], (4, 6), 1),
}


@pytest.mark.parametrize("kind", AXES)
def test_scales_lie_along_the_output_channels(kind: str) -> None:
    """FIELD B 14 and 15: channels of very different size show at once if the axis is wrong."""
    made, data, shape, axis = AXES[kind]
    sizes = np.logspace(-3, 3, 6).reshape([6 if at == axis else 1 for at in range(len(shape))])
    proto = proto_of([made], {"x": data}, {"y": None}, {"w": (normal(0, *shape) * sizes).astype(np.float32)})
    quantized = quantized_of(proto)
    weight = dequantizer(quantized, "w_q")
    assert weight.attributes["axis"].as_int() == axis
    assert weight.inputs[1].const_value.numpy().shape == (6,)  # type: ignore[union-attr]
    checked(proto, quantized)
    feeds = feeds_for(quantized.source)
    expected, found = run(proto, feeds)["y"], run(quantized.model, feeds)["y"]
    channel = 1 if "Conv" in kind else -1
    if "Gemm" in kind or kind == "MatMul":
        for one, other in zip(np.moveaxis(expected, channel, 0), np.moveaxis(found, channel, 0), strict=True):
            np.testing.assert_allclose(other, one, atol=np.abs(one).max() * 0.15)


def test_a_transposed_convolution_stays_float_and_right_and_its_weight_is_stored_as_codes() -> None:
    weights = {"w": normal(0, 4, 3, 1, 1), "t": normal(1, 4, 6, 2, 2)}
    nodes = [node("Conv", "x w", "c"), node("ConvTranspose", "c t", "y", strides=[2, 2])]
    proto = proto_of(nodes, {"x": [1, 3, 4, 4]}, {"y": None}, weights)
    quantized = quantized_of(proto)
    [kept] = quantized.plan.kept_float
    assert kept.reason == "it has no integer kernel; its weight is stored as int8"
    stored = quantized.model.graph.initializers
    assert "t" not in stored and stored["t_q"].const_value.dtype.numpy() == np.int8  # type: ignore[union-attr]
    checked(proto, quantized)


@pytest.mark.parametrize("recipe", ["int8", "int8-minmax", "int8-per-tensor"])
@pytest.mark.parametrize("net", [conv_net, dense_net])
def test_whole_networks(net: type, recipe: str) -> None:
    proto: onnx.ModelProto = net()
    checked(proto, quantized_of(proto, recipe), tolerance=0.12)


def test_weights_are_stored_as_codes_alone() -> None:
    """FIELD B 25: float weights kept behind Q/DQ make the file no smaller."""
    quantized = quantized_of(conv_net())
    stored = {name: value.const_value.dtype.numpy() for name, value in quantized.model.graph.initializers.items()}  # type: ignore[union-attr]
    assert {"w1_q", "w2_q", "w3_q", "w4_q"} <= set(stored) and not {"w1", "w2", "w3", "w4", "b1", "b4"} & set(stored)
    assert all(stored[f"w{index}_q"] == np.int8 for index in (1, 2, 3, 4))
    assert stored["b1_q"] == np.int32


@pytest.mark.parametrize("recipe", ["int8", "int8-weights", "int8-dynamic"])
def test_the_file_states_no_shapes_but_those_of_inputs_and_outputs(recipe: str) -> None:
    """Neither in the main graph nor in a body: any reader infers them."""
    body = helper.make_graph([node("MatMul", "s v", "t"), node("Relu", "t", "u")], "then", [], [floats("u", None)])
    other = helper.make_graph([node("Neg", "s", "m"), node("Exp", "m", "e")], "else", [], [floats("e", None)])
    nodes = [node("MatMul", "x w", "s"), node("If", "which", "y", then_branch=body, else_branch=other)]
    proto = proto_of(nodes, {"x": [2, 24]}, {"y": None}, {"w": normal(0, 24, 24), "v": normal(1, 24, 24)})
    proto.graph.input.append(floats("which", [], TensorProto.BOOL))
    samples = tuple({"x": normal(seed, 2, 24), "which": np.array(seed % 2 == 0)} for seed in range(4))
    written = quantized_of(proto, recipe, stream=Stream(samples)).model.proto()
    bodies = [attribute.g for item in written.graph.node for attribute in item.attribute if attribute.HasField("g")]
    assert len(bodies) == 2
    assert [info.name for graph in (written.graph, *bodies) for info in graph.value_info] == []


def test_a_weight_that_several_layers_read_is_stored_once() -> None:
    """FIELD B 24."""
    nodes = [node("Gemm", "x w", "a"), node("Gemm", "z w", "b")]
    proto = proto_of(nodes, {"x": [2, 8], "z": [3, 8]}, {"a": None, "b": None}, {"w": normal(0, 8, 8)})
    quantized = quantized_of(proto)
    assert [name for name in quantized.model.graph.initializers if name.startswith("w")] == ["w_q", "w_scale", "w_zero"]
    assert operators(quantized.model).count("DequantizeLinear") == 3
    checked(proto, quantized)


def test_a_weight_that_a_float_node_reads_too_stays_for_it() -> None:
    nodes = [node("Gemm", "x w", "a"), node("Tanh", "w", "t"), node("Gemm", "x t", "b")]
    proto = proto_of(nodes, {"x": [2, 8]}, {"a": None, "b": None}, {"w": normal(0, 8, 8)})
    quantized = quantized_of(proto)
    assert {"w", "w_q"} <= set(quantized.model.graph.initializers)
    checked(proto, quantized)


def test_one_weight_read_along_two_axes() -> None:
    nodes = [node("Gemm", "x w", "a"), node("Gemm", "x w", "b", transB=1)]
    proto = proto_of(nodes, {"x": [2, 8]}, {"a": None, "b": None}, {"w": normal(0, 8, 8)})
    checked(proto, quantized_of(proto))


def test_zero_points_are_stored_once() -> None:
    quantized = quantized_of(conv_net())
    zeros = [name for name in quantized.model.graph.initializers if name.startswith("zero")]
    assert len(zeros) < operators(quantized.model).count("DequantizeLinear")


def test_inputs_and_outputs_keep_names_types_and_shapes() -> None:
    proto = conv_net()
    proto.graph.output.extend([floats("a", ["n", 8, 8, 8]), floats("f", ["n", 8])])
    quantized = quantized_of(proto)
    again = quantized.model.proto().graph
    assert [item.SerializeToString() for item in again.input] == [
        item.SerializeToString() for item in proto.graph.input
    ]
    assert [item.name for item in again.output] == ["y", "a", "f"]
    assert [item.type.SerializeToString() for item in again.output] == [
        item.type.SerializeToString() for item in proto.graph.output
    ]
    checked(proto, quantized, tolerance=0.12)


def test_a_network_that_ends_in_a_convolution_keeps_its_output() -> None:
    proto = proto_of(
        [node("Conv", "x w", "c"), node("Relu", "c", "y")],
        {"x": ["n", 3, 4, 4]},
        {"y": ["n", 4, 4, 4]},
        {"w": normal(0, 4, 3, 1, 1)},
    )
    quantized = quantized_of(proto)
    assert quantized.model.outputs() == ("y",) and operators(quantized.model)[-1] == "DequantizeLinear"
    checked(proto, quantized)


@pytest.mark.parametrize("taken", ["y_float", "x_q", "x_dq", "w_q", "x_scale", "c_scale", "zero_uint8_128", "y_dq"])
def test_names_that_are_taken_already_do_no_harm(taken: str) -> None:
    weights = {"w": normal(0, 4, 3, 1, 1), "other": normal(1, 4, 1, 1)}
    nodes = [
        node("Conv", "x w", "c"),
        node("Exp", "c", taken),
        node("Sub", f"{taken} other", "s"),
        node("Conv", "s v", "y"),
    ]
    weights["v"] = normal(2, 4, 4, 1, 1)
    proto = proto_of(nodes, {"x": [2, 3, 4, 4]}, {"y": None, taken: None}, weights)
    quantized = quantized_of(proto)
    assert quantized.model.outputs() == ("y", taken)
    checked(proto, quantized)


@pytest.mark.parametrize("name", ["x_q", "w_scale", "zero_int8_0"])
def test_inputs_whose_names_look_like_ours_keep_them(name: str) -> None:
    proto = proto_of([node("Gemm", f"{name} w", "y")], {name: [2, 4]}, {"y": None}, {"w": normal(0, 4, 4)})
    quantized = quantized_of(proto)
    assert [spec.name for spec in quantized.model.inputs()] == [name]
    checked(proto, quantized)


ABSORBED = {
    "Relu": [node("Relu", "c", "r")],
    "Clip": [node("Clip", "c zero six", "r")],
    "Clip without a lower bound": [node("Relu", "c", "p"), node("Clip", "p - six", "r")],
    "Max": [node("Max", "zero c", "r")],
    "Max and Min": [node("Max", "c zero", "p"), node("Min", "six p", "r")],
}
BOUNDS = {"zero": np.array(0, np.float32), "six": np.array(2, np.float32)}


@pytest.mark.parametrize("kind", ABSORBED)
def test_what_the_grid_saturates_anyway_is_gone(kind: str) -> None:
    weights = {"w": normal(0, 4, 3, 1, 1), "v": normal(1, 4, 4, 1, 1)} | BOUNDS
    proto = proto_of(
        [node("Conv", "x w", "c"), *ABSORBED[kind], node("Conv", "r v", "y")], {"x": [2, 3, 6, 6]}, {"y": None}, weights
    )
    quantized = quantized_of(proto)
    assert not {"Relu", "Clip", "Max", "Min"} & set(operators(quantized.model))
    checked(proto, quantized)


@pytest.mark.parametrize(
    "made",
    [
        node("Clip", "c low six", "r"),
        node("Max", "c low", "r"),
        node("Clip", "c half six", "r"),
        node("Min", "c low", "r"),
    ],
)
def test_what_the_grid_does_not_saturate_stays(made: onnx.NodeProto) -> None:
    """A lower bound other than zero is not where the codes end, since zero must be a level."""
    bounds = BOUNDS | {"low": np.array(-0.25, np.float32), "half": np.array(0.5, np.float32)}
    weights = {"w": normal(0, 4, 3, 1, 1), "v": normal(1, 4, 4, 1, 1)} | bounds
    proto = proto_of(
        [node("Conv", "x w", "c"), made, node("Conv", "r v", "y")], {"x": [2, 3, 6, 6]}, {"y": None}, weights
    )
    checked(proto, quantized_of(proto))


def test_a_clip_that_is_also_an_output() -> None:
    weights = {"w": normal(0, 4, 3, 1, 1), "v": normal(1, 4, 4, 1, 1)}
    nodes = [node("Conv", "x w", "c"), node("Relu", "c", "r"), node("Conv", "r v", "y")]
    proto = proto_of(nodes, {"x": [2, 3, 6, 6]}, {"y": None, "r": None, "c": None}, weights)
    quantized = quantized_of(proto)
    assert quantized.model.outputs() == ("y", "r", "c")
    checked(proto, quantized)


def test_relu_whose_input_is_an_output_too() -> None:
    weights = {"w": normal(0, 4, 3, 1, 1)}
    proto = proto_of(
        [node("Conv", "x w", "c"), node("Relu", "c", "y")], {"x": [2, 3, 4, 4]}, {"y": None, "c": None}, weights
    )
    checked(proto, quantized_of(proto))


def test_an_input_that_is_an_output_too() -> None:
    proto = proto_of([node("Gemm", "x w", "y")], {"x": [2, 4]}, {"y": None, "x": [2, 4]}, {"w": normal(0, 4, 4)})
    quantized = quantized_of(proto)
    feeds = feeds_for(quantized.source)
    np.testing.assert_array_equal(run(quantized.model, feeds)["x"], feeds["x"])


def test_one_value_read_by_an_integer_and_a_float_node() -> None:
    proto = proto_of(
        [node("Gemm", "x w", "a"), node("Exp", "x", "b"), node("Add", "a b", "y")],
        {"x": [2, 4]},
        {"y": None},
        {"w": normal(0, 4, 4)},
    )
    quantized = quantized_of(proto)
    exp = next(item for item in quantized.model.nodes() if item.op_type == "Exp")
    assert exp.inputs[0] is not None and exp.inputs[0].name == "x", "the float node reads the value itself"
    checked(proto, quantized)


def test_equal_edges_are_shared() -> None:
    nodes = [node("Gemm", "x w", "a"), node("Gemm", "x v", "b"), node("Exp", "x", "e")]
    proto = proto_of(
        nodes, {"x": [2, 4]}, {"a": None, "b": None, "e": None}, {"w": normal(0, 4, 4), "v": normal(1, 4, 4)}
    )
    assert operators(quantized_of(proto).model).count("QuantizeLinear") == 1


def test_the_model_given_is_not_changed() -> None:
    quantized = quantized_of(conv_net())
    before = quantized.source.serialize()
    apply_plan(quantized.source, quantized.plan, quantized.solution)
    assert quantized.source.serialize() == before


def test_twice_gives_the_same_bytes() -> None:
    assert quantized_of(conv_net()).model.serialize() == quantized_of(conv_net()).model.serialize()


def test_a_constant_operand_is_stored_as_codes() -> None:
    weights = {"w": normal(0, 4, 3, 1, 1), "v": normal(1, 4, 4, 1, 1), "k": normal(2, 4, 1, 1)}
    nodes = [node("Conv", "x w", "c"), node("Mul", "k c", "m"), node("Add", "m k", "a"), node("Conv", "a v", "y")]
    proto = proto_of(nodes, {"x": [2, 3, 6, 6]}, {"y": None}, weights)
    quantized = quantized_of(proto)
    assert "k" not in quantized.model.graph.initializers
    checked(proto, quantized)


def test_saturating_weights_of_a_sample_model_agree_with_the_unoptimized_graph() -> None:
    """FIELD B 19: the same model right with VNNI and wrong with AVX2."""
    model = sample_model("cnn")
    create("steps", "fold_batchnorm").run(model)
    quantized = finished(model, make_plan(model, load_recipe("int8")), stream_for(model))
    for seed in range(20, 24):
        feeds = feeds_for(model, seed)
        written, optimized = (run(quantized.model, feeds, optimize=optimize)["logits"] for optimize in (False, True))
        np.testing.assert_allclose(optimized, written, atol=0.03 * np.abs(written).max())


@pytest.mark.parametrize("name", ["cnn", "mlp", "transformer"])
def test_the_runtime_may_use_its_precise_kernels(name: str) -> None:
    """`session.x64quantprecision` turns signed weights into unsigned ones, zero point by zero point."""
    source = sample_model(name)
    feeds = feeds_for(source)
    content = finished(source, make_plan(source, load_recipe("int8")), stream_for(source)).model.serialize()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.x64quantprecision", "1")
    [precise] = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"]).run(None, feeds)
    [usual] = run(content, feeds, optimize=True).values()
    np.testing.assert_allclose(precise, usual, rtol=0, atol=np.abs(usual).max() * 1e-5)


@pytest.mark.parametrize("behind", ["", "Relu"])
@pytest.mark.parametrize("layer", ["Conv", "ConvTranspose"])
def test_a_layer_that_is_kept_float_stays_float_in_the_runtime(layer: str, behind: str, tmp_path: Path) -> None:
    """Left to itself, onnxruntime quantizes the float weights between DequantizeLinear and QuantizeLinear."""
    weights = {"w1": normal(0, 8, 3, 3, 3), "w2": normal(1, 8, 8, 3, 3), "w3": normal(2, 4, 8, 1, 1)}
    weights["w2"][0] *= 100
    nodes = [node("Conv", "x w1", "a"), node(layer, "a w2", "b", name="/middle")]
    nodes += [node(behind, "b", "r")] if behind else []
    nodes += [node("Conv", f"{'r' if behind else 'b'} w3", "y")]
    proto = proto_of(nodes, {"x": [1, 3, 12, 12]}, {"y": None}, weights)
    keep = "version: 1\nextends: int8-minmax\nrules: [{match: {name: /middle}, keep: float}]\n"
    quantized = quantized_of(proto, recipe_of(keep, tmp_path)).model.serialize()
    found = read_kernels(quantized, wrapped(proto), feeds_for(wrapped(proto)))
    assert [kernel.node for kernel in found.stayed_float] == ["/middle"]
    assert_equal(
        run(quantized, feeds_for(wrapped(proto))),
        run(quantized, feeds_for(wrapped(proto)), optimize=True),
        tolerance=0.01,
    )
