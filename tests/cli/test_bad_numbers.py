"""What numbers and formats cannot hold, and what a runtime is too old for: named in a line, or done and said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from models import node, normal, proto_of, saved

from cli.conftest import Run
from cli.test_bad_inputs import assert_hinted, assert_nothing_left, assert_refused

WEIGHT = "rules=[{{match: {{role: weight}}, grid: {{{grid}}}{more}}}]"


def rule(grid: str, more: str = "") -> str:
    return WEIGHT.format(grid=grid, more=more)


def changed(mlp: Path, folder: Path, **versions: int) -> Path:
    """The mlp with another `opset` or `ir` version in its file."""
    proto = onnx.load(mlp)
    proto.opset_import[0].version = versions.get("opset", proto.opset_import[0].version)
    proto.ir_version = versions.get("ir", proto.ir_version)
    return saved(proto, folder / "changed.onnx")


@pytest.mark.parametrize(("versions", "named"), [({"opset": 99}, "opset 99"), ({"ir": 99}, "IR version 99")])
def test_a_model_newer_than_onnxruntime(
    run: Run, tmp_path: Path, mlp: Path, calib: Path, versions: dict[str, int], named: str
) -> None:
    outcome = run("quantize", changed(mlp, tmp_path, **versions), "-d", calib, "-o", "out.onnx")
    assert_refused(outcome, 4, f"the model is of {named}", "onnxruntime reads up to")
    assert "an older one" in outcome.err
    assert_hinted(outcome)
    assert_nothing_left(Path.cwd())


@pytest.mark.parametrize("command", ["quantize", "plan"])
def test_a_grid_that_an_older_runtime_cannot_read(run: Run, mlp: Path, calib: Path, command: str) -> None:
    """Two bits need operator set 25; 21 is what the onnxruntime of the recipe reads."""
    out = ("-d", calib, "-o", "out.onnx") if command == "quantize" else ()
    outcome = run(command, mlp, "-r", "int2-weights", *out, "--set", "target={ort_cpu: {opset: 21}}")
    assert_refused(outcome, 4, "the recipe's grids need opset 25", "'ort_cpu' reads up to 21")
    assert_hinted(outcome)
    assert run("plan", mlp, "-r", "int4-weights", "--set", "target={ort_cpu: {opset: 21}}").code == 0
    assert_refused(run("plan", mlp, "--set", "target={ort_cpu: {opset: 9}}"), 2, "opset")
    assert_nothing_left(Path.cwd())


def test_a_model_newer_than_the_runtime_of_the_recipe(run: Run, tmp_path: Path, mlp: Path) -> None:
    outcome = run("plan", changed(mlp, tmp_path, opset=21), "-r", "fp16", "--set", "target={ort_cpu: {opset: 18}}")
    assert_refused(outcome, 4, "the model is of opset 21", "reads up to 18")


def test_a_block_that_does_not_divide(run: Run, mlp: Path) -> None:
    """The last block is shorter, as DequantizeLinear has it; the results are those of the decoded weights."""
    grid = rule("format: int4, granularity: block, block: 48")
    outcome = run("quantize", mlp, "-r", "int8-weights", "-o", "out.onnx", "--no-latency", "--set", grid)
    assert outcome.code == 0, outcome.err
    sizes = {item.name: tuple(item.dims) for item in onnx.load("out.onnx").graph.initializer}
    assert (2, 128) in sizes.values(), "64 inputs are blocks of 48 and 16"


def test_a_block_larger_than_the_weight(run: Run, mlp: Path) -> None:
    grid = rule("format: int4, granularity: block, block: 4096")
    outcome = run("plan", mlp, "-r", "int8-weights", "--set", grid)
    assert outcome.code == 0
    assert "a scale for each channel, as its input axis has 64 weights, a block 4096" in outcome.out


def test_one_bit_without_a_fitted_scale(run: Run, mlp: Path) -> None:
    for grid in ("format: int1", "format: uint1, granularity: channel", "format: codebook, bits: 1"):
        outcome = run("plan", mlp, "-r", "int8-weights", "--set", rule(grid))
        assert_refused(outcome, 2, "one bit has two levels", "binary")
        assert_hinted(outcome)


def test_a_codebook_larger_than_the_weights(run: Run, mlp: Path) -> None:
    grid = rule("format: {codebook: {tables: own}}, bits: 8, granularity: channel")
    outcome = run("quantize", mlp, "-r", "codebook8", "-o", "out.onnx", "--set", grid)
    assert_refused(outcome, 5, "nothing in this model", "too small for the tables and codes of codebook of 8 bits")
    assert_hinted(outcome)
    assert_nothing_left(Path.cwd())


def product(folder: Path, largest: float) -> Path:
    """y = (x v) w, of whose weights `w` has one number as large as `largest`; `v` has none above 4."""
    weight = normal(1, 32, 32)
    weight[3, 4] = largest
    nodes = [node("MatMul", "x v", "m"), node("MatMul", "m w", "y")]
    weights = {"v": normal(0, 16, 32).clip(-4, 4), "w": weight}
    return saved(proto_of(nodes, {"x": ["n", 16]}, {"y": ["n", 32]}, weights), folder / "m.onnx")


def samples(folder: Path, largest: float) -> Path:
    place = folder / "samples"
    place.mkdir()
    for number in range(4):
        array = normal(number, 2, 16)
        array[0, 0] = largest
        np.savez(place / f"{number}.npz", x=array)
    return place


def test_a_weight_beyond_float16(run: Run, tmp_path: Path) -> None:
    """It stays float32, and the plan says how far it reaches; in floats of 8 bits it has a scale."""
    model = product(tmp_path, 1e5)
    outcome = run("plan", model, "-r", "fp16")
    assert outcome.code == 0
    assert "its weight reaches 1e+05, beyond float16, which ends at 65504" in outcome.out
    only = run("quantize", model, "-r", "fp16", "-o", "o.onnx", "--set", "rules=[{match: {name: /m}, keep: float}]")
    assert_refused(only, 5, "nothing in this model", "beyond float16, which ends at 65504")
    assert run("plan", model, "-r", "fp8").out.count("float8_e4m3fn") >= 2


def test_an_activation_beyond_float16(run: Run, tmp_path: Path) -> None:
    """Values that overflow on the samples stay in float32 with the operators that give and read them."""
    model, data = product(tmp_path, 1.0), samples(tmp_path, 60_000.0)
    asked = ("-d", data, "-o", "out.onnx", "--no-latency", "--set", "convert.to=float16")
    outcome = run("quantize", model, "-r", "fp16", *asked)
    assert outcome.code == 0, outcome.err
    [said] = [line for line in outcome.err.splitlines() if "no operator computes in float16" in line]
    assert "'x' reaches 6e+04 in the samples, beyond half of what float16 holds" in said
    assert "'m' reaches" in said and "beyond what float16 holds" in said


@pytest.mark.parametrize("format_", ["float8_e4m3fn", "float8_e5m2"])
def test_activations_beyond_floats_of_8_bits(run: Run, tmp_path: Path, format_: str) -> None:
    """They saturate, and a warning says which and where: no Inf and no NaN comes of them."""
    model, data = product(tmp_path, 1.0), samples(tmp_path, 1e6)
    fixed = f"{{match: {{role: input}}, grid: {{format: {format_}}}, range: {{fixed: {{lower: -448, upper: 448}}}}}}"
    asked = ("-d", data, "--eval", data, "-o", "out.onnx", "--no-latency", "--set", f"rules=[{fixed}]")
    outcome = run("quantize", model, "-r", "onnx-fp8", *asked)
    assert outcome.code == 0, outcome.err
    [said] = [line for line in outcome.err.splitlines() if "saturate on the samples" in line]
    assert "'x' reaches 1e+06, the grid 448" in said and format_ in said and "widen their ranges" in said
    assert "NaN" not in outcome.err and "Inf" not in outcome.err
    whole = run("quantize", model, "-r", "onnx-fp8", *asked[:-2])
    assert "saturate" not in whole.err


def test_values_that_overflow_to_infinity_in_the_float_model(run: Run, tmp_path: Path) -> None:
    model, data = product(tmp_path, 3e38), samples(tmp_path, 1e6)
    outcome = run("quantize", model, "-r", "onnx-fp8", "-d", data, "-o", "out.onnx", "--no-latency")
    assert outcome.code == 3, outcome.err
    assert_refused(outcome, 3, "Inf")
    assert_nothing_left(Path.cwd())
