"""Products of matrices in blocks: as numpy does them, on MatMulNBits of onnxruntime, and where there is none."""

from __future__ import annotations

from itertools import product
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from codes import constants, kernels_of, node_at, reasons, stored_of, weights_of, with_decoded_weights
from hypothesis import given, settings
from hypothesis import strategies as st
from models import Feeds, Quantized, Shape, assert_equal, feeds_for, node, normal, operators, proto_of, run
from onnx import helper

from qcli.encodings._packed import packed
from qcli.errors import UsageError
from qcli.graph.optimized import RuntimeNode
from qcli.kernels import is_integer
from qcli.plan import check_plan
from qcli.plugins import create
from qcli.types import Array

BLOCKS = (16, 32, 64, 128, 256)


def rule(level: int = 0, grid: str = "format: int8", block: int = 16) -> str:
    encoding = f"{{matmul_nbits: {{accuracy_level: {level}}}}}"
    shape = f"{{{grid}, granularity: block, block: {block}}}"
    return f"rules=[{{match: {{op: [MatMul, Gemm], role: weight}}, grid: {shape}, encoding: {encoding}}}]"


def encodings(quantized: Quantized) -> list[str]:
    return [encoding if encoding.isidentifier() else "matmul_nbits" for _, _, encoding in weights_of(quantized)]


W, WT = normal(0, 40, 24) / 5, normal(0, 24, 40) / 5
B = normal(1, 24)


def layer(operator: str, data: Shape, weights: dict[str, Array] | None = None, **attributes: Any) -> onnx.ModelProto:
    names = " ".join(("x", "w", *(name for name in weights or {} if name != "w")))
    return proto_of([node(operator, names, "y", **attributes)], {"x": data}, {"y": None}, {"w": W, **(weights or {})})


PRODUCTS: dict[str, onnx.ModelProto] = {
    "MatMul of a vector": layer("MatMul", [40]),
    "MatMul 2-D": layer("MatMul", [3, 40]),
    "MatMul of no rows": layer("MatMul", ["n", 40]),
    "MatMul 4-D": layer("MatMul", [2, 2, 3, 40]),
    "Gemm": layer("Gemm", [3, 40]),
    "Gemm with a bias": layer("Gemm", [3, 40], {"b": B}),
    "Gemm with a row as bias": layer("Gemm", [3, 40], {"b": B[None]}),
    "Gemm with a column as bias": layer("Gemm", [3, 40], {"b": normal(1, 3, 1)}),
    "Gemm with a matrix as bias": layer("Gemm", [3, 40], {"b": normal(1, 3, 24)}),
    "Gemm with a scalar as bias": layer("Gemm", [3, 40], {"b": normal(1)}),
    "Gemm beta": layer("Gemm", [3, 40], {"b": B}, beta=-0.5),
    "Gemm alpha below zero": layer("Gemm", [3, 40], {"b": B}, alpha=-2.0),
    "Gemm transA": layer("Gemm", [40, 3], transA=1),
    "Gemm transB": layer("Gemm", [3, 40], {"w": WT}, transB=1),
    "Gemm all at once": layer("Gemm", [40, 3], {"w": WT, "b": B}, alpha=0.5, beta=2.0, transA=1, transB=1),
    "Gemm with a computed bias": proto_of(
        [node("Tanh", "z", "t"), node("Gemm", "x w t", "y", alpha=0.5)],
        {"x": [3, 40], "z": [24]}, {"y": None}, {"w": W},
    ),
}  # fmt: skip


@pytest.mark.parametrize("symmetric", ["true", "false"])
@pytest.mark.parametrize("name", PRODUCTS)
def test_the_result_is_that_of_the_decoded_weights(name: str, symmetric: str) -> None:
    proto = PRODUCTS[name]
    exact, near = (
        stored_of(proto, settings=(rule(level, f"format: int8, symmetric: {symmetric}"),)) for level in (0, 4)
    )
    assert encodings(exact) == encodings(near) == ["matmul_nbits"]
    onnx.checker.check_model(exact.model.proto(), full_check=True)
    assert not {"w"} & set(constants(exact.model))
    for seed in range(2):
        feeds = feeds_for(exact.source, seed, free=0 if "no rows" in name else 2)
        expected = run(with_decoded_weights(exact), feeds)
        for optimize in (False, True):
            assert_equal(expected, run(exact.model, feeds, optimize=optimize), tolerance=1e-5)
            assert_equal(expected, run(near.model, feeds, optimize=optimize), tolerance=0.03)


def test_a_bias_for_each_column_becomes_the_operators_own() -> None:
    for name, found in (
        ("Gemm with a bias", []),
        ("Gemm with a row as bias", []),
        ("Gemm with a matrix as bias", ["Add"]),
    ):
        quantized = stored_of(PRODUCTS[name], settings=(rule(),))
        assert operators(quantized.model) == ["MatMulNBits", *found]
    two = [node("Gemm", "x w b", "a"), node("Gemm", "x v b", "c"), node("Add", "a c", "y")]
    proto = proto_of(two, {"x": [3, 40]}, {"y": None}, {"w": W, "v": W + 1, "b": B[None]})
    assert [name for name in constants(stored_of(proto, settings=(rule(),)).model) if name[0] == "b"] == ["b_vector"]


ADDED: dict[str, tuple[list[onnx.NodeProto], bool]] = {
    "a vector": ([node("MatMul", "x w", "m"), node("Add", "m b", "y")], True),
    "a vector on the left": ([node("MatMul", "x w", "m"), node("Add", "b m", "y")], True),
    "a vector, and a Relu": ([node("MatMul", "x w", "m"), node("Add", "m b", "a"), node("Relu", "a", "y")], True),
    "a row": ([node("MatMul", "x w", "m"), node("Add", "m r", "y")], False),
    "a sum that others read in part": (
        [node("MatMul", "x w", "m"), node("Add", "m b", "a"), node("Mul", "m a", "y")], False,
    ),
    "another product": ([node("MatMul", "x w", "m"), node("MatMul", "x w", "n"), node("Add", "m n", "y")], False),
    "a vector that is subtracted": ([node("MatMul", "x w", "m"), node("Sub", "m b", "y")], False),
    "itself": ([node("MatMul", "x w", "m"), node("Add", "m m", "y")], False),
}  # fmt: skip


@pytest.mark.parametrize("kind", ADDED)
def test_what_is_added_behind_a_product(kind: str) -> None:
    nodes, joined = ADDED[kind]
    proto = proto_of(nodes, {"x": [2, 40]}, {"y": None}, {"w": W, "b": B, "r": B[None]})
    quantized = stored_of(proto, settings=(rule(),))
    [made] = [item for item in quantized.model.nodes() if item.op_type == "MatMulNBits"][:1]
    assert made.name == "/m" and (len(made.inputs) == 6) is joined
    assert ("Add" in operators(quantized.model)) is not (joined or "subtracted" in kind)
    assert kernels_of(quantized).stayed_float[0].node == "/m"
    for seed in range(2):
        feeds = feeds_for(quantized.source, seed)
        expected = run(with_decoded_weights(quantized), feeds)
        for optimize in (False, True):
            assert_equal(expected, run(quantized.model, feeds, optimize=optimize), tolerance=1e-5)


def test_a_product_that_is_an_output_keeps_its_bias_apart() -> None:
    nodes = [node("MatMul", "x w", "m"), node("Add", "m b", "y")]
    quantized = stored_of(proto_of(nodes, {"x": [2, 40]}, {"m": None, "y": None}, {"w": W, "b": B}), settings=(rule(),))
    assert operators(quantized.model) == ["MatMulNBits", "Add"] and quantized.model.outputs() == ("m", "y")


@settings(max_examples=30, deadline=None)
@given(
    form=st.tuples(st.sampled_from(["", "u"]), st.integers(2, 8), st.sampled_from(BLOCKS), st.booleans()),
    inputs=st.integers(1, 300),
    columns=st.integers(1, 40),
    rows=st.integers(1, 5),
    seed=st.integers(0, 2**20),
)
def test_any_shape_width_and_block(
    form: tuple[str, int, int, bool], inputs: int, columns: int, rows: int, seed: int
) -> None:
    """At level 0 what the decoded weights give; at level 4 no further off than activations of 8 bits in blocks are."""
    sign, width, block, symmetric = form
    inputs = max(inputs, block)
    weight = normal(seed, inputs, columns) * np.exp(normal(seed + 1, 1, columns))
    proto = proto_of([node("MatMul", "x w", "y")], {"x": [rows, inputs]}, {"y": None}, {"w": np.tile(weight, (1, 8))})
    grid = f"format: {sign}int{width}, symmetric: {str(symmetric).lower()}"
    feeds = feeds_for(stored_of(proto).source, seed)
    for level in (0, 1, 4):
        quantized = stored_of(proto, settings=(rule(level, grid, block),))
        assert encodings(quantized) == ["matmul_nbits"], quantized.plan
        expected = run(with_decoded_weights(quantized), feeds)["y"]
        sizes = np.abs(feeds["x"]) @ np.abs(constants(with_decoded_weights(quantized))["w"])
        error = np.abs(run(quantized.model, feeds)["y"] - expected)
        assert (error <= sizes * (0.03 if level == 4 else 1e-5) + 1e-30).all()


@given(codes=st.lists(st.lists(st.integers(0, 255), min_size=5, max_size=5), min_size=1, max_size=4))
def test_codes_are_packed_from_the_lowest_bits(codes: list[list[int]]) -> None:
    for bits in (2, 4, 8):
        some = (np.array(codes) % (1 << bits)).astype(np.uint8)
        found = packed(some, bits)
        assert found.shape == (len(codes), -(-5 * bits // 8))
        whole = [sum(int(code) << (bits * place) for place, code in enumerate(row)) for row in some]
        assert [int.from_bytes(row.tobytes(), "little") for row in found] == whole


@pytest.mark.parametrize(
    ("grid", "bits", "zeros"),
    [
        ("format: int8", 8, False),
        ("format: uint8", 8, False),
        ("format: int8, narrow: true", 8, False),
        ("format: uint8, symmetric: false", 8, True),
        ("format: int4, symmetric: false", 4, True),
        ("format: uint3", 4, False),
        ("format: int2", 2, False),
        ("format: uint5", 8, False),
        ("format: int8, bits: 4", 4, False),
    ],
)
def test_the_layout_of_the_operator(grid: str, bits: int, zeros: bool) -> None:
    """Three blocks, the last one half full; the zero points of a column in bytes of their own."""
    quantized = stored_of(PRODUCTS["MatMul 2-D"], settings=(rule(0, grid),))
    made, stored = node_at(quantized.model, "y"), constants(quantized.model)
    attributes = {name: item.as_int() for name, item in made.attributes.items()}
    assert attributes == {"K": 40, "N": 24, "bits": bits, "block_size": 16}
    assert made.domain == "com.microsoft" and quantized.model.proto().opset_import[-1].version == 1
    names = [value.name if value is not None else "" for value in made.inputs]
    assert len(names) == 3 + zeros
    codes, steps = stored[names[1] or ""], stored[names[2] or ""]
    assert codes.shape == (24, 3, 2 * bits) and steps.shape == (24, 3)
    if zeros:
        assert stored[names[3] or ""].shape == (24 * -(-3 * bits // 8),)


def test_the_level_is_written_where_one_is_chosen() -> None:
    for level in range(5):
        made = node_at(stored_of(PRODUCTS["Gemm"], settings=(rule(level),)).model, "y")
        assert ("accuracy_level" in made.attributes) is bool(level)
        assert create("encodings", {"matmul_nbits": {"accuracy_level": level}}).multiplies is (level == 4)
    for wrong in (5, -1, "high"):
        with pytest.raises(UsageError, match="accuracy_level"):
            create("encodings", {"matmul_nbits": {"accuracy_level": wrong}})


def test_integer_work_is_what_the_kernel_multiplies_in_integers() -> None:
    """Seen in the results: at level 4 they differ from those of floats, but for two bits in the odd blocks."""
    proto = layer("MatMul", [3, 256], {"w": normal(0, 256, 24)})
    feeds: Feeds = {"x": normal(3, 3, 256)}
    for width, block, level in product((2, 4, 8), BLOCKS, (0, 1, 4)):
        quantized = stored_of(proto, settings=(rule(level, f"format: int{width}", block),))
        exact = run(with_decoded_weights(quantized), feeds)["y"]
        differs = np.abs(run(quantized.model, feeds)["y"] - exact).max() > 1e-4 * np.abs(exact).max()
        found = kernels_of(quantized, feeds)
        assert found.by_kernel == {"MatMulNBits": 1}
        assert bool(found.integer_share) is bool(differs) is (level == 4 and (width > 2 or block in (32, 64, 128)))
        assert bool(reasons(quantized)) is (level != 4)


def test_a_kernel_of_two_bits_is_known_by_its_block() -> None:
    for block in BLOCKS:
        integers = {"accuracy_level": 4, "bits": 2, "block_size": block}
        one = RuntimeNode(
            op="MatMulNBits", domain="com.microsoft", name="y", inputs=(), outputs=(), integers=integers, nested=False
        )
        assert is_integer(one) is (block in (32, 64, 128))


STORED: dict[str, tuple[onnx.ModelProto, str, str]] = {
    "a weight on the left": (
        proto_of([node("MatMul", "w x", "y")], {"x": [24, 3]}, {"y": None}, {"w": W}),
        rule(), "its weight is not a matrix on the right",
    ),
    "a batch of weights": (
        proto_of([node("MatMul", "x w", "y")], {"x": [2, 3, 40]}, {"y": None}, {"w": normal(0, 2, 40, 24)}),
        rule(), "its weight is not a matrix on the right",
    ),
    "a block of another size": (PRODUCTS["Gemm"], rule(block=20), "MatMulNBits takes weights in blocks of 16"),
    "a block larger than the input": (PRODUCTS["Gemm"], rule(block=64), "MatMulNBits takes weights in blocks of 16"),
    "a scale for each channel": (
        PRODUCTS["Gemm"], "rules=[{match: {role: weight}, encoding: matmul_nbits}]",
        "MatMulNBits takes weights in blocks of 16, 32, 64, 128, 256",
    ),
    "more than eight bits": (PRODUCTS["Gemm"], rule(grid="format: int9"), "MatMulNBits takes no int9 weights"),
    "a bias that is computed": (
        proto_of([node("Gemm", "x w x", "y", beta=2.0)], {"x": [24, 24]}, {"y": None}, {"w": normal(0, 24, 24)}),
        rule(), "its bias is not constant",
    ),
    "a table whose rows are fetched": (
        proto_of(
            [node("Gather", "w i", "g"), node("Gemm", "g w", "y", transB=1)],
            {}, {"y": None}, {"w": normal(0, 60, 40), "i": np.array([3, 5])},
        ),
        rule(), "something else than a product reads its weight too",
    ),
    "a domain": (
        proto_of([node("FusedMatMul", "x w", "y", domain="com.microsoft")], {"x": [3, 40]}, {"y": None}, {"w": W}),
        rule().replace("MatMul, Gemm", "FusedMatMul"), "FusedMatMul is no product that MatMulNBits computes",
    ),
    "a convolution": (
        proto_of([node("Conv", "x w", "y")], {"x": [1, 40, 3]}, {"y": None}, {"w": normal(0, 24, 40, 1)}),
        rule().replace("MatMul, Gemm", "Conv"), "Conv is no product that MatMulNBits computes",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", STORED)
def test_what_has_no_such_kernel_is_stored_and_says_so(kind: str) -> None:
    proto, setting, reason = STORED[kind]
    proto = onnx.ModelProto.FromString(proto.SerializeToString())
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    quantized = stored_of(proto, settings=(setting,))
    assert set(encodings(quantized)) == {"weight_only"}
    [because] = [entry.because for entry in quantized.plan.entries if entry.site.node == "y"]
    assert f"not matmul_nbits: {reason}" in because
    assert "MatMulNBits" not in operators(quantized.model)
    feeds = feeds_for(quantized.source)
    assert_equal(run(with_decoded_weights(quantized), feeds), run(quantized.model, feeds), tolerance=1e-5)


def test_a_product_in_a_body_is_stored_there() -> None:
    body = helper.make_graph(
        [node("MatMul", "x w", "t")], "body", [], [helper.make_tensor_value_info("t", 1, [3, 24])],
    )  # fmt: skip
    other = helper.make_graph(
        [node("MatMul", "x v", "e")], "other", [], [helper.make_tensor_value_info("e", 1, [3, 24])],
        [onnx.numpy_helper.from_array(W + 1, "v")],
    )  # fmt: skip
    nodes = [node("If", "go", "i", then_branch=body, else_branch=other), node("MatMul", "x w", "m")]
    weights = {"w": W, "go": np.array(True)}
    proto = proto_of([*nodes, node("Add", "i m", "y")], {"x": [3, 40]}, {"y": None}, weights)
    quantized = stored_of(proto, settings=(rule(),))
    assert dict(zip([name for name, _, _ in weights_of(quantized)], encodings(quantized), strict=True)) == {
        "t": "weight_only", "e": "weight_only", "m": "matmul_nbits",
    }  # fmt: skip
    assert sum("it lies in the body of another node" in entry.because for entry in quantized.plan.entries) == 2
    feeds = feeds_for(quantized.source)
    assert_equal(run(with_decoded_weights(quantized), feeds), run(quantized.model, feeds), tolerance=1e-5)


def test_products_that_share_a_matrix_share_its_codes() -> None:
    square = normal(0, 32, 32) / 5
    nodes = [node("MatMul", "x w", "a"), node("Gemm", "a w", "b"), node("Gemm", "b w", "y", alpha=0.5)]
    proto = proto_of(nodes, {"x": [3, 32]}, {"y": None}, {"w": square})
    quantized = stored_of(proto, settings=(rule(grid="format: int4, symmetric: false"),))
    assert operators(quantized.model) == ["MatMulNBits"] * 3
    kinds = sorted(name for name, array in constants(quantized.model).items() if array.dtype == np.uint8)
    assert kinds == ["w_nbits", "w_zero"], "two scales, as one product has a factor"
    feeds = feeds_for(quantized.source)
    assert_equal(run(with_decoded_weights(quantized), feeds), run(quantized.model, feeds), tolerance=1e-5)


def test_names_of_results_and_of_nodes_stay() -> None:
    nodes = [node("MatMul", "x w", "m"), node("Relu", "m", "y")]
    quantized = stored_of(proto_of(nodes, {"x": [3, 40]}, {"y": None, "m": None}, {"w": W}), settings=(rule(),))
    assert quantized.model.outputs() == ("y", "m")
    assert node_at(quantized.model, "m").name == "/m"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoding": "qdq"}, "no static kernel multiplies blocks, as the encoding 'qdq' wants it"),
        ({"encoding": "dynamic"}, "no dynamic kernel takes weights in blocks"),
        ({"block": 20}, "MatMulNBits takes weights in blocks of 16"),
        ({"format": "int12"}, "MatMulNBits takes no int12 weights"),
        ({"granularity": "channel", "block": None, "axis": 1}, "MatMulNBits takes weights in blocks of 16"),
    ],
)
def test_edited_plans_are_refused(changes: dict[str, Any], message: str) -> None:
    quantized = stored_of(PRODUCTS["Gemm"], settings=(rule(),))
    check_plan(quantized.plan, quantized.source)
    [entry] = quantized.plan.entries
    grids = {name: value for name, value in changes.items() if name != "encoding"}
    grid = msgspec.structs.replace(entry.grid, **grids)
    changed = msgspec.structs.replace(entry, grid=grid, encoding=changes.get("encoding", entry.encoding))
    with pytest.raises(UsageError, match=message):
        check_plan(msgspec.structs.replace(quantized.plan, entries=(changed,)), quantized.source)
