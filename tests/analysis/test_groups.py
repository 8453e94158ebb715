"""Layers by node, by operator and by block."""

from __future__ import annotations

import pytest
from models import node, normal, proto_of, quantized_of

from qcli.analysis.groups import Group, check_grouping, grouped
from qcli.analysis.simulate import Layer, simulate
from qcli.errors import UsageError
from qcli.graph import Model


def layers_of(*names: str, weightless: tuple[str, ...] = ()) -> tuple[Layer, ...]:
    return tuple(
        Layer(
            key=f"k{index}", name=name, op="Conv", weights=None if name in weightless else f"w{index}", activations="a"
        )
        for index, name in enumerate(names)
    )


def names_of(groups: tuple[Group, ...]) -> dict[str, list[str]]:
    return {group.name: [layer.name for layer in group.layers] for group in groups}


def residual(names: tuple[str, ...]) -> tuple[Model, tuple[Layer, ...]]:
    """Two residual blocks of two layers each, between a first and a last layer."""
    reads = ("x", "a", "b", "c", "d", "e", "f", "g")
    weights = {f"w{index}": normal(index, 4, 4, 1, 1) / 2 for index in range(6)}
    nodes = [
        node("Conv", "x w0", "a", name=names[0]),
        node("Conv", "a w1", "b", name=names[1]),
        node("Conv", "b w2", "c", name=names[2]),
        node("Add", "c a", "d", name=names[3]),
        node("Conv", "d w3", "e", name=names[4]),
        node("Conv", "e w4", "f", name=names[5]),
        node("Add", "f d", "g", name=names[6]),
        node("Conv", "g w5", "y", name=names[7]),
    ]
    assert len(reads) == len(nodes)
    made = quantized_of(proto_of(nodes, {"x": [1, 4, 5, 5]}, {"y": None}, weights))
    return made.source, simulate(made.source, made.plan, made.solution).layers


def test_by_node_each_is_alone() -> None:
    model, layers = residual(tuple("ABCDEFGH"))
    assert names_of(grouped(layers, model, "node")) == {name: [name] for name in "ABCDEFGH"}


def test_by_op() -> None:
    model, layers = residual(tuple("ABCDEFGH"))
    assert names_of(grouped(layers, model, "op")) == {"Conv": ["A", "B", "C", "E", "F", "H"], "Add": ["D", "G"]}


def test_blocks_by_the_shape_of_the_graph_where_names_say_nothing() -> None:
    model, layers = residual(tuple("ABCDEFGH"))
    blocks = names_of(grouped(layers, model, "block"))
    assert blocks == {"A": ["A"], "B … D": ["B", "C", "D"], "E … G": ["E", "F", "G"], "H": ["H"]}


def test_blocks_by_name() -> None:
    names = ("/stem/conv", "/b/0/conv", "/b/0/conv2", "/b/0/add", "/b/1/conv", "/b/1/conv2", "/b/1/add", "/head/conv")
    model, layers = residual(names)
    blocks = names_of(grouped(layers, model, "block"))
    assert list(blocks) == ["stem", "b/0", "b/1", "head"]
    assert blocks["b/1"] == list(names[4:7])


def test_the_shortest_prefix_that_divides_counts() -> None:
    names = ("/a/x/1", "/b/x/2", "/c/x/3", "/d/x/4", "/d/y/5", "/d/y/6", "/d/y/7", "/d/y/8")
    model, layers = residual(names)
    assert list(names_of(grouped(layers, model, "block"))) == ["a", "b", "c", "d"]


def test_names_without_a_prefix_stand_alone_or_join_what_they_follow() -> None:
    names = ("conv1", "a.0.conv", "a.0.conv2", "Add_1", "b.0.conv", "b.0.conv2", "Add_2", "head")
    model, layers = residual(names)
    blocks = names_of(grouped(layers, model, "block"))
    assert blocks == {
        "conv1": ["conv1"],
        "a": ["a.0.conv", "a.0.conv2", "Add_1"],
        "b": ["b.0.conv", "b.0.conv2", "Add_2"],
        "head": ["head"],
    }


def test_a_group_has_the_switches_of_its_layers() -> None:
    group = Group("g", layers_of("a", "b", weightless=("b",)))
    assert group.switches() == {"w0", "a"}
    assert group.switches("weights") == {"w0"}
    assert group.switches("activations") == {"a"}
    assert group.op == "Conv"


def test_an_unknown_grouping() -> None:
    with pytest.raises(UsageError) as caught:
        check_grouping("nodes")
    assert "node" in caught.value.hint
