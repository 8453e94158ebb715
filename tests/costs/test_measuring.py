"""Kernels as onnxruntime runs them: which ones, how often measured; never how fast."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from cost_graphs import conv, graph, with_bias

from qcli.costs import measuring
from qcli.costs.build import between_convolutions, build
from qcli.costs.keys import OPSET, conversion_key, key_of
from qcli.costs.measuring import measure_kernels
from qcli.costs.nouns import KernelCost, KernelKey, Mode, Operand, WeightForm
from qcli.errors import RuntimeFailure, UnsupportedError
from qcli.latency import Effort
from qcli.runtime import Session
from qcli.watch import Watch

IMAGE = (1, 16, 8, 8)
EIGHT = "DequantizeLinear"


@pytest.fixture(autouse=True)
def _little_effort(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "EFFORT", Effort(least=0.0, most=0.01))


def measured(*keys: KernelKey | None) -> list[KernelCost]:
    known = [key for key in keys if key is not None]
    assert len(known) == len(keys)
    return list(measure_kernels(known, Watch()))


def cost(mode: Mode, op: str, *shapes: Any, **attributes: Any) -> KernelCost:
    node, sizes = graph(op, *shapes, **attributes)
    (found,) = measured(key_of(node, mode, sizes, 1))
    return found


def is_measured(one: KernelCost) -> bool:
    return one.ms is not None and isfinite(one.ms) and one.ms >= 0 and one.layout_ms >= 0 and one.spread_ms >= 0


STATIC = [
    ("Conv", ((IMAGE,), ((16, 16, 3, 3), (16,))), {}, "QLinearConv"),
    ("Conv", ((IMAGE,), ((16, 1, 3, 3), (16,))), {"group": 16, "pads": [1, 1, 1, 1]}, "QLinearConv"),
    ("Conv", ((IMAGE,), ((32, 8, 1, 1),)), {"group": 2, "strides": [2, 2]}, "QLinearConv"),
    ("Conv", ((IMAGE,), ((16, 16, 3, 3),)), {"dilations": [2, 2]}, "QLinearConv"),
    ("Conv", (((1, 16, 20),), ((16, 16, 5), (16,))), {}, "QLinearConv"),
    ("Gemm", (((4, 16),), ((16, 32), (32,))), {}, "QGemm"),
    ("Gemm", (((4, 16),), ((32, 16), (32,))), {"transB": 1}, "QGemm"),
    ("MatMul", (((4, 16),), ((16, 32),)), {}, "QLinearMatMul"),
    ("MatMul", (((2, 4, 16), (2, 16, 4)),), {}, "QLinearMatMul"),
    ("Add", ((IMAGE, IMAGE),), {}, "QLinearAdd"),
    ("Mul", ((IMAGE,), (IMAGE,)), {}, "QLinearMul"),
    ("Concat", ((IMAGE, IMAGE),), {"axis": 1}, "QLinearConcat"),
    ("Sigmoid", ((IMAGE,),), {}, "QLinearSigmoid"),
    ("LeakyRelu", ((IMAGE,),), {"alpha": 0.1}, "QLinearLeakyRelu"),
    ("MaxPool", ((IMAGE,),), {"kernel_shape": [2, 2]}, "MaxPool"),
    ("AveragePool", ((IMAGE,),), {"kernel_shape": [2, 2]}, "QLinearAveragePool"),
    ("GlobalAveragePool", ((IMAGE,),), {}, "QLinearGlobalAveragePool"),
    ("Transpose", ((IMAGE,),), {"perm": [0, 2, 3, 1]}, "Transpose"),
    ("DepthToSpace", ((IMAGE,),), {"blocksize": 2}, "DepthToSpace"),
]


@pytest.mark.parametrize(("op", "shapes", "attributes", "kernel"), STATIC)
def test_static_kernels_are_integer(op: str, shapes: Any, attributes: dict[str, Any], kernel: str) -> None:
    found = cost(Mode.STATIC, op, *shapes, **attributes)
    assert is_measured(found), found.why
    assert kernel in found.kernel
    assert EIGHT not in found.kernel and "QuantizeLinear" not in found.kernel


@pytest.mark.parametrize(("op", "shapes", "attributes", "kernel"), STATIC)
def test_the_same_in_float(op: str, shapes: Any, attributes: dict[str, Any], kernel: str) -> None:
    found = cost(Mode.FLOAT, op, *shapes, **attributes)
    assert is_measured(found), found.why
    assert "QLinear" not in found.kernel and op in found.kernel


@pytest.mark.parametrize("op", ["Relu", "Tanh", "Softmax", "Erf", "Sqrt", "HardSigmoid"])
def test_other_operators_are_measured_in_float(op: str) -> None:
    assert is_measured(cost(Mode.FLOAT, op, ((4, 8),)))


def test_layout_changes_are_no_part_of_a_kernel() -> None:
    found = cost(Mode.STATIC, "Conv", (IMAGE,), ((16, 16, 3, 3),))
    assert found.kernel == "QLinearConv"
    assert cost(Mode.FLOAT, "Conv", (IMAGE,), ((16, 16, 3, 3),)).kernel == "Conv"


def test_pools_are_measured_as_they_run_between_convolutions() -> None:
    node, shapes = graph("MaxPool", (IMAGE,), kernel_shape=[2, 2])
    key = key_of(node, Mode.STATIC, shapes, 1)
    assert key is not None and between_convolutions(key)
    assert measured(key)[0].kernel == "NhwcMaxPool"
    line, sizes = graph("MaxPool", ((1, 8, 30),), kernel_shape=[2])
    other = key_of(line, Mode.STATIC, sizes, 1)
    assert other is not None and not between_convolutions(other)
    assert is_measured(measured(other)[0])


def test_a_transposed_convolution_falls_back() -> None:
    found = cost(Mode.STATIC, "ConvTranspose", (IMAGE,), ((16, 8, 2, 2), (8,)), strides=[2, 2])
    assert is_measured(found)
    assert EIGHT in found.kernel


@pytest.mark.parametrize("op", ["MatMul", "Gemm"])
def test_float_results_and_dynamic_kernels(op: str) -> None:
    node, shapes = graph(op, ((4, 32),), ((32, 32),))
    floats = key_of(node, Mode.STATIC_FLOAT_RESULT, shapes, 1)
    assert "QuantizeLinear" not in measured(floats)[0].kernel
    found = measured(key_of(node, Mode.DYNAMIC, shapes, 1))[0]
    assert found.kernel == "DynamicQuantizeMatMul"


@pytest.mark.parametrize("declared", [(1, 4, 32), (None, None, 32)])
@pytest.mark.parametrize("mode", [Mode.FLOAT, Mode.STATIC, Mode.STATIC_FLOAT_RESULT, Mode.DYNAMIC, Mode.WEIGHT_ONLY])
def test_a_product_with_its_bias(declared: tuple[int | None, ...], mode: Mode) -> None:
    _, node, shapes = with_bias((1, 4, 32), declared, (32, 32))
    found = measured(key_of(node, mode, shapes, 1))[0]
    assert is_measured(found), found.why
    if mode in (Mode.STATIC, Mode.STATIC_FLOAT_RESULT):  # never the float kernel with weights decoded at each run
        assert EIGHT not in found.kernel


def test_weights_in_blocks() -> None:
    node, shapes = graph("MatMul", ((4, 64),), ((64, 32),))
    form = WeightForm(bits=4, block=32, decode="run")
    found = measured(key_of(node, Mode.WEIGHT_ONLY, shapes, 1, form))[0]
    assert is_measured(found), found.why
    assert "MatMulNBits" in found.kernel
    node, shapes = conv()
    decoded = measured(key_of(node, Mode.WEIGHT_ONLY, shapes, 1, WeightForm(decode="run")))[0]
    assert EIGHT in decoded.kernel


def test_a_recurrent_layer() -> None:
    data, weights = ((5, 1, 16),), ((1, 64, 16), (1, 64, 16))
    assert is_measured(cost(Mode.FLOAT, "LSTM", data, weights, hidden_size=16))
    assert cost(Mode.DYNAMIC, "LSTM", data, weights, hidden_size=16).kernel == "DynamicQuantizeLSTM"


def test_conversions() -> None:
    costs = measured(*(conversion_key(mode, IMAGE, 1) for mode in (Mode.QUANTIZE, Mode.DEQUANTIZE)))
    assert [one.kernel for one in costs] == ["QuantizeLinear", "DequantizeLinear"]
    assert all(map(is_measured, costs))


def test_codes_go_in_and_come_out() -> None:
    node, shapes = conv()
    key = key_of(node, Mode.STATIC, shapes, 1)
    assert key is not None
    model, feeds = build(key)
    assert [array.dtype for array in feeds.values()] == [np.uint8]
    results = Session(model.serialize()).run(feeds)
    assert [array.dtype for array in results.values()] == [np.uint8]


def test_the_sample_is_always_the_same() -> None:
    node, shapes = conv()
    key = key_of(node, Mode.FLOAT, shapes, 1)
    assert key is not None
    (first, feeds), (second, others) = build(key), build(key)
    assert first.serialize() == second.serialize()
    for name, array in feeds.items():
        np.testing.assert_array_equal(array, others[name])


def test_modes_of_one_node_are_timed_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    measure = measuring.measure

    def counted(models: Sequence[Any], *rest: Any) -> Any:
        calls.append(len(models))
        return measure(models, *rest)

    monkeypatch.setattr(measuring, "measure", counted)
    node, shapes = graph("Add", (IMAGE, IMAGE))
    keys = [key_of(node, mode, shapes, 1) for mode in (Mode.FLOAT, Mode.STATIC)]
    assert len(measured(*keys, *keys)) == 2  # each once
    assert calls == [3]  # both, and what computes nothing


def _key(op: str, *operands: Operand, **attributes: Any) -> KernelKey:
    listed = tuple(sorted(attributes.items()))
    return KernelKey(op=op, mode=Mode.FLOAT, inputs=operands, attributes=listed, opset=OPSET)


DATA = Operand(shape=(1, 4, 8, 8), type="float32")
HUGE = 1 << 30

IMPOSSIBLE = {
    "unknown": _key("NoSuchOperator", DATA),
    "huge input": _key("Relu", Operand(shape=(HUGE, HUGE), type="float32")),
    "huge padding": _key("MaxPool", DATA, kernel_shape=(2, 2), pads=(HUGE, HUGE, HUGE, HUGE)),
    "huge window": _key("AveragePool", DATA, kernel_shape=(1 << 20, 1 << 20), pads=(1 << 10,) * 4),
    "huge result": _key("Expand", DATA, Operand(shape=(4,), type="int64", constant=True, values=(HUGE, HUGE, 8, 8))),
    "unknown result": _key("NonZero", DATA),
    "no stride": _key("MaxPool", DATA, kernel_shape=(2, 2), strides=(0, 0)),
    "odd group": _key(
        "Conv", DATA, Operand(shape=(4, 4, 3, 3), type="float32", constant=True), group=3, kernel_shape=(3, 3)
    ),
    "odd parts": msgspec.structs.replace(_key("Split", DATA, axis=1, num_outputs=1), outputs=2),
    "no rank": _key("Conv", Operand(shape=(), type="float32"), Operand(shape=(), type="float32", constant=True)),
    "text": _key("Relu", Operand(shape=(1,), type="text")),
    "constants": _key("Relu", Operand(shape=(1,), type="float32", constant=True)),
    "nothing": _key("Relu"),
    "left out": KernelKey(op="Relu", mode=Mode.FLOAT, inputs=(None,), opset=OPSET),
    "odd mode": KernelKey(op="Relu", mode=Mode.DYNAMIC, inputs=(DATA,), opset=OPSET),
    "static without codes": KernelKey(op="NonZero", mode=Mode.STATIC, inputs=(DATA,), opset=OPSET),
}


@pytest.mark.parametrize("key", IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_what_cannot_be_measured_alone_has_none(key: KernelKey) -> None:
    node, shapes = graph("Relu", ((2, 2),))
    bad, good = measured(key, key_of(node, Mode.FLOAT, shapes, 1))
    if key.mode is not Mode.DYNAMIC:  # which for a node without weights is float
        assert bad.ms is None and bad.why
    assert is_measured(good)


def test_too_large_is_refused_before_memory_is_taken() -> None:
    with pytest.raises(UnsupportedError, match="bytes"):
        build(IMPOSSIBLE["huge input"])


def test_a_failing_run_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeFailure("onnxruntime cannot run the model")

    monkeypatch.setattr(measuring, "measure", fail)
    found = cost(Mode.FLOAT, "Relu", ((2, 2),))
    assert found.ms is None and "cannot run" in found.why


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert is_measured(cost(Mode.STATIC, "Conv", (IMAGE,), ((16, 16, 3, 3),)))
    assert not list(tmp_path.iterdir())
