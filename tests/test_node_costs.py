"""Profiles side by side, and who is named where the quantized model is slower."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import dataset, first_sample, model_path
from models import node, normal, proto_of, saved

from qcli import validate as stage
from qcli.doubts import slower
from qcli.errors import RuntimeFailure
from qcli.graph import Model, load_model
from qcli.latency import Effort, Latency, Timing
from qcli.node_costs import NodeCost, compare_nodes, dearer, in_words, side_by_side
from qcli.profile import NodeTime, profiles
from qcli.side_by_side import CompareJob, compare_models
from qcli.validate import ValidateJob, Validation, validate


@pytest.fixture
def source(tmp_path: Path) -> Model:
    nodes = [node("Conv", "x w", "h"), node("Relu", "h", "r"), node("GlobalMaxPool", "r", "y")]
    weights = {"w": normal(0, 8, 1, 3, 3)}
    return load_model(saved(proto_of(nodes, {"x": [1, 1, 8, 8]}, {"y": None}, weights), tmp_path / "m.onnx"))


def time(op: str, ms: float, *sources: str, beside: tuple[str, ...] = ()) -> NodeTime:
    return NodeTime(name=op, op=op, ms=ms, sources=sources, beside=beside)


def test_times_are_joined_by_source_node(source: Model) -> None:
    """In float conv and relu are one node, in the other model two, with a conversion on either side of the pool."""
    first = [time("Conv", 4.0, "h", "r"), time("GlobalMaxPool", 1.0, "y")]
    second = [
        time("QuantizeLinear", 0.5, beside=("h",)),
        time("QLinearConv", 1.0, "h"),
        time("QLinearRelu", 0.5, "r"),
        time("DequantizeLinear", 2.0, beside=("r", "y")),
        time("GlobalMaxPool", 1.0, "y"),
        time("Cast", 0.25),
    ]
    conv, pool, rest = side_by_side([first, second], source)
    assert (conv.node, conv.output, conv.op, conv.sources) == ("/h", "h", "Conv", ("h", "r"))
    assert conv.ms == (4.0, 3.0) and conv.conversions_ms == (0.0, 1.5)
    assert conv.ratios == (1.0, 4 / 3)
    assert (pool.node, pool.ms, pool.conversions_ms) == ("/y", (1.0, 2.0), (0.0, 1.0))
    assert (rest.node, rest.op, rest.ms, rest.ratios) == ("", "", (0.0, 0.25), (None, None))


def test_nothing_is_lost_and_every_node_is_there(quantized_cnn: Path) -> None:
    source, feeds = load_model(model_path("cnn")), first_sample("cnn").feeds
    measured = profiles([model_path("cnn"), quantized_cnn], source, feeds, rounds=3)
    costs = side_by_side(measured, source)
    for model, rows in enumerate(measured):
        assert sum(cost.ms[model] for cost in costs) == pytest.approx(sum(row.ms for row in rows))
    keys = [key for cost in costs for key in cost.sources]
    assert len(keys) == len(set(keys)), "each source node is counted in one place"
    assert all(0 <= part <= ms for cost in costs for part, ms in zip(cost.conversions_ms, cost.ms, strict=True))
    assert list(costs) == sorted(costs, key=lambda cost: -max(cost.ms))


def cost(name: str, *ms: float) -> NodeCost:
    return NodeCost(node=name, output=name, op="Add", ms=ms, conversions_ms=(0.0, 0.0), ratios=(1.0, 1.0))


def test_the_three_that_lose_most() -> None:
    costs = [cost("a", 9, 1), cost("b", 1, 2), cost("c", 1, 5), cost("d", 1, 1.5), cost("", 0, 9), cost("e", 5, 6.5)]
    assert [each.node for each in dearer(costs)] == ["c", "e", "b"]
    assert dearer([cost("a", 2, 1)]) == ()
    assert dearer([cost("a", 1, 1.005), cost("b", 99, 98)]) == (), "less than a clock can tell"
    assert in_words([cost("/a", 0.01, 0.0432), cost("/b", 1, 2)]) == (
        "/a (Add, 0.010 → 0.043 ms), /b (Add, 1.000 → 2.000 ms)"
    )


def pretend(ratio: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The latency as if it had been measured; everything else runs."""
    timings = (Timing(median_ms=1.0, spread_ms=0.1), Timing(median_ms=1 / ratio, spread_ms=0.1))
    latency = Latency(timings=timings, ratios=(1.0, ratio), rounds=16, threads=1)
    monkeypatch.setattr(stage, "measure", lambda *_: latency)


def judged(quantized: Path) -> Validation:
    samples = dataset("mlp", limit=2)
    effort = Effort(least=0.0, most=0.0)
    return validate(ValidateJob(float_model=model_path("mlp"), compressed=quantized, samples=samples, latency=effort))


def test_a_slower_model_is_profiled(quantized_mlp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(0.5, monkeypatch)
    validation = judged(quantized_mlp)
    [warning] = slower(validation)
    assert "slower than the float one (0.50x)" in warning
    assert "qcli tune MODEL -r RECIPE -d CALIB" in warning
    for each in validation.dearer:
        assert each.ms[1] > each.ms[0]
        assert f"{each.node} ({each.op}, " in warning


def test_a_model_that_is_not_slower_is_not_profiled(quantized_mlp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("profiled")

    pretend(1.0, monkeypatch)
    monkeypatch.setattr(stage, "compare_nodes", refuse)
    validation = judged(quantized_mlp)
    assert validation.dearer == () and list(slower(validation)) == []


def test_without_a_profile_the_warning_is_shorter(quantized_mlp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeFailure("onnxruntime wrote no profile of the model")

    pretend(0.5, monkeypatch)
    monkeypatch.setattr(stage, "compare_nodes", fail)
    [warning] = slower(judged(quantized_mlp))
    assert warning.startswith("the quantized model is slower than the float one (0.50x): 'qcli tune")


@pytest.mark.parametrize("ratio", [0.985, 0.995, 1.0])
def test_the_clock_does_not_know_better(ratio: float, quantized_mlp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(ratio, monkeypatch)
    assert list(slower(judged(quantized_mlp))) == []


def test_stored_weights_are_not_promised_to_be_faster(quantized_mlp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(0.5, monkeypatch)
    [warning] = slower(judged(quantized_mlp), multiplied=False)
    assert "(0.50x)" in warning and "save bytes, not time" in warning and "tune" not in warning


def test_validate_warns_too(quantized_mlp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(0.5, monkeypatch)
    job = CompareJob(float_model=model_path("mlp"), compressed=quantized_mlp, evaluation=dataset("mlp").root)
    report = compare_models(job)
    assert any("slower than the float one" in warning for warning in report.warnings)


def test_costs_of_models_with_operators_in_other_places(quantized_transformer: Path) -> None:
    source, feeds = load_model(model_path("transformer")), first_sample("transformer").feeds
    costs = compare_nodes([model_path("transformer"), quantized_transformer], source, feeds, rounds=2)
    products = {node.name for node in source.nodes() if node.op_type in ("MatMul", "Gemm")}
    assert products <= {each.node for each in costs}
