"""Weights as integers: every operator computes what the decoded weights say, and the file holds the codes alone."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from codes import (
    EXACT,
    constants,
    decoded,
    float_weights,
    kernels_of,
    node_at,
    reasons,
    stored_of,
    weights_of,
    with_decoded_weights,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from models import Shape, assert_equal, feeds_for, node, normal, operators, proto_of, quantized_of, run
from onnx import TensorProto, helper
from weight_cases import CASES, MICROSOFT, Case

from qcli.errors import NothingToDoError
from qcli.graph import constant_of
from qcli.kernels import read_kernels
from qcli.plugins import create
from qcli.solve import site_key
from qcli.types import Array

RUN = "rules=[{match: {role: weight}, encoding: {weight_only: {decode: run}}}]"
ASYMMETRIC = "rules=[{match: {role: weight}, grid: {format: int8, symmetric: false, granularity: channel}}]"
BLOCKS = "rules=[{match: {role: weight}, grid: {format: int8, granularity: block, block: 6}}]"
ASYMMETRIC_BLOCKS = (
    "rules=[{match: {role: weight}, grid: {format: uint8, symmetric: false, granularity: block, block: 6}}]"
)


def running(setting: str) -> str:
    """The setting of one rule, with DequantizeLinear at every run."""
    return setting.replace("}]", ", encoding: {weight_only: {decode: run}}}]")


PER_TENSOR = "rules=[{match: {role: weight}, grid: {format: int8, symmetric: true, narrow: true}}]"
ASYMMETRIC_TENSOR = "rules=[{match: {role: weight}, grid: {format: int8, symmetric: false}}]"


@pytest.mark.parametrize(
    "chosen",
    [
        (), (RUN,), (ASYMMETRIC,), (PER_TENSOR,),
        (BLOCKS,), (ASYMMETRIC_BLOCKS,), (running(BLOCKS),), (running(ASYMMETRIC_BLOCKS),),
    ],
    ids=["load", "run", "asym", "tensor", "blocks", "asym blocks", "blocks run", "asym blocks run"],
)  # fmt: skip
@pytest.mark.parametrize("name", CASES)
def test_the_result_is_that_of_the_decoded_weights(name: str, chosen: tuple[str, ...]) -> None:
    case = CASES[name]
    proto = case.proto(21 if "block" in str(chosen) else 17)
    if name == "RNN":  # too small for smaller blocks to save bytes
        chosen = tuple(one.replace("block: 6", "block: 8") for one in chosen)
    quantized = stored_of(proto, settings=(EXACT, *chosen), feeds=case.inputs())
    assert [operand for _, operand, _ in weights_of(quantized)] == list(case.stored)
    reference = with_decoded_weights(quantized)
    for seed in (0, 7):
        feeds = case.inputs(seed)
        expected = run(reference, feeds)
        assert_equal(expected, run(quantized.model, feeds), tolerance=1e-5, what=name)
        blocks = 0.03 if "run" in str(chosen) else 1e-4  # onnxruntime makes MatMulNBits of DequantizeLinear and MatMul
        assert_equal(expected, run(quantized.model, feeds, optimize=True), tolerance=blocks, what=name)
        assert_equal(run(proto, feeds), expected, tolerance=0.1, what=name)
    left = constants(quantized.model)
    assert not {case.node.input[operand] for operand in case.stored} & set(left), "the float form is gone"
    if not case.node.domain:
        onnx.checker.check_model(quantized.model.proto(), full_check=True)
    assert tuple(run(proto, case.inputs())) == quantized.model.outputs()


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.axis is not None])
def test_scales_lie_along_the_channels_of_the_result(name: str) -> None:
    """Channels of very different size: a wrong axis loses the small ones."""
    case = CASES[name]
    weights = dict(case.weights)
    for operand in case.stored:
        label = case.node.input[operand]
        shape = [1] * weights[label].ndim
        shape[case.axis or 0] = -1
        sizes = np.logspace(-3, 0, weights[label].shape[case.axis or 0]).reshape(shape)
        weights[label] = (weights[label] * sizes).astype(np.float32)
    changed = Case(case.node, case.data, weights, case.stored, case.feeds, case.axis)
    quantized = stored_of(changed.proto(), settings=(EXACT,), feeds=case.inputs())
    for entry in quantized.plan.entries:
        assert entry.grid.axis == case.axis
        weight = weights[case.node.input[entry.site.operand]]
        real = decoded(quantized.plan, quantized.solution, entry.site.node, entry.site.operand)
        others = tuple(at for at in range(weight.ndim) if at != case.axis)
        error, size = np.abs(real - weight).max(axis=others), np.abs(weight).max(axis=others)
        assert (error <= size / 127 * 0.51).all()


@pytest.mark.parametrize("chosen", [(), (ASYMMETRIC,), (PER_TENSOR,), (BLOCKS,), (ASYMMETRIC_BLOCKS,)])
def test_onnxruntime_decodes_once_when_it_loads(chosen: tuple[str, ...]) -> None:
    """With `decode: load` the optimized graph is that of the float model; with `run` it is not."""
    proto = proto_of(
        [node("MatMul", "x w", "m"), node("Relu", "m", "r"), node("Gemm", "r v b", "y")],
        {"x": ["n", 16]}, {"y": None}, {"w": normal(0, 16, 16), "v": normal(1, 16, 16), "b": normal(2, 16)},
    )  # fmt: skip
    quantized = stored_of(proto, settings=chosen)
    as_float = read_kernels(proto.SerializeToString(), quantized.source, feeds_for(quantized.source))
    assert kernels_of(quantized).by_kernel == as_float.by_kernel
    each_time = kernels_of(stored_of(proto, settings=(*chosen, RUN))).by_kernel
    assert each_time.get("DequantizeLinear", 0) + each_time.get("MatMulNBits", 0) == 2


def test_rows_are_fetched_as_codes() -> None:
    """Only what was fetched is decoded, in either way of decoding."""
    case = CASES["Gather"]
    for chosen in ((), (RUN,), (PER_TENSOR,)):
        quantized = stored_of(case.proto(), settings=chosen, feeds=case.inputs())
        assert operators(quantized.model) == ["Gather", "Cast", "Mul"]
        gather, _, scale = quantized.model.graph
        codes = constant_of(gather.inputs[0])
        assert codes is not None and codes.dtype == np.int8
        assert scale.name == "/y", "what gives the result keeps the name"
        assert kernels_of(quantized, case.inputs()).by_kernel == {"Gather": 1, "Cast": 1, "Mul": 1}


def test_rows_with_a_zero_point_of_their_own_are_decoded_first() -> None:
    quantized = stored_of(CASES["Gather"].proto(), settings=(ASYMMETRIC,), feeds=CASES["Gather"].inputs())
    assert operators(quantized.model) == ["Cast", "Sub", "Mul", "Gather"]


def test_a_fetched_row_that_a_body_reads_too() -> None:
    """The values of a Gather are read by a node, by a body, and by the caller."""
    then = helper.make_graph([node("Neg", "e", "t")], "then", [], [helper.make_tensor_value_info("t", 1, None)])
    other = helper.make_graph([node("Exp", "e", "o")], "else", [], [helper.make_tensor_value_info("o", 1, None)])
    nodes = [
        node("Gather", "w i", "e"),
        node("Relu", "e", "r"),
        node("If", "which", "y", then_branch=then, else_branch=other),
    ]
    proto = proto_of(nodes, {}, {"y": None, "r": None, "e": None}, {"w": normal(0, 32, 12)})
    proto.graph.input.append(helper.make_tensor_value_info("i", TensorProto.INT64, [3]))
    proto.graph.input.append(helper.make_tensor_value_info("which", TensorProto.BOOL, []))
    for which in (True, False):
        feeds = {"i": np.array([1, 31, 0]), "which": np.array(which)}
        quantized = stored_of(proto, feeds=feeds)
        assert_equal(run(with_decoded_weights(quantized), feeds), run(quantized.model, feeds), tolerance=1e-6)
        assert quantized.model.outputs() == ("y", "r", "e")


def test_a_weight_that_several_nodes_read_is_stored_and_decoded_once() -> None:
    weights = {"w": normal(0, 16, 16)}
    nodes = [node("MatMul", "x w", "a"), node("MatMul", "a w", "b"), node("Gemm", "b w", "y")]
    for chosen in ((), (RUN,)):
        quantized = stored_of(proto_of(nodes, {"x": [2, 16]}, {"y": None}, weights), settings=chosen)
        assert [
            name for name, array in constants(quantized.model).items() if array.dtype == np.int8 and array.ndim > 1
        ] == ["w_q"]
        assert operators(quantized.model).count("DequantizeLinear" if chosen else "Cast") == 1
        feeds = feeds_for(quantized.source)
        assert_equal(run(with_decoded_weights(quantized), feeds), run(quantized.model, feeds), tolerance=1e-5)


def test_rows_and_products_of_one_table() -> None:
    """An embedding that is also the matrix of the last layer."""
    nodes = [node("Gather", "w i", "e"), node("Gemm", "e w", "y", transB=1)]
    proto = proto_of(nodes, {}, {"y": None}, {"w": normal(0, 32, 12)})
    proto.graph.input.append(helper.make_tensor_value_info("i", TensorProto.INT64, [3]))
    feeds = {"i": np.array([1, 31, 0])}
    quantized = stored_of(proto, feeds=feeds)
    assert_equal(run(with_decoded_weights(quantized), feeds), run(quantized.model, feeds), tolerance=1e-5)
    assert float_weights(quantized.model) == []


def test_a_weight_that_a_reader_needs_in_float_stays_float() -> None:
    """Codes beside the float form would make the file larger."""
    nodes = [node("MatMul", "x w", "a"), node("Add", "w a", "y", name="sum")]
    proto = proto_of(nodes, {"x": [16, 16]}, {"y": None}, {"w": normal(0, 16, 16)})
    with pytest.raises(NothingToDoError) as caught:
        stored_of(proto)
    assert "also needed in float by 'sum' (Add)" in caught.value.hint


def test_a_weight_that_is_an_output_stays_float() -> None:
    proto = proto_of([node("MatMul", "x w", "y")], {"x": [2, 16]}, {"y": None}, {"w": normal(0, 16, 16)})
    proto.graph.output.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [16, 16]))
    with pytest.raises(NothingToDoError) as caught:
        stored_of(proto)
    assert "also needed in float by an output of the model" in caught.value.hint


def test_a_weight_that_is_integer_for_one_node_and_float_for_another() -> None:
    """A static product and a product that the recipe leaves to floats read one matrix: each gets its own form."""
    nodes = [node("MatMul", "x w", "a"), node("Exp", "a", "e"), node("MatMul", "e w", "y", name="last")]
    proto = proto_of(nodes, {"x": [4, 16]}, {"y": None}, {"w": normal(0, 16, 16) / 16})
    keeps = "rules=[{match: {name: last, role: input}, keep: float}]"
    quantized = quantized_of(proto, settings=(keeps,))
    assert weights_of(quantized) == [("a", 1, "qdq"), ("y", 1, "weight_only")]
    feeds = feeds_for(quantized.source)
    assert_equal(run(proto, feeds), run(quantized.model, feeds), tolerance=0.05)
    assert_equal(run(proto, feeds), run(quantized.model, feeds, optimize=True), tolerance=0.05)
    assert float_weights(quantized.model) == []
    assert reasons(quantized)["y"].endswith("; its weight is stored as int8")


def test_small_weights_and_scalars_are_left_with_a_reason() -> None:
    weights = {"w": normal(0, 16, 16), "small": normal(1, 16, 4), "one": np.array(2, np.float32)}
    nodes = [node("MatMul", "x w", "a"), node("Mul", "a one", "m"), node("MatMul", "m small", "y")]
    quantized = stored_of(proto_of(nodes, {"x": [2, 16]}, {"y": None}, weights))
    assert weights_of(quantized) == [("a", 1, "weight_only")]
    assert reasons(quantized)["y"].endswith("; its weight is too small for integers to save bytes")
    assert "weight" not in reasons(quantized)["m"], "a scalar is no weight"
    assert {"small", "one"} <= set(constants(quantized.model))


LEFT: dict[str, tuple[onnx.NodeProto, dict[str, Shape], dict[str, Array]]] = {
    "PRelu by channel": (node("PRelu", "x w", "y"), {"x": [1, 200, 2, 2]}, {"w": normal(0, 200, 1, 1)}),
    "SkipLayerNormalization": (
        node("SkipLayerNormalization", "x s g b", "y", domain=MICROSOFT),
        {"x": [1, 2, 200], "s": [1, 2, 200]},
        {"g": normal(0, 200), "b": normal(1, 200)},
    ),
    "Gelu": (node("Gelu", "x", "y", domain=MICROSOFT), {"x": [2, 16]}, {}),
    "BiasGelu": (node("BiasGelu", "x b", "y", domain=MICROSOFT), {"x": [2, 200]}, {"b": normal(0, 200)}),
    "LayerNormalization": (node("LayerNormalization", "x g", "y"), {"x": [2, 200]}, {"g": normal(0, 200)}),
    "a product with a vector": (node("MatMul", "x w", "y"), {"x": [2, 200]}, {"w": normal(0, 200)}),
}


@pytest.mark.parametrize("name", LEFT)
def test_vectors_and_gains_stay_float(name: str) -> None:
    made, data, weights = LEFT[name]
    proto = proto_of([made], data, {"y": None}, weights)
    proto.opset_import.append(helper.make_opsetid(MICROSOFT, 1))
    with pytest.raises(NothingToDoError):
        stored_of(proto)


TABLES: dict[str, tuple[onnx.NodeProto, Array]] = {
    "anchors that are added": (node("Add", "a t", "y"), np.mgrid[0:16, 0:16].reshape(2, 16, 16).astype(np.float32) * 8),
    "strides": (node("Mul", "a t", "y"), np.repeat(np.array([8, 16], np.float32), 128).reshape(2, 8, 16)[:, :1]),
    "a mask": (node("Add", "t a", "y"), np.triu(np.full((16, 16), -1e9, np.float32), 1) + normal(3, 16, 16)),
    "a choice": (node("Where", "which a t", "y"), normal(3, 2, 16, 16) * 100),
    "boxes that are joined": (node("Concat", "a t", "y", axis=0), normal(3, 2, 16, 16) * 100),
    "a grid to sample at": (node("GridSample", "i t", "y"), np.clip(normal(3, 1, 16, 16, 2), -1, 1)),
}


@pytest.mark.parametrize("kind", TABLES)
def test_tables_of_positions_are_no_weights(kind: str) -> None:
    """They say where something is; eight bits would move it."""
    made, table = TABLES[kind]
    weights: dict[str, Array] = {
        "w": normal(0, 16, 16),
        "t": table,
        "which": normal(1, 16) > 0,
        "i": normal(2, 1, 1, 9, 9),
    }
    kept = {name: array for name, array in weights.items() if name in {"w", *made.input}}
    nodes = [node("MatMul", "x w", "a"), made] + ([node("Neg", "a", "z")] if "a" not in made.input else [])
    results: dict[str, Shape | None] = {"y": None} | ({"z": None} if len(nodes) == 3 else {})
    quantized = stored_of(proto_of(nodes, {"x": [2, 16, 16]}, results, kept))
    assert weights_of(quantized) == [("a", 1, "weight_only")]
    np.testing.assert_array_equal(constants(quantized.model)["t"], table)


def test_a_zero_point_costs_a_subtraction_and_nothing_else() -> None:
    weights = {"w": np.abs(normal(0, 16, 16))}
    proto = proto_of([node("MatMul", "x w", "y")], {"x": [2, 16]}, {"y": None}, weights)
    plain, shifted = stored_of(proto), stored_of(proto, settings=(EXACT, ASYMMETRIC))
    assert operators(plain.model) == ["Cast", "Mul", "MatMul"]
    assert operators(shifted.model) == ["Cast", "Sub", "Mul", "MatMul"]
    [found] = [decoded(one.plan, one.solution, "y", 1) for one in (shifted,)]
    assert np.abs(found - weights["w"]).max() < np.abs(weights["w"]).max() / 254 * 1.1, "twice as fine for one sign"


def test_a_weight_in_a_body_is_stored_there() -> None:
    """A Loop multiplies by a weight of its body, and by one of the main graph."""
    body = helper.make_graph(
        [
            node("MatMul", "s inner", "a"),
            node("MatMul", "a outer", "b"),
            node("Tanh", "b", "t"),
            node("Identity", "c", "d"),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
            helper.make_tensor_value_info("s", TensorProto.FLOAT, [2, 16]),
        ],
        [helper.make_tensor_value_info("d", TensorProto.BOOL, []), helper.make_tensor_value_info("t", 1, [2, 16])],
        [onnx.numpy_helper.from_array(normal(0, 16, 16) / 4, "inner")],
    )  # fmt: skip
    weights = {"outer": normal(1, 16, 16) / 4, "rounds": np.array(3), "go": np.array(True)}
    proto = proto_of([node("Loop", "rounds go x", "y", body=body)], {"x": [2, 16]}, {"y": None}, weights)
    for chosen in ((), (RUN,), (ASYMMETRIC,)):
        quantized = stored_of(proto, settings=chosen)
        assert {name for name, _, _ in weights_of(quantized)} == {"a", "b"}
        feeds = feeds_for(quantized.source)
        expected = run(with_decoded_weights(quantized), feeds)
        assert_equal(expected, run(quantized.model, feeds), tolerance=1e-5)
        assert_equal(expected, run(quantized.model, feeds, optimize=True), tolerance=0.03 if chosen == (RUN,) else 1e-5)
        assert float_weights(quantized.model) == []
        loop = node_at(quantized.model, "y")
        inside = loop.attributes["body"].as_graph()
        assert "inner_q" in inside.initializers and "outer_q" in quantized.model.graph.initializers


@settings(max_examples=40)
@given(
    shape=st.tuples(st.integers(8, 20), st.integers(8, 20)),
    seed=st.integers(0, 2**20),
    decades=st.integers(0, 6),
    symmetric=st.booleans(),
    channel=st.booleans(),
)
def test_every_weight_lies_within_half_a_step(
    shape: tuple[int, int], seed: int, decades: int, symmetric: bool, channel: bool
) -> None:
    """Whatever the grid, if its range is that of the weights; and zero stays zero."""
    weight = (normal(seed, *shape) * np.logspace(0, decades, shape[1])).astype(np.float32)
    weight[0, 0] = 0
    grid = f"{{format: int8, symmetric: {str(symmetric).lower()}, granularity: {'channel' if channel else 'tensor'}}}"
    proto = proto_of([node("MatMul", "x w", "y")], {"x": [2, shape[0]]}, {"y": None}, {"w": np.tile(weight, (1, 8))})
    rule = f"rules=[{{match: {{role: weight}}, range: minmax, grid: {grid}}}]"
    quantized = stored_of(proto, settings=(rule,))
    [entry] = quantized.plan.entries
    steps = quantized.solution.scales[site_key(entry)].scale.astype(np.float64)
    real = decoded(quantized.plan, quantized.solution, "y", 1)
    error = np.abs(real.astype(np.float64) - np.tile(weight, (1, 8)))
    assert (error <= steps * 0.501).all()
    assert real[0, 0] == 0
    fed = {"x": np.eye(2, shape[0], dtype=np.float32)}
    np.testing.assert_allclose(run(quantized.model, fed)["y"], real[:2], rtol=1e-6)


def test_it_asks_for_the_operator_set_that_it_writes() -> None:
    assert create("encodings", "weight_only").min_opset(8, "channel") == 7
    assert create("encodings", {"weight_only": {"decode": "run"}}).min_opset(8, "channel") == 13
