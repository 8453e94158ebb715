"""The plan is a document: it can be read, written, edited, and what it says is done."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import (
    assert_equal,
    conv_net,
    dense_net,
    feeds_for,
    finished,
    node,
    normal,
    proto_of,
    run,
    sample_model,
    stream_for,
    wrapped,
)

from qcli.errors import NothingToDoError, UnsupportedError, UsageError
from qcli.existing import refuse_quantized
from qcli.graph import Model, normalize_graph
from qcli.opsets import required_opset
from qcli.plan import check_plan, make_plan, plan_text, read_plan
from qcli.plugins import create
from qcli.recipe import load_recipe
from qcli.types import Array, Entry, Grid, KeptFloat, Plan, Role, Site, Tie
from qcli.yaml_file import parse_yaml

SNAPSHOTS = {"int8": "cnn.plan.yaml", "w4a8": "cnn.w4a8.plan.yaml"}
"""Made again with QCLI_SNAPSHOTS=write."""

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\x85"), max_size=8)
SPECS: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from(["mse", "minmax"]),
    st.builds(lambda keep: {"percentile": {"keep": keep}}, st.floats(90, 100)),
    st.builds(lambda low: {"fixed": {"lower": low, "upper": 1.0}}, st.floats(-1e6, 0)),
)
GRIDS = st.builds(
    Grid,
    format=st.sampled_from(["int8", "uint8", "int32"]),
    symmetric=st.booleans(),
    granularity=st.sampled_from(["tensor", "channel"]),
    axis=st.none() | st.integers(-1, 4),
    bits=st.none() | st.integers(2, 8),
    narrow=st.booleans(),
)
SITES = st.builds(
    Site,
    graph=TEXT,
    value=TEXT,
    role=st.sampled_from(list(Role)),
    node=TEXT,
    name=TEXT,
    op=st.sampled_from(["Conv", "MatMul"]),
    operand=st.integers(0, 5),
    shape=st.none() | st.lists(st.none() | st.integers(0, 9), max_size=4).map(tuple),
)
ENTRIES = st.builds(Entry, site=SITES, grid=GRIDS, range=SPECS, rounding=SPECS, encoding=st.just("qdq"), because=TEXT)
PLANS = st.builds(
    Plan,
    model_sha256=TEXT,
    target=st.sampled_from(["ort_cpu", {"ort_cpu": {"isa": "avx2"}}, {"ort_cpu": None}]),
    opset=st.integers(7, 25),
    entries=st.lists(ENTRIES, max_size=3).map(tuple),
    ties=st.lists(st.builds(Tie, values=st.lists(TEXT, max_size=3).map(tuple), because=TEXT), max_size=2).map(tuple),
    kept_float=st.lists(st.builds(KeptFloat, node=TEXT, name=TEXT, op=TEXT, reason=TEXT), max_size=2).map(tuple),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("plans")


def reread(plan: Plan, folder: Path) -> Plan:
    path = folder / "plan.yaml"
    path.write_text(plan_text(plan), encoding="utf-8")
    return read_plan(path)


@settings(max_examples=200, deadline=None)
@given(PLANS)
def test_any_plan_is_read_as_it_was_written(folder: Path, plan: Plan) -> None:
    assert reread(plan, folder) == plan


@pytest.mark.parametrize("name", ["cnn", "transformer", "gru", "mlp"])
def test_the_plans_of_the_sample_models_too(folder: Path, name: str) -> None:
    plan = make_plan(sample_model(name), load_recipe("int8"))
    assert reread(plan, folder) == plan


def prepared_cnn() -> Model:
    model = sample_model("cnn")
    recipe = load_recipe("int8")
    for spec in recipe.prepare:
        step = create("steps", spec)
        if step.worth_db is None:  # the others need samples
            step.run(model)
    return model


@pytest.mark.parametrize("preset", sorted(SNAPSHOTS))
def test_the_plan_of_the_sample_network_is_as_it_was(preset: str) -> None:
    """A change here is a change of what users get: look at it, then write the snapshot again."""
    plan = make_plan(prepared_cnn(), load_recipe(preset))
    text = plan_text(msgspec.structs.replace(plan, model_sha256="-"))
    snapshot = Path(__file__).parent / "snapshots" / SNAPSHOTS[preset]
    if os.environ.get("QCLI_SNAPSHOTS") == "write":
        snapshot.parent.mkdir(exist_ok=True)
        snapshot.write_text(text, encoding="utf-8")
    assert text == snapshot.read_text(encoding="utf-8")


def test_a_plan_is_short_and_leaves_out_what_goes_without_saying() -> None:
    data = parse_yaml(plan_text(make_plan(wrapped(conv_net()), load_recipe("int8"))), "plan")
    assert set(data) == {"model_sha256", "target", "opset", "entries", "ties"}
    assert all("encoding" not in entry and "graph" not in entry["site"] for entry in data["entries"])


def test_the_same_model_and_recipe_give_the_same_plan() -> None:
    plans = [plan_text(make_plan(prepared_cnn(), load_recipe("int8"))) for _ in range(2)]
    assert plans[0] == plans[1]


def test_sites_know_where_they_are() -> None:
    plan = make_plan(wrapped(conv_net()), load_recipe("int8"))
    [weight] = [entry for entry in plan.entries if entry.site.value == "w4"]
    assert (weight.site.node, weight.site.name, weight.site.op, weight.site.operand) == ("y", "/y", "Gemm", 1)
    assert (weight.site.shape, weight.grid.axis) == ((5, 8), 0), "transB puts the channels first"
    [bias] = [entry for entry in plan.entries if entry.site.value == "b4"]
    assert (bias.grid.format, bias.site.role) == ("int32", Role.BIAS) and "product" in bias.because


def test_an_edited_plan_is_what_is_done(folder: Path) -> None:
    """Another range for one value, another granularity for one weight, one layer left out."""
    model = wrapped(conv_net())
    normalize_graph(model)
    text = plan_text(make_plan(model, load_recipe("int8-minmax")))
    data = parse_yaml(text, "plan")
    for entry in data["entries"]:
        if entry["site"]["value"] == "x":
            entry["range"] = {"fixed": {"lower": -7.0, "upper": 9.0}}
        if entry["site"]["value"] == "w1":
            entry["grid"] = {"format": "int8", "granularity": "tensor"}
    data["entries"] = [entry for entry in data["entries"] if entry["site"]["node"] != "y"]
    plan = msgspec.convert(data, Plan)
    quantized = finished(model, plan, stream_for(model))
    assert quantized.solution.scales[("c1", "input", 0)].scale[0] == pytest.approx(16 / 255, rel=1e-6)
    assert quantized.solution.scales[("c1", "weight", 1)].scale.shape == (1,)
    assert "w4" in quantized.model.graph.initializers, "its layer stays float"
    feeds = feeds_for(model)
    assert_equal(run(model, feeds), run(quantized.model, feeds), tolerance=0.1)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{version: 1}", "missing required field"),
        ("{model_sha256: a, target: ort_cpu, opset: x, entries: []}", "opset"),
        ("{model_sha256: a, target: ort_cpu, opset: 13, entries: [], tie: []}", "unknown key 'tie'"),
        ("{model_sha256: a, target: ort_cpu, opset: 13, entries: [{}]}", "entries"),
        ("", "expected"),
    ],
)
def test_a_wrong_plan_is_named(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "plan.yaml").write_text(text)
    with pytest.raises(UsageError, match="plan") as caught:
        read_plan(tmp_path / "plan.yaml")
    assert problem in caught.value.message


def test_a_missing_plan_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"absent\.yaml"):
        read_plan(tmp_path / "absent.yaml")


def test_a_plan_for_another_model_is_refused() -> None:
    model = wrapped(conv_net())
    plan = make_plan(model, load_recipe("int8"))
    check_plan(plan, model)
    with pytest.raises(UsageError, match="another model"):
        check_plan(msgspec.structs.replace(plan, model_sha256="1" * 64), model)


def edited(plan: Plan, index: int, **changes: Any) -> Plan:
    entries = list(plan.entries)
    entries[index] = msgspec.structs.replace(
        entries[index], site=msgspec.structs.replace(entries[index].site, **changes)
    )
    return msgspec.structs.replace(plan, entries=tuple(entries))


@pytest.mark.parametrize("changes", [{"node": "nowhere"}, {"operand": 7}, {"operand": -9}, {"value": "nowhere"}])
def test_a_plan_that_names_what_the_model_lacks_is_refused(changes: dict[str, Any]) -> None:
    model = wrapped(conv_net())
    plan = edited(make_plan(model, load_recipe("int8")), 1, **changes)
    with pytest.raises(UsageError):
        check_plan(plan, model)


def test_a_bias_without_its_weight_is_refused() -> None:
    model = wrapped(conv_net())
    plan = make_plan(model, load_recipe("int8"))
    entries = tuple(entry for entry in plan.entries if entry.site.role is not Role.WEIGHT)
    with pytest.raises(UsageError):
        check_plan(msgspec.structs.replace(plan, entries=entries), model)


@pytest.mark.parametrize("operator", ["QuantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulNBits"])
def test_a_quantized_model_is_recognised(operator: str) -> None:
    weights: dict[str, Array] = {"s": np.array(1, np.float32), "z": np.array(0, np.uint8)}
    proto = proto_of(
        [node(operator, "x s z", "y"), node("Gemm", "x w", "g")], {"x": [2, 2]}, {"y": None, "g": None}, weights
    )
    with pytest.raises(UnsupportedError, match=f"already quantized: it has {operator}"):
        refuse_quantized(wrapped(proto))


def test_a_model_without_weights_is_nothing_to_do() -> None:
    proto = proto_of([node("Softmax", "x", "y")], {"x": [2, 2]}, {"y": None})
    with pytest.raises(NothingToDoError) as caught:
        make_plan(wrapped(proto), load_recipe("int8"))
    assert caught.value.hint == "no operator of it has float weights"


def test_one_scale_for_each_channel_needs_opset_13(tmp_path: Path) -> None:
    assert required_opset(load_recipe("int8")) == 13
    path = tmp_path / "r.yaml"
    path.write_text("{version: 1, rules: [{grid: {format: uint8}}]}")
    assert required_opset(load_recipe(str(path))) == 10


def test_a_tensor_s_weight_has_no_axis() -> None:
    plan = make_plan(wrapped(dense_net()), load_recipe("int8-per-tensor"))
    assert [entry.grid.axis for entry in plan.entries if entry.site.role is Role.WEIGHT] == [None, None]


def test_a_plan_is_made_without_data_and_leaves_the_model_alone() -> None:
    model = wrapped(dense_net())
    feeds = feeds_for(model)
    before = run(model, feeds)
    make_plan(model, load_recipe("int8"))
    assert_equal(before, run(model, feeds), tolerance=0)


def test_a_constant_operand_of_an_elementwise_operator_is_an_entry() -> None:
    weights = {"w": normal(0, 4, 3, 1, 1), "v": normal(1, 4, 4, 1, 1), "k": normal(2, 4, 1, 1)}
    nodes = [node("Conv", "x w", "c"), node("Mul", "k c", "m"), node("Conv", "m v", "y")]
    plan = make_plan(wrapped(proto_of(nodes, {"x": [1, 3, 4, 4]}, {"y": None}, weights)), load_recipe("int8"))
    [constant] = [entry for entry in plan.entries if entry.site.value == "k"]
    assert (constant.site.role, constant.site.operand, constant.grid.format) == (Role.INPUT, 0, "uint8")
