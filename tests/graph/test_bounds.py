"""Small files that claim to be huge, endless or deep: refused at once, with a reason."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from models import floats, node, normal, proto_of, saved, wrapped
from onnx import TensorProto, helper

from qcli.errors import InputError, QcliError, ResourceError, UnsupportedError
from qcli.graph import check_sizes, load_model
from qcli.steps.fold_constants import FoldConstants
from qcli.types import Array

SECONDS = 20
"""Far more than any of these takes, far less than what they ask for would."""


def net(*nodes: onnx.NodeProto, rows: int | str = "n", **weights: Array) -> onnx.ModelProto:
    """h = x @ w, and what follows."""
    constants = {"w": normal(0, 12, 12), **weights}
    return proto_of([node("MatMul", "x w", "h"), *nodes], {"x": [rows, 12]}, {"y": None}, constants)


def added(operator: str, inputs: str, **weights: Array) -> onnx.ModelProto:
    """y = h + the sum of what `operator` makes of constants."""
    total = node("ReduceSum", "huge", "s", keepdims=0)
    return net(node(operator, inputs, "huge"), total, node("Add", "h s", "y"), **weights)


def integers(*values: int) -> Array:
    return np.array(values, np.int64)


def doubling(source: str, count: int, **weights: Array) -> onnx.ModelProto:
    nodes = [node("Concat", f"{source}{step} {source}{step}", f"{source}{step + 1}", axis=0) for step in range(count)]
    first = node("Identity", source, f"{source}0")
    total = node("ReduceSum", f"{source}{count}", "s", keepdims=0)
    return net(first, *nodes, total, node("Add", "h s", "y"), **weights)


def functions(count: int, calls: int, *, circle: bool = False) -> onnx.ModelProto:
    """Each function calls the one before it so many times."""
    proto = net(helper.make_node(f"F{count - 1}", ["h"], ["y"], domain="my"))
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("my", 1)]
    for index in range(count):
        called = f"F{(index - 1) % count}" if index or circle else "Relu"
        domain = "my" if index or circle else ""
        body = [helper.make_node(called, [f"v{step}"], [f"v{step + 1}"], domain=domain) for step in range(calls)]
        proto.functions.append(helper.make_function("my", f"F{index}", ["v0"], [f"v{calls}"], body, opsets))
    proto.opset_import.append(helper.make_opsetid("my", 1))
    return proto


def claimed_weight(*dims: int) -> onnx.ModelProto:
    proto = net(node("Add", "h b", "y"))
    proto.graph.initializer.append(TensorProto(name="b", data_type=TensorProto.FLOAT, dims=dims))
    return proto


TRILLION = 10**12

BOMBS: dict[str, tuple[Callable[[], onnx.ModelProto], type[QcliError]]] = {
    "a weight without its data": (lambda: claimed_weight(10**6, 10**6), InputError),
    "a weight of negative size": (lambda: claimed_weight(-1), InputError),
    "a weight of a hundred axes": (lambda: claimed_weight(*[1] * 100), InputError),
    "a constant": (lambda: added("ConstantOfShape", "n", n=integers(10**6, 10**6)), ResourceError),
    "an expanded value": (lambda: added("Expand", "h n", n=integers(TRILLION, 1, 1)), ResourceError),
    "a repeated constant": (
        lambda: added("Tile", "k n", k=np.ones(12, np.float32), n=integers(TRILLION)),
        ResourceError,
    ),
    "a range": (
        lambda: added("Range", "a b c", a=np.float32(0), b=np.float32(1e12), c=np.float32(1)),
        ResourceError,
    ),
    "an enlarged value": (lambda: net(node("Resize", "h - - n", "y"), n=integers(10**6, 10**6)), ResourceError),
    "a padded value": (lambda: net(node("Pad", "h n", "y"), n=integers(0, TRILLION, 0, 0)), ResourceError),
    "one-hot codes": (
        lambda: added("OneHot", "i d v", i=integers(*range(99)), d=integers(TRILLION), v=np.ones(2, np.float32)),
        ResourceError,
    ),
    "an outer sum": (
        lambda: added("Add", "p q", p=np.ones((10**5, 1), np.float32), q=np.ones((1, 10**6), np.float32)),
        ResourceError,
    ),
    "an input": (lambda: net(node("Relu", "h", "y"), rows=TRILLION), ResourceError),
    "a value doubled often": (lambda: doubling("h", 60), ResourceError),
    "a constant doubled often": (lambda: doubling("k", 60, k=np.ones(4, np.float32)), QcliError),
    "a vector that inference would follow": (lambda: doubling("k", 24, k=np.ones(4, np.float32)), UnsupportedError),
    "functions that call each other twice": (lambda: functions(60, 2), UnsupportedError),
    "functions in functions": (lambda: functions(1000, 1), UnsupportedError),
    "functions in a circle": (lambda: functions(3, 1, circle=True), UnsupportedError),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_at_once(tmp_path: Path, name: str) -> None:
    build, kind = BOMBS[name]
    path = saved(build(), tmp_path / "bomb.onnx")
    begin = time.perf_counter()
    with pytest.raises(kind) as caught:
        check_sizes(load_model(path))
    assert caught.value.hint and "\n" not in caught.value.message
    assert time.perf_counter() - begin < SECONDS


def test_bodies_in_bodies_to_the_thousandth_level_are_refused(tmp_path: Path) -> None:
    """Built by hand: no library writes such a file."""
    graph = b""
    for _ in range(1000):
        attribute = _field(6, graph) + _field(1, b"then_branch")
        graph = _field(1, _field(5, attribute))
    (tmp_path / "deep.onnx").write_bytes(_field(7, graph + _field(12, _field(1, b"y"))))
    with pytest.raises(InputError, match="nests too deeply"):
        load_model(tmp_path / "deep.onnx")


def test_types_in_types_are_refused(tmp_path: Path) -> None:
    kind = b""
    for _ in range(1000):
        kind = _field(4, _field(1, kind))
    graph = _field(11, _field(1, b"x") + _field(2, kind)) + _field(12, _field(1, b"y"))
    (tmp_path / "deep.onnx").write_bytes(_field(7, graph))
    with pytest.raises(InputError, match="nests too deeply"):
        load_model(tmp_path / "deep.onnx")


def _field(number: int, content: bytes) -> bytes:
    """A field of protobuf that holds bytes."""
    length, size = len(content), b""
    while length > 127:
        size += bytes([length & 127 | 128])
        length >>= 7
    return bytes([number << 3 | 2]) + size + bytes([length]) + content


@pytest.mark.parametrize("field", ["op_type", "name", "domain"])
def test_a_name_that_is_no_text_is_refused(tmp_path: Path, field: str) -> None:
    proto = net(node("Relu", "h", "y"))
    setattr(proto.graph.node[1], field, "QQQQ")
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString().replace(b"QQQQ", b"\xff\xfe\xfd\xfc"))
    with pytest.raises(InputError, match="UTF-8"):
        load_model(tmp_path / "model.onnx")


def test_external_data_of_a_function_is_refused(tmp_path: Path) -> None:
    proto = functions(1, 1)
    tensor = TensorProto(name="t", data_type=1, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="/somewhere/else")
    proto.functions[0].node.append(helper.make_node("Constant", [], ["c"], value=tensor))
    with pytest.raises(UnsupportedError, match="external data"):
        load_model(saved(proto, tmp_path / "model.onnx"))


@pytest.mark.parametrize("kind", [TensorProto.INT4, TensorProto.BFLOAT16, TensorProto.COMPLEX64, TensorProto.STRING])
def test_tensors_of_every_kind_may_be_whole(tmp_path: Path, kind: int) -> None:
    values = [b"a", b"b", b"c"] if kind == TensorProto.STRING else [1, 2, 3]
    proto = net(node("Relu", "h", "y"))
    proto.graph.initializer.append(helper.make_tensor("extra", kind, [3], values))
    load_model(saved(proto, tmp_path / "model.onnx"))


def test_a_large_constant_is_not_computed() -> None:
    model = wrapped(added("ConstantOfShape", "n", n=integers(2**30)))
    FoldConstants().run(model)
    assert "ConstantOfShape" in {item.op_type for item in model.nodes()}


def test_a_size_that_is_computed_is_known_before_the_constant() -> None:
    nodes = [node("Mul", "a b", "n"), node("ConstantOfShape", "n", "c"), node("Add", "h c", "y")]
    model = wrapped(net(*nodes, a=integers(4), b=integers(3)))
    FoldConstants().run(model)
    assert [item.op_type for item in model.nodes()] == ["MatMul", "Add"]


@pytest.mark.parametrize("attributes", [{}, {"a/b": 1}, {"value_int": 1, "value_float": 1.0}, {"value": 1}])
def test_a_constant_holds_one_value(tmp_path: Path, attributes: dict[str, Any]) -> None:
    nodes = [
        helper.make_node("Constant", [], ["c"], name="/c", **attributes),
        helper.make_node("Add", ["x", "c"], ["y"]),
    ]
    graph = helper.make_graph(nodes, "g", [floats("x", [1])], [floats("y", [1])])
    path = tmp_path / "model.onnx"
    path.write_bytes(helper.make_model(graph).SerializeToString())
    with pytest.raises(InputError, match="the Constant '/c' does not hold one value"):
        load_model(path)


def test_an_empty_input_with_another_huge_axis_is_refused(tmp_path: Path) -> None:
    proto = proto_of([node("Relu", "x", "y")], {"x": [0, 2**40, 2**40]}, {"y": None})
    with pytest.raises(ResourceError):
        check_sizes(load_model(saved(proto, tmp_path / "model.onnx")))


@pytest.mark.parametrize("outputs", [1, 3])
def test_a_split_into_other_parts_than_it_says_is_refused(outputs: int, tmp_path: Path) -> None:
    """onnx's shape inference ends the process there."""
    names = [f"y{number}" for number in range(outputs)]
    split = helper.make_node("Split", ["x"], names, num_outputs=2)
    values = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in ("x", *names)]
    graph = helper.make_graph([split], "g", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(InputError, match=f"a Split into 2 has {outputs} outputs"):
        load_model(tmp_path / "m.onnx")
