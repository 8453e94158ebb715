"""Hard sigmoids and hard swishes in two operators compute what they did in four."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import assert_equal, feeds_for, node, normal, operators, proto_of, run, wrapped

from qcli.steps.fuse_hard_sigmoid import FuseHardSigmoid
from qcli.types import Array

SHAPE = [2, 4, 5, 5]


def scalars(**values: float | Array) -> dict[str, Array]:
    return {name: np.asarray(value, np.float32) for name, value in values.items()}


def proto(nodes: list[onnx.NodeProto], opset: int = 17, **values: Any) -> onnx.ModelProto:
    constants = scalars(**{"three": 3, "zero": 0, "six": 6, **values})
    return proto_of(nodes, {"x": SHAPE}, {"y": None}, constants, opset=opset)


def swish(shift: str = "x three", clip: str = "s zero six", last: tuple[str, str] = ("Div", "p six")) -> Any:
    """x clip(x + 3, 0, 6) / 6, as PaddlePaddle writes it."""
    return [
        node("Add", shift, "s"),
        node("Clip", clip, "c"),
        node("Mul", "x c", "p"),
        node(last[0], last[1], "y"),
    ]


def check(given_proto: onnx.ModelProto, expected: list[str]) -> None:
    model = wrapped(given_proto)
    after = model.copy()
    assert FuseHardSigmoid().run(after) == 1
    assert operators(after) == expected
    assert after.outputs() == model.outputs()
    feeds = {name: array * 4 for name, array in feeds_for(model).items()}
    for optimize in (False, True):
        assert_equal(run(model, feeds, optimize=optimize), run(after, feeds, optimize=optimize))


@pytest.mark.parametrize(
    "nodes",
    [
        swish(),
        swish(shift="three x"),
        swish(last=("Mul", "p sixth")),
        swish(last=("Mul", "sixth p")),
        [*swish()[:2], node("Mul", "c x", "p"), node("Div", "p six", "y")],
        [*swish()[:2], node("Div", "c six", "g"), node("Mul", "x g", "y")],
        [*swish()[:2], node("Mul", "c sixth", "g"), node("Mul", "g x", "y")],
    ],
)
def test_every_way_to_write_a_hard_swish(nodes: list[onnx.NodeProto]) -> None:
    check(proto(nodes, sixth=1 / 6), ["HardSigmoid", "Mul"])


def test_a_hard_sigmoid_alone() -> None:
    check(proto([*swish()[:2], node("Div", "c six", "y")]), ["HardSigmoid"])


def test_bounds_as_attributes() -> None:
    nodes = [swish()[0], node("Clip", "s", "c", min=0.0, max=6.0), *swish()[2:]]
    model = proto_of(nodes, {"x": SHAPE}, {"y": None}, scalars(three=3, six=6), opset=10)
    check(model, ["HardSigmoid", "Mul"])


def test_the_gate_of_another_tensor() -> None:
    nodes = [node("Relu", "x", "z"), *swish()[:2], node("Mul", "z c", "p"), node("Div", "p six", "y")]
    check(proto(nodes), ["Relu", "HardSigmoid", "Mul"])


@given(shift=st.floats(-4, 4), bound=st.floats(0.125, 16))
def test_any_shift_and_bound(shift: float, bound: float) -> None:
    model = proto([*swish(shift="x shift", clip="s zero top", last=("Div", "p top"))], shift=shift, top=bound)
    check(model, ["HardSigmoid", "Mul"])


@pytest.mark.parametrize(
    "nodes",
    [
        swish(last=("Div", "p three")),  # not the bound
        swish(last=("Div", "six p")),
        swish(last=("Mul", "p six")),
        swish(clip="s three six"),  # a lower bound that is not zero
        swish(clip="s zero"),
        swish(shift="x many"),  # a constant for each channel
        [*swish()[:3], node("Add", "p six", "y")],
        [node("Sub", "x three", "s"), *swish()[1:]],
        [*swish()[:2], node("Add", "c s", "d"), node("Mul", "x d", "p"), node("Div", "p six", "y")],
        [*swish()[:2], node("Mul", "c c", "p"), node("Div", "p six", "y")],
    ],
)
def test_what_is_no_hard_sigmoid_stays(nodes: list[onnx.NodeProto]) -> None:
    model = wrapped(proto(nodes, many=normal(0, 4, 1, 1)))
    before = operators(model)
    assert FuseHardSigmoid().run(model) == 0
    assert operators(model) == before


def test_what_something_else_reads_stays() -> None:
    nodes = [*swish()[:3], node("Div", "p six", "y")]
    shown = proto_of(nodes, {"x": SHAPE}, {"y": None, "c": None}, scalars(three=3, zero=0, six=6))
    assert FuseHardSigmoid().run(wrapped(shown)) == 0


def test_doubles_stay() -> None:
    constants = {name: array.astype(np.float64) for name, array in scalars(three=3, zero=0, six=6).items()}
    model = proto_of(swish(), {"x": SHAPE}, {"y": None}, constants)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    assert FuseHardSigmoid().run(wrapped(model)) == 0
