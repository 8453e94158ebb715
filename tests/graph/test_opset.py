"""Raising the operator set keeps what a model computes, or says why it cannot."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from models import (
    assert_equal,
    assert_same,
    conv_net,
    dense_net,
    feeds_for,
    node,
    normal,
    operators,
    proto_of,
    run,
    wrapped,
)

from qcli.errors import UnsupportedError
from qcli.graph import raise_opset


def old_net(opset: int) -> onnx.ModelProto:
    """What changed between the operator sets: attributes that became inputs."""
    weights = {"w": normal(0, 8, 3, 3, 3), "one": np.ones(1, np.float32)}
    clip = node("Clip", "b", "k", min=0.0, max=6.0) if opset < 11 else node("Clip", "b low high", "k")
    if opset >= 11:
        weights |= {"low": np.array(0, np.float32), "high": np.array(6, np.float32)}
    for name in ("gamma", "beta", "mean", "var"):
        weights[name] = np.abs(normal(len(name), 8)) + 0.1
    nodes = [
        node("Conv", "x w", "c", pads=[1, 1, 1, 1]),
        node("BatchNormalization", "c gamma beta mean var", "b"),
        clip,
        node("Dropout", "k", "d", ratio=0.5) if opset < 12 else node("Identity", "k", "d"),
        node("Unsqueeze", "d", "u", axes=[0]),
        node("Squeeze", "u", "s", axes=[0]),
        node("ReduceSum", "s", "r", axes=[2, 3], keepdims=0),
        node("Softmax", "r", "y", axis=1),
    ]
    if opset < 10:
        nodes[1] = node("BatchNormalization", "c gamma beta mean var", "b", epsilon=1e-3)
    return proto_of(nodes, {"x": [2, 3, 6, 6]}, {"y": [2, 8]}, weights, opset=opset)


@pytest.mark.parametrize("opset", [7, 8, 9, 10, 11, 12])
def test_the_outputs_stay(opset: int) -> None:
    model = wrapped(old_net(opset))
    assert raise_opset(model, 13)
    assert model.opset == 13
    assert_same(old_net(opset), model, tolerance=1e-5)


@pytest.mark.parametrize("opset", [13, 15, 17])
def test_a_model_that_is_there_already_is_not_touched(opset: int) -> None:
    model = wrapped(dense_net())
    model.ir.opset_imports[""] = opset
    before = model.serialize()
    assert not raise_opset(model, 13)
    assert model.serialize() == before


def test_large_weights_do_not_pass_through_the_converter(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    convert = onnx.version_converter.convert_version

    def spy(proto: onnx.ModelProto, version: int) -> onnx.ModelProto:
        seen.append(proto.ByteSize())
        return convert(proto, version)

    monkeypatch.setattr(onnx.version_converter, "convert_version", spy)
    weight = normal(0, 512, 512)
    proto = proto_of([node("MatMul", "x w", "y")], {"x": [1, 512]}, {"y": [1, 512]}, {"w": weight}, opset=11)
    model = wrapped(proto)
    assert raise_opset(model, 13)
    assert seen and max(seen) < 10_000
    assert [value.name for value in model.graph.inputs] == ["x"]
    assert np.array_equal(model.graph.initializers["w"].const_value.numpy(), weight)  # type: ignore[union-attr]
    assert_same(proto, model)


def test_weights_that_are_also_inputs_come_back(opset: int = 9) -> None:
    proto = old_net(opset)
    for tensor in proto.graph.initializer:
        proto.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    model = wrapped(proto)
    raise_opset(model, 13)
    assert [spec.name for spec in model.inputs()] == ["x"]
    feeds = feeds_for(model)
    assert_equal(run(old_net(opset), feeds), run(model, feeds))


def test_names_and_free_dimensions_stay() -> None:
    model = wrapped(conv_net(opset=12))
    raise_opset(model, 13)
    assert model.inputs()[0].shape == (None, 3, 8, 8)
    assert [item.name for item in model.nodes()][:2] == ["/c1", "/r1"]


def test_the_converter_s_refusal_is_passed_on() -> None:
    upsample = node("Upsample", "x", "y", scales=[1.0, 1.0, 2.0, 2.0], mode="nearest")
    proto = proto_of([upsample, node("NoSuchOperator", "y", "z")], {"x": [1, 1, 2, 2]}, {"z": [1, 1, 4, 4]}, opset=7)
    with pytest.raises(UnsupportedError, match="opset 7 to 13") as caught:
        raise_opset(wrapped(proto), 13)
    assert "\n" not in caught.value.message and caught.value.hint


def test_a_refused_model_stays_as_it_was() -> None:
    proto = proto_of([node("NoSuchOperator", "x", "y")], {"x": [1]}, {"y": [1]}, opset=7)
    model = wrapped(proto)
    with pytest.raises(UnsupportedError):
        raise_opset(model, 13)
    assert (model.opset, operators(model)) == (7, ["NoSuchOperator"])


def test_a_higher_operator_set_is_reached_too() -> None:
    model = wrapped(dense_net())
    assert raise_opset(model, 21) and model.opset == 21
    assert_same(dense_net(), model)
