"""Values of bodies made visible: what comes out is what the body computed, and nothing else changes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from models import Feeds, Stream, assert_equal, floats, node, normal, proto_of, run, wrapped
from onnx import TensorProto, helper

from qcli.calibrate import collect
from qcli.errors import InputError
from qcli.runtime import Session
from qcli.statistics import Statistics
from qcli.types import Array, Request


def flag(name: str) -> onnx.ValueInfoProto:
    return floats(name, [], TensorProto.BOOL)


def body_of(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    weights: dict[str, Array] | None = None,
) -> onnx.GraphProto:
    constants = [onnx.numpy_helper.from_array(array, name) for name, array in (weights or {}).items()]
    made: onnx.GraphProto = helper.make_graph(list(nodes), "body", list(inputs), list(outputs), constants)
    return made


def choice(name: str, then: onnx.GraphProto, other: onnx.GraphProto, output: str = "y") -> onnx.NodeProto:
    return node("If", name, output, then_branch=then, else_branch=other)


def visible(proto: onnx.ModelProto, names: tuple[str, ...], feeds: Feeds) -> dict[str, Array]:
    """The values asked for; the outputs of the model are what they were without them."""
    content = wrapped(proto).serialize(extra_outputs=names)
    for optimize in (False, True):
        found = Session(content, optimize=optimize).run(feeds)
        own = [output.name for output in proto.graph.output]
        assert list(found) == [*own, *(name for name in names if name not in own)]
        assert_equal(run(proto, feeds), {name: found[name] for name in own}, tolerance=1e-5)
    return {name: found[name] for name in names}


def nested() -> onnx.ModelProto:
    """If in an If: exp(x) or, one deeper, tanh(x) or sin(x); the middle body also computes x + x."""
    deeper = choice(
        "second",
        body_of([node("Tanh", "x", "t"), node("Neg", "t", "deep_then")], [], [floats("deep_then", None)]),
        body_of([node("Sin", "x", "s"), node("Neg", "s", "deep_else")], [], [floats("deep_else", None)]),
        "inner",
    )
    middle = body_of([node("Add", "x x", "a"), deeper, node("Mul", "a inner", "m")], [], [floats("m", None)])
    other = body_of([node("Exp", "x", "e"), node("Neg", "e", "o")], [], [floats("o", None)])
    proto = proto_of([choice("first", middle, other)], {"x": [2, 3]}, {"y": None})
    proto.graph.input.extend([flag("first"), flag("second")])
    return proto


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("second", [True, False])
def test_an_if_two_deep(first: bool, second: bool) -> None:
    x = normal(0, 2, 3)
    found = visible(
        nested(), ("t", "s", "a", "e", "inner"), {"x": x, "first": np.array(first), "second": np.array(second)}
    )
    flat = x.reshape(-1)
    deep = np.tanh(flat) if second else np.sin(flat)
    nothing = np.empty(0, np.float32)
    expected = {
        "t": np.tanh(flat) if first and second else nothing,
        "s": np.sin(flat) if first and not second else nothing,
        "a": 2 * flat if first else nothing,
        "e": nothing if first else np.exp(flat),
        "inner": -deep if first else nothing,
    }
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-6, err_msg=name)


def test_values_of_a_body_and_of_the_main_graph_together() -> None:
    """Those of the main graph keep their shape; outputs that were there already are not doubled."""
    proto = nested()
    proto.graph.node.insert(0, node("Relu", "x", "r"))
    for body in (attribute.g for attribute in proto.graph.node[1].attribute):
        for one in body.node:
            one.input[:] = ["r" if name == "x" else name for name in one.input]
    x = normal(0, 2, 3)
    found = visible(proto, ("r", "a", "y"), {"x": x, "first": np.array(True), "second": np.array(True)})
    np.testing.assert_array_equal(found["r"], np.maximum(x, 0))
    np.testing.assert_allclose(found["a"], 2 * np.maximum(x, 0).reshape(-1))
    assert found["y"].shape == (2, 3)


def growing(*, named: str = "rounds go", stacked: bool = True) -> onnx.ModelProto:
    """Each round appends a row to what was there, doubled: shapes grow, and values are those of all rounds."""
    nodes = [
        node("Mul", "state two", "d"),
        node("Concat", "d state", "next", axis=0),
        node("Less", "round last", "again"),
    ]
    outputs = [flag("again"), floats("next", None)]
    if stacked:
        nodes.append(node("ReduceSum", "d", "total", keepdims=0))
        outputs.append(floats("total", []))
    body = body_of(
        nodes,
        [floats("round", [], TensorProto.INT64), flag("was"), floats("state", None)],
        outputs,
        {"two": np.array(2, np.float32), "last": np.array(2)},
    )
    gives = "y totals" if stacked else "y"
    loop = node("Loop", f"{named} x", gives, body=body)
    return proto_of([loop], {"x": [1, 3]}, dict.fromkeys(gives.split()), {"rounds": np.array(3), "go": np.array(True)})


@pytest.mark.parametrize("named", ["rounds go", "rounds -", "- go", "- -"])
@pytest.mark.parametrize("stacked", [True, False])
def test_a_loop_gives_the_values_of_all_rounds(named: str, stacked: bool) -> None:
    x = normal(0, 1, 3)
    doubled, state, states = [], x, []
    for _ in range(3):
        states.append(state)
        doubled.append(2 * state)
        state = np.concatenate([2 * state, state])
    found = visible(growing(named=named, stacked=stacked), ("d", "state"), {"x": x})
    np.testing.assert_allclose(found["d"], np.concatenate([one.reshape(-1) for one in doubled]))
    np.testing.assert_allclose(found["state"], np.concatenate([one.reshape(-1) for one in states]))


def test_a_loop_of_which_only_the_number_of_rounds_is_said() -> None:
    """Without a condition and without variables."""
    body = body_of(
        [node("Add", "x one", "a"), node("Identity", "was", "again"), node("Neg", "a", "n")],
        [floats("round", [], TensorProto.INT64), flag("was")],
        [flag("again"), floats("n", [2, 3])],
        {"one": np.array(1, np.float32)},
    )
    proto = proto_of([node("Loop", "rounds -", "y", body=body)], {"x": [2, 3]}, {"y": None}, {"rounds": np.array(2)})
    x = normal(0, 2, 3)
    np.testing.assert_allclose(visible(proto, ("a",), {"x": x})["a"], np.tile(x.reshape(-1) + 1, 2))


def test_a_loop_that_never_runs() -> None:
    proto = growing()
    proto.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.array(0), "rounds"))
    assert visible(proto, ("d",), {"x": normal(0, 1, 3)})["d"].shape == (0,)


@pytest.mark.parametrize("backwards", [False, True])
def test_a_scan_gives_a_row_for_each_round(backwards: bool) -> None:
    body = body_of(
        [node("Add", "sum item", "next"), node("Mul", "next item", "p"), node("Neg", "p", "scanned")],
        [floats("sum", [3]), floats("item", [3])],
        [floats("next", [3]), floats("scanned", [3])],
    )
    options = {"scan_input_directions": [1], "scan_output_directions": [1]} if backwards else {}
    scan = node("Scan", "start x", "end y", body=body, num_scan_inputs=1, **options)
    proto = proto_of([scan], {"x": [4, 3]}, {"y": None, "end": None}, {"start": np.zeros(3, np.float32)})
    x = normal(0, 4, 3)
    order = x[::-1] if backwards else x
    sums = np.cumsum(order, axis=0)
    found = visible(proto, ("p", "item", "next"), {"x": x})
    np.testing.assert_allclose(np.sort(found["p"].reshape(-1)), np.sort((sums * order).reshape(-1)), rtol=1e-5)
    assert found["item"].size == found["next"].size == 12


def test_an_if_in_a_loop() -> None:
    """A branch that only some rounds take."""
    inside = choice(
        "odd",
        body_of([node("Exp", "state", "e"), node("Identity", "e", "yes")], [], [floats("yes", None)]),
        body_of([node("Neg", "state", "n"), node("Identity", "n", "no")], [], [floats("no", None)]),
        "next",
    )
    body = body_of(
        [
            node("Mod", "round two", "rest"),
            node("Cast", "rest", "odd", to=TensorProto.BOOL),
            inside,
            node("Identity", "was", "again"),
        ],
        [floats("round", [], TensorProto.INT64), flag("was"), floats("state", [3])],
        [flag("again"), floats("next", [3])],
        {"two": np.array(2)},
    )
    weights = {"rounds": np.array(3), "go": np.array(True)}
    proto = proto_of([node("Loop", "rounds go x", "y", body=body)], {"x": [3]}, {"y": None}, weights)
    x = normal(0, 3)
    found = visible(proto, ("e", "n"), {"x": x})
    np.testing.assert_allclose(found["e"], np.exp(-x), rtol=1e-6)
    np.testing.assert_allclose(found["n"], np.concatenate([-x, -np.exp(-x)]), rtol=1e-6)


def test_statistics_of_a_branch_are_those_of_the_samples_that_took_it() -> None:
    """And none at all for one that no sample took."""
    samples = tuple(
        {"x": normal(seed, 2, 3), "first": np.array(seed < 2), "second": np.array(True)} for seed in range(4)
    )
    requests = tuple(Request(value=name, statistic="extrema") for name in ("t", "e", "s"))
    known = collect(wrapped(nested()), Statistics.empty(requests), Stream(samples))
    tanh = np.tanh(np.concatenate([sample["x"] for sample in samples[:2]]))
    exp = np.exp(np.concatenate([sample["x"] for sample in samples[2:]]))
    for request, values in zip(requests, (tanh, exp), strict=False):
        found = known.get(request).distribution()
        np.testing.assert_allclose([found.lower[0], found.upper[0]], [values.min(), values.max()], rtol=1e-6)
    with pytest.raises(InputError):
        known.get(requests[2]).distribution()
