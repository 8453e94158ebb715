"""The parts of a network, the values between them, and the rules that take them out."""

from __future__ import annotations

import onnx
import pytest
from models import conv_net, dense_net, feeds_for, quantized_of, wrapped

from qcli.analysis.simulate import simulate
from qcli.graph import concrete_shapes, normalize_graph
from qcli.plan import make_plan
from qcli.recipe import load_recipe
from qcli.tuning.base import _with_rules
from qcli.tuning.parts import Edge, Network, network_of
from qcli.tuning.ways import STORED, UNTOUCHED
from qcli.types import Plan, Role, Rule


def network(proto: onnx.ModelProto, recipe: str = "int8-minmax") -> Network:
    found = quantized_of(proto, recipe)
    simulation = simulate(found.source, found.plan, found.solution)
    return network_of(found.source, found.plan, simulation, concrete_shapes(found.source, feeds_for(found.source)))


def planned(proto: onnx.ModelProto, rules: tuple[Rule, ...]) -> Plan:
    model = wrapped(proto)
    normalize_graph(model)
    return make_plan(model, _with_rules(load_recipe("int8-minmax"), rules))


def test_a_part_is_a_kernel_with_what_it_swallows() -> None:
    found = network(conv_net())
    assert [part.names for part in found.parts] == [("c1", "r1"), ("c2", "k2"), ("c3",), ("a",), ("g",), ("y",)]
    assert [part.weights is not None for part in found.parts] == [True, True, True, False, False, True]


def test_edges_pass_through_what_only_moves_codes() -> None:
    found = network(conv_net())
    numbers = {part.key: number for number, part in enumerate(found.parts)}
    pairs = {(edge.giver, edge.reader): edge.elements for edge in found.edges}
    batch = 2
    assert pairs[None, numbers["c1"]] == batch * 3 * 8 * 8
    assert pairs[numbers["c1"], numbers["c2"]] == pairs[numbers["c1"], numbers["a"]] == batch * 8 * 8 * 8
    assert (numbers["a"], numbers["g"]) in pairs, "through the MaxPool"
    assert (numbers["g"], numbers["y"]) in pairs, "through the Flatten"
    assert pairs[numbers["y"], None] == batch * 5
    assert Edge(numbers["c1"], numbers["c1"], 0) not in found.edges
    assert not any(edge.giver == edge.reader for edge in found.edges)


@pytest.mark.parametrize("key", ["c1", "c3", "y"])
def test_without_a_part_it_is_float_and_its_weight_stored(key: str) -> None:
    [part] = [part for part in network(conv_net()).parts if part.key == key]
    plan = planned(conv_net(), STORED.of((part,)))
    assert key in {kept.node for kept in plan.kept_float}
    assert not [entry for entry in plan.entries if entry.site.node == key and entry.site.role is Role.INPUT]
    stored = [entry for entry in plan.entries if entry.site.node == key and entry.site.role is Role.WEIGHT]
    assert all(entry.encoding == "weight_only" for entry in stored)


def test_an_untouched_part_keeps_its_weight() -> None:
    [part] = [part for part in network(dense_net()).parts if part.op == "Gemm"]
    plan = planned(dense_net(), UNTOUCHED.of((part,)))
    assert {entry.site.op for entry in plan.entries if entry.site.role is Role.WEIGHT} == {"MatMul"}


def test_nothing_to_take_out_needs_no_rules() -> None:
    assert STORED.of(()) == UNTOUCHED.of(()) == ()


def test_names_are_taken_as_they_are() -> None:
    proto = dense_net()
    for item in proto.graph.node:
        for place, name in enumerate(item.output):
            if name == "y":
                item.output[place] = "y[0]*"
    proto.graph.output[0].name = "y[0]*"
    [part] = [part for part in network(proto).parts if part.op == "Gemm"]
    plan = planned(proto, UNTOUCHED.of((part,)))
    assert {entry.site.op for entry in plan.entries if entry.site.role is Role.WEIGHT} == {"MatMul"}
