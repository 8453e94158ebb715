"""Graphs that once came out wrong: each is run against the float model, or stays float with a reason."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from models import Stream, feeds_for, node, normal, proto_of, quantized_of, recipe_of, run, stream_for, wrapped
from onnx import TensorProto, helper

from qcli.errors import NothingToDoError, UsageError
from qcli.files import check_writable
from qcli.graph import infer_shapes, raise_opset
from qcli.job import QuantizeJob
from qcli.metrics.sqnr import Sqnr
from qcli.pipeline import quantize
from qcli.plan import check_plan, make_plan
from qcli.prepare import prepare
from qcli.recipe import load_recipe
from qcli.stages import make_plan_file, make_statistics_file, merge_statistics
from qcli.types import Array, Plan
from qcli.watch import Watch

WEIGHTS = {"w": normal(0, 4, 3, 3, 3), "v": normal(1, 4, 4, 3, 3)}


def ratio(proto: onnx.ModelProto, **options: Any) -> float:
    """The SQNR in dB of the quantized model over the float one."""
    quantized = quantized_of(proto, **options).model
    metric = Sqnr()
    for seed in range(3):
        feeds = feeds_for(wrapped(proto), seed)
        for name, expected in run(proto, feeds).items():
            metric.update(expected, run(quantized, feeds, optimize=True)[name])
    return metric.value()


def net(*nodes: onnx.NodeProto, weights: dict[str, Array] | None = None, opset: int = 17) -> onnx.ModelProto:
    return proto_of(nodes, {"x": [1, 3, 12, 12]}, {"y": None}, {**WEIGHTS, **(weights or {})}, opset=opset)


def reasons(proto: onnx.ModelProto) -> dict[str, str]:
    source = wrapped(proto)
    return {kept.op: kept.reason for kept in make_plan(source, load_recipe("int8")).kept_float}


def test_a_bias_that_is_computed_keeps_its_layer_float() -> None:
    weights = {"w1": normal(2, 3, 3, 3, 3)}
    mean = node("ReduceMean", "x", "mu", axes=[0, 2, 3], keepdims=0)
    proto = net(node("Conv", "x w", "a"), mean, node("Conv", "x w1 mu", "b"), node("Conv", "a v", "y"), weights=weights)
    assert reasons(proto)["Conv"].startswith("its bias is not constant; ")
    assert ratio(proto) > 25


@pytest.mark.parametrize(("clip", "bounds"), [("Clip", (2.0, 5.0)), ("Max", (3.0,))])
def test_a_natural_range_ends_where_a_clip_moves_values_out_of_it(clip: str, bounds: tuple[float, ...]) -> None:
    weights = {f"bound{index}": np.array(bound, np.float32) for index, bound in enumerate(bounds)}
    clipped = node(clip, " ".join(["s", *weights]), "c")
    proto = net(node("Conv", "x w", "a"), node("Sigmoid", "a", "s"), clipped, node("Conv", "c v", "y"), weights=weights)
    assert ratio(proto) > 25


def test_pooling_that_the_integer_kernel_does_otherwise_stays_float() -> None:
    pool = node(
        "AveragePool",
        "a",
        "p",
        kernel_shape=[3, 3],
        strides=[2, 2],
        pads=[1, 1, 1, 1],
        ceil_mode=1,
        count_include_pad=1,
    )
    proto = net(node("Conv", "x w", "a"), pool, node("Conv", "p v", "y"))
    assert "padding" in reasons(proto)["AveragePool"]
    assert ratio(proto) > 25
    dilated = node("AveragePool", "a", "p", kernel_shape=[2, 2], dilations=[2, 2])
    proto = net(node("Conv", "x w", "a"), dilated, node("Conv", "p v", "y"), opset=19)
    assert "dilations" in reasons(proto)["AveragePool"]


def test_a_pad_that_names_its_axes_pads_all_of_them() -> None:
    weights = {"pads": np.array([1, 1, 1, 1], np.int64), "axes": np.array([2, 3], np.int64)}
    proto = net(
        node("Conv", "x w", "a"), node("Pad", "a pads - axes", "p"), node("Conv", "p v", "y"), weights=weights, opset=18
    )
    assert ratio(proto) > 25


def test_a_constant_with_inf_stays_float() -> None:
    weights = {"mask": np.where(np.eye(10) > 0, -np.inf, 0.0).astype(np.float32)}
    nodes = (node("Conv", "x w", "a"), node("Add", "a mask", "m"), node("Relu", "m", "r"), node("Conv", "r v", "y"))
    proto = net(*nodes, weights=weights)
    assert "Inf" in reasons(proto)["Add"]
    assert ratio(proto) > 25


@pytest.mark.parametrize(("operator", "opset"), [("Upsample", 9), ("Resize", 10)])
@pytest.mark.parametrize("mode", ["linear", "nearest"])
def test_resizing_of_old_operator_sets_keeps_its_meaning(operator: str, opset: int, mode: str) -> None:
    weights = {"scales": np.array([1, 1, 2, 2], np.float32)}
    proto = net(node("Conv", "x w", "a"), node(operator, "a scales", "y", mode=mode), weights=weights, opset=opset)
    model = wrapped(proto)
    raise_opset(model, 13)
    feeds = feeds_for(wrapped(proto))
    np.testing.assert_allclose(run(model, feeds)["y"], run(proto, feeds)["y"], rtol=1e-5, atol=1e-5)


def test_functions_survive_the_conversion() -> None:
    body = [helper.make_node("Add", ["a", "a"], ["b"])]
    twice = helper.make_function("my", "Twice", ["a"], ["b"], body, [helper.make_opsetid("", 11)])
    proto = net(node("Conv", "x w", "c"), node("Twice", "c", "y", domain="my"), opset=11)
    proto.functions.append(twice)
    proto.opset_import.append(helper.make_opsetid("my", 1))
    model = wrapped(proto)
    raise_opset(model, 13)
    feeds = feeds_for(model)
    np.testing.assert_allclose(run(model, feeds)["y"], run(proto, feeds)["y"], rtol=1e-6)


def test_sequences_pass_through() -> None:
    nodes = (
        node("Conv", "x w", "a"),
        node("SplitToSequence", "a", "parts", axis=1),
        node("Identity", "parts", "same"),
        node("ConcatFromSequence", "same", "joined", axis=1),
        node("Conv", "joined v", "y"),
    )
    proto = net(*nodes)
    model = wrapped(proto)
    infer_shapes(model)
    run(model, feeds_for(model))
    assert ratio(proto) > 20


def test_a_string_input_is_named_as_samples_name_it() -> None:
    proto = net(node("Conv", "x w", "y"))
    proto.graph.input.append(helper.make_tensor_value_info("s", TensorProto.STRING, [1]))
    assert {spec.name: spec.dtype for spec in wrapped(proto).inputs()} == {"x": "float32", "s": "string"}


@pytest.mark.parametrize(
    "rule",
    [
        "{match: {op: Relu}, keep: float}",
        "{match: {name: /r}, keep: float}",
        "{match: {role: output, name: /a}, keep: float}",
        "{match: {role: bias, op: Conv}, keep: float}",
    ],
)
def test_what_a_rule_keeps_is_kept(rule: str, tmp_path: Path) -> None:
    proto = net(
        node("Conv", "x w b", "a"), node("Relu", "a", "r"), node("Conv", "r v", "y"), weights={"b": normal(3, 4)}
    )
    plans = [
        make_plan_or_none(proto, recipe_of(text, tmp_path, f"{index}.yaml")) for index, text in enumerate(texts(rule))
    ]
    assert plans[0] != plans[1]


def texts(rule: str) -> tuple[str, str]:
    return "version: 1\nextends: int8\n", f"version: 1\nextends: int8\nrules: [{rule}]\n"


def make_plan_or_none(proto: onnx.ModelProto, recipe: Any) -> Plan | None:
    try:
        return make_plan(wrapped(proto), recipe)
    except NothingToDoError:
        return None


def test_a_range_for_an_operator_holds_behind_its_relu(tmp_path: Path) -> None:
    proto = net(node("Conv", "x w", "a"), node("Relu", "a", "r"), node("Conv", "r v", "y"))
    rule = "{match: {op: Conv, role: output}, range: {fixed: {lower: 0, upper: 7}}}"
    plan = make_plan(wrapped(proto), recipe_of(texts(rule)[1], tmp_path))
    spans = [entry.range for entry in plan.entries if entry.site.role.value == "output"]
    assert spans and all(span == {"fixed": {"lower": 0, "upper": 7}} for span in spans)


def test_scales_per_channel_are_for_weights(tmp_path: Path) -> None:
    rule = "{match: {role: input}, grid: {format: uint8, symmetric: false, granularity: channel}}"
    with pytest.raises(UsageError, match="activations have one scale"):
        make_plan(wrapped(net(node("Conv", "x w", "y"))), recipe_of(texts(rule)[1], tmp_path))


def test_layers_that_share_a_weight_may_have_rules_of_their_own(tmp_path: Path) -> None:
    nodes = [node("MatMul", "x w", "a"), node("MatMul", "z w", "b")]
    proto = proto_of(nodes, {"x": [2, 8], "z": [3, 8]}, {"a": None, "b": None}, {"w": normal(0, 8, 8)})
    rule = "{match: {name: /b, role: weight}, range: {fixed: {lower: -0.5, upper: 0.5}}}"
    quantized = quantized_of(proto, recipe_of(texts(rule)[1], tmp_path))
    scales = {key[0]: scale.scale for key, scale in quantized.solution.scales.items() if key[1] == "weight"}
    assert not np.array_equal(scales["a"], scales["b"])


def test_an_empty_activation_is_no_error() -> None:
    weights = {"none": np.array([0], np.int64), "axis": np.array([0], np.int64)}
    proto = proto_of(
        [
            node("Conv", "x w", "a"),
            node("Slice", "a none none axis", "e"),
            node("Conv", "e v", "y"),
            node("Conv", "a v", "z"),
        ],
        {"x": [1, 3, 12, 12]},
        {"y": None, "z": None},
        {**WEIGHTS, **weights},
    )
    quantized = quantized_of(proto)
    assert run(quantized.model, feeds_for(wrapped(proto)))["y"].shape[0] == 0


def test_a_plan_without_entries_does_nothing() -> None:
    source = wrapped(net(node("Conv", "x w", "y")))
    empty = Plan(model_sha256=source.sha256, target="ort_cpu", opset=13, entries=())
    with pytest.raises(NothingToDoError):
        check_plan(empty, source)


def test_a_conversion_that_changes_the_outputs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from qcli.errors import UnsupportedError

    source = wrapped(net(node("Conv", "x w", "y"), opset=11))
    monkeypatch.setattr("qcli.prepare._same", lambda *_: False)
    with pytest.raises(UnsupportedError, match="computes something else"):
        prepare(source, 13, (), Stream(stream_for(source).samples), Watch())


def test_what_is_read_is_never_overwritten(tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(net(node("Conv", "x w", "y")).SerializeToString())
    before = model.read_bytes()
    for attempt in (
        lambda: make_plan_file(QuantizeJob(model=model, output=model)),
        lambda: make_statistics_file(QuantizeJob(model=model, output=model, random_samples=2)),
        lambda: merge_statistics([model, model], model),
        lambda: quantize(QuantizeJob(model=model, output=tmp_path / "o.onnx", reports=(tmp_path / "o.onnx",))),
    ):
        with pytest.raises(UsageError, match="read or written otherwise"):
            attempt()
    assert model.read_bytes() == before


@pytest.mark.skipif(os.name == "nt", reason="pipes have names on POSIX alone")
def test_what_is_no_ordinary_file_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="no ordinary file"):
        check_writable(tmp_path / "pipe")
