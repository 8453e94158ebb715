"""Equal constants of different bodies are stored once, and those that must keep their name stay where they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from models import assert_equal, floats, node, normal, proto_of, run, wrapped
from onnx import TensorProto, helper, numpy_helper

from qcli.graph import Model, load_model, normalize_graph, save_model, share_between_bodies
from qcli.types import Array

BIG = normal(0, 24, 24)


def branches(then: Array, other: Array, main: Array | None = None) -> onnx.ModelProto:
    """An If whose bodies hold a weight each; the main graph holds one too, if it is given."""
    bodies = [
        helper.make_graph(
            [node("MatMul", f"x {way}_w", f"{way}_y")],
            way,
            [],
            [floats(f"{way}_y", None)],
            [numpy_helper.from_array(array, f"{way}_w")],
        )
        for way, array in (("then", then), ("else", other))
    ]
    nodes = [node("If", "which", "y", then_branch=bodies[0], else_branch=bodies[1])]
    if main is not None:
        nodes.append(node("MatMul", "x w", "m"))
    results = {"y": None} | ({"m": None} if main is not None else {})
    proto = proto_of(nodes, {"x": [2, 24]}, results, {"w": main} if main is not None else {})
    proto.graph.input.append(floats("which", [], TensorProto.BOOL))
    return proto


def stored(model: Model) -> list[str]:
    return [name for graph in model.graphs() for name in graph.initializers]


def same(proto: onnx.ModelProto, model: Model) -> None:
    for which in (True, False):
        feeds = {"x": normal(3, 2, 24), "which": np.array(which)}
        for optimize in (False, True):
            assert_equal(run(proto, feeds), run(model, feeds, optimize=optimize))


@pytest.mark.parametrize("main", [None, BIG])
def test_equal_weights_of_two_branches_are_stored_once(main: Array | None) -> None:
    proto = branches(BIG, BIG.copy(), main)
    model = wrapped(proto)
    assert share_between_bodies(model) == (1 if main is None else 2)
    assert len(stored(model)) == 1 and list(model.graph.initializers) == stored(model)
    if main is not None:
        assert stored(model) == ["w"], "what the main graph has keeps its name"
    same(proto, model)


@pytest.mark.parametrize(
    "other",
    [BIG + np.float32(1e-6), BIG.reshape(24, 24).T.copy(), -BIG],
    ids=["other values", "another order", "other signs"],
)
def test_different_weights_stay_apart(other: Array) -> None:
    proto = branches(BIG, other)
    model = wrapped(proto)
    assert share_between_bodies(model) == 0 and len(stored(model)) == 2
    same(proto, model)


def test_equal_bytes_in_another_shape_or_type_are_something_else() -> None:
    """A weight of zeros is the same bytes as many other constants."""
    zeros = np.zeros((24, 24), np.float32)
    proto = branches(zeros, zeros.astype(np.float32))
    body = proto.graph.node[0].attribute[1].g
    body.initializer[0].CopyFrom(numpy_helper.from_array(np.zeros((24, 6, 4), np.float32), body.initializer[0].name))
    assert share_between_bodies(wrapped(proto)) == 0


def test_small_constants_are_not_worth_it() -> None:
    small = np.float32(1) * np.ones((24, 4), np.float32)
    assert share_between_bodies(wrapped(branches(small, small))) == 0


def test_a_model_without_bodies_is_left_alone() -> None:
    nodes = [node("MatMul", "x w", "a"), node("MatMul", "a v", "y")]
    model = wrapped(proto_of(nodes, {"x": [2, 24]}, {"y": None}, {"w": BIG, "v": BIG.copy()}))
    assert share_between_bodies(model) == 0 and stored(model) == ["w", "v"]


def test_a_weight_that_is_a_result_of_its_body_stays_there() -> None:
    proto = branches(BIG, BIG)
    body = proto.graph.node[0].attribute[0].g
    del body.node[:]
    body.output[0].name = body.initializer[0].name
    model = wrapped(proto)
    assert share_between_bodies(model) == 0 and len(stored(model)) == 2


def test_bodies_of_bodies_and_the_size_of_the_file(tmp_path: Path) -> None:
    """Normalizing shares, at any depth, and the file holds one copy."""
    inner = branches(BIG, BIG)
    choice = inner.graph.node[0]
    choice.output[0] = "inner"
    outer_then = helper.make_graph([choice], "outer_then", [], [floats("inner", None)])
    outer_else = helper.make_graph(
        [node("MatMul", "x w", "plain")], "outer_else", [], [floats("plain", None)], [numpy_helper.from_array(BIG, "w")]
    )
    proto = proto_of(
        [node("If", "first", "y", then_branch=outer_then, else_branch=outer_else)], {"x": [2, 24]}, {"y": None}
    )
    proto.graph.input.extend([floats("which", [], TensorProto.BOOL), floats("first", [], TensorProto.BOOL)])
    model = wrapped(proto)
    normalize_graph(model)
    assert len(stored(model)) == 1
    save_model(model, tmp_path / "shared.onnx")
    assert (
        (tmp_path / "shared.onnx").stat().st_size < 1.5 * BIG.nbytes < 3 * BIG.nbytes < len(proto.SerializeToString())
    )
    for first in (True, False):
        feeds = {"x": normal(3, 2, 24), "which": np.array(True), "first": np.array(first)}
        assert_equal(run(proto, feeds), run(load_model(tmp_path / "shared.onnx"), feeds))
