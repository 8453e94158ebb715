"""Weights of several widths within so many bits a weight."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from codes import stored_of, with_decoded_weights
from models import (
    Quantized,
    Stream,
    assert_equal,
    feeds_for,
    finished,
    node,
    normal,
    proto_of,
    recipe_of,
    run,
    saved,
    wrapped,
)

from qcli.calibrate import collect
from qcli.cli import main
from qcli.errors import NothingToDoError, UsageError
from qcli.granularity import with_width
from qcli.graph import load_model, normalize_graph
from qcli.inspect import inspect_model
from qcli.job import QuantizeJob
from qcli.measured import requests_of
from qcli.mixed import mixed_plan, stored_bits_of
from qcli.opsets import required_opset
from qcli.plan import make_plan, read_plan
from qcli.recipe import Mixed, load_recipe
from qcli.refine import refine_plan
from qcli.stages import make_plan_file
from qcli.statistics import Statistics
from qcli.types import Grid, Plan, Role, ScaleCodes

BLOCKS = "rules=[{match: {role: weight}, grid: {format: uint4, symmetric: false, granularity: block, block: 16}}]"
LEARNT = BLOCKS.replace("block: 16}", "block: 16}, rounding: gptq")


def net() -> onnx.ModelProto:
    """Three products; the weights of the second are hard to round, the inputs of the third are large."""
    hard = normal(2, 64, 64) ** 5
    weights = {"a": normal(1, 64, 64), "b": hard / np.abs(hard).max(), "c": normal(3, 64, 64), "t": normal(4, 50, 64)}
    nodes = [
        node("Gather", "t i", "e"),
        node("MatMul", "e a", "p"),
        node("Relu", "p", "r"),
        node("MatMul", "r b", "q"),
        node("Tanh", "q", "s"),
        node("MatMul", "s c", "y"),
    ]
    proto = proto_of(nodes, {}, {"y": None}, weights, opset=25)
    proto.graph.input.append(onnx.helper.make_tensor_value_info("i", onnx.TensorProto.INT64, ["n"]))
    return proto


def samples() -> Stream:
    return Stream(tuple({"i": np.arange(seed, seed + 20)} for seed in range(8)))


def mixed_of(target: float, settings: tuple[str, ...] = (BLOCKS,), widths: str = "[2, 4, 8]") -> Quantized:
    """The result of a recipe with a target, with samples where it asks for some."""
    source = wrapped(net())
    normalize_graph(source)
    recipe = load_recipe("int8-weights", (*settings, f"mixed={{target_bpw: {target}, widths: {widths}}}"))
    plan = make_plan(source, recipe)
    statistics = collect(source, Statistics.empty(requests_of(plan, source)), samples())
    return finished(source, refine_plan(source, recipe, plan, statistics), samples())


def bits(plan: Plan) -> float:
    weights = [entry for entry in plan.entries if entry.site.role is Role.WEIGHT]
    shapes = [tuple(size or 0 for size in entry.site.shape or ()) for entry in weights]
    sizes = sum(int(np.prod(shape)) for shape in shapes)
    return sum(stored_bits_of(entry.grid, shape) for entry, shape in zip(weights, shapes, strict=True)) / sizes


def widths(plan: Plan) -> dict[str, str]:
    return {entry.site.value: entry.grid.format for entry in plan.entries}


@pytest.mark.parametrize("rule", [BLOCKS, LEARNT], ids=["nearest", "gptq"])
@pytest.mark.parametrize("target", [4.2, 5.0, 6.5, 8.0, 10.5])
def test_the_target_is_kept_and_the_result_runs(target: float, rule: str) -> None:
    quantized = mixed_of(target, (rule,))
    assert bits(quantized.plan) <= target
    assert all("bits by target_bpw" in entry.because for entry in quantized.plan.entries)
    feeds = {"i": np.array([3, 49, 0])}
    expected = run(with_decoded_weights(quantized), feeds)
    assert_equal(expected, run(quantized.model, feeds), tolerance=1e-4)
    assert_equal(expected, run(quantized.model, feeds, optimize=True), tolerance=1e-3)


def test_more_bits_are_better() -> None:
    feeds = {"i": np.arange(50)}
    exact = run(net(), feeds)["y"]
    found = [run(mixed_of(target).model, feeds)["y"] for target in (4.2, 6.5, 10.5)]
    errors = [float(np.square(one - exact).mean()) for one in found]
    assert errors == sorted(errors, reverse=True) and errors[-1] < errors[0] / 100


def test_the_weights_that_lose_least_get_the_fewest_bits() -> None:
    """Those that are nothing but a few large values."""
    found = widths(mixed_of(7.6).plan)
    order = {"uint2": 0, "uint4": 1, "uint8": 2}
    assert order[found["b"]] == min(order[name] for name in found.values())
    assert len(set(found.values())) > 1


def test_samples_say_what_the_outputs_of_a_layer_lose() -> None:
    """With gptq its inputs are measured, and errors count by them."""
    plans = [mixed_of(6.0, (rule,)).plan for rule in (BLOCKS, LEARNT)]
    said = [[entry.because for entry in plan.entries] for plan in plans]
    assert said[0] != said[1]


def test_energies_count_too() -> None:
    weighted = BLOCKS.replace("block: 16}", "block: 16}, range: {mse: {weighted: true}}")
    assert bits(mixed_of(6.0, (weighted,)).plan) <= 6.0


def test_widths_that_cost_the_same_are_not_wasted() -> None:
    """Three bits are stored in four."""
    assert "uint3" not in widths(mixed_of(6.0, widths="[2, 3, 4, 8]").plan).values()
    assert set(widths(mixed_of(8.0, widths="[3, 8]").plan).values()) <= {"uint3", "uint8"}


def test_one_value_in_one_width() -> None:
    """Two products of one matrix."""
    nodes = [node("MatMul", "x a", "p"), node("Relu", "p", "r"), node("MatMul", "r a", "q"), node("MatMul", "q b", "y")]
    weights = {"a": normal(0, 64, 64), "b": normal(1, 64, 64)}
    proto = proto_of(nodes, {"x": [2, 64]}, {"y": None}, weights, opset=25)
    quantized = stored_of(proto, settings=(BLOCKS,))
    plan = mixed_plan(quantized.source, quantized.plan, Statistics.empty(()), Mixed(target_bpw=7.5))
    assert len({entry.grid for entry in plan.entries if entry.site.value == "a"} or {0}) == 1
    again = finished(quantized.source, plan, Stream((feeds_for(quantized.source),)))
    feeds = feeds_for(quantized.source)
    assert_equal(run(with_decoded_weights(again), feeds), run(again.model, feeds), tolerance=1e-4)


@pytest.mark.parametrize(
    ("target", "said"), [(1.9, "below the smallest"), (4.0, "below the smallest"), (12.6, "above the largest")]
)
def test_what_is_out_of_reach_is_refused(target: float, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        mixed_of(target)
    low, high = (float(word) for word in caught.value.hint.replace(",", " ").split() if word[0].isdigit())
    for reachable in (low, high):
        assert bits(mixed_of(reachable).plan) <= reachable


def test_without_integer_weights_there_is_nothing_to_choose() -> None:
    wide = "rules=[{match: {role: weight}, grid: {format: int16, granularity: channel}}]"
    with pytest.raises(NothingToDoError, match="no weight of the plan is of 2 to 8 bits"):
        mixed_of(8.0, (wide,))


@pytest.mark.parametrize(
    "mixed",
    [
        "{target_bpw: 0}",
        "{target_bpw: -1}",
        "{target_bpw: 5, widths: []}",
        "{target_bpw: 5, widths: [1, 4]}",
        "{target_bpw: 5, widths: [4, 9]}",
        "{target_bpw: 5, bits: 4}",
    ],
)
def test_recipes_that_make_no_sense_are_refused(mixed: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        recipe_of(f"{{version: 1, extends: int8-weights, mixed: {mixed}}}", tmp_path)
    assert caught.value.hint or "mixed" in str(caught.value)


def test_one_bit_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="widths must be 2 to 8") as caught:
        recipe_of("{version: 1, extends: int8-weights, mixed: {target_bpw: 3, widths: [1, 2]}}", tmp_path)
    assert "a width of 1" in caught.value.hint


def test_without_a_target_it_is_off(tmp_path: Path) -> None:
    assert recipe_of("{version: 1, extends: int8-weights, mixed: {widths: [4, 8]}}", tmp_path).mixed is None
    base = "{version: 1, extends: int8-weights, mixed: {widths: [4, 8]}}"
    (tmp_path / "base.yaml").write_text(base)
    recipe = recipe_of("{version: 1, extends: base.yaml, mixed: {target_bpw: 6}}", tmp_path, "top.yaml")
    assert recipe.mixed == Mixed(target_bpw=6, widths=(4, 8))
    assert recipe.origins["mixed.widths"] == "base.yaml" and recipe.origins["mixed.target_bpw"] == "top.yaml"


def test_the_operator_set_of_the_smallest_width() -> None:
    def needed(mixed: str) -> int:
        return required_opset(load_recipe("int8-weights", (BLOCKS, f"mixed={mixed}")))

    assert needed("{target_bpw: 6, widths: [2, 8]}") == 25
    assert needed("{target_bpw: 6, widths: [4, 8]}") == 21


def test_a_grid_in_other_widths() -> None:
    grid = Grid(format="uint8", bits=4, symmetric=False, scales=ScaleCodes(group=8), granularity="block", block=32)
    changed = with_width(grid, 2)
    assert changed == msgspec.structs.replace(grid, format="uint2", bits=None)
    assert with_width(Grid(format="int16"), 4) is None


def test_bits_of_a_weight() -> None:
    grid = Grid(format="uint4", symmetric=False, granularity="block", block=16, axis=0)
    assert stored_bits_of(grid, (64, 10)) == 640 * 4 + 40 * 32 + 40 * 4
    halves = msgspec.structs.replace(grid, scales="float16", symmetric=True)
    assert stored_bits_of(halves, (64, 10)) == 640 * 4 + 40 * 16
    assert stored_bits_of(Grid(format="int3", granularity="channel", axis=1), (64, 10)) == 640 * 4 + 10 * 32


# From the command line


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return saved(net(), tmp_path / "m.onnx")


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "blocks.yaml"
    path.write_text(f"{{version: 1, extends: int8-weights, rules: {BLOCKS.removeprefix('rules=')}}}")
    return path


def test_quantize_has_an_option(model: Path, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "q.onnx"
    command = ["quantize", str(model), "-r", str(recipe), "-o", str(out), "--no-latency", "--target-bpw"]
    assert main([*command, "7.5"]) == 0
    held = inspect_model(out).weight_bytes
    assert sum(name in held for name in ("uint2", "uint4", "uint8")) >= 2
    capsys.readouterr()
    assert main([*command, "2"]) == UsageError.exit_code
    assert "target_bpw 2 is below the smallest" in capsys.readouterr().err


def test_the_plan_says_which_and_why(model: Path, recipe: Path, tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    job = QuantizeJob(model=model, recipe=str(recipe), settings=("mixed.target_bpw=7.5",), output=path)
    plan = make_plan_file(job)
    assert read_plan(path) == plan and "bits by target_bpw 7.5" in path.read_text()
    assert len(set(widths(plan).values())) > 1
    assert load_model(model).opset == 25
