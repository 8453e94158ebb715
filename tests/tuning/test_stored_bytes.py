"""What constants are foretold to take, beside what they take in the file."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from models import node, normal, proto_of, wrapped
from tune_bases import settled

from qcli.apply import apply_plan
from qcli.graph import save_model
from qcli.solve import Solved
from qcli.tuning.base import Base
from qcli.tuning.parts import Network, Part
from qcli.tuning.stored_bytes import float_bytes, plan_bytes
from qcli.tuning.uniform import network_for, uniforms
from qcli.tuning.ways import WAYS
from qcli.watch import Watch


def network(base: Base) -> Network:
    assert base.prepared.calibration is not None
    return network_for(base, next(iter(base.prepared.calibration)))[0]


def constants_in(path: Path) -> int:
    """The bytes of all initializers and Constant nodes of a file."""
    graph = onnx.load(path).graph
    made = [attribute.t for item in graph.node if item.op_type == "Constant" for attribute in item.attribute]
    return sum(onnx.numpy_helper.to_array(tensor).nbytes for tensor in (*graph.initializer, *made))


@pytest.mark.parametrize("name", ["cnn", "mlp", "transformer"])
def test_as_the_file_has_it(name: str, tmp_path: Path) -> None:
    """Constants of parts, and the others as they were, are what the file holds, but for scales of activations."""
    job, base = settled(tmp_path, name, "int8-minmax")
    found, model = network(base), base.prepared.model
    rest = float_bytes(model) - sum(plan_bytes(model, found.parts, None))
    plans = {"as the recipe says": Solved(base.plan, base.solution)}
    plans |= {WAYS[one.way].name: one.solved for one in uniforms(base, found, job, Watch())}
    assert len(plans) > 2
    for number, (way, solved) in enumerate(plans.items()):
        path = tmp_path / f"{number}.onnx"
        save_model(apply_plan(model, *solved), path)
        foretold = rest + sum(plan_bytes(model, found.parts, solved))
        assert foretold == pytest.approx(constants_in(path), rel=0.05), f"{name}, {way}"


def test_floats_are_what_the_model_has(tmp_path: Path) -> None:
    _, base = settled(tmp_path, "mlp", "int8-minmax")
    path = tmp_path / "float.onnx"
    save_model(base.prepared.model, path)
    assert float_bytes(base.prepared.model) == constants_in(path)


def test_what_several_nodes_read_counts_once_in_the_model_and_for_each_part() -> None:
    nodes = [node("MatMul", "x w", "h"), node("MatMul", "h w", "y")]
    model = wrapped(proto_of(nodes, {"x": [1, 8]}, {"y": [1, 8]}, {"w": normal(0, 8, 8)}))
    parts = [Part(key, "MatMul", (key,), "w", None) for key in ("h", "y")]
    assert float_bytes(model) == 8 * 8 * 4
    assert plan_bytes(model, parts, None) == [256, 256]


def test_no_constants_take_nothing() -> None:
    model = wrapped(proto_of([node("Relu", "x", "y")], {"x": [1, 8]}, {"y": [1, 8]}, {}))
    assert float_bytes(model) == 0
    assert plan_bytes(model, [Part("y", "Relu", ("y",), None, None)], None) == [0]
