"""Tables of embeddings in blocks: what a Gather fetches is decoded behind it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from codes import constants, float_weights, kernels_of, stored_of, with_decoded_weights
from models import Feeds, Quantized, assert_equal, node, normal, operators, proto_of, run
from onnx import TensorProto, helper

from qcli.types import Array

ENCODINGS = ("weight_only", "{weight_only: {decode: run}}", "{weight_only: {pack: false}}", "matmul_nbits")


def rule(block: int, grid: str = "format: uint4, symmetric: false", encoding: str = "weight_only") -> str:
    shape = f"{{{grid}, granularity: block, block: {block}}}"
    return f"rules=[{{match: {{role: weight}}, range: minmax, rounding: nearest, grid: {shape}, encoding: {encoding}}}]"


def table(
    weight: Array, ids: Array, more: Sequence[onnx.NodeProto] = (), **attributes: int
) -> tuple[onnx.ModelProto, Feeds]:
    nodes = [node("Gather", "w i", "e" if more else "y", **attributes), *more]
    proto = proto_of(nodes, {}, {"y": None}, {"w": weight}, opset=21)
    shape = [f"n{axis}" for axis in range(ids.ndim)]
    proto.graph.input.append(helper.make_tensor_value_info("i", TensorProto.INT64, shape))
    return proto, {"i": ids}


def assert_decoded(quantized: Quantized, feeds: Feeds, tolerance: float = 1e-5) -> None:
    expected = run(with_decoded_weights(quantized), feeds)
    for optimize in (False, True):
        assert_equal(expected, run(quantized.model, feeds, optimize=optimize), tolerance=tolerance)
    onnx.checker.check_model(quantized.model.proto(), full_check=True)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("grid", ["format: int4", "format: uint4, symmetric: false", "format: uint8, symmetric: false"])
@pytest.mark.parametrize(
    ("shape", "ids"),
    [
        ((40, 64), np.array([3, 0, -1])),
        ((40, 64), np.array([[3, 1], [7, 39]])),
        ((40, 64), np.array(5)),
        ((40, 64), np.zeros((0, 2), np.int64)),
        ((8, 5, 64), np.array([7, 2, -8])),
    ],
)
def test_rows_are_fetched_as_codes(shape: tuple[int, ...], ids: Array, grid: str, encoding: str) -> None:
    proto, feeds = table(normal(0, *shape), ids)
    quantized = stored_of(proto, settings=(rule(16, grid, encoding),), feeds=feeds)
    [entry] = quantized.plan.entries
    assert (entry.grid.granularity, entry.grid.axis) == ("block", len(shape) - 1)
    assert_decoded(quantized, feeds)
    assert float_weights(quantized.model, above=40 * 64) == []
    fetching = kernels_of(quantized, feeds).by_kernel
    assert fetching.get("GatherBlockQuantized", 0) + fetching.get("DequantizeLinear", 0) == 1
    assert fetching.get("Mul", 0) == 0, "nothing is decoded but what was fetched"


def test_a_last_block_may_be_shorter() -> None:
    for encoding in ENCODINGS:
        proto, feeds = table(normal(0, 40, 70), np.array([3, 39]))
        assert_decoded(stored_of(proto, settings=(rule(32, encoding=encoding),), feeds=feeds), feeds)


def test_a_table_whose_columns_are_fetched_is_decoded_first() -> None:
    proto, feeds = table(normal(0, 40, 64), np.array([3, 39]), axis=1)
    quantized = stored_of(proto, settings=(rule(16),), feeds=feeds)
    assert operators(quantized.model)[-1] == "Gather"
    assert_decoded(quantized, feeds)


@pytest.mark.parametrize("scales", ["float16", "{bits: 8, group: 2}", "{bits: 4, group: 4}"])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_scales_may_be_cheaper(encoding: str, scales: str) -> None:
    proto, feeds = table(normal(0, 100, 64), np.array([[3, 99]]))
    quantized = stored_of(proto, settings=(rule(16, f"format: int4, scales: {scales}", encoding),), feeds=feeds)
    assert_decoded(quantized, feeds)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_table_that_is_a_matrix_too_is_stored_once(encoding: str) -> None:
    """An embedding that the last layer multiplies by, transposed."""
    more = [node("Gemm", "e w", "y", transB=1)]
    proto, feeds = table(normal(0, 100, 64) / 8, np.array([1, 31, 0]), more)
    quantized = stored_of(proto, settings=(rule(16, encoding=encoding),), feeds=feeds)
    assert_decoded(quantized, feeds, 0.03 if "run" in encoding else 1e-4)
    big = [name for name, array in constants(quantized.model).items() if array.size >= 100 * 32]
    assert len(big) == 1, big


def test_two_gathers_of_one_table_share_what_is_stored() -> None:
    proto, feeds = table(normal(0, 100, 64), np.array([1, 3]), [node("Gather", "w i", "f"), node("Add", "e f", "y")])
    for encoding in ENCODINGS:
        quantized = stored_of(proto, settings=(rule(16, encoding=encoding),), feeds=feeds)
        assert_decoded(quantized, feeds)
        assert len([name for name in constants(quantized.model) if name.startswith("w")]) == 3


def test_blocks_keep_small_columns() -> None:
    """Half of each row is a thousand times as small: a scale for each channel of the table, or a block, keeps it."""
    weight = normal(0, 200, 64)
    weight[:, 32:] *= 1e-3
    weight[::2] *= 1e-2
    proto, feeds = table(weight, np.arange(200))
    quantized = stored_of(proto, settings=(rule(16, "format: int8"),), feeds=feeds)
    found = run(quantized.model, feeds)["y"]
    assert (np.abs(found - weight) <= np.abs(weight).reshape(200, 4, 16).max(axis=2).repeat(16, 1) / 127).all()
