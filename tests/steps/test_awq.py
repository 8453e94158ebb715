"""Activation-aware scaling: the same outputs in float, better ones with rounded weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from models import Stream, assert_same, node, normal, operators, proto_of, recipe_of, run, wrapped

from qcli.apply import apply_plan
from qcli.calibrate import collect
from qcli.errors import UsageError
from qcli.graph import Model, constant_of, normalize_graph
from qcli.plan import make_plan
from qcli.plugins import create
from qcli.recipe import load_recipe
from qcli.solve import solve
from qcli.statistics import Statistics
from qcli.steps.awq import Awq
from qcli.types import Array, Grid

SIZE = 64
GRID = Grid(format="uint4", symmetric=False, granularity="block", block=16)
RULE = (
    "rules=[{match: {role: weight}, range: minmax, rounding: nearest, "
    "grid: {format: uint4, symmetric: false, granularity: block, block: 16}}]"
)


def gains() -> Array:
    """Every seventh channel is twenty times the others."""
    gain = 1 + np.abs(normal(7, SIZE)) / 4
    gain[::7] *= 20
    return gain.astype(np.float32)


def net(turned: bool = False) -> onnx.ModelProto:
    """LayerNormalization, two products that read it, one of them a Gemm."""
    second = normal(2, 24, SIZE) if turned else normal(2, SIZE, 24)
    weights = {"g": gains(), "b": normal(4, SIZE), "w": normal(1, SIZE, 32), "v": second}
    nodes = [
        node("LayerNormalization", "x g b", "h", axis=-1),
        node("MatMul", "h w", "y"),
        node("Gemm", "h v", "z", transB=int(turned)),
    ]
    return proto_of(nodes, {"x": ["n", SIZE]}, {"y": None, "z": None}, weights, opset=21)


def samples(count: int = 6) -> Stream:
    return Stream(tuple({"x": normal(seed, 64, SIZE)} for seed in range(count)))


def stepped(proto: onnx.ModelProto, step: Awq, stream: Stream | None = None) -> tuple[Model, int]:
    model = wrapped(proto)
    normalize_graph(model)
    statistics = collect(model, Statistics.empty(step.requests(model)), stream or samples())
    return model, step.run_measured(model, statistics)


def error(model: Model, exact: onnx.ModelProto) -> float:
    """Of weights rounded to nearest on the grid, without data, on samples of their own."""
    plan = make_plan(model, load_recipe("int8-weights", (RULE,)))
    quantized = apply_plan(model, plan, solve(model, plan, Statistics.empty(())))
    feeds = {"x": normal(99, 200, SIZE)}
    wanted, found = run(exact, feeds), run(quantized, feeds)
    return sum(float(np.square(found[name] - wanted[name]).sum() / np.square(wanted[name]).sum()) for name in wanted)


@pytest.mark.parametrize("turned", [False, True])
def test_outputs_stay_and_rounded_weights_are_better(turned: bool) -> None:
    proto = net(turned)
    plain = wrapped(proto)
    normalize_graph(plain)
    model, changes = stepped(proto, Awq(grid=GRID))
    assert changes == 1
    assert operators(model) == operators(plain), "no node is added"
    assert_same(proto, model)
    assert error(model, proto) < 0.7 * error(plain, proto)


def test_large_channels_become_small() -> None:
    model, _ = stepped(net(), Awq(grid=GRID))
    norm = next(one for one in model.nodes() if one.op_type == "LayerNormalization")
    before, after = gains(), np.asarray(constant_of(norm.inputs[1]))
    assert after.max() / np.median(after) < 0.8 * before.max() / np.median(before)


def test_even_channels_stay_as_they_are() -> None:
    proto = proto_of(
        [node("LayerNormalization", "x g b", "h", axis=-1), node("MatMul", "h w", "y")],
        {"x": ["n", SIZE]}, {"y": None},
        {"g": np.ones(SIZE, np.float32), "b": np.zeros(SIZE, np.float32), "w": normal(1, SIZE, 32)}, opset=21,
    )  # fmt: skip
    assert stepped(proto, Awq(grid=GRID))[1] == 0


def test_where_nothing_takes_the_division_it_is_left_out() -> None:
    """A Softmax in front: no constant could be divided."""
    proto = proto_of(
        [node("Softmax", "x", "h", axis=-1), node("MatMul", "h w", "y")],
        {"x": ["n", SIZE]}, {"y": None}, {"w": normal(1, SIZE, 32)}, opset=21,
    )  # fmt: skip
    model = wrapped(proto)
    normalize_graph(model)
    assert Awq(grid=GRID).requests(model) == ()
    assert stepped(proto, Awq(grid=GRID))[1] == 0


def test_inputs_that_no_sample_wakes() -> None:
    zeros = net()
    for constant in zeros.graph.initializer:
        if constant.name in ("g", "b"):
            constant.CopyFrom(onnx.numpy_helper.from_array(np.zeros(SIZE, np.float32), constant.name))
    assert stepped(zeros, Awq(grid=GRID))[1] == 0
    assert stepped(net(), Awq(grid=GRID), Stream(({"x": np.zeros((0, SIZE), np.float32)},)))[1] == 0


@pytest.mark.parametrize(
    "grid",
    [
        Grid(format="int4", granularity="channel"),
        Grid(format="int4", granularity="tensor"),
        Grid(format="uint2", symmetric=False, granularity="block", block=16, scales="float16"),
        Grid(format="int4", granularity="block", block=128),
    ],
)
def test_other_grids(grid: Grid) -> None:
    """The last one has more weights in a block than there are: channels."""
    model, _ = stepped(net(), Awq(grid=grid))
    assert_same(net(), model)


@pytest.mark.parametrize(
    "options",
    [
        "{alphas: [0]}",
        "{alphas: [1.5]}",
        "{grid: {format: int4, granularity: block}}",
        "{grid: {format: none}}",
        "{x: 1}",
    ],
)
def test_options_that_make_no_sense(options: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        recipe_of(f"{{version: 1, extends: int8-weights, prepare: [normalize, {{awq: {options}}}]}}", tmp_path)


def test_a_recipe_names_it(tmp_path: Path) -> None:
    recipe = recipe_of("{version: 1, extends: int8-weights, prepare: [normalize, awq]}", tmp_path)
    assert isinstance(create("steps", recipe.prepare[-1]), Awq)
