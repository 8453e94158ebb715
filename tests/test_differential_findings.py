"""What comparing random models with their quantized form brought to light, each as small as it gets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from models import (
    conv_net,
    feeds_for,
    finished,
    floats,
    node,
    normal,
    operators,
    proto_of,
    quantized_of,
    recipe_of,
    run,
    stream_for,
    wrapped,
)
from msgspec.structs import replace
from onnx import TensorProto, helper, numpy_helper

from qcli.apply import apply_plan
from qcli.errors import UsageError
from qcli.graph import Model, normalize_graph
from qcli.metrics.sqnr import Sqnr
from qcli.opsets import written_opset
from qcli.plan import check_plan, make_plan
from qcli.recipe import load_recipe
from qcli.refine import doubted_plan
from qcli.types import Array, Entry, Plan, Role

KERNEL = normal(1, 4, 4, 1) / 2
MATRIX = normal(2, 16, 16) / 4
FLAG = helper.make_tensor_value_info("again", TensorProto.BOOL, [])
COUNT = helper.make_tensor_value_info("round", TensorProto.INT64, [])


def ratio(proto: onnx.ModelProto, result: Model) -> float:
    """The SQNR in dB of the quantized model over the float one."""
    metric = Sqnr()
    for seed in range(3):
        feeds = feeds_for(wrapped(proto), seed)
        quantized = run(result, feeds, optimize=True)
        for name, expected in run(proto, feeds).items():
            metric.update(expected, quantized[name])
    return metric.value()


def body(nodes: list[onnx.NodeProto], inputs: list[Any], outputs: list[Any], **weights: Array) -> onnx.GraphProto:
    constants = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    return helper.make_graph(nodes, "body", inputs, outputs, constants)


def loop() -> onnx.ModelProto:
    """A convolution reads the state with which each round begins."""
    nodes = [node("Identity", "again", "still"), node("Conv", "state k", "next")]
    still = helper.make_tensor_value_info("still", TensorProto.BOOL, [])
    inner = body(nodes, [COUNT, FLAG, floats("state", ["n", 4, 6])], [still, floats("next", None)])
    weights = {"k": KERNEL, "rounds": np.array(2), "go": np.array(True)}
    return proto_of([node("Loop", "rounds go x", "y", body=inner)], {"x": ["n", 4, 6]}, {"y": None}, weights)


def scan() -> onnx.ModelProto:
    """Products read the state and the row that each round is given."""
    nodes = [node("MatMul", "state w", "a"), node("MatMul", "row w", "b"), node("Add", "a b", "next")]
    inner = body(
        [*nodes, node("Identity", "next", "out")],
        [floats("state", [16]), floats("row", [16])],
        [floats("next", [16]), floats("out", [16])],
    )
    made = node("Scan", "start x", "last y", num_scan_inputs=1, body=inner)
    return proto_of([made], {"start": [16], "x": [5, 16]}, {"y": None}, {"w": MATRIX})


def nested() -> onnx.ModelProto:
    """The state of a Loop inside of a branch of an If."""
    inner = onnx.ModelProto.FromString(loop().SerializeToString()).graph
    branch = helper.make_graph(list(inner.node), "then", [], [floats("y", None)], list(inner.initializer))
    other = body([node("Relu", "x", "z")], [], [floats("z", None)])
    decide = [node("ReduceMean", "x", "mean", keepdims=0), node("Less", "mean far", "c")]
    made = node("If", "c", "out", then_branch=branch, else_branch=other)
    return proto_of([*decide, made], {"x": ["n", 4, 6]}, {"out": None}, {"far": np.array(9, np.float32)})


def sequence_map() -> onnx.ModelProto:
    inner = body([node("Conv", "item k", "t")], [floats("item", ["n", 4, 6])], [floats("t", None)])
    nodes = [
        node("SequenceConstruct", "x x", "all"),
        node("SequenceMap", "all", "mapped", body=inner),
        node("ConcatFromSequence", "mapped", "y", axis=0),
    ]
    return proto_of(nodes, {"x": ["n", 4, 6]}, {"y": None}, {"k": KERNEL})


@pytest.mark.parametrize("make", [loop, scan, nested, sequence_map])
def test_what_a_body_is_given_is_measured(make: Any) -> None:
    found = quantized_of(make())
    assert "QuantizeLinear" in operators(found.model)
    assert ratio(make(), found.model) > 25


def test_applying_a_plan_twice_gives_the_same_bytes() -> None:
    """The names that the first result took were taken in its source too."""
    found = quantized_of(conv_net())
    again = apply_plan(found.source, found.plan, found.solution)
    assert again.serialize() == found.model.serialize()


@pytest.mark.parametrize("hidden", ["weight", "output"])
def test_a_weight_of_bodies_moves_to_the_main_graph_though_its_name_is_taken_there(hidden: str) -> None:
    branches = [
        body([node("MatMul", "x w", f"o{number}")], [], [floats(f"o{number}", None)], w=MATRIX) for number in (0, 1)
    ]
    decide = [node("ReduceMean", "x", "mean", keepdims=0), node("Less", "mean far", "c")]
    made = node("If", "c", "y", then_branch=branches[0], else_branch=branches[1])
    weights = {"far": np.array(0, np.float32), **({"w": MATRIX * 2} if hidden == "weight" else {})}
    other = node("MatMul", "x w", "q") if hidden == "weight" else node("Relu", "x", "w")
    outputs = {"y": None, ("q" if hidden == "weight" else "w"): None}
    proto = proto_of([*decide, other, made], {"x": ["n", 16]}, outputs, weights)
    assert ratio(proto, quantized_of(proto).model) > 25
    assert ratio(proto, quantized_of(proto, "int8-weights").model) > 30


@pytest.mark.parametrize("encoding", ["weight_only", "dynamic"])
@pytest.mark.parametrize("match", ["{role: input}", "{role: output}", "{op: Add}", "{op: MaxPool}", "{op: Relu}"])
def test_a_node_whose_activations_shall_have_an_encoding_without_calibration_stays_float(
    match: str, encoding: str, tmp_path: Path
) -> None:
    text = f"version: 1\nextends: int8\nrules:\n  - {{match: {match}, encoding: {encoding}}}\n"
    found = quantized_of(conv_net(channels=16), recipe_of(text, tmp_path))
    check_plan(found.plan, found.source)
    assert ratio(conv_net(channels=16), found.model) > 25
    reasons = [kept.reason for kept in found.plan.kept_float]
    assert any(f"wants it {encoding}" in reason for reason in reasons) or "Relu" in match  # float in any case


def test_an_lstm_with_asymmetric_weights_is_not_dynamic(tmp_path: Path) -> None:
    """DynamicQuantizeLSTM takes no zero points."""
    weights = {"w": normal(0, 1, 64, 32) / 5, "r": normal(1, 1, 64, 16) / 4}
    proto = proto_of([node("LSTM", "x w r", "y", hidden_size=16)], {"x": [5, 2, 32]}, {"y": None}, weights)
    rule = "{match: {role: weight}, grid: {format: int8, symmetric: false, granularity: channel}}"
    found = quantized_of(proto, recipe_of(f"version: 1\nextends: int8-dynamic\nrules:\n  - {rule}\n", tmp_path))
    assert "DynamicQuantizeLSTM" not in operators(found.model)
    assert "symmetric weights only" in found.plan.entries[0].because
    assert ratio(proto, found.model) > 30


def planned(preset: str = "int8") -> tuple[Model, Plan]:
    source = wrapped(conv_net(channels=16))
    normalize_graph(source)
    return source, make_plan(source, load_recipe(preset))


def edited(plan: Plan, role: Role, change: Any) -> Plan:
    """The plan with its first entry of a role changed."""
    at = next(index for index, entry in enumerate(plan.entries) if entry.site.role is role)
    return replace(plan, entries=(*plan.entries[:at], change(plan.entries[at]), *plan.entries[at + 1 :]))


def with_encoding(encoding: Any) -> Any:
    return lambda entry: replace(entry, encoding=encoding)


def with_grid(**fields: Any) -> Any:
    return lambda entry: replace(entry, grid=replace(entry.grid, **fields))


def as_weight(entry: Entry) -> Entry:
    return replace(entry, site=replace(entry.site, role=Role.WEIGHT), grid=replace(entry.grid, format="int8"))


@pytest.mark.parametrize(
    ("role", "change", "says"),
    [
        (Role.INPUT, with_encoding("dynamic"), "encoding 'dynamic' does not take"),
        (Role.OUTPUT, with_encoding("weight_only"), "encoding 'weight_only' does not take"),
        (Role.BIAS, with_encoding("dynamic"), "encoding 'dynamic' does not take"),
        (Role.WEIGHT, with_encoding("dynamic"), "Conv has no dynamic form"),
        (Role.WEIGHT, with_grid(axis=1), "along axis 1"),
        (Role.WEIGHT, with_grid(axis=9), "axis 9"),
        (Role.WEIGHT, with_grid(axis=-1), "axis -1"),
        (Role.INPUT, as_weight, "is not constant"),
    ],
)
def test_a_plan_changed_by_hand_to_what_cannot_be_is_refused(role: Role, change: Any, says: str) -> None:
    source, plan = planned()
    with pytest.raises(UsageError, match=says):
        check_plan(edited(plan, role, change), source)


def test_a_plan_with_two_entries_for_one_place_is_refused() -> None:
    source, plan = planned()
    with pytest.raises(UsageError, match="two entries for"):
        check_plan(replace(plan, entries=(*plan.entries, plan.entries[1])), source)


@pytest.mark.parametrize("encoding", ["weight_only", {"weight_only": {"decode": "run"}}, "qdq"])
@pytest.mark.parametrize("preset", ["int8", "int8-weights"])
def test_a_weight_may_change_its_encoding_by_hand(preset: str, encoding: Any) -> None:
    source, plan = planned(preset)
    changed = edited(plan, Role.WEIGHT, with_encoding(encoding))
    check_plan(changed, source)
    assert ratio(conv_net(channels=16), finished(source, changed, stream_for(source)).model) > 25


def test_a_given_plan_with_values_that_no_sample_reached_is_warned_of() -> None:
    """Their scale is made up. Without a plan such a branch stays float."""
    branches = [
        body([node("MatMul", "x w", "o")], [], [floats("o", None)]),
        body([node("MatMul", "x w", "m"), node("Relu", "m", "r"), node("MatMul", "r w", "p")], [], [floats("p", None)]),
    ]
    decide = [node("ReduceMean", "x", "mean", keepdims=0), node("Less", "mean far", "c")]
    made = node("If", "c", "y", then_branch=branches[0], else_branch=branches[1])
    weights = {"far": np.array(99, np.float32), "w": MATRIX}
    found = quantized_of(proto_of([*decide, made], {"x": ["n", 16]}, {"y": None}, weights))
    warnings: list[str] = []
    assert doubted_plan(found.source, found.plan, found.statistics, warnings.append) is found.plan
    assert len(warnings) == 1 and "'r': no sample reached it" in warnings[0]


def test_the_operator_set_follows_an_encoding_that_was_changed_by_hand() -> None:
    """DequantizeLinear has an axis from 13 on; a plan of int8-weights may be content with less."""
    plan = replace(planned("int8-weights")[1], opset=9)
    assert written_opset(plan) == 9
    assert written_opset(edited(plan, Role.WEIGHT, with_encoding("qdq"))) == 13
