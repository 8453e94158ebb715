"""A model whose quantizers have switches computes what the float model and the quantized model compute."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from models import (
    Quantized,
    Stream,
    conv_net,
    dense_net,
    finished,
    floats,
    node,
    normal,
    proto_of,
    quantized_of,
    run,
    wrapped,
)
from onnx import TensorProto, helper
from random_models import Case
from random_parts import case_of

from qcli.analysis.measure import Loss, loss_of
from qcli.analysis.simulate import Layer, Simulation, decoded, simulate
from qcli.apply import apply_plan
from qcli.calibrate import collect
from qcli.errors import NothingToDoError
from qcli.graph import infer_shapes
from qcli.measured import requests_of
from qcli.plan import make_plan, required_opset
from qcli.prepare import prepare
from qcli.recipe import load_recipe
from qcli.refine import refine_plan
from qcli.runtime import Session
from qcli.statistics import Statistics
from qcli.types import Array, Plan, Role
from qcli.watch import Watch

PRESETS = ("int8-minmax", "int8-weights", "int8-dynamic")


def simulation_of(made: Quantized) -> Simulation:
    return simulate(made.source, made.plan, made.solution)


def outputs(simulation: Simulation, feeds: Mapping[str, Array], on: frozenset[str]) -> dict[str, Any]:
    session = Session(simulation.model.runnable(), optimize=False)
    return session.run({**feeds, **simulation.feeds(on)})


def everything(simulation: Simulation, part: str = "") -> frozenset[str]:
    parts = (part,) if part else ("weights", "activations")
    found = (getattr(layer, name) for layer in simulation.layers for name in parts)
    return frozenset(switch for switch in found if switch is not None)


def ratio(reference: Mapping[str, Any], result: Mapping[str, Any]) -> float:
    loss = Loss()
    loss.add(loss_of(reference, result))
    return loss.value()


def named(simulation: Simulation, key: str) -> Layer:
    return next(layer for layer in simulation.layers if layer.key == key)


def with_branches() -> onnx.ModelProto:
    """A product in the main graph and one in a branch that reads its result."""
    body = helper.make_graph([node("MatMul", "c v", "t"), node("Neg", "t", "u")], "then", [], [floats("u", None)])
    other = helper.make_graph([node("Neg", "c", "e")], "else", [], [floats("e", None)])
    nodes = [node("MatMul", "x w", "c"), node("If", "which", "y", then_branch=body, else_branch=other)]
    proto = proto_of(nodes, {"x": [2, 16]}, {"y": None}, {"w": normal(0, 16, 16), "v": normal(1, 16, 16)})
    proto.graph.input.append(floats("which", [], TensorProto.BOOL))
    return proto


def prepared_and_quantized(case: Case, preset: str) -> Quantized:
    """The stages one by one, steps and the conversion of the operator set included."""
    recipe, stream = load_recipe(preset), Stream(case.samples)
    model = prepare(wrapped(case.proto), required_opset(recipe), recipe.prepare, stream, Watch())
    infer_shapes(model)
    plan = make_plan(model, recipe)
    statistics = collect(model, Statistics.empty(requests_of(plan, model)), stream)
    return finished(model, refine_plan(model, recipe, plan, statistics), stream)


BRANCHES = Stream(tuple({"x": normal(seed, 2, 16), "which": np.array(bool(seed % 2))} for seed in range(6)))


@pytest.mark.parametrize("recipe", PRESETS)
@pytest.mark.parametrize("proto", [conv_net(), dense_net()], ids=["conv", "dense"])
def test_all_off_is_float_and_all_on_is_quantized(proto: onnx.ModelProto, recipe: str) -> None:
    made = quantized_of(proto, recipe)
    simulation = simulation_of(made)
    feeds = {
        spec.name: normal(3, *[4 if size is None else size for size in spec.shape or ()])
        for spec in made.source.inputs()
    }
    reference = run(made.source, feeds)
    assert ratio(reference, outputs(simulation, feeds, frozenset())) > 120
    applied = run(made.model, feeds)
    assert ratio(applied, outputs(simulation, feeds, everything(simulation))) > 45
    assert ratio(reference, applied) < 60


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("recipe", PRESETS)
def test_random_models_lose_what_they_lose_quantized(seed: int, recipe: str) -> None:
    case = case_of(seed)
    try:
        made = prepared_and_quantized(case, recipe)
    except NothingToDoError:
        pytest.skip("nothing to quantize")
    simulation = simulation_of(made)
    for feeds in case.samples[:2]:
        reference = run(made.source, feeds)
        assert ratio(reference, outputs(simulation, feeds, frozenset())) > 60
        real = ratio(reference, run(made.model, feeds))
        simulated = ratio(reference, outputs(simulation, feeds, everything(simulation)))
        assert abs(real - simulated) < 3 or min(real, simulated) > 45


def test_weights_alone_are_the_codes_and_nothing_else() -> None:
    made = quantized_of(dense_net())
    simulation = simulation_of(made)
    feeds = {"x": normal(5, 4, 12)}
    codes = [entry for entry in made.plan.entries if entry.site.role in (Role.WEIGHT, Role.BIAS)]
    real = {entry.site.value: np.asarray(decoded(entry, made.solution)) for entry in codes}
    bias = real.get("b1", normal(1, 16))
    hidden = np.maximum(feeds["x"] @ real["w1"] + bias, 0)
    alone = outputs(simulation, feeds, everything(simulation, "weights"))
    assert ratio({"y": hidden @ real["w2"] + real["b2"]}, alone) > 100


def test_activations_alone_keep_the_weights_float() -> None:
    made = quantized_of(dense_net())
    simulation = simulation_of(made)
    feeds = {"x": normal(5, 4, 12)}
    plan = _activations_of(made.plan)
    wanted = run(apply_plan(made.source, plan, made.solution), feeds)
    assert ratio(wanted, outputs(simulation, feeds, everything(simulation, "activations"))) > 60


def _activations_of(plan: Plan) -> Plan:
    import msgspec

    entries = tuple(entry for entry in plan.entries if entry.site.role in (Role.INPUT, Role.OUTPUT))
    return msgspec.structs.replace(plan, entries=entries)


def test_what_a_kernel_swallows_belongs_to_its_layer() -> None:
    simulation = simulation_of(quantized_of(conv_net()))
    keys = [layer.key for layer in simulation.layers]
    assert keys == ["c1", "c2", "c3", "a", "g", "y"], "no Relu, no Clip, and no MaxPool or Flatten, which move codes"
    assert named(simulation, "c1").values == ["x", "r1"] or named(simulation, "c1").values == ["r1", "x"]
    assert named(simulation, "c2").values == ["k2"]
    assert named(simulation, "a").weights is None


def test_the_bias_of_a_product_belongs_to_the_product() -> None:
    proto = dense_net()
    del proto.graph.input[0].type.tensor_type.shape.dim[:]
    for size in (4, 12):
        proto.graph.input[0].type.tensor_type.shape.dim.add(dim_value=size)
    made = quantized_of(proto)
    assert any(entry.site.role is Role.BIAS and entry.site.op == "Add" for entry in made.plan.entries)
    simulation = simulation_of(made)
    assert [layer.key for layer in simulation.layers] == ["m", "y"]


def test_layers_stand_in_the_order_of_the_graph() -> None:
    made = quantized_of(conv_net())
    order = [item.outputs[0].name for item in made.source.nodes()]
    places = [order.index(layer.key) for layer in simulation_of(made).layers]
    assert places == sorted(places)


def test_every_switch_counts_and_belongs_to_one_layer() -> None:
    made = quantized_of(conv_net())
    simulation = simulation_of(made)
    feeds = {"x": normal(1, 2, 3, 8, 8)}
    reference = outputs(simulation, feeds, frozenset())
    switches = [switch for layer in simulation.layers for switch in layer.switches()]
    assert len(switches) == len(set(switches)) == len(simulation.feeds(frozenset()))
    for switch in switches:
        assert ratio(reference, outputs(simulation, feeds, frozenset({switch}))) < 100, switch


def test_bodies_have_switches_too() -> None:
    made = quantized_of(with_branches(), "int8-minmax", BRANCHES)
    simulation = simulation_of(made)
    assert [(layer.key, bool(layer.graph)) for layer in simulation.layers] == [("c", False), ("t", True)]
    inner = frozenset(named(simulation, "t").switches())
    for feeds in BRANCHES.samples[:2]:
        reference = run(made.source, feeds)
        assert ratio(reference, outputs(simulation, feeds, frozenset())) > 120
        loss = ratio(reference, outputs(simulation, feeds, inner))
        assert (loss < 60) is bool(feeds["which"]), "it counts where its branch is taken"
        simulated = outputs(simulation, feeds, everything(simulation))
        assert ratio(run(made.model, feeds), simulated) > 40


def test_a_result_that_is_an_output_keeps_its_name() -> None:
    nodes = [node("Conv", "x w", "y"), node("Conv", "y v", "z")]
    weights = {"w": normal(0, 4, 3, 1, 1), "v": normal(1, 4, 4, 1, 1)}
    proto = proto_of(nodes, {"x": [1, 3, 4, 4]}, {"y": [1, 4, 4, 4], "z": [1, 4, 4, 4]}, weights)
    made = quantized_of(proto)
    simulation = simulation_of(made)
    assert simulation.model.outputs() == ("y", "z")
    feeds = {"x": normal(2, 1, 3, 4, 4)}
    on = outputs(simulation, feeds, everything(simulation))
    assert ratio(run(made.model, feeds), on) > 60
    assert ratio(run(proto, feeds), outputs(simulation, feeds, frozenset())) > 120


def test_a_dynamic_lstm_is_quantized_at_its_input() -> None:
    weights = {"w": normal(0, 1, 128, 24) / 5, "r": normal(1, 1, 128, 32) / 6, "v": normal(2, 32, 8) / 6}
    nodes = [node("LSTM", "x w r", "h", hidden_size=32), node("Squeeze", "h axes", "s"), node("MatMul", "s v", "y")]
    proto = proto_of(nodes, {"x": [5, 2, 24]}, {"y": None}, {**weights, "axes": np.array([1])})
    stream = Stream(tuple({"x": normal(seed, 5, 2, 24)} for seed in range(4)))
    made = quantized_of(proto, "int8-dynamic", stream)
    simulation = simulation_of(made)
    layer = named(simulation, "h")
    assert layer.values == ["x"] and layer.weights is not None and layer.activations is not None
    feeds = stream.samples[0]
    real, simulated = run(made.model, feeds), outputs(simulation, feeds, everything(simulation))
    reference = run(made.source, feeds)
    assert abs(ratio(reference, real) - ratio(reference, simulated)) < 6


def test_a_weight_that_two_nodes_read_is_switched_for_each() -> None:
    nodes = [node("MatMul", "x w", "a"), node("MatMul", "a w", "y")]
    made = quantized_of(proto_of(nodes, {"x": [3, 16]}, {"y": [3, 16]}, {"w": normal(0, 16, 16) / 4}))
    simulation = simulation_of(made)
    first, second = (layer.weights for layer in simulation.layers)
    assert first is not None and second is not None and first != second
    decoded = [name for name in simulation.model.graph.initializers if name.endswith("_decoded")]
    assert len(decoded) == 1, "and decoded once"


def test_the_model_given_stays_as_it_is() -> None:
    made = quantized_of(conv_net())
    before = made.source.serialize()
    simulation_of(made)
    assert made.source.serialize() == before
