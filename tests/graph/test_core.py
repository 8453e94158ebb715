"""The core of an optimized graph, found and run alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from qcli.graph import Model, Value, add_initializer, make_node
from qcli.graph.blank import add_input, add_output, blank_model
from qcli.graph.core import LAYOUTS, take_apart, write_core
from qcli.runtime import Session
from qcli.types import Array


def blank(shape: tuple[int, ...]) -> tuple[Model, Value]:
    model = blank_model(13)
    return model, add_input(model, "x", "float32", shape)


def chain(model: Model, value: Value, *operators: str) -> Value:
    """Operators one behind the other; Transpose turns the axes around."""
    for index, operator in enumerate(operators):
        node = make_node(operator, [value], name=f"n{index}", output=f"v{index}")
        model.graph.append(node)
        value = node.outputs[0]
    add_output(model, value)
    return value


def saved(model: Model, folder: Path) -> Path:
    path = folder / "optimized.onnx"
    path.write_bytes(model.serialize())
    return path


def run_core(path: Path, feeds: dict[str, Array], skin: tuple[str, ...] = LAYOUTS) -> Array:
    parts = take_apart(path, skin)
    inputs = dict(feeds)
    if parts.head is not None:
        head = Session(parts.head, optimize=False)
        inputs |= head.run({name: feeds[name] for name in head.input_names()})
    core = Session(write_core(path, inputs, skin), optimize=False)
    result: Array
    (result,) = core.run({name: inputs[name] for name in core.input_names()}).values()
    return result


def test_layout_at_both_ends_is_taken_away(tmp_path: Path) -> None:
    model, value = blank((2, 3))
    chain(model, value, "Transpose", "Neg", "Abs", "Transpose")
    path = saved(model, tmp_path)
    parts = take_apart(path)
    assert parts.kernels == ("Neg", "Abs")
    assert parts.wrapped and parts.head is not None
    data = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(run_core(path, {"x": data}), data.T)


def test_layout_inside_stays(tmp_path: Path) -> None:
    model, value = blank((2, 3))
    chain(model, value, "Neg", "Transpose", "Abs")
    parts = take_apart(saved(model, tmp_path))
    assert parts.kernels == ("Neg", "Transpose", "Abs")
    assert not parts.wrapped and parts.head is None


def test_what_is_layout_alone_is_its_own_core(tmp_path: Path) -> None:
    model, value = blank((2, 3))
    chain(model, value, "Transpose")
    parts = take_apart(saved(model, tmp_path))
    assert parts.kernels == ("Transpose",)
    assert not parts.wrapped


def test_layout_at_the_end_alone_needs_no_head(tmp_path: Path) -> None:
    model, value = blank((2, 3))
    chain(model, value, "Neg", "Transpose")
    path = saved(model, tmp_path)
    parts = take_apart(path)
    assert parts.kernels == ("Neg",) and parts.wrapped and parts.head is None
    data = np.ones((2, 3), np.float32)
    np.testing.assert_array_equal(run_core(path, {"x": data}), -data)


def test_several_inputs_and_constants(tmp_path: Path) -> None:
    model, first = blank((2, 3))
    second = add_input(model, "z", "float32", (3, 2))
    turned = make_node("Transpose", [first], name="t", output="t")
    added = make_node("Add", [turned.outputs[0], second], name="a", output="a")
    scaled = make_node(
        "Mul", [added.outputs[0], add_initializer(model.graph, "c", np.full(1, 2, np.float32))], name="m", output="m"
    )
    for node in (turned, added, scaled):
        model.graph.append(node)
    add_output(model, scaled.outputs[0])
    path = saved(model, tmp_path)
    assert take_apart(path).kernels == ("Add", "Mul")
    feeds = {"x": np.ones((2, 3), np.float32), "z": np.full((3, 2), 4, np.float32)}
    np.testing.assert_array_equal(run_core(path, feeds), np.full((3, 2), 10, np.float32))


def test_more_may_count_as_skin(tmp_path: Path) -> None:
    model, value = blank((2, 3))
    chain(model, value, "Neg", "Transpose", "Abs", "Transpose", "Neg")
    path = saved(model, tmp_path)
    skin = (*LAYOUTS, "Neg")
    assert take_apart(path, skin).kernels == ("Abs",)
    data = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(run_core(path, {"x": data}, skin), data.T)


def test_a_blank_model_may_use_the_operators_of_onnxruntime() -> None:
    model, value = blank((1, 4))
    node = make_node("QuickGelu", [value], name="q", output="y", domain="com.microsoft")
    model.graph.append(node)
    add_output(model, node.outputs[0])
    result = Session(model.serialize()).run({"x": np.zeros((1, 4), np.float32)})
    np.testing.assert_array_equal(result["y"], np.zeros((1, 4), np.float32))


def test_a_free_dimension_takes_any_size() -> None:
    model = blank_model(13)
    value = add_input(model, "x", "uint8", (None, 2))
    chain(model, value, "Identity")
    result = Session(model.serialize()).run({"x": np.ones((5, 2), np.uint8)})
    assert result["v0"].shape == (5, 2)
