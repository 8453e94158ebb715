"""Which rule decides: the last that matches and says something, field by field."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from models import conv_net, dense_net, node, normal, proto_of, recipe_of, wrapped

from qcli.errors import NothingToDoError, UsageError
from qcli.graph import normalize_graph
from qcli.plan import make_plan
from qcli.recipe import load_recipe
from qcli.types import Entry, Plan, Role


def planned(proto: onnx.ModelProto, folder: Path, rules: str, extends: str = "int8-minmax") -> Plan:
    model = wrapped(proto)
    normalize_graph(model)
    return make_plan(model, recipe_of(f"{{version: 1, extends: {extends}, rules: {rules}}}", folder))


def entry(plan: Plan, role: Role, value: str) -> Entry:
    [found] = [item for item in plan.entries if item.site.role is role and item.site.value == value]
    return found


def ops(plan: Plan) -> set[str]:
    return {item.site.op for item in plan.entries}


def test_the_last_rule_wins_field_by_field(tmp_path: Path) -> None:
    rules = (
        "[{match: {op: Conv}, range: mse}, {match: {role: weight}, rounding: nearest}, "
        "{match: {role: input}, range: entropy}]"
    )
    plan = planned(conv_net(), tmp_path, rules)
    weight, result = entry(plan, Role.WEIGHT, "w1"), entry(plan, Role.OUTPUT, "r1")
    assert (weight.range, weight.rounding, weight.grid.granularity) == ("mse", "nearest", "channel")
    assert weight.because == "int8-minmax rules[1], recipe.yaml rules[0]"
    assert (result.range, result.because) == ("entropy", "int8-minmax rules[0], recipe.yaml rules[2]")


def test_input_covers_results_and_output_only_results(tmp_path: Path) -> None:
    plan = planned(conv_net(), tmp_path, "[{match: {role: output}, range: mse}]")
    assert entry(plan, Role.INPUT, "x").range == "minmax" and entry(plan, Role.OUTPUT, "r1").range == "mse"
    plan = planned(conv_net(), tmp_path, "[{match: {role: [input]}, range: mse}]")
    assert entry(plan, Role.OUTPUT, "r1").range == "mse" and entry(plan, Role.WEIGHT, "w1").range == "minmax"


@pytest.mark.parametrize(
    ("match", "kept"),
    [
        ("{op: Gemm}", {"/y"}),
        ("{op: [Gemm, MaxPool]}", {"/y", "/m"}),
        ("{name: /c1}", {"/c1"}),
        ("{name: '/c*'}", {"/c1", "/c2", "/c3"}),
        ("{name: ['/c[12]', '/y']}", {"/c1", "/c2", "/y"}),
        ("{value: 'w[13]'}", {"/c1", "/c3"}),
        ("{from: /c3}", {"/c3", "/a", "/m", "/g", "/f", "/y"}),
        ("{to: /c2}", {"/c1", "/c2"}),
        ("{from: /r1, to: /c3}", {"/c2", "/c3"}),
        ("{from: c2, to: c3, op: Conv}", {"/c2", "/c3"}),
        ("{smallest: 0.4}", {"/y", "/c3"}),
        ("{smallest: 0.45}", {"/y", "/c3", "/c2"}),
        ("{smallest: 0.45, op: Conv}", {"/c3", "/c2"}),
        ("{smallest: 0.45, from: /c3}", {"/c3", "/y"}),
    ],
)
def test_keep_float_by_operator_name_value_and_region(tmp_path: Path, match: str, kept: set[str]) -> None:
    plan = planned(conv_net(), tmp_path, f"[{{match: {match}, keep: float}}]")
    by_rule = {item.name for item in plan.kept_float if item.reason == "recipe.yaml rules[0] keeps it float"}
    assert kept >= by_rule >= kept - {"/a", "/m", "/g", "/f"}, "what follows a float node is float by itself"
    quantized = {item.site.name for item in plan.entries if item.site.role is Role.WEIGHT}
    assert not quantized & kept


def test_the_smallest_weights_count_once_however_many_nodes_read_them(tmp_path: Path) -> None:
    weights = {"shared": normal(0, 6, 6), "large": normal(1, 6, 8)}
    nodes = [node("MatMul", "x shared", "a"), node("MatMul", "a shared", "b"), node("MatMul", "b large", "y")]
    proto = proto_of(nodes, {"x": ["n", 6]}, {"y": ["n", 8]}, weights)
    for share in (0.43, 0.99):  # of 36 and 48
        plan = planned(proto, tmp_path, f"[{{match: {{smallest: {share}}}, keep: float}}]")
        assert {item.site.name for item in plan.entries} == {"/y"}
    with pytest.raises(UsageError, match=r"rules\[0\] matches nothing"):
        planned(proto, tmp_path, "[{match: {smallest: 0.42}, keep: float}]")
    with pytest.raises(NothingToDoError):
        planned(proto, tmp_path, "[{match: {smallest: 1}, keep: float}]")


def test_of_equal_weights_the_first_are_the_smallest(tmp_path: Path) -> None:
    weights = {name: normal(seed, 6, 6) for seed, name in enumerate(("w1", "w2", "w3"))}
    nodes = [node("MatMul", "x w1", "a"), node("MatMul", "a w2", "b"), node("MatMul", "b w3", "y")]
    proto = proto_of(nodes, {"x": ["n", 6]}, {"y": ["n", 6]}, weights)
    plan = planned(proto, tmp_path, "[{match: {smallest: 0.5}, keep: float}]")
    assert {item.site.name for item in plan.entries if item.site.role is Role.WEIGHT} == {"/b", "/y"}


@pytest.mark.parametrize("share", ["-0.1", "1.1", "some"])
def test_a_share_of_the_weights_is_between_0_and_1(tmp_path: Path, share: str) -> None:
    with pytest.raises(UsageError, match="smallest"):
        planned(conv_net(), tmp_path, f"[{{match: {{smallest: {share}}}, keep: float}}]")


def test_a_later_grid_takes_back_an_earlier_keep(tmp_path: Path) -> None:
    back = "{match: {name: /c1, role: [input, weight]}, grid: {format: uint8, symmetric: false}}"
    rules = f"[{{match: {{op: Conv}}, keep: float}}, {back}]"
    assert [item.grid.format for item in planned(conv_net(), tmp_path, rules).entries if item.site.name == "/c1"] == [
        "uint8",
        "uint8",
        "int32",
    ]
    rules = (
        "[{match: {op: Conv}, keep: float}, "
        "{match: {name: /c1, role: input}, grid: {format: uint8, symmetric: false}}, "
        "{match: {name: /c1, role: weight}, grid: {format: int8, granularity: channel}}]"
    )
    plan = planned(conv_net(), tmp_path, rules)
    assert {item.site.name for item in plan.entries if item.site.op == "Conv" and item.site.role is Role.WEIGHT} == {
        "/c1"
    }


def test_names_are_those_of_the_user_s_file(tmp_path: Path) -> None:
    proto = dense_net()
    for item in proto.graph.node:
        item.name = "layer" if item.op_type in ("MatMul", "Gemm") else ""
    plan = planned(proto, tmp_path, "[{match: {name: layer}, range: mse}]")
    assert {item.site.name for item in plan.entries if item.range == "mse" and item.site.role is Role.WEIGHT} == {
        "layer"
    }
    nameless = dense_net()
    for item in nameless.graph.node:
        item.name = ""
    plan = planned(nameless, tmp_path, "[{match: {name: y}, keep: float}]")
    assert "Gemm" not in ops(plan), "a node without a name goes by its first output"


@pytest.mark.parametrize(
    ("match", "hint"),
    [("{name: /c11}", "did you mean '/c1'?"), ("{op: conv}", "did you mean 'Conv'?"), ("{op: [MatMull]}", "known: ")],
)
def test_an_own_rule_that_matches_nothing_is_an_error(tmp_path: Path, match: str, hint: str) -> None:
    with pytest.raises(UsageError, match=r"recipe\.yaml rules\[0\] matches nothing") as caught:
        planned(conv_net(), tmp_path, f"[{{match: {match}, keep: float}}]")
    assert hint in caught.value.hint


@pytest.mark.parametrize("match", ["{from: /c11}", "{to: /c11}"])
def test_a_region_needs_its_ends(tmp_path: Path, match: str) -> None:
    with pytest.raises(UsageError, match="no node is called '/c11'") as caught:
        planned(conv_net(), tmp_path, f"[{{match: {match}, keep: float}}]")
    assert caught.value.hint == "did you mean '/c1'?"


def test_a_region_without_a_path_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="matches nothing"):
        planned(conv_net(), tmp_path, "[{match: {from: /y, to: /c1}, keep: float}]")


def test_a_preset_s_rule_may_match_nothing() -> None:
    model = wrapped(proto_of([node("Relu", "x", "y")], {"x": [2]}, {"y": [2]}))
    with pytest.raises(NothingToDoError):
        make_plan(model, load_recipe("int8"))


def test_a_value_that_no_node_has_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="matches nothing"):
        planned(conv_net(), tmp_path, "[{match: {value: nowhere}, range: mse}]")


def test_layers_of_the_same_file_name_keep_their_regions_apart(tmp_path: Path) -> None:
    """Both rules are called `recipe.yaml rules[0]`."""
    (tmp_path / "low").mkdir()
    (tmp_path / "low" / "recipe.yaml").write_text(
        "{version: 1, extends: int8-minmax, rules: [{match: {from: /c1, to: /c1}, keep: float}]}"
    )
    plan = planned(conv_net(), tmp_path, "[{match: {from: /c3, to: /c3}, keep: float}]", extends="low/recipe.yaml")
    weights = {item.site.name for item in plan.entries if item.site.role is Role.WEIGHT}
    assert weights == {"/y"}, "of the other two, /c2 is depthwise and has no integer neighbour left"


def test_without_a_rule_for_weights_nothing_becomes_integer(tmp_path: Path) -> None:
    recipe = recipe_of(
        "{version: 1, rules: [{match: {role: input}, grid: {format: uint8, symmetric: false}}]}", tmp_path
    )
    with pytest.raises(NothingToDoError) as caught:
        make_plan(wrapped(conv_net()), recipe)
    assert "no rule gives its weight a grid" in caught.value.hint


@pytest.mark.parametrize(
    ("rules", "problem"),
    [
        ("[{match: {role: input}, grid: {format: int8}}]", "int8 as input"),
        ("[{match: {role: weight}, grid: {format: uint8}}]", "uint8 as weight"),
    ],
)
def test_a_format_without_a_kernel_is_refused_by_its_rule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rules: str, problem: str
) -> None:
    """As of a target that takes signed weights and unsigned activations alone."""
    monkeypatch.setattr(
        "qcli.targets.ort_cpu.OrtCpu.formats", lambda _, role: ("int8",) if role == "weight" else ("uint8",)
    )
    with pytest.raises(UsageError, match=problem) as caught:
        planned(conv_net(), tmp_path, rules)
    assert "recipe.yaml rules[0]" in caught.value.message and caught.value.hint.startswith("use ")


def test_a_rule_for_one_operator_overrides_its_natural_range(tmp_path: Path) -> None:
    weights = {"w": normal(0, 4, 3, 1, 1), "v": normal(1, 4, 4, 1, 1)}
    nodes = [node("Conv", "x w", "c"), node("Sigmoid", "c", "s"), node("Conv", "s v", "y")]
    proto = proto_of(nodes, {"x": [1, 3, 4, 4]}, {"y": None}, weights)
    natural = entry(planned(proto, tmp_path, "[{match: {role: input}, range: mse}]"), Role.OUTPUT, "s")
    assert natural.range == {"fixed": {"lower": 0.0, "upper": 1.0}} and "natural range of Sigmoid" in natural.because
    asked = entry(planned(proto, tmp_path, "[{match: {op: Sigmoid}, range: mse}]"), Role.OUTPUT, "s")
    assert asked.range == "mse"
