"""Where the time of a model goes: structure and mapping, never how long anything takes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import first_sample, model_path
from models import node, normal, proto_of, saved

from qcli.errors import RuntimeFailure
from qcli.graph import load_model, node_key, normalize_graph
from qcli.graph.optimized import OptimizedGraph, RuntimeNode
from qcli.origins import CONVERSIONS, origins
from qcli.profile import Kernel, NodeTime, profile, read_profile
from qcli.tracing import FAMILY_OF

NAMES = ("cnn", "transformer", "gru", "mlp")


@pytest.fixture(scope="module", params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def quantized(name: str, request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(f"quantized_{name}")
    return path


def rows_of(path: Path, name: str) -> tuple[NodeTime, ...]:
    return profile(path, load_model(model_path(name)), first_sample(name).feeds, rounds=3)


def keys(name: str) -> dict[str, str]:
    """The operators of the source nodes by key."""
    model = load_model(model_path(name))
    normalize_graph(model)
    return {node_key(node): node.op_type for node in model.nodes()}


def test_every_node_of_a_float_model_has_its_place(name: str) -> None:
    rows, known = rows_of(model_path(name), name), keys(name)
    assert {key for row in rows for key in row.sources} == set(known), "each source node once or more, no other"
    for row in rows:
        assert row.ms >= 0
        if row.op in FAMILY_OF:
            assert known[row.main] in FAMILY_OF, f"{row.name} comes from a {known[row.main]}"
    assert sum(row.ms for row in rows) > 0


def test_every_compute_node_of_a_quantized_model_has_its_time(name: str, quantized: Path) -> None:
    rows, known = rows_of(quantized, name), keys(name)
    timed = {key for row in rows if row.ms > 0 for key in row.sources}
    assert {key for key, op in known.items() if op in FAMILY_OF} <= timed
    assert {key for row in rows for key in row.sources} <= set(known)


def test_conversions_belong_to_none_and_lie_beside_some(name: str, quantized: Path) -> None:
    inserted = [row for row in rows_of(quantized, name) if row.op in ("QuantizeLinear", "DequantizeLinear")]
    known = keys(name)
    assert inserted
    for row in inserted:
        assert row.sources == ()
        assert row.beside and set(row.beside) <= set(known)


def test_the_source_can_hold_what_looks_like_a_conversion(quantized_gru: Path) -> None:
    row = next(row for row in rows_of(quantized_gru, "gru") if row.op == "Transpose")
    assert row.sources == ("/rows_first_output",)


def test_the_profile_is_gone_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    monkeypatch.chdir(tmp_path)
    rows_of(model_path("mlp"), "mlp")
    assert not list(tmp_path.iterdir())


def test_nodes_without_names(tmp_path: Path) -> None:
    nodes = [
        node("MatMul", "x w", "a", name=""),
        node("Sin", "a", "b", name="Sin_1"),
        node("Sin", "b", "c", name=""),
        node("MatMul", "c v", "y", name=""),
    ]
    weights = {"w": normal(0, 8, 8), "v": normal(1, 8, 8)}
    path = saved(proto_of(nodes, {"x": [4, 8]}, {"y": None}, weights), tmp_path / "model.onnx")
    rows = profile(path, load_model(path), {"x": normal(2, 4, 8)}, rounds=3)
    assert [(row.op, row.sources) for row in rows] == [
        ("MatMul", ("a",)),
        ("Sin", ("b",)),
        ("Sin", ("c",)),
        ("MatMul", ("y",)),
    ]


def test_a_body_is_not_counted_twice(tmp_path: Path) -> None:
    """The time of an If is without that of the nodes in its branches; the branch that does not run takes none."""
    branch = {
        name: onnx.helper.make_graph(
            [node("MatMul", f"x {weight}", f"{name}_y")],
            name,
            [],
            [onnx.helper.make_tensor_value_info(f"{name}_y", onnx.TensorProto.FLOAT, None)],
        )
        for name, weight in (("then", "w"), ("else", "v"))
    }
    condition = onnx.helper.make_node(
        "If", ["flag"], ["y"], name="/y", then_branch=branch["then"], else_branch=branch["else"]
    )
    weights = {"w": normal(0, 256, 256), "v": normal(1, 256, 256)}
    proto = proto_of([condition], {"x": [256, 256]}, {"y": None}, weights)
    proto.graph.input.append(onnx.helper.make_tensor_value_info("flag", onnx.TensorProto.BOOL, []))
    path = saved(proto, tmp_path / "model.onnx")
    rows = profile(path, load_model(path), {"x": normal(2, 256, 256), "flag": np.array(True)}, rounds=3)
    by_source = {row.sources: row.ms for row in rows}
    assert by_source[("then_y",)] > 0
    assert by_source[("else_y",)] == 0
    assert by_source[("y",)] < by_source[("then_y",)], "all that an If does itself is to choose"


def event(name: str, start: int, length: int, op: str = "Conv", **more: object) -> str:
    kind = "Session" if name == "model_run" else "Node"
    entry = {"cat": kind, "name": name, "ts": start, "dur": length, "args": {"op_name": op, "node_index": "3"}, **more}
    return json.dumps(entry) + ",\n"


def test_medians_over_runs_warm_up_left_out(tmp_path: Path) -> None:
    lines = ["[\n"]
    for run, length in enumerate((900, 10, 30, 20)):
        lines += [event("model_run", 1000 * run, 990), event("c_kernel_time", 1000 * run + 5, length)]
    (tmp_path / "profile").write_text("".join(lines) + "]\n", encoding="utf-8")
    assert read_profile(tmp_path / "profile", 1) == {Kernel("c", "Conv", 3): 0.02}


def test_what_a_loop_runs_often_is_added_up(tmp_path: Path) -> None:
    lines = [event("model_run", 0, 100), event("loop_kernel_time", 1, 90, "Loop")]
    lines += [event("c_kernel_time", 2 + 20 * turn, 20) for turn in range(4)]
    (tmp_path / "profile").write_text("[\n" + "".join(lines) + "]\n", encoding="utf-8")
    times = read_profile(tmp_path / "profile")
    assert times[Kernel("c", "Conv", 3)] == pytest.approx(0.08)
    assert times[Kernel("loop", "Loop", 3)] == pytest.approx(0.01)


@pytest.mark.parametrize(
    "damage", ["{", "7,", '{"cat": "Node"},', '{"cat": "Node", "name": "c_kernel_time", "args": 3},']
)
def test_lines_that_cannot_be_read_are_passed_over(tmp_path: Path, damage: str) -> None:
    whole = event("model_run", 0, 100) + event("c_kernel_time", 1, 50)
    (tmp_path / "profile").write_text(f"[\n{damage}\n{whole}{damage}\n", encoding="utf-8")
    assert read_profile(tmp_path / "profile") == {Kernel("c", "Conv", 3): 0.05}


@pytest.mark.parametrize("content", ["", "[\n]\n", "not a profile", event("model_run", 0, 5)])
def test_an_empty_profile_is_said_to_be_one(tmp_path: Path, content: str) -> None:
    (tmp_path / "profile").write_text(content, encoding="utf-8")
    with pytest.raises(RuntimeFailure, match="no profile"):
        read_profile(tmp_path / "profile")


def test_what_is_fused_away_counts_to_the_node_before(tmp_path: Path) -> None:
    """conv, relu, pool, as integer kernels run them: the relu is part of the convolution."""
    nodes = [node("Conv", "x w", "h"), node("Relu", "h", "r"), node("GlobalMaxPool", "r", "y")]
    path = saved(proto_of(nodes, {"x": [1, 1, 8, 8]}, {"y": None}, {"w": normal(0, 8, 1, 3, 3)}), tmp_path / "m.onnx")
    base = {"domain": "", "integers": {}, "nested": False}
    running = (
        RuntimeNode(op="QuantizeLinear", name="x_q", inputs=("x",), outputs=("x_q",), **base),  # type: ignore[arg-type]
        RuntimeNode(op="QLinearConv", name="/h_token_1", inputs=("x_q", "w"), outputs=("t",), **base),  # type: ignore[arg-type]
        RuntimeNode(op="DequantizeLinear", name="d", inputs=("t",), outputs=("u",), **base),  # type: ignore[arg-type]
        RuntimeNode(op="GlobalMaxPool", name="/y", inputs=("u",), outputs=("y",), **base),  # type: ignore[arg-type]
    )
    found = origins(OptimizedGraph(nodes=running, weights={}, shapes={}), load_model(path))
    assert [origin.sources for origin in found] == [(), ("h", "r"), (), ("y",)]
    assert [origin.beside for origin in found] == [("h",), (), ("h", "y"), ()]
    assert all(item.op in CONVERSIONS for item, origin in zip(running, found, strict=True) if origin.beside)
