"""What becomes of a layer's product before anything else reads it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from models import node, normal, proto_of, run, wrapped

from qcli.graph import normalize_graph
from qcli.responses import Response, response_of
from qcli.types import Array

NUMBERS: dict[str, Array] = {
    "low": np.array(-0.5, np.float32),
    "high": np.array(0.75, np.float32),
    "nothing": np.array([], np.float32),
}


def found(nodes: Sequence[onnx.NodeProto], outputs: str = "y", bias: Array | None = None) -> Response | None:
    """The response of the first node."""
    return response_of(next(iter(wrapped(net(nodes, outputs, bias)).graph)), 4)


def net(nodes: Sequence[onnx.NodeProto], outputs: str = "y", bias: Array | None = None) -> onnx.ModelProto:
    conv = nodes[0].op_type == "Conv"
    weights = {**NUMBERS, "w": normal(0, 4, 3, 1, 1) if conv else normal(0, 3, 4)}
    weights["b"] = normal(1, 4) if bias is None else bias
    used = {name for item in nodes for name in item.input}
    kept = {name: array for name, array in weights.items() if name in used}
    return proto_of(nodes, {"x": [2, 3, 5, 5] if conv else [7, 3]}, dict.fromkeys(outputs.split()), kept)


CONV = node("Conv", "x w b", "z")
MATMUL = node("MatMul", "x w", "m")
ADD = node("Add", "m b", "z")


@pytest.mark.parametrize(
    ("reader", "lower", "upper", "slope"),
    [
        (node("Relu", "z", "y"), 0, np.inf, 1),
        (node("LeakyRelu", "z", "y", alpha=0.25), -np.inf, np.inf, 0.25),
        (node("LeakyRelu", "z", "y"), -np.inf, np.inf, np.float32(0.01)),
        (node("Clip", "z low high", "y"), -0.5, 0.75, 1),
        (node("Clip", "z - high", "y"), -np.inf, 0.75, 1),
        (node("Clip", "z low", "y"), -0.5, np.inf, 1),
    ],
)
@pytest.mark.parametrize("layer", [[CONV], [MATMUL, ADD], [node("Gemm", "x w b", "z")]])
def test_a_response_is_what_onnxruntime_computes(
    layer: list[onnx.NodeProto], reader: onnx.NodeProto, lower: float, upper: float, slope: float
) -> None:
    response = found([*layer, reader])
    assert response is not None
    assert (response.lower, response.upper) == (lower, upper) and response.slope == pytest.approx(slope)
    feeds = {"x": normal(3, *((2, 3, 5, 5) if layer == [CONV] else (7, 3)))}
    plain = net([*layer, reader], bias=np.zeros(4, np.float32))
    expected = run(net([*layer, reader]), feeds)["y"]
    nodes = [*layer, node("Identity", "z", "y")]
    product = run(net(nodes, bias=np.zeros(4, np.float32)), feeds)["y"]
    shape = (1, 4, 1, 1) if layer == [CONV] else (1, 4)
    moved = product + response.bias.reshape(shape)
    bent = np.where(moved < 0, moved * response.slope, moved).clip(response.lower, response.upper)
    np.testing.assert_allclose(bent, expected, rtol=0, atol=1e-5)
    assert plain is not None


def test_without_a_bias_it_is_zero() -> None:
    response = found([node("Conv", "x w", "z"), node("Relu", "z", "y")])
    assert response is not None and not response.bias.any() and response.bias.shape == (4,)


@pytest.mark.parametrize(
    ("nodes", "outputs"),
    [
        ([CONV, node("Sigmoid", "z", "y")], "y"),
        ([CONV, node("Relu", "z", "y")], "y z"),
        ([CONV, node("Relu", "z", "r"), node("Add", "r z", "y")], "y"),
        ([CONV, node("Add", "z z", "y")], "y"),
        ([CONV, node("Add", "z b", "a"), node("Relu", "a", "y")], "y"),
        ([node("Conv", "x w b", "y")], "y"),
        ([CONV, node("ReduceMax", "x", "t", keepdims=0), node("Clip", "z - t", "y")], "y"),
        ([CONV, node("Clip", "z high low", "y")], "y"),
        ([node("Gemm", "x w b", "z", alpha=0.5), node("Relu", "z", "y")], "y"),
        ([MATMUL, node("Add", "m m", "a"), node("Relu", "a", "y")], "y"),
    ],
    ids=["sigmoid", "output", "two readers", "twice", "spatial bias", "end", "bound", "upside down", "alpha", "own"],
)
def test_other_layers_stay_linear(nodes: list[onnx.NodeProto], outputs: str) -> None:
    assert found(nodes, outputs) is None


@pytest.mark.parametrize("bias", [normal(1, 7, 4), normal(1, 7, 1)])
def test_a_bias_that_differs_from_row_to_row_is_no_response(bias: Array) -> None:
    assert found([MATMUL, ADD, node("Relu", "z", "y")], bias=bias) is None


@pytest.mark.parametrize("bias", [normal(1), normal(1, 1), normal(1, 1, 4)])
def test_a_bias_may_broadcast(bias: Array) -> None:
    response = found([MATMUL, ADD, node("Relu", "z", "y")], bias=bias)
    assert response is not None
    np.testing.assert_array_equal(response.bias, np.broadcast_to(bias.reshape(-1), 4).astype(np.float64))


def test_normalized_models_have_responses_too() -> None:
    model = wrapped(net([CONV, node("Relu", "z", "y")]))
    normalize_graph(model)
    assert response_of(next(iter(model.graph)), 4) is not None
