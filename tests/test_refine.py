"""What samples say against a plan: values that eight bits ruin, ranges that do not go together, branches not taken."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import (
    Feeds,
    Stream,
    assert_equal,
    conv_net,
    floats,
    node,
    normal,
    proto_of,
    run,
    saved,
    stream_for,
    wrapped,
)
from onnx import TensorProto, helper

from qcli.apply import apply_plan
from qcli.calibrate import collect
from qcli.distribution import Distribution
from qcli.graph import Model, normalize_graph
from qcli.job import QuantizeJob
from qcli.measured import requests_of
from qcli.metrics.sqnr import Sqnr
from qcli.pipeline import quantize
from qcli.plan import make_plan
from qcli.plugins import create
from qcli.recipe import Recipe, load_recipe
from qcli.refine import lost_share, refine_plan, sqnr_of
from qcli.solve import solve
from qcli.statistics import Statistics
from qcli.types import Grid, Interval, Plan, Role


def refined(proto: onnx.ModelProto, stream: Stream, settings: Sequence[str] = ()) -> tuple[Plan, Plan, Model]:
    """The plan before and behind its statistics, and the quantized model."""
    recipe: Recipe = load_recipe("int8", tuple(settings))
    source = wrapped(proto)
    normalize_graph(source)
    first = make_plan(source, recipe)
    known = collect(source, Statistics.empty(requests_of(first, source)), stream)
    second = refine_plan(source, recipe, first, known)
    return first, second, apply_plan(source, second, solve(source, second, known))


def why(plan: Plan) -> dict[str, str]:
    return {kept.node: kept.reason for kept in plan.kept_float}


def encodings(plan: Plan) -> dict[str, str]:
    """The encoding of each weight, by node."""
    return {entry.site.node: str(entry.encoding) for entry in plan.entries if entry.site.role is Role.WEIGHT}


def ratio(proto: onnx.ModelProto, model: Model, stream: Stream) -> float:
    metric = Sqnr()
    for feeds in stream.samples:
        for name, expected in run(proto, feeds).items():
            metric.update(expected, run(model, feeds, optimize=True)[name])
    return metric.value()


def spectrum() -> onnx.ModelProto:
    """Two filters, their power, a sum over bands, the logarithm of it, and a layer behind: as in speech."""
    weights = {
        "real": normal(0, 16, 1, 9) / 9,
        "bands": normal(1, 12, 16, 1) ** 2,
        "floor": np.array(1e-6, np.float32),
        "w": normal(2, 8, 12, 1) / 8,
    }
    nodes = [
        node("Conv", "x real", "r"),
        node("Mul", "r r", "power"),
        node("Conv", "power bands", "mel"),
        node("Max", "mel floor", "above"),
        node("Log", "above", "l"),
        node("Conv", "l w", "y"),
    ]
    return proto_of(nodes, {"x": [1, 1, 64]}, {"y": None}, weights)


def sounds(count: int = 6) -> Stream:
    """Loud at a moment, and faint for the rest, over eight decades of power."""
    envelope = np.logspace(-5, 0, 64).astype(np.float32)
    return Stream(tuple({"x": normal(seed, 1, 1, 64) * envelope} for seed in range(count)))


def test_a_power_spectrum_stays_float_with_its_reason() -> None:
    stream = sounds()
    first, second, model = refined(spectrum(), stream)
    assert encodings(first) == {"r": "qdq", "mel": "qdq", "y": "qdq"}
    assert {"power", "mel"} <= set(why(second)) and encodings(second) == {"r": "qdq", "mel": "weight_only", "y": "qdq"}
    assert "of its values would round to zero, so many magnitudes do they span" in why(second)["mel"]
    assert why(second)["mel"].endswith("; its weight is stored as int8")
    assert ratio(spectrum(), model, stream) > 18
    source = wrapped(spectrum())
    normalize_graph(source)
    known = collect(source, Statistics.empty(requests_of(first, source)), stream)
    unrefined = apply_plan(source, first, solve(source, first, known))
    assert ratio(spectrum(), unrefined, stream) < 10, "which is what it is for"


def test_nothing_changes_where_nothing_speaks_against_the_plan() -> None:
    first, second, _ = refined(conv_net(), stream_for(wrapped(conv_net())))
    assert second == first


def heads(scale: float) -> onnx.ModelProto:
    """Scores from 0 to 1 and coordinates up to `scale`, joined and read by one more layer."""
    weights = {
        "w": normal(0, 8, 4, 1, 1) / 2,
        "s": normal(1, 8, 8, 1, 1) / 3,
        "c": normal(2, 8, 8, 1, 1) / 3 * np.float32(scale),
        "v": normal(3, 8, 16, 1, 1) / 4,
    }
    nodes = [
        node("Conv", "x w", "h"),
        node("Conv", "h s", "s0"),
        node("Sigmoid", "s0", "scores"),
        node("Conv", "h c", "boxes"),
        node("Concat", "scores boxes", "all", axis=1),
        node("Conv", "all v", "y"),
    ]
    return proto_of(nodes, {"x": [1, 4, 6, 6]}, {"y": None, "all": None}, weights)


def test_scores_and_coordinates_are_not_joined_under_one_scale() -> None:
    proto = heads(scale=400)
    stream = stream_for(wrapped(proto))
    first, second, model = refined(proto, stream)
    assert [tie.node for tie in first.ties] == ["all"] and second.ties == ()
    assert "it joins values of very different ranges; 'scores' would keep" in why(second)["all"]
    assert encodings(second) == {"h": "qdq", "s0": "qdq", "boxes": "qdq", "y": "qdq"}, "the layers stay integer"
    for feeds in stream.samples[:3]:
        expected, found = run(proto, feeds)["all"][:, :8], run(model, feeds)["all"][:, :8]
        assert np.abs(expected - found).max() < 0.05, "the scores"


def test_values_of_like_ranges_stay_joined() -> None:
    first, second, _ = refined(heads(scale=1), stream_for(wrapped(heads(scale=1))))
    assert [tie.node for tie in second.ties] == ["all"] and second == first


def branches() -> onnx.ModelProto:
    bodies = [
        helper.make_graph(
            [node("Conv", f"h {weight}", f"{way}_c"), node("Conv", f"{way}_c {weight}", f"{way}_y")],
            way,
            [],
            [floats(f"{way}_y", None)],
        )
        for way, weight in (("then", "v"), ("else", "u"))
    ]
    nodes = [node("Conv", "x w", "h"), node("If", "which", "y", then_branch=bodies[0], else_branch=bodies[1])]
    weights = {"w": normal(0, 8, 4, 3, 3) / 6, "v": normal(1, 8, 8, 3, 3) / 9, "u": normal(2, 8, 8, 3, 3) / 9}
    proto = proto_of(nodes, {"x": [1, 4, 12, 12]}, {"y": None}, weights)
    proto.graph.input.append(floats("which", [], TensorProto.BOOL))
    return proto


def taking(*ways: bool) -> Stream:
    samples: tuple[Feeds, ...] = tuple(
        {"x": normal(seed, 1, 4, 12, 12), "which": np.array(way)} for seed, way in enumerate(ways)
    )
    return Stream(samples)


def test_a_branch_that_no_sample_took_has_its_weights_stored_and_says_so() -> None:
    _, plan, model = refined(branches(), taking(True, True, True))
    assert encodings(plan) == {
        "h": "qdq", "then_c": "qdq", "then_y": "qdq", "else_c": "weight_only", "else_y": "weight_only",
    }  # fmt: skip
    for key in ("else_c", "else_y"):
        assert why(plan)[key].endswith("no sample reached it; its weight is stored as int8")
    for feeds in taking(True, False).samples:
        expected = run(branches(), feeds)
        for optimize in (False, True):
            assert_equal(expected, run(model, feeds, optimize=optimize), tolerance=0.05)


def test_branches_that_were_both_taken_are_both_integer() -> None:
    first, plan, model = refined(branches(), taking(True, False, True, False))
    assert plan == first and set(encodings(plan).values()) == {"qdq"}
    for feeds in taking(True, False).samples:
        assert_equal(run(branches(), feeds), run(model, feeds, optimize=True), tolerance=0.06)


def test_a_run_reports_what_the_samples_changed(tmp_path: Path) -> None:
    """The same from the file of a model to the report; a plan that was given is not changed."""
    folder = tmp_path / "samples"
    folder.mkdir()
    for at, feeds in enumerate(taking(True, True, True).samples):
        np.savez(folder / f"{at}.npz", **feeds)
    model = saved(branches(), tmp_path / "model.onnx")
    job = QuantizeJob(model=model, calibration=folder, output=tmp_path / "out.onnx", latency=False, cache=False)
    report = quantize(job)
    assert report.kernels is not None
    told = {kept.node: kept.reason for kept in report.kernels.kept_float}
    assert "no sample reached it; its weight is stored as int8" in told["/else_c"]


FORMAT = create("formats", "uint8")
GRID = Grid(format="uint8", symmetric=False)


def seen(points: np.ndarray, counts: np.ndarray | None = None) -> Distribution:
    known = points.astype(np.float64).reshape(1, -1)
    weights = np.ones_like(known) if counts is None else counts.astype(np.float64).reshape(1, -1)
    return Distribution(lower=known.min(axis=1), upper=known.max(axis=1), points=known, counts=weights)


@given(st.lists(st.floats(0, 1000, width=32), min_size=1, max_size=50))
def test_the_share_that_is_lost_is_what_lies_below_half_a_step(values: list[float]) -> None:
    scale = FORMAT.scale(Interval(lower=np.zeros(1), upper=np.array([255.0])), GRID)
    points = np.array(values, np.float32)
    some = points[points != 0]
    expected = float((some <= 0.5).mean()) if some.size else 0.0
    assert lost_share(seen(points), scale, FORMAT) == pytest.approx(expected)


def test_zeros_are_not_lost_and_counts_weigh() -> None:
    scale = FORMAT.scale(Interval(lower=np.zeros(1), upper=np.array([255.0])), GRID)
    assert lost_share(seen(np.array([0.0, 0.1, 100.0]), np.array([1000, 3, 1])), scale, FORMAT) == 0.75
    assert lost_share(seen(np.zeros(3)), scale, FORMAT) == 0


def test_the_ratio_is_that_of_the_errors() -> None:
    scale = FORMAT.scale(Interval(lower=np.zeros(1), upper=np.array([255.0])), GRID)
    assert sqnr_of(seen(np.array([10.25, 100.0])), scale, FORMAT) == pytest.approx(
        10 * np.log10((10.25**2 + 100**2) / 0.25**2)
    )
    assert sqnr_of(seen(np.array([1.0, 2.0])), scale, FORMAT) > 150, "exact"
