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


def chosen(times: float, step: SplitOutliers | None = None, rows: int = 64) -> list[int]:
    """The outlying channels that are found where 5 and 40 are so many times the others."""
    model, _ = split(network(), stream(times=times, rows=rows), step)  # type: ignore[arg-type]
    index = model.graph.initializers.get("x_outlying")
    return index.const_value.numpy().tolist() if index is not None and index.const_value is not None else []


@pytest.mark.parametrize("times", [12.0, 100.0])
def test_the_outlying_channels_are_found_and_no_others(times: float) -> None:
    assert chosen(times) == [5, 40]


def test_options_say_what_a_channel_must_be_worth() -> None:
    assert chosen(12.0, SplitOutliers(gain_db=60.0)) == []
    assert chosen(12.0, SplitOutliers(price_db=60.0)) == []
    assert chosen(30.0, SplitOutliers(limit=1)) == [], "one of two is not worth it"


def test_channels_that_outputs_do_not_need_are_judged_by_what_they_do_to_the_others() -> None:
    """A large channel with a weight of zero widens the range all the same."""
    proto = network()
    for tensor in proto.graph.initializer:
        if tensor.name in ("w", "v"):
            array = onnx.numpy_helper.to_array(tensor).copy()
            array[[5, 40]] = 0
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    assert split(proto, stream())[1] == 2


def test_constant_and_dead_inputs_have_no_outliers() -> None:
    for value in (0.0, 1.0):
        samples = Stream(({"x": np.full((4, WIDE), value, np.float32)},))
        assert split(network(), samples)[1] == 0


def gemm(turned: bool) -> onnx.ModelProto:
    weight = normal(1, WIDE, 32) / 8
    weights = {"w": np.ascontiguousarray(weight.T) if turned else weight, "b": normal(3, 32)}
    return proto_of([node("Gemm", "x w b", "y", transB=int(turned))], {"x": ["n", WIDE]}, {"y": None}, weights)


@pytest.mark.parametrize("turned", [False, True])
def test_gemm(turned: bool) -> None:
    model, count = split(gemm(turned), stream())
    assert count == 1 and operators(model).count("Gemm") == 2
    feeds = {"x": data(9)}
    assert_equal(run(gemm(turned), feeds), run(model, feeds), tolerance=1e-6)
    onnx.checker.check_model(model.proto(), full_check=True)


def image(seed: int, times: float = 30.0) -> Array:
    x = normal(seed, 1, 64, 6, 5)
    x[:, [3, 50]] *= times
    return x


def convolution(kernel: int, **attributes: object) -> onnx.ModelProto:
    weights = {"w": normal(1, 16, 64, kernel, kernel) / 8, "b": normal(3, 16)}
    layer = node("Conv", "x w b", "y", **attributes)
    return proto_of([layer], {"x": [1, 64, 6, 5]}, {"y": None}, weights)


@pytest.mark.parametrize(("kernel", "attributes"), [(1, {}), (3, {"pads": [1, 0, 1, 2], "strides": [2, 1]})])
def test_convolutions(kernel: int, attributes: dict[str, object]) -> None:
    proto = convolution(kernel, **attributes)
    model, count = split(proto, Stream(tuple({"x": image(seed)} for seed in range(4))))
    assert count == 1 and operators(model).count("Conv") == 2
    index = model.graph.initializers["x_outlying"].const_value
    assert index is not None and index.numpy().tolist() == [3, 50]
    feeds = {"x": image(9)}
    assert_equal(run(proto, feeds), run(model, feeds), tolerance=1e-6)
    onnx.checker.check_model(model.proto(), full_check=True)


def test_behind_a_convolution_the_outliers_have_met_the_wide_grid_already() -> None:
    weights = {"w": normal(1, 64, 64, 1, 1), "v": normal(2, 8, 64, 1, 1)}
    nodes = [node("Conv", "x w", "m"), node("Relu", "m", "r"), node("Conv", "r v", "y")]
    proto = proto_of(nodes, {"x": [1, 64, 6, 5]}, {"y": None}, weights)
    assert [request.value for request in SplitOutliers().requests(wrapped(proto))] == ["x"]


def test_groups_and_transposed_data_are_left_alone() -> None:
    grouped = proto_of(
        [node("Conv", "x w", "y", group=2)], {"x": [1, 64, 6, 5]}, {"y": None}, {"w": normal(1, 8, 32, 1, 1)}
    )
    turned = proto_of([node("Gemm", "x w", "y", transA=1)], {"x": [WIDE, 4]}, {"y": None}, {"w": normal(1, WIDE, 8)})
    for proto in (grouped, turned):
        assert SplitOutliers().requests(wrapped(proto)) == ()


def test_where_a_mul_could_become_an_integer_kernel_a_where_stands() -> None:
    weights = {"w": normal(1, WIDE, WIDE) / 8, "v": normal(2, WIDE, 24) / 8}
    weights["w"][:, [5, 40]] *= 40
    nodes = [node("MatMul", "x w", "m"), node("Relu", "m", "r"), node("MatMul", "r v", "y")]
    proto = proto_of(nodes, {"x": ["n", WIDE]}, {"y": None}, weights)
    samples = Stream(tuple({"x": data(seed, (), rows=64)} for seed in range(4)))
    model, count = split(proto, samples)
    assert count == 1 and "Where" in operators(model) and "Mul" not in operators(model)
    feeds = {"x": data(9, ())}
    assert_equal(run(proto, feeds), run(model, feeds), tolerance=1e-6)


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
    samples = Stream(tuple({"x": data(seed, rows=seed + 2), "which": np.array(True)} for seed in range(4)))
    model, watch = wrapped(in_a_body()), Watch()
    prepared = prepare(model, 11, ("normalize", "split_outliers"), samples, watch)
    assert watch.warnings == [] and operators(prepared).count("MatMul") == 2
