"""Attention with its weights as integers: as float Attention computes it with what the codes stand for."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from codes import kernels_of, stored_of, weights_of, with_decoded_weights
from hypothesis import given, settings
from hypothesis import strategies as st
from models import Feeds, assert_equal, feeds_for, node, normal, operators, proto_of, run, sample_model
from onnx import TensorProto, helper

from qcli.graph import Model, normalize_graph
from qcli.kernels import read_kernels
from qcli.steps.fuse_attention import FuseAttention
from qcli.types import Array

MICROSOFT = "com.microsoft"


def attention(
    heads: int = 2, size: int = 8, inputs: int = 24, reads: str = "x w b", **attributes: Any
) -> onnx.ModelProto:
    """Data x [batch, 5, inputs] and a mask m [batch, 5] of ones and zeros, if it is read."""
    width = 3 * heads * size
    made = node("Attention", reads, "y", domain=MICROSOFT, num_heads=heads, **attributes)
    weights = {"w": normal(0, inputs, width) / 4, "b": normal(1, width)}
    proto = proto_of([made], {"x": ["batch", 5, inputs]}, {"y": None}, weights, opset=21)
    if "m" in reads.split():
        proto.graph.input.append(helper.make_tensor_value_info("m", TensorProto.INT32, ["batch", 5]))
    proto.opset_import.append(helper.make_opsetid(MICROSOFT, 1))
    return proto


def feeds_of(proto: onnx.ModelProto, inputs: int = 24) -> Feeds:
    feeds: Feeds = {"x": normal(3, 2, 5, inputs)}
    if len(proto.graph.input) > 1:
        feeds["m"] = np.asarray([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], np.int32)
    return feeds


def on_levels(data: Array) -> Array:
    """Data that DynamicQuantizeLinear keeps as they are, up to rounding."""
    step = (max(data.max(), 0) - min(data.min(), 0)) / 255
    return np.asarray(np.rint(data / step) * step, np.float32)


@settings(deadline=None, max_examples=30)
@given(
    heads=st.integers(1, 4),
    size=st.integers(4, 12),
    inputs=st.integers(16, 40),
    masked=st.booleans(),
    scale=st.sampled_from([None, 0.25, 1.5]),
    channel=st.booleans(),
    grid=st.sampled_from(["int8, symmetric: true", "int8, symmetric: false", "int4, symmetric: true"]),
)
def test_it_is_float_attention_of_the_decoded_weight(
    heads: int, size: int, inputs: int, masked: bool, scale: float | None, channel: bool, grid: str
) -> None:
    options = {} if scale is None else {"scale": scale}
    proto = attention(heads, size, inputs, "x w b m" if masked else "x w b", **options)
    if 3 * heads * size < 16:
        return
    layout = "channel" if channel else "tensor"
    grid = f"{{format: {grid}, granularity: {layout}}}"
    feeds = feeds_of(proto, inputs)
    feeds["x"] = on_levels(feeds["x"])
    quantized = stored_of(proto, "int8-dynamic", (f"rules=[{{match: {{role: weight}}, grid: {grid}}}]",), feeds)
    assert weights_of(quantized) == [("y", 1, "dynamic")]
    assert set(operators(quantized.model)) - {"Cast"} == {"DynamicQuantizeLinear", "QAttention"}
    expected = run(with_decoded_weights(quantized), feeds)
    for optimize in (False, True):
        assert_equal(expected, run(quantized.model, feeds, optimize=optimize), tolerance=0.02)


def test_it_shares_the_codes_of_its_data_with_other_layers() -> None:
    proto = attention()
    proto.graph.node.append(node("MatMul", "x v", "z"))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(normal(4, 24, 16), "v"))
    proto.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, None))
    quantized = stored_of(proto, "int8-dynamic", feeds=feeds_of(proto))
    assert operators(quantized.model).count("DynamicQuantizeLinear") == 1
    assert quantized.model.outputs() == ("y", "z")


FLOAT = {
    "a past": (attention(reads="x w b - past"), "more than data"),
    "a bias of the scores": (attention(reads="x w b - - scores"), "more than data"),
    "sizes of each": (attention(qkv_hidden_sizes=[16, 16, 16]), "queries, keys and values of one size"),
    "a computed bias": (attention(reads="x w computed"), "its bias is not constant"),
}


@pytest.mark.parametrize("kind", FLOAT)
def test_what_the_integer_kernel_lacks_is_stored(kind: str) -> None:
    proto, reason = FLOAT[kind]
    extra = {"past": [2, "batch", 2, "past", 8], "scores": ["batch", 2, 5, 5], "computed": [48]}
    for name in set(proto.graph.node[0].input) & set(extra):
        proto.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, extra[name]))
    if kind == "a past":
        proto.graph.node[0].output.append("present")
    feeds: Feeds = {"x": normal(3, 2, 5, 24)}
    given_feeds = {"past": normal(5, 2, 2, 2, 3, 8), "scores": normal(5, 2, 2, 5, 5), "computed": normal(5, 48)}
    feeds |= {name: array for name, array in given_feeds.items() if name in proto.graph.node[0].input}
    quantized = stored_of(proto, "int8-dynamic", feeds=feeds)
    [entry] = quantized.plan.entries
    assert entry.encoding == "weight_only"
    assert reason in entry.because
    assert_equal(run(with_decoded_weights(quantized), feeds), run(quantized.model, feeds), tolerance=1e-5)


def fused_transformer() -> tuple[Model, Model]:
    source = sample_model("transformer")
    normalize_graph(source)
    model = source.copy()
    assert FuseAttention().run(model) == 2
    return source, model


def test_its_products_count_as_float() -> None:
    source, model = fused_transformer()
    quantized = stored_of(model.proto(), "int8-dynamic", feeds=feeds_for(source))
    before = kernels_of(stored_of(source.proto(), "int8-dynamic"))
    after = read_kernels(quantized.model.serialize(), source, feeds_for(source))
    assert after.by_kernel["QAttention"] == 2
    assert after.integer_share == pytest.approx(before.integer_share)
    products = [kept for kept in after.stayed_float if kept.kernel == "QAttention"]
    assert len(products) == 4
    assert after.unmatched == ()


def test_float_attention_is_traced_to_all_that_it_does() -> None:
    source, model = fused_transformer()
    found = read_kernels(model.serialize(), source, feeds_for(source))
    assert found.integer_share == 0
    assert found.unmatched == ()
    assert sum(kept.kernel == "Attention" for kept in found.stayed_float) == 6
