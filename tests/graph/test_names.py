"""Every value has a name that is unique in the whole model."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from models import assert_equal, floats, node, normal, run, wrapped
from onnx import TensorProto, helper, numpy_helper

from qcli.graph import Model, normalize_graph


def names(model: Model) -> list[str]:
    graphs = [model.graph, *model.graph.subgraphs()]
    values = [value for graph in graphs for value in (*graph.inputs, *graph.initializers.values())]
    values += [value for item in model.nodes() for value in item.outputs if value.name]
    return [value.name or "" for value in values]


def siblings() -> onnx.ModelProto:
    """Two branches that use the same names, one of them also the main graph's."""
    weight = numpy_helper.from_array(normal(0, 4), "w")
    other = numpy_helper.from_array(normal(1, 4), "w")
    first = helper.make_graph([node("Add", "x w", "t"), node("Neg", "t", "o")], "a", [], [floats("o", [4])], [weight])
    second = helper.make_graph([node("Mul", "x w", "t"), node("Exp", "t", "o")], "b", [], [floats("o", [4])], [other])
    choice = helper.make_node("If", ["c"], ["r"], name="", then_branch=first, else_branch=second)
    inputs = [floats("x", [4]), floats("c", [], TensorProto.BOOL)]
    graph = helper.make_graph([choice, node("Neg", "r", "w")], "g", inputs, [floats("w", [4])])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("taken", [True, False])
def test_sibling_bodies_get_names_of_their_own(taken: bool) -> None:
    proto = siblings()
    model = wrapped(proto)
    normalize_graph(model)
    assert len(names(model)) == len(set(names(model))) and "" not in names(model)
    assert model.outputs() == ("w",)
    feeds = {"x": normal(2, 4), "c": np.array(taken)}
    assert_equal(run(proto, feeds), run(model, feeds))


def test_a_first_output_that_is_left_out_gets_a_name() -> None:
    weights = [
        numpy_helper.from_array(normal(seed, 1, 12, size), name) for seed, size, name in ((0, 3, "w"), (1, 4, "r"))
    ]
    cells = [
        helper.make_node("GRU", [source, "w", "r"], ["", last], hidden_size=4)
        for source, last in (("x", "h"), ("x", "k"))
    ]
    nodes = [*cells, node("Add", "h k", "y")]
    graph = helper.make_graph(nodes, "g", [floats("x", [2, 1, 3])], [floats("y", [1, 1, 4])], weights)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    model = wrapped(proto)
    normalize_graph(model)
    firsts = [item.outputs[0].name for item in model.nodes()]
    assert len(set(firsts)) == 3 and all(firsts)
    assert_equal(run(proto, {"x": normal(3, 2, 1, 3)}), run(model, {"x": normal(3, 2, 1, 3)}))


def test_values_that_inputs_and_outputs_are_called_after_keep_their_names() -> None:
    proto = siblings()
    proto.graph.output[0].name = proto.graph.node[1].output[0] = "t"
    model = wrapped(proto)
    normalize_graph(model)
    assert model.outputs() == ("t",) and [spec.name for spec in model.inputs()] == ["x", "c"]
