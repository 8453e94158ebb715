"""Scales of blocks as float16 or as codes: what a file holds, what comes back, and what runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from codes import constants, decoded, stored_of, with_decoded_weights
from hypothesis import given, settings
from hypothesis import strategies as st
from models import Quantized, assert_equal, feeds_for, node, normal, proto_of, quantized_of, recipe_of, run

from qcli.errors import UsageError
from qcli.granularity import bits_of_scales
from qcli.learn import learned_requests
from qcli.plan import plan_text, read_plan
from qcli.scale_forms import as_stored, group_numbers, scale_bits, scale_codes
from qcli.solve import site_key
from qcli.types import Grid, Scale, ScaleCodes, ScaleForm

FORMS: dict[str, ScaleForm] = {
    "float16": "float16",
    "{bits: 8, group: 3}": ScaleCodes(bits=8, group=3),
    "{bits: 4, group: 2}": ScaleCodes(bits=4, group=2),
}


def scale_of(values: Any, axis: int = 0, block: int = 4) -> Scale:
    steps = np.asarray(values, np.float32)
    zero = np.zeros(steps.shape, np.int64)
    return Scale(scale=steps, zero_point=zero, axis=axis, block=block, lowest=-8, highest=7, dtype="int8")


def rule(scales: str, grid: str = "format: uint4, symmetric: false", more: str = "") -> str:
    shape = f"{{{grid}, granularity: block, block: 16, scales: {scales}}}"
    return f"rules=[{{match: {{role: weight}}, range: minmax, rounding: nearest, grid: {shape}{more}}}]"


def net(kind: str = "MatMul") -> onnx.ModelProto:
    """A product over 112 inputs: seven blocks, which no group divides."""
    made = {
        "MatMul": (node("MatMul", "x w", "y"), (112, 64), [3, 112]),
        "Gemm": (node("Gemm", "x w", "y", transB=1, alpha=0.5), (64, 112), [3, 112]),
        "Conv": (node("Conv", "x w", "y"), (64, 112, 3, 3), [1, 112, 5, 5]),
    }
    one, shape, data = made[kind]
    return proto_of([one], {"x": data}, {"y": None}, {"w": normal(1, *shape)}, opset=21)


def scale_in(quantized: Quantized) -> Scale:
    [entry] = quantized.plan.entries
    return quantized.solution.scales[site_key(entry)]


@settings(deadline=None, max_examples=60)
@given(st.tuples(st.integers(1, 9), st.integers(1, 9)), st.integers(0, 1), st.integers(2, 12), st.sampled_from([4, 8]))
def test_codes_of_scales_are_near_and_never_zero(shape: tuple[int, int], axis: int, group: int, bits: int) -> None:
    scale = scale_of(np.exp(normal(sum(shape), *shape)), axis)
    form = ScaleCodes(bits=bits, group=group)  # type: ignore[arg-type]
    stored = as_stored(scale, form)
    codes, highest = scale_codes(stored), (1 << bits) - 1
    assert codes.shape == scale.scale.shape and codes.dtype == np.uint8
    assert codes.min() >= 1 and codes.max() <= highest
    assert stored.units is not None
    units = np.take(stored.units, group_numbers(stored), axis=axis)
    assert np.array_equal(codes.astype(np.float32) * units, stored.scale), "what the runtime computes"
    assert (np.abs(stored.scale - scale.scale) <= units * 1.0001).all()
    again = as_stored(stored, form)
    assert np.allclose(again.scale, stored.scale, rtol=1e-6)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(2**-30, 6e4, width=32), min_size=1, max_size=9))
def test_halves_are_halves(values: list[float]) -> None:
    stored = as_stored(scale_of([values]), "float16")
    assert stored.form == "float16" and (stored.scale > 0).all()
    assert np.array_equal(stored.scale.astype(np.float16).astype(np.float32), stored.scale)
    assert (np.abs(stored.scale - np.float32(values)) <= np.float32(values) * 2**-11 + 6e-8).all()


def test_what_float16_cannot_hold_stays_float32() -> None:
    scale = scale_of([[1.0, 7e4]])
    assert as_stored(scale, "float16") is scale and scale.form == "float32"


def test_channels_have_no_choice() -> None:
    scale = msgspec.structs.replace(scale_of([1.0, 2.0]), block=None)
    for form in FORMS.values():
        assert as_stored(scale, form) is scale


@pytest.mark.parametrize("kind", ["MatMul", "Gemm", "Conv"])
@pytest.mark.parametrize("encoding", ["weight_only", "{weight_only: {decode: run}}", "matmul_nbits"])
@pytest.mark.parametrize("scales", FORMS)
def test_the_result_is_that_of_the_decoded_weights(scales: str, encoding: str, kind: str) -> None:
    proto = net(kind)
    quantized = stored_of(proto, settings=(rule(scales, more=f", encoding: {encoding}"),))
    scale = scale_in(quantized)
    assert scale.form == FORMS[scales]
    feeds = feeds_for(quantized.source)
    expected = run(with_decoded_weights(quantized), feeds)
    assert_equal(expected, run(quantized.model, feeds), tolerance=1e-5)
    most = 0.03 if "run" in encoding else 1e-4
    assert_equal(expected, run(quantized.model, feeds, optimize=True), tolerance=most)
    onnx.checker.check_model(quantized.model.proto(), full_check=True)


@pytest.mark.parametrize("scales", ["float32", *FORMS])
def test_the_file_holds_as_many_bits_as_are_counted(scales: str) -> None:
    """But for the last group of each row, which may be a part of one."""
    quantized = stored_of(net(), settings=(rule(scales),))
    [entry] = quantized.plan.entries
    held = [array for name, array in constants(quantized.model).items() if "_scale" in name]
    bits = sum(array.size * (array.dtype.itemsize * 8 if array.dtype.kind in "fu" else 4) for array in held)
    counted = bits_of_scales(entry.grid, (112, 64))
    assert counted <= bits <= counted * 1.25
    assert all(array.dtype != np.float32 or array.size < 7 * 64 for array in held) or scales == "float32"


def test_cheaper_scales_cost_little_accuracy() -> None:
    found = {}
    for scales in ("float32", *FORMS):
        quantized = stored_of(net(), settings=(rule(scales),))
        wrong = decoded(quantized.plan, quantized.solution, "y", 1) - normal(1, 112, 64)
        found[scales] = float(np.square(wrong).mean())
    assert found["float16"] < found["float32"] * 1.01
    assert found["{bits: 8, group: 3}"] < found["float32"] * 1.05
    assert found["{bits: 4, group: 2}"] < found["float32"] * 1.6


@pytest.mark.parametrize("scales", FORMS)
def test_learned_codes_know_the_scales_as_they_are_stored(scales: str) -> None:
    """Also where the scales are fitted to the codes."""
    learnt = rule(scales).replace("rounding: nearest", "rounding: {coordinate: {refit: 2}}")
    quantized = quantized_of(net(), "int8-weights", settings=(learnt,))
    assert learned_requests(quantized.plan, quantized.source)
    scale = scale_in(quantized)
    assert scale.form == FORMS[scales]
    assert np.allclose(as_stored(scale, scale.form).scale, scale.scale, rtol=1e-6)
    feeds = feeds_for(quantized.source)
    assert_equal(run(with_decoded_weights(quantized), feeds), run(quantized.model, feeds), tolerance=1e-5)


def test_a_plan_keeps_the_form(tmp_path: Path) -> None:
    for scales, form in FORMS.items():
        plan = stored_of(net(), settings=(rule(scales),)).plan
        path = tmp_path / "plan.yaml"
        path.write_text(plan_text(plan))
        assert read_plan(path) == plan and plan.entries[0].grid.scales == form


def test_where_blocks_do_not_fit_scales_are_float32() -> None:
    proto = proto_of([node("MatMul", "x w", "y")], {"x": [3, 12]}, {"y": None}, {"w": normal(1, 12, 200)}, opset=21)
    [entry] = stored_of(proto, settings=(rule("float16"),)).plan.entries
    assert entry.grid.granularity == "channel" and entry.grid.scales == "float32"


def test_bits_of_a_scale() -> None:
    assert [scale_bits(form) for form in ("float32", "float16", ScaleCodes(bits=8, group=16))] == [32, 16, 10]
    assert bits_of_scales(Grid(granularity="channel", axis=1), (4, 6)) == 6 * 32


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ("granularity: channel, scales: float16", "'scales' with granularity channel"),
        ("granularity: block, block: 16, scales: float8", "scales"),
        ("granularity: block, block: 16, scales: {bits: 6, group: 8}", "scales"),
        ("granularity: block, block: 16, scales: {bits: 8, group: 1}", "scales"),
        ("granularity: block, block: 16, scales: {bits: 8, size: 4}", "scales"),
    ],
)
def test_recipes_that_make_no_sense_are_refused(grid: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        recipe_of(f"{{version: 1, rules: [{{grid: {{format: int4, {grid}}}}}]}}", tmp_path)
