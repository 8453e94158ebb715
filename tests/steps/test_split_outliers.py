"""Outlying channels take a path of their own: the same products in float, and better ones in integers."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import Stream, assert_equal, floats, node, normal, operators, proto_of, run, wrapped
from onnx import TensorProto, helper

from qcli.apply import apply_plan
from qcli.calibrate import collect
from qcli.graph import Model, infer_shapes, normalize_graph
from qcli.kernels import read_kernels
from qcli.metrics.sqnr import Sqnr
from qcli.plan import make_plan
from qcli.prepare import prepare
from qcli.recipe import load_recipe
from qcli.solve import solve
from qcli.statistics import Statistics
from qcli.steps.split_outliers import SplitOutliers
from qcli.types import Array
from qcli.watch import Watch

WIDE = 96


def data(seed: int, outlying: tuple[int, ...] = (5, 40), times: float = 30.0, rows: int = 6) -> Array:
    x = normal(seed, rows, WIDE)
    x[:, list(outlying)] *= times
    return x


def stream(**options: float) -> Stream:
    return Stream(tuple({"x": data(seed, **options)} for seed in range(4)))  # type: ignore[arg-type]


def network(bias: bool = False, size: int = WIDE) -> onnx.ModelProto:
    """One input, two products, of which one has a bias."""
    weights = {"w": normal(1, size, 32) / 8, "v": normal(2, size, 24) / 8, "b": normal(3, 32)}
    nodes = [node("MatMul", "x w", "m"), node("MatMul", "x v", "z")]
    nodes.insert(1, node("Add", "m b", "y") if bias else node("Neg", "m", "y"))
    return proto_of(nodes, {"x": ["n", size]}, {"y": None, "z": None}, weights)


def split(proto: onnx.ModelProto, samples: Stream, step: SplitOutliers | None = None) -> tuple[Model, int]:
    step = step or SplitOutliers()
    model = wrapped(proto)
    normalize_graph(model)
    infer_shapes(model)
    count = step.run_measured(model, collect(model, Statistics.empty(step.requests(model)), samples))
    return model, count


@pytest.mark.parametrize("bias", [True, False])
def test_the_float_model_computes_the_same(bias: bool) -> None:
    proto = network(bias)
    model, count = split(proto, stream())
    assert count == 2
    for seed in (0, 9):
        feeds = {"x": data(seed)}
        assert_equal(run(proto, feeds), run(model, feeds), tolerance=1e-6)
    onnx.checker.check_model(model.proto(), full_check=True)
    mask, index = (model.graph.initializers[name].const_value.numpy() for name in ("x_mask", "x_outlying"))  # type: ignore[union-attr]
    assert index.tolist() == [5, 40] and np.flatnonzero(mask == 0).tolist() == [5, 40]
    assert operators(model).count("Gather") == 1, "products of one input share its two paths"


def test_the_bias_stays_next_to_its_product() -> None:
    """There it becomes a part of the product's kernel."""
    model, _ = split(network(bias=True), stream())
    product = next(item for item in model.nodes() if item.op_type == "MatMul" and item.name == "/m")
    [(reader, _)] = product.outputs[0].uses()
    assert (reader.op_type, reader.name) == ("Add", "/y")


def test_nothing_is_split_without_outliers() -> None:
    assert split(network(), stream(times=1.5))[1] == 0


def test_narrow_inputs_are_left_alone() -> None:
    samples = Stream(({"x": data(0)[:, :48]},))
    assert SplitOutliers().requests(wrapped(network(size=48))) == ()
    assert split(network(size=48), samples)[1] == 0


def test_an_input_that_is_empty_in_every_sample() -> None:
    assert split(network(), Stream(({"x": np.empty((0, WIDE), np.float32)},)))[1] == 0


def test_more_outliers_than_allowed() -> None:
    """Without the largest eight of ten the range is as wide as before, so nothing is gained."""
    assert split(network(), stream(outlying=tuple(range(10))))[1] == 0  # type: ignore[arg-type]
    assert split(network(), stream(outlying=tuple(range(10))), SplitOutliers(limit=10))[1] == 2  # type: ignore[arg-type]


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**20),
    outlying=st.sets(st.integers(0, WIDE - 1), min_size=1, max_size=6),
    times=st.floats(8, 1e4),
)
def test_exact_in_float_whatever_the_outliers(seed: int, outlying: set[int], times: float) -> None:
    proto = network()
    x = data(seed, tuple(outlying), times)
    model, count = split(proto, Stream(({"x": x},)))
    assert count in (0, 2)
    other = {"x": data(seed + 1, tuple(outlying), times)}
    for feeds in ({"x": x}, other):
        assert_equal(run(proto, feeds), run(model, feeds), tolerance=2e-6)


@settings(max_examples=60)
@given(
    sizes=st.lists(st.floats(1e-3, 1e3), min_size=4, max_size=40),
    limit=st.integers(1, 8),
    gain=st.floats(1, 20),
)
def test_the_channels_chosen_are_the_largest_and_worth_it(sizes: list[float], limit: int, gain: float) -> None:
    upper = np.array(sizes)
    chosen = SplitOutliers(limit=limit, gain_db=gain).outliers(-upper, upper)
    assert len(chosen) <= min(limit, len(sizes) - 1) and list(chosen) == sorted(set(chosen))
    if len(chosen):
        rest = np.delete(upper, chosen)
        assert upper[chosen].min() >= rest.max()
        assert 20 * np.log10(upper.max() / rest.max()) >= gain - 1e-9


def test_no_range_at_all() -> None:
    zeros = np.zeros(WIDE)
    assert SplitOutliers().outliers(zeros, zeros).size == 0
    assert SplitOutliers().outliers(np.ones(1), np.ones(1)).size == 0


def quantized(model: Model) -> Model:
    plan = make_plan(model, load_recipe("int8-dynamic"))
    return apply_plan(model, plan, solve(model, plan, Statistics.empty(())))


def ratio(reference: onnx.ModelProto, model: Model) -> float:
    metric = Sqnr()
    for seed in range(3):
        feeds = {"x": data(seed)}
        metric.update(run(reference, feeds)["z"], run(model, feeds, optimize=True)["z"])
    return metric.value()


def test_integers_gain_by_it_and_still_run_on_the_integer_kernel() -> None:
    proto = network()
    plain = wrapped(proto)
    normalize_graph(plain)
    better, _ = split(proto, stream())
    assert ratio(proto, quantized(better)) > ratio(proto, quantized(plain)) + 6
    kernels = read_kernels(quantized(better).serialize(), better, {"x": data(0)})
    assert kernels.by_kernel["MatMulIntegerToFloat"] == 2
    assert {item.node for item in kernels.stayed_float} == {"/m_outliers", "/z_outliers"}, "the thin products"
    assert kernels.integer_share > 0.97


def in_a_body() -> onnx.ModelProto:
    bodies = [
        helper.make_graph(
            [node("Relu", "x", f"{way}_r"), node("MatMul", f"{way}_r {weight}", f"{way}_y")],
            way,
            [],
            [floats(f"{way}_y", None)],
        )
        for way, weight in (("then", "w"), ("else", "v"))
    ]
    choice = node("If", "which", "y", then_branch=bodies[0], else_branch=bodies[1])
    weights = {"w": normal(1, WIDE, 32) / 8, "v": normal(2, WIDE, 32) / 8}
    proto = proto_of([choice], {"x": ["n", WIDE]}, {"y": None}, weights)
    proto.graph.input.append(floats("which", [], TensorProto.BOOL))
    return proto


def test_products_in_bodies_are_left_alone() -> None:
    """A value leaves a body as a vector, without its channels; and branches that no sample takes have none."""
    samples = Stream(tuple({"x": data(seed, rows=seed + 2), "which": np.array(True)} for seed in range(3)))
    model, watch = wrapped(in_a_body()), Watch()
    prepared = prepare(model, 11, ("normalize", "split_outliers"), samples, watch)
    assert watch.warnings == [] and operators(prepared).count("MatMul") == 2
