"""Weights as places in a table: every operator computes what the decoded weights say, and nothing of the table remains
in the graph that onnxruntime runs, unless it is asked to decode each time."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from codes import constants, decoded, kernels_of, reasons, stored_of, weights_of, with_decoded_weights
from models import Stream, assert_equal, feeds_for, node, normal, operators, proto_of, quantized_of, run, saved
from weight_cases import CASES

from qcli.apply import apply_plan
from qcli.errors import UnsupportedError, UsageError
from qcli.existing import refuse_quantized
from qcli.job import QuantizeJob
from qcli.kernels import read_kernels
from qcli.learn import doubts_about_learning
from qcli.opsets import required_opset
from qcli.pipeline import quantize
from qcli.plan import check_plan
from qcli.recipe import load_recipe
from qcli.solve import Solution
from qcli.types import Array, Deferred, Role


def rule(grid: str, decode: str = "load", extra: str = "") -> str:
    encoding = f"{{lookup_table: {{decode: {decode}}}}}"
    return f"rules=[{{match: {{role: weight}}, grid: {{{grid}}}, range: minmax, encoding: {encoding}{extra}}}]"


GRIDS = {
    "codebook": "format: codebook",
    "codebook of channels": "format: codebook, bits: 5, granularity: channel",
    "codebook of blocks": "format: codebook, bits: 3, granularity: block, block: 6",
    "own tables": "format: {codebook: {tables: own}}, bits: 2, granularity: channel",
    "own tables of blocks": "format: {codebook: {tables: own}}, bits: 2, granularity: block, block: 6",
    "ternary": "format: ternary, granularity: channel",
    "binary": "format: binary, granularity: channel",
    "binary blocks": "format: binary, granularity: block, block: 6",
    "residual": "format: residual_binary, bits: 2, granularity: channel",
    "powers": "format: power_of_two, granularity: channel",
    "sums of powers": "format: additive_power_of_two, bits: 5, granularity: tensor",
    "normal": "format: normal_float, granularity: block, block: 6",
    "e4m3": "format: float8_e4m3fn, granularity: channel",
    "e5m2": "format: float8_e5m2",
    "e4m3 blocks": "format: float8_e4m3fn, granularity: block, block: 6",
    "e2m1": "format: {float4_e2m1: {scales: power_of_two}}, granularity: block, block: 6",
}
TOO_LARGE = "own tables of blocks"
"""Tables that no weight of the small models is worth."""


OPERATORS = (
    "Conv 1-D", "Conv depthwise", "ConvTranspose", "Gemm transB", "MatMul 3-D", "Gather", "Gather of one row",
    "Gather by a matrix", "Gather along another axis", "LSTM",
)  # fmt: skip
PAIRS = [
    *((name, grid) for name in ("Conv 1-D", "Gather") for grid in GRIDS if grid != TOO_LARGE),
    *((name, grid) for name in OPERATORS for grid in ("own tables", "binary", "normal")),
]


@pytest.mark.parametrize("decode", ["load", "run"])
@pytest.mark.parametrize(("name", "grid"), dict.fromkeys(PAIRS))
def test_the_result_is_that_of_the_decoded_weights(name: str, grid: str, decode: str) -> None:
    case = CASES[name]
    quantized = stored_of(case.proto(25), settings=(rule(GRIDS[grid], decode),), feeds=case.inputs())
    reference, feeds = with_decoded_weights(quantized), case.inputs(7)
    expected = run(reference, feeds)
    assert_equal(expected, run(quantized.model, feeds), tolerance=1e-5, what=name)
    assert_equal(expected, run(quantized.model, feeds, optimize=True), tolerance=1e-4, what=name)
    onnx.checker.check_model(quantized.model.proto(), full_check=True)
    assert tuple(run(case.proto(25), case.inputs())) == quantized.model.outputs()


NET = [node("MatMul", "x w", "m"), node("Relu", "m", "r"), node("Gemm", "r v b", "y")]


def dense(size: int = 64) -> onnx.ModelProto:
    weights = {"w": normal(0, size, size), "v": normal(1, size, size), "b": normal(2, size)}
    return proto_of(NET, {"x": ["n", size]}, {"y": None}, weights, opset=25)


@pytest.mark.parametrize("grid", GRIDS)
def test_onnxruntime_decodes_once_when_it_loads_or_at_every_run(grid: str) -> None:
    """With `decode: load` the optimized graph is that of the float model; with `run` each weight is decoded in it."""
    proto, grid = dense(), GRIDS[grid].replace("block: 6", "block: 64")
    quantized = stored_of(proto, settings=(rule(grid),))
    as_float = read_kernels(proto.SerializeToString(), quantized.source, feeds_for(quantized.source))
    assert kernels_of(quantized).by_kernel == as_float.by_kernel
    each_time = stored_of(proto, settings=(rule(grid, "run"),))
    kernels = kernels_of(each_time).by_kernel
    assert kernels["DequantizeLinear"] == 2
    assert kernels.get("Gather", 0) >= (0 if "float8" in grid else 2)
    left = constants(each_time.model).values()
    assert not [array for array in left if array.dtype == np.float32 and array.size > 32 * 64], "none is float"


@pytest.mark.parametrize(
    ("grid", "bits"),
    [
        ("format: binary, granularity: channel", 1),
        ("format: ternary, granularity: channel", 1.6),
        ("format: codebook, bits: 2", 2),
        ("format: codebook, bits: 3", 4),
        ("format: codebook, bits: 4", 4),
        ("format: codebook, bits: 8", 8),
        ("format: float8_e5m2", 8),
        ("format: {float4_e2m1: {scales: power_of_two}}, granularity: block, block: 32", 4.25),
        ("format: {float4_e2m1: {scales: float8}}, granularity: block, block: 16", 4.5),
        ("format: normal_float, granularity: block, block: 32", 5),
    ],
)
@pytest.mark.parametrize("decode", ["load", "run"])
def test_the_file_is_as_small_as_the_bits_say(grid: str, bits: float, decode: str) -> None:
    """Two matrices of 256 by 256: besides the codes, a few kilobytes of tables, scales and nodes."""
    quantized = stored_of(dense(256), settings=(rule(grid, decode),))
    assert all(encoding.startswith("{'lookup_table") for *_, encoding in weights_of(quantized))
    size = len(quantized.model.serialize())
    codes = 2 * 256 * 256 * bits / 8
    assert codes < size < codes + 9000


def test_unpacked_codes_are_bytes() -> None:
    """For runtimes that know no integers of four bits."""
    bare = "rules=[{match: {role: weight}, grid: {format: codebook, bits: 4}, encoding: {lookup_table: {pack: false}}}]"
    quantized = stored_of(dense(), settings=(bare,))
    kinds = {array.dtype.name for array in constants(quantized.model).values() if array.size >= 64 * 64}
    assert kinds == {"uint8"}


def test_rows_are_fetched_as_codes() -> None:
    """Only what was fetched is decoded, in either way of decoding."""
    case = CASES["Gather"]
    for decode in ("load", "run"):
        quantized = stored_of(case.proto(25), settings=(rule(GRIDS["powers"], decode),), feeds=case.inputs())
        assert operators(quantized.model)[-4:] == ["Gather", "Cast", "Gather", "Mul"]
        gathers = [one for one in quantized.model.graph if one.op_type == "Gather"]
        assert gathers[0].outputs[0].name == "y_codes"
        assert kernels_of(quantized, case.inputs()).by_kernel == {"Gather": 2, "Cast": 1, "Mul": 1}


def test_a_weight_that_several_nodes_read_is_stored_and_decoded_once() -> None:
    nodes = [node("MatMul", "x w", "a"), node("MatMul", "a w", "b"), node("Gemm", "b w", "y")]
    proto = proto_of(nodes, {"x": [2, 16]}, {"y": None}, {"w": normal(0, 16, 16)}, opset=25)
    for decode in ("load", "run"):
        quantized = stored_of(proto, settings=(rule(GRIDS["codebook"], decode),))
        assert operators(quantized.model).count("Gather") == 1
        feeds = feeds_for(quantized.source)
        assert_equal(run(with_decoded_weights(quantized), feeds), run(quantized.model, feeds), tolerance=1e-5)


def test_a_table_larger_than_the_weight_is_not_written() -> None:
    """256 entries take a kilobyte: more than 200 weights save."""
    weights = {"w": normal(0, 64, 64), "v": normal(1, 64, 4)}
    nodes = [node("MatMul", "x w", "m"), node("MatMul", "m v", "y")]
    proto = proto_of(nodes, {"x": [2, 64]}, {"y": None}, weights)
    quantized = stored_of(proto, settings=(rule("format: codebook, bits: 8"),))
    assert [name for name, *_ in weights_of(quantized)] == ["m"]
    assert "too small for the tables and codes of codebook of 8 bits to save bytes" in reasons(quantized)["y"]


@pytest.mark.parametrize(
    ("encoding", "said"),
    [
        ("qdq", "not qdq: no integer kernel multiplies codebook"),
        ("dynamic", "not dynamic: no integer kernel multiplies codebook"),
        ("matmul_nbits", "not matmul_nbits: no integer kernel multiplies codebook"),
        ("weight_only", ""),
    ],
)
@pytest.mark.parametrize("base", ["int8", "int8-dynamic", "int8-weights"])
def test_integer_kernels_multiply_no_tables(base: str, encoding: str, said: str) -> None:
    """Whatever encoding is asked for, the weight is stored, the node stays float, and both are said."""
    asked = f"rules=[{{match: {{role: weight}}, grid: {{format: codebook}}, encoding: {encoding}}}]"
    quantized = quantized_of(dense(), base, settings=(asked,))
    [first, second] = [entry for entry in quantized.plan.entries if entry.site.role is Role.WEIGHT]
    assert first.encoding == second.encoding == "lookup_table"
    assert said in first.because
    assert {"m", "y"} <= set(reasons(quantized))
    feeds = feeds_for(quantized.source)
    assert_equal(run(with_decoded_weights(quantized), feeds), run(quantized.model, feeds), tolerance=1e-4)


def test_evenly_spaced_levels_need_no_table() -> None:
    asked = "rules=[{match: {role: weight}, encoding: {lookup_table: {decode: run}}}]"
    quantized = stored_of(dense(), settings=(asked,))
    [entry, _] = quantized.plan.entries
    assert entry.encoding == {"weight_only": {"decode": "run"}}
    assert "int8 needs no table" in entry.because


@pytest.mark.parametrize("encoding", ["qdq", "weight_only", "dynamic"])
def test_a_plan_that_demands_integers_of_a_table_is_refused(encoding: str) -> None:
    quantized = stored_of(dense(), settings=(rule(GRIDS["codebook"]),))
    entries = [msgspec.structs.replace(entry, encoding=encoding) for entry in quantized.plan.entries]
    with pytest.raises(UsageError, match="no integer kernel multiplies codebook"):
        check_plan(msgspec.structs.replace(quantized.plan, entries=tuple(entries)), quantized.source)


@pytest.mark.parametrize(
    "grid", ["format: int1", "format: uint1", "format: int8, bits: 1", "format: codebook, bits: 1"]
)
def test_a_single_bit_without_a_scale_is_refused(grid: str) -> None:
    with pytest.raises(UsageError, match="one bit has two levels") as caught:
        load_recipe("int8-weights", (rule(grid),))
    assert "binary" in caught.value.hint and caught.value.exit_code == 2


@pytest.mark.parametrize("range_", ["octav", "entropy", "auto"])
def test_ranges_for_even_steps_are_refused_for_tables(range_: str) -> None:
    asked = rule(GRIDS["powers"]).replace("range: minmax", f"range: {range_}")
    with pytest.raises(UsageError, match="evenly spaced") as caught:
        stored_of(dense(), settings=(asked,))
    assert "mse" in caught.value.hint


def test_activations_have_no_tables() -> None:
    with pytest.raises(UsageError, match="no kernel for normal_float as input"):
        quantized_of(dense(), settings=("rules=[{match: {role: input}, grid: {format: normal_float}}]",))


@pytest.mark.parametrize("name", ["power_of_two", "normal_float", "float4_e2m1", "float8_e4m3fn"])
def test_the_range_mse_is_never_worse_than_minmax(name: str) -> None:
    errors = []
    for range_ in ("minmax", "mse"):
        asked = rule(f"format: {name}, granularity: channel").replace("minmax", range_)
        quantized = stored_of(dense(), settings=(asked,))
        real = decoded(quantized.plan, quantized.solution, "m", 1)
        errors.append(float(((real - normal(0, 64, 64)) ** 2).sum()))
    assert errors[1] <= errors[0] * (1 + 1e-6)


@pytest.mark.parametrize("rounding", ["gptq", "coordinate", "{coordinate: {refit: 2}}"])
@pytest.mark.parametrize(
    "grid",
    ["codebook of channels", "own tables", "residual", "normal", "ternary", "e2m1"],
)
def test_codes_of_a_table_learn_from_samples(grid: str, rounding: str) -> None:
    """What the layer gives errs less than with the nearest levels, on the samples that it learned from."""
    proto = correlated()
    stream = Stream(tuple({"x": x} for x in mixed()))
    errors = []
    for chosen in ("nearest", rounding):
        asked = rule(GRIDS[grid].replace("block: 6", "block: 16"), extra=f", rounding: {chosen}")
        quantized = quantized_of(proto, "int8-weights", stream, settings=(asked,))
        outputs = [(run(proto, feeds)["y"], run(quantized.model, feeds)["y"]) for _, feeds in stream.feeds()]
        errors.append(sum(float(((wanted - given) ** 2).sum()) for wanted, given in outputs))
    assert errors[1] < 0.9 * errors[0]


def correlated() -> onnx.ModelProto:
    return proto_of([node("MatMul", "x w", "y")], {"x": ["n", 48]}, {"y": None}, {"w": normal(5, 48, 32)}, opset=25)


def mixed() -> list[Array]:
    """Inputs that move together."""
    mixing = normal(8, 12, 48)
    return [np.asarray(normal(seed, 32, 12) @ mixing + normal(seed + 50, 32, 48) / 5, np.float32) for seed in range(4)]


def test_a_rounding_that_knows_no_tables_says_so() -> None:
    asked = rule(GRIDS["codebook"], extra=", rounding: adaround")
    quantized = quantized_of(dense(), "int8-weights", settings=(asked,))
    doubts = doubts_about_learning(quantized.plan, quantized.source, quantized.statistics)
    assert doubts == ["2 weights are rounded without samples, as adaround knows evenly spaced levels only: w, v"]


def test_own_tables_of_blocks_do_not_learn() -> None:
    grid = GRIDS["own tables of blocks"].replace("block: 6", "block: 64")
    quantized = quantized_of(dense(), "int8-weights", settings=(rule(grid, extra=", rounding: gptq"),))
    [doubt] = doubts_about_learning(quantized.plan, quantized.source, quantized.statistics)
    assert "as its blocks have tables of their own" in doubt


@pytest.mark.parametrize("grid", ["own tables", "ternary", "normal", "e5m2", "e4m3 blocks"])
@pytest.mark.parametrize("decode", ["load", "run"])
def test_a_model_with_tables_is_known_to_be_quantized(grid: str, decode: str) -> None:
    quantized = stored_of(dense(128), settings=(rule(GRIDS[grid].replace("block: 6", "block: 64"), decode),))
    with pytest.raises(UnsupportedError, match="already quantized"):
        refuse_quantized(quantized.model)


def test_codes_that_are_computed_when_they_are_needed() -> None:
    """As those of a large model are: digits, packed codes and 8-bit floats."""
    for grid in ("binary", "codebook", "e4m3", "ternary"):
        quantized = stored_of(dense(), settings=(rule(GRIDS[grid]),))
        deferred = {
            key: Deferred(codes.shape, codes.dtype.name, lambda codes=codes: np.asarray(codes))
            for key, codes in quantized.solution.codes.items()
        }
        again = apply_plan(quantized.source, quantized.plan, Solution(quantized.solution.scales, deferred))
        assert again.serialize() == quantized.model.serialize()


@pytest.mark.parametrize(
    ("grid", "opset"),
    [("format: binary", 17), ("format: codebook, bits: 4", 21), ("format: codebook, bits: 2", 25),
     ("format: codebook, bits: 8", 17), ("format: float8_e4m3fn", 19), ("format: power_of_two, bits: 6", 17)],
)  # fmt: skip
def test_a_model_is_raised_to_what_its_tables_need(grid: str, opset: int) -> None:
    assert max(17, required_opset(load_recipe("int8-weights", (rule(grid),)))) == opset


@pytest.mark.parametrize("kind", ["ternary", "binary", "codebook", "power_of_two"])
def test_models_of_old_operator_sets_are_raised_as_far_as_tables_need(kind: str, tmp_path: Path) -> None:
    """Several codes in a byte are cut to size by a Slice whose ends are inputs, which came with operator set 10."""
    net = proto_of([node("MatMul", "x w", "y")], {"x": ["n", 49]}, {"y": None}, {"w": normal(0, 49, 49)}, opset=9)
    job = QuantizeJob(
        model=saved(net, tmp_path / "m.onnx"), recipe="codebook8", output=tmp_path / "q.onnx", latency=False,
        settings=(rule(f"format: {kind}, granularity: channel"),),
    )  # fmt: skip
    report = quantize(job)
    assert report.accuracy is not None and (report.accuracy.sqnr or 0) > 3
    onnx.checker.check_model(str(tmp_path / "q.onnx"), full_check=True)
