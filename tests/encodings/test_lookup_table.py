"""Weights as places in a table: every operator computes what the decoded weights say, and nothing of the table remains
in the graph that onnxruntime runs, unless it is asked to decode each time."""

from __future__ import annotations

import onnx
import pytest
from codes import stored_of, with_decoded_weights
from models import assert_equal, run
from weight_cases import CASES


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
    "residual": "format: residual_binary, bits: 3, granularity: channel",
    "powers": "format: power_of_two, granularity: channel",
    "sums of powers": "format: additive_power_of_two, bits: 5, granularity: tensor",
    "normal": "format: normal_float, granularity: block, block: 6",
    "e4m3": "format: float8_e4m3fn, granularity: channel",
    "e5m2": "format: float8_e5m2",
    "e4m3 blocks": "format: float8_e4m3fn, granularity: block, block: 6",
    "e2m1": "format: {float4_e2m1: {scales: power_of_two}}, granularity: block, block: 6",
}
LARGER = ("RNN",)
"""Weights that are too small for some of the tables."""


@pytest.mark.parametrize("decode", ["load", "run"])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize(
    "name",
    ["Conv 1-D", "Conv depthwise", "ConvTranspose", "Gemm transB", "MatMul 3-D", "Gather", "Gather of one row",
     "Gather by a matrix", "Gather along another axis", "LSTM"],
)  # fmt: skip
def test_the_result_is_that_of_the_decoded_weights(name: str, grid: str, decode: str) -> None:
    case = CASES[name]
    quantized = stored_of(case.proto(25), settings=(rule(GRIDS[grid], decode),), feeds=case.inputs())
    reference, feeds = with_decoded_weights(quantized), case.inputs(7)
    expected = run(reference, feeds)
    assert_equal(expected, run(quantized.model, feeds), tolerance=1e-5, what=name)
    assert_equal(expected, run(quantized.model, feeds, optimize=True), tolerance=1e-4, what=name)
    onnx.checker.check_model(quantized.model.proto(), full_check=True)
    assert tuple(run(case.proto(25), case.inputs())) == quantized.model.outputs()
