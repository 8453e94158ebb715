"""Scales for blocks of weights, from the recipe to what onnxruntime runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from codes import decoded, kernels_of, reasons, stored_of, weights_of, with_decoded_weights
from hypothesis import given, settings
from hypothesis import strategies as st
from models import (
    Quantized,
    Stream,
    assert_equal,
    feeds_for,
    finished,
    node,
    normal,
    proto_of,
    quantized_of,
    recipe_of,
    run,
    saved,
    wrapped,
)

from qcli import blocks, learn
from qcli.contracts import along
from qcli.distribution import from_weights
from qcli.errors import UsageError
from qcli.granularity import check_layout, laid_out, no_blocks, scales_of
from qcli.graph import constant_of, load_model, node_key, normalize_graph, raise_opset
from qcli.inspect import inspect_model
from qcli.job import QuantizeJob
from qcli.layers import input_axis
from qcli.learn import learned_requests
from qcli.opsets import required_opset, written_opset
from qcli.pipeline import quantize
from qcli.plan import check_plan, make_plan, plan_text, read_plan
from qcli.plugins import create
from qcli.recipe import load_recipe
from qcli.roundings._quadratic import damped, error_of
from qcli.solve import site_key
from qcli.types import Array, Entry, Grid, Interval, Plan, Role, Scale, Site
from qcli.windows import rows_of


def rule(block: int = 32, more: str = "", grid: str = "format: int4") -> str:
    """A setting: all weights in blocks, stored only."""
    shape = f"granularity: block, block: {block}" if block else "granularity: channel"
    extra = f", {more}" if more else ""
    return f"rules=[{{match: {{role: weight}}, range: minmax, grid: {{{grid}, {shape}}}{extra}}}]"


RUN = "encoding: {weight_only: {decode: run}}"


def layer(kind: str, inputs: int = 48) -> onnx.ModelProto:
    """One layer that sums over `inputs` inputs or channels."""
    made = {
        "MatMul": (node("MatMul", "x w", "y"), (inputs, 24), [2, 5, inputs]),
        "Gemm": (node("Gemm", "x w b", "y"), (inputs, 24), [5, inputs]),
        "Gemm transB": (node("Gemm", "x w b", "y", transB=1), (24, inputs), [5, inputs]),
        "Conv": (node("Conv", "x w b", "y", pads=[1, 1, 1, 1]), (24, inputs, 3, 3), [1, inputs, 6, 6]),
        "grouped": (node("Conv", "x w b", "y", group=2), (24, inputs, 3, 3), [1, 2 * inputs, 6, 6]),
        "transposed": (node("ConvTranspose", "x w b", "y"), (inputs, 24, 3, 3), [1, inputs, 5, 5]),
    }
    layer_, shape, data = made[kind]
    weights = {"w": normal(1, *shape), **({"b": normal(2, 24)} if "b" in layer_.input else {})}
    return proto_of([layer_], {"x": data}, {"y": None}, weights, opset=21)


KINDS = ("MatMul", "Gemm", "Gemm transB", "Conv", "grouped", "transposed")


def alike(proto: onnx.ModelProto, count: int = 10) -> Stream:
    """Samples whose neighbouring elements depend on each other."""
    model = wrapped(proto)
    samples = []
    for seed in range(count):
        noise = feeds_for(model, seed)["x"]
        axis = 1 if noise.ndim == 4 else noise.ndim - 1
        mixed = noise + np.roll(noise, 1, axis) + np.roll(noise, 2, axis) + 0.7
        samples.append({"x": mixed.astype(np.float32)})
    return Stream(tuple(samples))


def weight_entry(plan: Plan) -> Entry:
    [entry] = [entry for entry in plan.entries if entry.site.role is Role.WEIGHT]
    return entry


def weight_scale(quantized: Quantized) -> Scale:
    return quantized.solution.scales[site_key(weight_entry(quantized.plan))]


# Scales


@settings(deadline=None, max_examples=60)
@given(
    st.tuples(st.integers(1, 40), st.integers(2, 50)),
    st.booleans(),
    st.integers(2, 16),
    st.booleans(),
    st.sampled_from(["u", ""]),
)
def test_codes_are_within_half_a_step_of_their_block(
    shape: tuple[int, int], last: bool, bits: int, symmetric: bool, sign: str
) -> None:
    """Whether or not the blocks divide the axis."""
    weight, axis = normal(sum(shape), *shape), int(last)
    block = 2 + shape[axis] % 7
    grid = Grid(format=f"{sign}int{bits}", symmetric=symmetric, granularity="block", block=block, axis=axis)
    number = create("formats", grid.format)
    interval, dead = blocks.interval_of(weight, grid, lambda part: create("ranges", "minmax").interval(part, grid))
    scale = number.scale(interval, grid)
    expected = tuple(-(-size // block) if at == axis else size for at, size in enumerate(shape))
    assert scale.scale.shape == scale.zero_point.shape == dead.shape == expected
    assert scales_of(grid, weight.shape) == scale.scale.size
    real = number.decode(number.encode(weight, scale), scale)
    steps, _ = along(scale, weight.shape)
    assert steps.shape == weight.shape
    most = 1.0 if symmetric and sign == "" else 0.51  # the upper end of a symmetric grid lacks one level
    assert (np.abs(real - weight) <= steps * most + 1e-6).all()


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 40), st.integers(2, 41), st.sampled_from(["minmax", "mse", "octav", "percentile"]), st.booleans())
def test_each_block_has_the_range_that_it_has_by_itself(size: int, block: int, finder: str, symmetric: bool) -> None:
    weight = normal(size + block, size, 3)
    grid = Grid(format="int4", symmetric=symmetric, granularity="block", block=block, axis=0)
    find = create("ranges", finder).interval
    interval, _ = blocks.interval_of(weight, grid, lambda part: find(part, grid))
    for number, begin in enumerate(range(0, size, block)):
        alone = find(from_weights(weight[begin : begin + block], 1), grid)
        np.testing.assert_allclose(interval.lower[number], alone.lower)
        np.testing.assert_allclose(interval.upper[number], alone.upper)


@settings(deadline=None, max_examples=30)
@given(
    st.sampled_from(KINDS),
    st.sampled_from(["minmax", "mse", "octav", "percentile"]),
    st.sampled_from(["nearest", "gptq", "coordinate"]),
    st.booleans(),
)
def test_a_block_of_the_whole_axis_is_a_channel(kind: str, finder: str, rounding: str, symmetric: bool) -> None:
    """For convolutions of one element; larger ones have a block for each element of the kernel."""
    proto = layer(kind, 33)
    for weight in proto.graph.initializer:
        if weight.name == "w" and len(weight.dims) == 4:
            array = onnx.numpy_helper.to_array(weight)[..., :1, :1]
            weight.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(array), "w"))
    if kind == "Conv":
        del proto.graph.node[0].attribute[:]
    stream, made = alike(proto, 3), []
    for block in (33, 0):
        grid = f"format: int4, symmetric: {str(symmetric).lower()}"
        setting = rule(block, f"rounding: {rounding}", grid).replace("range: minmax", f"range: {finder}")
        made.append(quantized_of(proto, "int8-weights", stream, (setting,)))
    first, second = ((one.solution.codes[site_key(weight_entry(one.plan))], weight_scale(one)) for one in made)
    assert first[1].block == 33 and second[1].block is None
    np.testing.assert_array_equal(first[1].scale.ravel(), second[1].scale)
    np.testing.assert_array_equal(first[1].zero_point.ravel(), second[1].zero_point)
    if rounding == "nearest":
        np.testing.assert_array_equal(first[0], second[0])
    else:
        assert np.mean(np.asarray(first[0]) != np.asarray(second[0])) < 0.01, "but for ties"


@pytest.mark.parametrize("shape", [(40, 50), (50, 40), (40, 21, 3, 3), (3, 20, 30)])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("finder", ["minmax", "mse"])
def test_large_weights_are_cut_between_blocks(
    shape: tuple[int, ...], axis: int, finder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = normal(0, *shape)
    grid = Grid(format="int4", granularity="block", block=8, axis=axis)
    find, number = create("ranges", finder).interval, create("formats", "int4")
    encode = create("roundings", "nearest").round
    results = []
    for most in (1 << 30, 500):
        monkeypatch.setattr(blocks, "_BLOCK_BYTES", most)
        interval, dead = blocks.interval_of(weight, grid, lambda part: find(part, grid))
        scale = number.scale(interval, grid)
        results.append((scale.scale, dead, blocks.rounded(weight, scale, encode)))
    for whole, parts in zip(*results, strict=True):
        np.testing.assert_array_equal(whole, parts)


# Layers


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("block", "inputs"), [(16, 48), (32, 48), (20, 48), (48, 48)])
@pytest.mark.parametrize("symmetric", ["true", "false"])
@pytest.mark.parametrize("decode", ["", RUN])
def test_layers_run_and_save_what_they_should(kind: str, block: int, inputs: int, symmetric: str, decode: str) -> None:
    """Blocks that do and that do not divide the axis, of which the last is shorter."""
    proto = layer(kind, inputs)
    quantized = stored_of(proto, settings=(rule(block, decode, f"format: int4, symmetric: {symmetric}"),))
    entry, scale = weight_entry(quantized.plan), weight_scale(quantized)
    assert entry.grid.block == scale.block == block
    weight = onnx.numpy_helper.to_array(proto.graph.initializer[0])
    sizes = [*weight.shape]
    sizes[entry.grid.axis or 0] = -(-inputs // block)
    assert scale.scale.shape == tuple(sizes)
    feeds = feeds_for(quantized.source)
    expected = run(with_decoded_weights(quantized), feeds)
    assert_equal(expected, run(quantized.model, feeds), tolerance=1e-5)
    assert_equal(expected, run(quantized.model, feeds, optimize=True), tolerance=0.03 if decode else 1e-5)
    assert_equal(run(proto, feeds), expected, tolerance=0.3)
    onnx.checker.check_model(quantized.model.proto(), full_check=True)
    if decode:
        [dequantize] = [item for item in quantized.model.proto().graph.node if item.op_type == "DequantizeLinear"]
        given_ = {item.name: item.i for item in dequantize.attribute}
        assert given_ == {"axis": entry.grid.axis, "block_size": block}
        codes = next(item for item in quantized.model.proto().graph.initializer if item.name == dequantize.input[0])
        assert codes.data_type == onnx.TensorProto.INT4
    bits = 4 * weight.size + scale.scale.size * (32 + (4 if symmetric == "false" else 0))
    assert len(quantized.model.serialize()) <= bits / 8 + 1500


@pytest.mark.parametrize("width", range(2, 17))
@pytest.mark.parametrize("sign", ["", "u"])
@pytest.mark.parametrize("decode", ["", RUN, "encoding: {weight_only: {decode: run, pack: false}}"])
def test_any_width(width: int, sign: str, decode: str) -> None:
    proto = layer("MatMul", 70)
    if width == 2:
        proto.opset_import[0].version = 25
        proto.ir_version = 13
    for symmetric in ("true", "false"):
        setting = rule(32, decode, f"format: {sign}int{width}, symmetric: {symmetric}")
        assert required_opset(load_recipe("int8-weights", (setting,))) <= proto.opset_import[0].version
        quantized = stored_of(proto, settings=(setting,))
        feeds = feeds_for(quantized.source)
        expected = run(with_decoded_weights(quantized), feeds)
        assert_equal(expected, run(quantized.model, feeds), tolerance=1e-5)
        run(quantized.model, feeds, optimize=True)
        error = np.abs(decoded(quantized.plan, quantized.solution, "y", 1) - normal(1, 70, 24)).max()
        assert error <= 8 / (2**width - 1)


def test_onnxruntime_makes_one_kernel_of_it_or_none() -> None:
    """MatMulNBits of DequantizeLinear and MatMul; with `decode: load` what the float model has."""
    proto = layer("MatMul")
    each_time, once = (kernels_of(stored_of(proto, settings=(rule(16, more),))) for more in (RUN, ""))
    assert each_time.by_kernel == {"MatMulNBits": 1} and each_time.integer == 1, "it multiplies 8-bit integers"
    assert once.by_kernel == {"MatMul": 1} and once.integer == 0
    odd = kernels_of(stored_of(proto, settings=(rule(20, RUN),)))
    assert odd.by_kernel == {"DequantizeLinear": 1, "MatMul": 1}, "blocks of 16, 32, 64, ... only"


# Learning


def layer_error(quantized: Quantized) -> float:
    """The error of the output on the calibration samples, in real units."""
    entry = weight_entry(quantized.plan)
    request = learned_requests(quantized.plan, quantized.source).get("y")
    assert request is not None and request.window is not None
    [layer_] = [item for item in quantized.source.nodes() if node_key(item) == "y"]
    products = damped(quantized.statistics.get(request).moments()[0], 0.01)  # type: ignore[attr-defined]
    real = decoded(quantized.plan, quantized.solution, "y", entry.site.operand)
    exact = np.asarray(constant_of(layer_.inputs[1]), np.float64)
    rows = [rows_of(layer_, part.astype(np.float64), request.window) for part in (real, exact)]
    return float(error_of(rows[0], rows[1], products).sum())


def learned(kind: str, rounding: str, symmetric: bool = True, block: int = 20) -> Quantized:
    proto = layer(kind)
    setting = rule(block, f"rounding: {rounding}", f"format: int3, symmetric: {str(symmetric).lower()}")
    return quantized_of(proto, "int8-weights", alike(proto), (setting,))


def errors_of(kind: str, roundings: Sequence[str], symmetric: bool = True) -> list[float]:
    """Of the layer's codes with each rounding. The first is that of nearest codes on the same measurement."""
    made = [learned(kind, rounding, symmetric) for rounding in roundings]
    plain = made[0]
    entry, scale = weight_entry(plain.plan), weight_scale(plain)
    exact = np.asarray(constant_of(next(iter(plain.source.nodes())).inputs[1]), np.float32)
    codes = {**plain.solution.codes, site_key(entry): create("roundings", "nearest").round(exact, scale)}
    nearest = replace(plain, solution=replace(plain.solution, codes=codes))
    return [layer_error(nearest), *(layer_error(one) for one in made)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("symmetric", [True, False])
def test_learning_lowers_the_error(kind: str, symmetric: bool) -> None:
    roundings = ("gptq", "coordinate", "{coordinate: {refit: 3}}")
    nearest, gptq, coordinate, refit = errors_of(kind, roundings, symmetric)
    assert gptq < 0.9 * nearest and coordinate <= gptq * (1 + 1e-9)
    assert refit < 0.99 * coordinate, "steps are fitted to the codes"


@pytest.mark.parametrize("kind", ["Gemm", "Conv"])
def test_adaround_is_no_worse_than_coordinate(kind: str) -> None:
    nearest, coordinate, adaround = errors_of(kind, ("coordinate", "{adaround: {iterations: 60}}"))
    assert adaround <= coordinate * (1 + 1e-9) < nearest


@pytest.mark.parametrize("kind", ["MatMul", "Conv"])
def test_blocks_may_lie_in_two_windows(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers of many inputs learn in windows, which need not end where blocks do."""
    monkeypatch.setattr(learn, "_LARGEST", 17)
    nearest, coordinate, refit = errors_of(kind, ("coordinate", "{coordinate: {refit: 3}}"))
    assert coordinate < 0.95 * nearest and refit <= coordinate * (1 + 1e-9)


def test_squant_rounds_blocks_to_nearest() -> None:
    """Elements of a kernel have a step each, so that their errors have no sum in steps."""
    made = [learned("Conv", rounding) for rounding in ("squant", "nearest")]
    codes = [np.asarray(one.solution.codes[site_key(weight_entry(one.plan))]) for one in made]
    np.testing.assert_array_equal(*codes)


def test_a_weight_that_no_sample_reaches_is_rounded_to_nearest() -> None:
    proto = layer("MatMul")
    plan = stored_of(proto, settings=(rule(20, "rounding: gptq"),)).plan
    source = wrapped(proto)
    normalize_graph(source)
    blind = finished(source, plan, Stream(({"x": np.zeros((0, 5, 48), np.float32)},)))
    near = stored_of(proto, settings=(rule(20),))
    for one in (blind, near):
        assert weight_scale(one).block == 20
    key = site_key(weight_entry(plan))
    np.testing.assert_array_equal(np.asarray(blind.solution.codes[key]), np.asarray(near.solution.codes[key]))


# Where blocks do not fit


def mixed_net() -> onnx.ModelProto:
    """Conv of 3 channels, depthwise Conv, Conv 1x1, Gemm."""
    weights: dict[str, Array] = {
        "w1": normal(0, 32, 3, 3, 3) / 5,
        "w2": normal(1, 32, 1, 3, 3) / 3,
        "w3": normal(2, 64, 32, 1, 1) / 5,
        "w4": normal(3, 64, 40) / 5,
    }
    nodes = [
        node("Conv", "x w1", "c1"),
        node("Conv", "c1 w2", "c2", group=32),
        node("Conv", "c2 w3", "c3"),
        node("GlobalAveragePool", "c3", "g"),
        node("Flatten", "g", "f"),
        node("Gemm", "f w4", "y"),
    ]
    return proto_of(nodes, {"x": [1, 3, 12, 12]}, {"y": None}, weights, opset=21)


def test_what_has_no_integer_kernel_is_kept_out_and_stored() -> None:
    quantized = quantized_of(mixed_net(), "int8-minmax", settings=(rule(32),))
    found = {entry.site.value: entry for entry in quantized.plan.entries if entry.site.role is Role.WEIGHT}
    assert {name: (entry.encoding, entry.grid.granularity) for name, entry in found.items()} == {
        "w1": ("qdq", "channel"),
        "w2": ("weight_only", "channel"),  # depthwise, behind which nothing is integer
        "w3": ("weight_only", "block"),
        "w4": ("weight_only", "block"),
    }
    assert "a scale for each channel, as its input axis has 3 weights, a block 32" in found["w1"].because
    said = reasons(quantized)["y"]
    assert "gives its weight blocks, which no static kernel multiplies" in said
    assert said.endswith("its weight is stored as int4 in blocks of 32")
    feeds = feeds_for(quantized.source)
    assert_equal(run(mixed_net(), feeds), run(quantized.model, feeds, optimize=True), tolerance=0.3)


def test_dynamic_kernels_take_no_blocks() -> None:
    quantized = stored_of(mixed_net(), "int8-dynamic", (rule(32),))
    assert ("y", 1, "weight_only") in weights_of(quantized)
    [entry] = [entry for entry in quantized.plan.entries if entry.site.node == "y"]
    assert entry.because.endswith("not dynamic: no dynamic kernel takes weights in blocks")


def test_blocks_that_save_nothing_are_not_made() -> None:
    proto = layer("MatMul")
    proto.graph.node.extend([node("MatMul", "y v", "z")])
    proto.graph.initializer.append(onnx.numpy_helper.from_array(normal(3, 24, 200), "v"))
    del proto.graph.output[:]
    proto.graph.output.append(onnx.helper.make_tensor_value_info("z", 1, None))
    two = "{match: {name: /y}, grid: {format: int16, granularity: block, block: 2}}"
    setting = rule(12).replace("}]", f"}}, {two}]")
    assert reasons(stored_of(proto, settings=(setting,)))["y"].endswith(
        "its blocks are too small for integers to save bytes"
    )


@pytest.mark.parametrize(
    ("op", "attributes", "operand", "rank", "axis"),
    [
        ("Conv", {}, 1, 4, 1),
        ("ConvTranspose", {}, 1, 4, 0),
        ("Gemm", {}, 1, 2, 0),
        ("Gemm", {"transB": 1}, 1, 2, 1),
        ("Gemm", {}, 0, 2, 1),
        ("Gemm", {"transA": 1}, 0, 2, 0),
        ("MatMul", {}, 1, 2, 0),
        ("MatMul", {}, 1, 4, 2),
        ("MatMul", {}, 0, 3, 2),
        ("MatMul", {}, 1, 1, None),
        ("LSTM", {}, 1, 3, 2),
        ("Attention", {}, 1, 2, 0),
        ("Einsum", {}, 1, 2, None),
        ("Gather", {}, 0, 2, 1),
        ("Gather", {}, 0, 1, None),
        ("GatherND", {}, 0, 2, None),
    ],
)
def test_the_axis_that_an_operator_sums_over(
    op: str, attributes: dict[str, int], operand: int, rank: int, axis: int | None
) -> None:
    proto = proto_of([node(op, "x w", "y", **attributes)], {"x": [1], "w": [1]}, {"y": None})
    [made] = wrapped(proto).nodes()
    assert input_axis(made, operand, rank) == axis
    shape = (40,) * rank
    assert (no_blocks(made, operand, shape, 40) is None) is (axis is not None)
    assert no_blocks(made, operand, shape, 41) is not None
    site = Site(value="w", role=Role.WEIGHT, node="y", name="/y", op=op, operand=operand)
    entry = Entry(site=site, grid=Grid(granularity="block", block=32), range="mse", because="b")
    grid = laid_out(entry, made, shape, None).grid
    assert (grid.granularity, grid.block, grid.axis) == (
        ("block", 32, axis) if axis is not None else ("channel", None, None)
    )


# Plans and recipes


def test_a_plan_says_it_and_is_replayed(tmp_path: Path) -> None:
    recipe = tmp_path / "blocks.yaml"
    setting = rule(16, "encoding: {weight_only: {decode: run}}").removeprefix("rules=")
    recipe.write_text(f"{{version: 1, extends: int8-weights, rules: {setting}}}")
    proto = layer("MatMul")
    proto.opset_import[0].version = 17
    model = saved(proto, tmp_path / "m.onnx")
    job = QuantizeJob(model=model, recipe=str(recipe), output=tmp_path / "a.onnx", latency=False, cache=False)
    report = quantize(job)
    assert report.output is not None and report.output.opset == 21 and report.kernels is not None
    assert report.kernels.by_kernel == {"MatMulNBits": 1} and report.size is not None and report.size.ratio < 0.5
    seen = inspect_model(tmp_path / "a.onnx")
    assert seen.block_sizes == {"16": 1} and seen.weight_bytes["int4"] == 48 * 24 // 2
    known = load_recipe(str(recipe))
    source = load_model(model)
    raise_opset(source, required_opset(known))
    normalize_graph(source)
    plan = make_plan(source, known)
    path = tmp_path / "plan.yaml"
    path.write_text(plan_text(plan))
    assert "block: 16" in path.read_text() and read_plan(path) == plan
    again = msgspec.structs.replace(job, plan=path, output=tmp_path / "b.onnx")
    quantize(again)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


@pytest.mark.parametrize("decode", ["load", "run"])
def test_blocks_are_counted_in_a_file(decode: str, tmp_path: Path) -> None:
    """Scales are counted, zero points are not."""
    setting = rule(20, f"encoding: {{weight_only: {{decode: {decode}}}}}", "format: uint4, symmetric: false")
    path = tmp_path / "q.onnx"
    path.write_bytes(stored_of(layer("Conv"), settings=(setting,)).model.serialize())
    assert inspect_model(path).block_sizes == {"20": 1}


def planned() -> tuple[Any, Plan]:
    source = wrapped(layer("MatMul"))
    normalize_graph(source)
    return source, make_plan(source, load_recipe("int8-weights", (rule(16),)))


@pytest.mark.parametrize(
    ("grid", "encoding", "message"),
    [
        ({"axis": 1}, None, "blocks lie along axis 0, not 1"),
        ({"axis": None}, None, "blocks lie along axis 0, not None"),
        ({"block": 49}, None, "its input axis has 48 weights, a block 49"),
        ({"block": None}, None, "granularity block needs the size of a block"),
        ({"block": 1}, None, "block must be 2 or more, is 1"),
        ({"granularity": "channel", "axis": 1}, None, "'block' with granularity channel"),
        ({}, "qdq", "no static kernel multiplies blocks, as the encoding 'qdq' wants it"),
        ({}, "dynamic", "cannot have the encoding 'dynamic': no dynamic kernel takes weights in blocks"),
    ],
)
def test_edited_plans_are_refused(grid: dict[str, Any], encoding: str | None, message: str) -> None:
    source, plan = planned()
    check_plan(plan, source)
    [entry] = plan.entries
    changed = msgspec.structs.replace(
        entry, grid=msgspec.structs.replace(entry.grid, **grid), encoding=encoding or entry.encoding
    )
    with pytest.raises(UsageError, match=message):
        check_plan(msgspec.structs.replace(plan, entries=(changed,)), source)


def test_an_edited_plan_raises_the_operator_set() -> None:
    _, plan = planned()
    [entry] = plan.entries
    changed = msgspec.structs.replace(entry, encoding={"weight_only": {"decode": "run", "pack": False}})
    assert written_opset(msgspec.structs.replace(plan, opset=17, entries=(changed,))) == 21


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ("granularity: block", "needs the size of a block"),
        ("granularity: block, block: 1", "block must be 2 or more"),
        ("granularity: block, block: -4", "block must be 2 or more"),
        ("granularity: channel, block: 32", "'block' with granularity channel"),
        ("block: 32", "'block' with granularity tensor"),
        ("granularity: blocks, block: 32", "unknown granularity 'blocks'"),
    ],
)
def test_recipes_that_make_no_sense_are_refused(grid: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        recipe_of(f"{{version: 1, rules: [{{grid: {{format: int4, {grid}}}}}]}}", tmp_path)
    assert caught.value.hint


def test_activations_have_no_blocks() -> None:
    setting = "rules=[{match: {role: input}, grid: {format: uint8, granularity: block, block: 8}}]"
    with pytest.raises(UsageError, match="activations have one scale for each tensor"):
        quantized_of(mixed_net(), "int8-minmax", settings=(setting,))


def test_a_layout_that_is_right_is_taken() -> None:
    for grid in (Grid(), Grid(granularity="channel"), Grid(granularity="block", block=2)):
        check_layout(grid, "here")


def test_an_interval_of_any_shape_becomes_a_scale_of_that_shape() -> None:
    ends = np.abs(normal(0, 3, 4).astype(np.float64))
    grid = Grid(format="int4", granularity="block", block=8, axis=0)
    scale = create("formats", "int4").scale(Interval(lower=-ends, upper=ends), grid)
    assert scale.scale.shape == (3, 4) and (scale.axis, scale.block) == (0, 8)


@pytest.mark.parametrize("name", ["int1", "uint1"])
def test_one_bit_is_refused_with_the_reason(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="one bit has two levels"):
        recipe_of(f"{{version: 1, rules: [{{grid: {{format: {name}}}}}]}}", tmp_path)
