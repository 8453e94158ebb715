"""Cutting a model into parts: together they compute what the whole does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from decoders import SHAPE, count_as_large, decoder_in
from models import feeds_for, node, normal, proto_of, run, wrapped
from onnx import TensorProto, helper

from benchmarks.decoder_model import feeds_of
from qcli.graph import Model, infer_shapes, load_model, part_bytes, parts, parts_of
from qcli.runtime import Session
from qcli.types import Array

SIZE = 16
ONE = SIZE * SIZE * 4


def through_parts(model: Model, feeds: Mapping[str, Array], wanted: tuple[str, ...]) -> dict[str, Array]:
    """The values wanted, each from the part that holds it."""
    known, found = dict(feeds), dict[str, Array]()
    for part in parts_of(model, wanted):
        own = tuple(name for name in wanted if name in part.holds and name not in feeds)
        names = tuple(dict.fromkeys((*part.gives, *own)))
        session = Session(part.model.runnable(names))
        values = session.run({spec.name: known[spec.name] for spec in part.model.inputs()}, names)
        known.update({name: values[name] for name in part.gives})
        found.update({name: values[name] for name in own})
    return found


def typed(proto: onnx.ModelProto) -> Model:
    model = wrapped(proto)
    infer_shapes(model)
    return model


def chain(count: int = 6, skipped: str = "h0") -> onnx.ModelProto:
    """Products in a row, and a value from before that is read at the end."""
    weights = {f"w{index}": normal(index, SIZE, SIZE) / 4 for index in range(count)}
    nodes = [node("MatMul", f"h{index} w{index}", f"h{index + 1}") for index in range(count)]
    nodes.append(node("Add", f"h{count} {skipped}", "y"))
    return proto_of(nodes, {"h0": ["n", SIZE]}, {"y": ["n", SIZE]}, weights)


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART_BYTES", 2 * ONE)


def test_a_chain_is_cut_where_its_weights_fill_a_part() -> None:
    found = parts_of(typed(chain()), ["y"])
    assert [len(list(part.model.graph)) for part in found] == [2, 2, 3]
    assert all(part.model.weight_bytes() <= 2 * ONE for part in found)
    assert [set(part.gives) for part in found] == [{"h2"}, {"h4"}, set()]


def test_parts_compute_what_the_whole_does() -> None:
    model = typed(chain(skipped="h1"))
    feeds = feeds_for(model)
    found = through_parts(model, feeds, ("h2", "h3", "y"))
    whole = run(model.serialize(("h2", "h3")), feeds)
    for name in ("h2", "h3", "y"):
        np.testing.assert_allclose(found[name], whole[name], rtol=1e-5, atol=1e-5)


def test_what_nobody_needs_is_in_no_part() -> None:
    found = parts_of(typed(chain()), ["h3"])
    assert sum(len(list(part.model.graph)) for part in found) == 3
    assert parts_of(typed(chain()), []) == parts_of(typed(chain()), ["h0"]) == ()


def test_inputs_that_are_wanted_are_held_by_the_first_part() -> None:
    found = parts_of(typed(chain()), ["h0", "y"])
    assert ["h0" in part.holds for part in found] == [True, False, False]


def test_values_of_unknown_type_do_not_cross() -> None:
    assert len(parts_of(wrapped(chain()), ["y"])) == 1


def test_a_weight_above_the_limit_is_a_part_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART_BYTES", ONE // 2)
    found = parts_of(typed(chain(3)), ["y"])
    assert [part.model.weight_bytes() for part in found] == [ONE] * 3
    assert part_bytes(typed(chain(3))) == ONE


def test_the_largest_part_is_known_without_cutting() -> None:
    assert part_bytes(typed(chain(6))) == 2 * ONE
    assert part_bytes(typed(chain(1))) == ONE


def test_cuts_are_where_few_values_cross() -> None:
    """A wide place between two products is left alone."""
    weights = {f"w{index}": normal(index, SIZE, SIZE) / 4 for index in range(4)}
    nodes = [
        node("MatMul", "x w0", "a"),
        node("MatMul", "a w1", "b"),
        node("Relu", "b", "c"),
        *(node(kind, "c", name) for kind, name in (("Sigmoid", "d"), ("Tanh", "e"), ("Abs", "f"))),
        node("Sum", "d e f c", "g"),
        node("MatMul", "g w2", "h"),
        node("MatMul", "h w3", "y"),
    ]
    model = typed(proto_of(nodes, {"x": ["n", SIZE]}, {"y": ["n", SIZE]}, weights))
    assert [part.gives for part in parts_of(model, ["y"])] == [("g",), ()]


def test_values_that_are_no_tensors_do_not_cross() -> None:
    weights = {f"w{index}": normal(index, SIZE, SIZE) / 4 for index in range(3)}
    nodes = [
        node("MatMul", "x w0", "a"),
        node("SequenceConstruct", "a a", "s"),
        node("MatMul", "a w1", "b"),
        node("ConcatFromSequence", "s", "c", axis=0),
        node("MatMul", "c w2", "d"),
        node("Add", "d b", "y"),
    ]
    model = typed(proto_of(nodes, {"x": [1, SIZE]}, {"y": [2, SIZE]}, weights))
    feeds = feeds_for(model)
    np.testing.assert_allclose(through_parts(model, feeds, ("y",))["y"], run(model, feeds)["y"], rtol=1e-5, atol=1e-5)


def test_bodies_go_with_their_node_and_what_they_read() -> None:
    """The branches of an If read a weight and a value from outside, at different places of the graph."""
    then = helper.make_graph([node("MatMul", "h1 w1", "t")], "then", [], [helper.make_tensor_value_info("t", 1, None)])
    other = helper.make_graph([node("Neg", "h1", "u")], "other", [], [helper.make_tensor_value_info("u", 1, None)])
    choice = helper.make_node("If", ["on"], ["h2"], name="/if", then_branch=then, else_branch=other)
    nodes = [node("MatMul", "h0 w0", "h1"), choice, node("MatMul", "h2 w2", "y")]
    weights = {f"w{index}": normal(index, SIZE, SIZE) / 4 for index in range(3)}
    proto = proto_of(nodes, {"h0": ["n", SIZE]}, {"y": ["n", SIZE]}, weights)
    proto.graph.input.append(helper.make_tensor_value_info("on", TensorProto.BOOL, []))
    model = typed(proto)
    feeds = {"h0": normal(9, 2, SIZE), "on": np.array(True)}
    found = through_parts(model, feeds, ("t", "y"))
    whole = run(proto, feeds)
    np.testing.assert_allclose(found["y"], whole["y"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found["t"].reshape(2, SIZE) @ weights["w2"], whole["y"], rtol=1e-4, atol=1e-4)


def test_a_large_decoder_keeps_its_weights_in_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count_as_large(monkeypatch)
    model = load_model(decoder_in(tmp_path))
    infer_shapes(model)
    feeds = feeds_of(SHAPE, np.arange(12)[None] * 7 % SHAPE.vocabulary)
    wanted = ("/layers.0.post_norm", "/layers.1.gated", "logits")
    found = parts_of(model, wanted)
    assert len(found) > 4 and all(part.model.large for part in found)
    assert max(part.model.weight_bytes() for part in found) < model.weight_bytes() / 3
    values = through_parts(model, feeds, wanted)
    whole = Session(model.runnable(wanted)).run(feeds, wanted)
    for name in wanted:
        np.testing.assert_allclose(values[name], whole[name], rtol=1e-4, atol=1e-4)
