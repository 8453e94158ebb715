"""Where output channels lie and what a layer costs, against counting and against onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import feeds_for, node, normal, proto_of, run, wrapped

from qcli.graph import Model, concrete_shapes
from qcli.layers import LAYERS, multiply_accumulates, output_channel_axis


def layer(operator: str, data: list[int], weight: list[int], **attributes: Any) -> Model:
    return wrapped(
        proto_of([node(operator, "x w", "y", **attributes)], {"x": data}, {"y": None}, {"w": normal(0, *weight)})
    )


CASES: list[tuple[Model, int]] = [
    (layer("Conv", [1, 4, 5, 5], [6, 4, 3, 3]), 0),
    (layer("Conv", [1, 4, 5, 5], [6, 2, 3, 3], group=2), 0),
    (layer("Conv", [1, 4, 9], [6, 4, 3]), 0),
    (layer("ConvTranspose", [1, 4, 5, 5], [4, 6, 3, 3]), 1),
    (layer("Gemm", [3, 4], [4, 6]), 1),
    (layer("Gemm", [3, 4], [4, 6], transB=0), 1),
    (layer("Gemm", [3, 4], [6, 4], transB=1), 0),
    (layer("MatMul", [3, 4], [4, 6]), 1),
    (layer("MatMul", [2, 3, 4], [2, 4, 6]), 2),
]


@pytest.mark.parametrize(("model", "axis"), CASES)
def test_one_slice_of_the_weight_moves_one_channel_of_the_result(model: Model, axis: int) -> None:
    first = model.graph[0]
    assert output_channel_axis(first) == axis
    feeds = feeds_for(model)
    before = run(model, feeds)["y"]
    weight = np.array(model.graph.initializers["w"].const_value.numpy())  # type: ignore[union-attr]
    weight[(slice(None),) * axis + (2,)] *= 3
    changed = wrapped(model.proto())
    changed.graph.initializers["w"].const_value = ir.tensor(weight, name="w")
    moved = np.abs(run(changed, feeds)["y"] - before) > 1e-6
    channel_axis = 1 if first.op_type in ("Conv", "ConvTranspose") else before.ndim - 1
    channels = moved.any(axis=tuple(at for at in range(before.ndim) if at != channel_axis))
    assert channels.tolist() == [index == 2 for index in range(6)]


def test_a_vector_has_no_output_channels() -> None:
    assert output_channel_axis(layer("MatMul", [3, 4], [4]).graph[0]) is None


def counted(model: Model) -> int:
    """Counts by brute force: ones times ones add up to the products of each result; border pixels count less."""
    names = {spec.name: np.ones([size or 1 for size in spec.shape or ()], np.float32) for spec in model.inputs()}
    ones = wrapped(model.proto())
    weight = ones.graph.initializers["w"]
    weight.const_value = ir.tensor(np.ones(weight.const_value.shape.numpy(), np.float32), name="w")  # type: ignore[union-attr]
    return round(float(run(ones, names)["y"].sum()))


def claimed(model: Model) -> int:
    feeds = feeds_for(model, free=1)
    return multiply_accumulates(model.graph[0], concrete_shapes(model, feeds))


SLOW = settings(max_examples=25, deadline=None)
SIZES = st.integers(1, 4)


@SLOW
@given(SIZES, SIZES, SIZES, SIZES, st.integers(1, 2), st.booleans())
def test_convolutions(batch: int, group: int, ins: int, outs: int, stride: int, transposed: bool) -> None:
    weight = [group * ins, outs, 2, 2] if transposed else [group * outs, ins, 2, 2]
    operator = "ConvTranspose" if transposed else "Conv"
    model = layer(operator, [batch, group * ins, 5, 5], weight, group=group, strides=[stride] * 2)
    assert claimed(model) == counted(model)


@SLOW
@given(SIZES, SIZES, SIZES, st.booleans(), st.booleans())
def test_gemm(rows: int, inner: int, columns: int, trans_a: bool, trans_b: bool) -> None:
    data, weight = [rows, inner], [inner, columns]
    model = layer(
        "Gemm",
        data[::-1] if trans_a else data,
        weight[::-1] if trans_b else weight,
        transA=int(trans_a),
        transB=int(trans_b),
    )
    assert claimed(model) == counted(model) == rows * inner * columns


@SLOW
@given(st.lists(SIZES, max_size=2), SIZES, SIZES, SIZES, st.booleans())
def test_matmul(batch: list[int], rows: int, inner: int, columns: int, stacked: bool) -> None:
    weight = [*batch, inner, columns] if stacked else [inner, columns]
    model = layer("MatMul", [*batch, rows, inner], weight)
    assert claimed(model) == counted(model)


def test_vectors() -> None:
    for data, weight in (([4], [4, 3]), ([2, 4], [4]), ([4], [4])):
        model = layer("MatMul", data, weight)
        assert claimed(model) == counted(model)


def test_padding_counts_as_the_kernel_computes_it() -> None:
    model = layer("Conv", [1, 2, 4, 4], [3, 2, 3, 3], pads=[1, 1, 1, 1])
    assert claimed(model) == 3 * 4 * 4 * 2 * 9


def test_unknown_shapes_count_nothing() -> None:
    model = layer("Conv", [1, 2, 4, 4], [3, 2, 3, 3])
    assert multiply_accumulates(model.graph[0], {}) == 0


@pytest.mark.parametrize("operator", LAYERS)
def test_every_layer_is_an_operator_of_onnx(operator: str) -> None:
    assert onnx.defs.has(operator)
