"""Arithmetic with one constant for each channel folds into the convolution before it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import assert_same, node, normal, operators, proto_of, wrapped

from qcli.graph.model import Model
from qcli.steps.fold_affine import FoldAffine
from qcli.types import Array

SLOW = settings(max_examples=30, deadline=None)
SHAPES = [(), (1,), (1, 1, 1), (-1, 1, 1), (1, -1, 1, 1), (1, 1, 1, 1)]


def folded(proto: onnx.ModelProto) -> tuple[Model, int]:
    model = wrapped(proto)
    count = FoldAffine().run(model)
    model.fix_names()
    return model, count


def constant(shape: tuple[int, ...], channels: int) -> Array:
    """Nowhere near zero, so that it can be divided by."""
    drawn = normal(5, *[channels if size == -1 else size for size in shape])
    return np.asarray(np.sign(drawn) * (np.abs(drawn) + 0.5), np.float32)


def arithmetic(
    operator: str, first: bool, shape: tuple[int, ...], layer: str = "Conv", channels: int = 4
) -> onnx.ModelProto:
    weights = {"w": normal(0, channels, channels, 2, 2), "b": normal(1, channels), "k": constant(shape, channels)}
    after = node(operator, "c k" if first else "k c", "y")
    return proto_of([node(layer, "x w b", "c"), after], {"x": [2, channels, 4, 4]}, {"y": None}, weights)


@SLOW
@given(
    st.sampled_from(["Add", "Sub", "Mul"]),
    st.booleans(),
    st.sampled_from(SHAPES),
    st.sampled_from(["Conv", "ConvTranspose"]),
)
def test_either_side_of_add_sub_and_mul(operator: str, first: bool, shape: tuple[int, ...], layer: str) -> None:
    proto = arithmetic(operator, first, shape, layer)
    model, count = folded(proto)
    assert count == 1 and operators(model) == [layer]
    assert_same(proto, model)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_divisor(shape: tuple[int, ...]) -> None:
    proto = arithmetic("Div", True, shape)
    model, count = folded(proto)
    assert count == 1 and operators(model) == ["Conv"]
    assert_same(proto, model)


def test_a_dividend_does_not_fold() -> None:
    model, count = folded(arithmetic("Div", False, ()))
    assert count == 0 and operators(model) == ["Conv", "Div"]


def test_a_divisor_of_zero_does_not_fold() -> None:
    proto = arithmetic("Div", True, (-1, 1, 1))
    proto.graph.initializer[2].CopyFrom(onnx.numpy_helper.from_array(np.zeros((4, 1, 1), np.float32), "k"))
    assert folded(proto)[1] == 0


@pytest.mark.parametrize(
    "shape", [(3,), (3, 3), (1, 1, 1, 3), (2, 1, 1, 1), (1, 4, 1, 3), (1, 1, 4, 1, 1), (5, 1, 1, 1, 1)]
)
def test_a_constant_that_varies_elsewhere_or_adds_an_axis_does_not_fold(shape: tuple[int, ...]) -> None:
    weights = {"w": normal(0, 4, 4, 2, 2), "k": normal(1, *shape)}
    proto = proto_of([node("Conv", "x w", "c"), node("Mul", "c k", "y")], {"x": [2, 4, 4, 4]}, {"y": None}, weights)
    model, count = folded(proto)
    assert count == 0
    assert_same(proto, model)


def test_one_channel_that_broadcasts_to_several_does_not_fold() -> None:
    weights = {"w": normal(0, 1, 2, 1, 1), "k": normal(1, 1, 3, 1, 1)}
    proto = proto_of([node("Conv", "x w", "c"), node("Add", "c k", "y")], {"x": [2, 2, 4, 4]}, {"y": None}, weights)
    model, count = folded(proto)
    assert count == 0
    assert_same(proto, model)


@pytest.mark.parametrize("reader", [node("Relu", "c", "z"), node("Identity", "c", "z")])
def test_refused_where_the_value_has_other_readers(reader: onnx.NodeProto) -> None:
    weights = {"w": normal(0, 4, 4, 2, 2), "k": np.array(2, np.float32)}
    nodes = [node("Conv", "x w", "c"), node("Mul", "c k", "y"), reader]
    proto = proto_of(nodes, {"x": [2, 4, 4, 4]}, {"y": None, "z": None}, weights)
    model, count = folded(proto)
    assert count == 0
    assert_same(proto, model)


def test_refused_where_the_value_is_an_output_or_meets_itself() -> None:
    weights = {"w": normal(0, 4, 4, 2, 2), "k": np.array(2, np.float32)}
    layer = node("Conv", "x w", "c")
    for after, outputs in ((node("Mul", "c k", "y"), {"y": None, "c": None}), (node("Mul", "c c", "y"), {"y": None})):
        assert folded(proto_of([layer, after], {"x": [2, 4, 4, 4]}, outputs, weights))[1] == 0


def test_a_chain_folds_and_the_other_reader_of_the_weight_keeps_it() -> None:
    weights = {"w": normal(0, 4, 4, 1, 1), "k": constant((1, -1, 1, 1), 4), "a": constant((-1, 1, 1), 4)}
    nodes = [node("Conv", "x w", "c"), node("Mul", "c k", "m"), node("Sub", "a m", "y"), node("Conv", "x w", "z")]
    proto = proto_of(nodes, {"x": [2, 4, 3, 3]}, {"y": None, "z": None}, weights)
    model, count = folded(proto)
    assert count == 2 and operators(model) == ["Conv", "Conv"]
    assert_same(proto, model)


@SLOW
@given(st.integers(1, 3), st.integers(1, 3))
def test_grouped_transposed_convolutions(group: int, outs: int) -> None:
    channels = group * outs
    weights = {"w": normal(0, group * 2, outs, 2, 2), "k": constant((-1, 1, 1), channels)}
    nodes = [node("ConvTranspose", "x w", "c", group=group), node("Mul", "k c", "y")]
    proto = proto_of(nodes, {"x": [2, group * 2, 3, 3]}, {"y": None}, weights)
    model, count = folded(proto)
    assert count == 1
    assert_same(proto, model)
