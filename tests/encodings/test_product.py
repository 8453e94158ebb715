"""Vectors of weights as one code each: what onnxruntime decodes is what qcli says, once or at each run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from codes import constants, kernels_of, reasons, stored_of, weights_of, with_decoded_weights
from hypothesis import given, settings
from hypothesis import strategies as st
from models import assert_equal, feeds_for, node, normal, operators, proto_of, quantized_of, run
from weight_cases import CASES

from qcli import stored
from qcli.apply import apply_plan
from qcli.cli import main
from qcli.errors import UnsupportedError
from qcli.existing import refuse_quantized
from qcli.graph import load_model, on_disk
from qcli.job import QuantizeJob
from qcli.kernels import read_kernels
from qcli.learn import doubts_about_learning
from qcli.opsets import required_opset
from qcli.pipeline import quantize
from qcli.recipe import load_recipe
from qcli.runtime import Session
from qcli.solve import Solution
from qcli.storage import read_storage
from qcli.types import Array, Deferred


def rule(dimensions: int, bits: int, decode: str = "load", extra: str = "") -> str:
    grid = f"{{format: {{product: {{dimensions: {dimensions}}}}}, bits: {bits}{extra}}}"
    return f"rules=[{{match: {{role: weight}}, grid: {grid}, encoding: {{lookup_table: {{decode: {decode}}}}}}}]"


@pytest.fixture
def small_weights_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables are written though they take more bytes than they save."""
    monkeypatch.setattr(stored, "_OVERHEAD", -(10**6))


OPERATORS = (
    "Conv 1-D", "Conv 2-D in groups", "Conv depthwise", "ConvTranspose", "Gemm", "Gemm transB", "MatMul 3-D",
    "MatMul weight of 4-D", "MatMul weight on the left", "Einsum", "LSTM", "Gather", "Gather of one row",
    "Gather by a matrix", "Gather along another axis", "GatherND", "Attention",
)  # fmt: skip


@pytest.mark.parametrize("decode", ["load", "run"])
@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.usefixtures("small_weights_too")
def test_the_result_is_that_of_the_decoded_weights(name: str, decode: str) -> None:
    """Whole vectors and rows that are filled up, two codewords or many, with a scale or one for each channel."""
    case = CASES[name]
    for dimensions, bits, extra in ((2, 1, ""), (3, 3, ", granularity: channel"), (4, 8, ", granularity: channel")):
        asked = rule(dimensions, bits, decode, extra)
        quantized = stored_of(case.proto(25), settings=(asked,), feeds=case.inputs())
        assert weights_of(quantized)
        expected = run(with_decoded_weights(quantized), case.inputs(7))
        assert_equal(expected, run(quantized.model, case.inputs(7)), tolerance=1e-5, what=name)
        assert_equal(expected, run(quantized.model, case.inputs(7), optimize=True), tolerance=1e-4, what=name)
    if not case.node.domain:
        onnx.checker.check_model(quantized.model.proto(), full_check=True)


NET = [node("MatMul", "x w", "m"), node("Relu", "m", "r"), node("Gemm", "r v b", "y")]


def dense(size: int = 64) -> onnx.ModelProto:
    weights = {"w": normal(0, size, size), "v": normal(1, size, size), "b": normal(2, size)}
    return proto_of(NET, {"x": ["n", size]}, {"y": None}, weights, opset=25)


@settings(max_examples=15, deadline=None)
@given(
    inputs=st.integers(8, 40),
    outputs=st.integers(8, 40),
    dimensions=st.integers(2, 8),
    bits=st.integers(1, 6),
    decode=st.sampled_from(["load", "run"]),
)
def test_onnxruntime_decodes_what_qcli_does(inputs: int, outputs: int, dimensions: int, bits: int, decode: str) -> None:
    """To the last bit, for any shape: the weight is what comes out of a product with the identity."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stored, "_OVERHEAD", -(10**6))
        weights = {"w": normal(inputs, inputs, outputs)}
        proto = proto_of([node("MatMul", "x w", "y")], {"x": ["n", inputs]}, {"y": None}, weights, opset=25)
        quantized = stored_of(proto, settings=(rule(dimensions, bits, decode, ", granularity: channel"),))
    exact = run(with_decoded_weights(quantized), {"x": np.eye(inputs, dtype=np.float32)})["y"]
    assert np.array_equal(run(quantized.model, {"x": np.eye(inputs, dtype=np.float32)})["y"], exact)


@pytest.mark.parametrize(("dimensions", "bits"), [(4, 6), (3, 4), (2, 1)])
def test_onnxruntime_decodes_once_when_it_loads_or_at_every_run(dimensions: int, bits: int) -> None:
    """With `decode: load` the optimized graph is that of the float model; with `run` each weight is decoded in it."""
    proto = dense()
    quantized = stored_of(proto, settings=(rule(dimensions, bits, extra=", granularity: channel"),))
    assert len(weights_of(quantized)) == 2
    as_float = read_kernels(proto.SerializeToString(), quantized.source, feeds_for(quantized.source))
    assert kernels_of(quantized).by_kernel == as_float.by_kernel
    each_time = stored_of(proto, settings=(rule(dimensions, bits, "run", ", granularity: channel"),))
    kernels = kernels_of(each_time).by_kernel
    assert kernels["DequantizeLinear"] == 2 and kernels["Gather"] >= 2
    left = constants(each_time.model).values()
    assert not [array for array in left if array.dtype == np.float32 and array.size > 4 * 64], "none is float"


@pytest.mark.parametrize(("dimensions", "bits", "each"), [(4, 8, 2), (2, 4, 2), (8, 7, 1), (8, 1, 0.125)])
@pytest.mark.parametrize("decode", ["load", "run"])
def test_the_file_is_as_small_as_the_bits_say(
    dimensions: int, bits: int, each: float, decode: str, tmp_path: Path
) -> None:
    """Two matrices of 256 by 256: besides the codes, tables of 16 bits a number and nodes; all of it is accounted."""
    quantized = stored_of(dense(256), settings=(rule(dimensions, bits, decode),))
    (tmp_path / "m.onnx").write_bytes(quantized.model.serialize())
    found, codes = read_storage(tmp_path / "m.onnx"), 2 * 256 * 256 * each / 8
    assert sum(found.bytes_by.weights.values()) == codes and found.weights == 2 * 256 * 256
    tables = 2 * 2**bits * dimensions * 2
    assert found.bytes_by.tables == tables + (256 * 8 if bits == 1 else 0)
    assert found.bits_per_weight == pytest.approx(each + 8 * tables / 2**17, abs=0.15)
    assert codes + tables < (tmp_path / "m.onnx").stat().st_size < codes + tables + 5000


@pytest.mark.usefixtures("small_weights_too")
def test_rows_are_fetched_as_codes() -> None:
    """Only what was fetched is decoded; a table with indices of unknown rank is decoded whole."""
    case = CASES["Gather"]
    for decode in ("load", "run"):
        quantized = stored_of(case.proto(25), settings=(rule(4, 4, decode),), feeds=case.inputs())
        kernels = kernels_of(quantized, case.inputs()).by_kernel
        assert kernels == {"Gather": 2, "Cast": 1, "Reshape": 1, "Mul": 1}
        assert next(one for one in quantized.model.graph if one.op_type == "Gather").outputs[0].name == "y_codes"
    nodes = [node("NonZero", "c", "z"), node("Squeeze", "z", "i"), node("Gather", "w i", "y")]
    proto = proto_of(nodes, {"c": ["n"]}, {"y": None}, {"w": normal(0, 32, 12)}, opset=25)
    quantized, feeds = stored_of(proto, settings=(rule(4, 4),)), {"c": np.array([0, 1, 0, 2], np.float32)}
    assert_equal(run(with_decoded_weights(quantized), feeds), run(quantized.model, feeds), tolerance=1e-6)
    assert "y_codes" not in {value.name for one in quantized.model.graph for value in one.outputs}


def test_a_weight_that_several_nodes_read_is_stored_and_decoded_once() -> None:
    nodes = [node("MatMul", "x w", "a"), node("MatMul", "a w", "b"), node("Gemm", "b w", "y")]
    proto = proto_of(nodes, {"x": [2, 32]}, {"y": None}, {"w": normal(0, 32, 32)}, opset=25)
    quantized, feeds = stored_of(proto, settings=(rule(4, 4),)), {"x": normal(1, 2, 32)}
    assert operators(quantized.model).count("Gather") == 1
    assert_equal(run(with_decoded_weights(quantized), feeds), run(quantized.model, feeds), tolerance=1e-4)


def test_what_gains_nothing_stays_float() -> None:
    """A table larger than what it saves, and rows that are shorter than a vector."""
    weights = {"w": normal(0, 64, 64), "v": normal(1, 64, 8), "u": normal(2, 3, 4096)}
    nodes = [node("MatMul", "x w", "m"), node("MatMul", "m v", "n"), node("MatMul", "z u", "y")]
    proto = proto_of(nodes, {"x": [2, 64], "z": [2, 3]}, {"n": None, "y": None}, weights)
    quantized = stored_of(proto, settings=(rule(4, 8),))
    assert [name for name, *_ in weights_of(quantized)] == ["m"]
    assert "too small for the tables and codes of product of 8 bits to save bytes" in reasons(quantized)["n"]
    assert "its rows have 3 weights, a vector 4" in reasons(quantized)["y"]


@pytest.mark.parametrize(
    ("rounding", "said"),
    [("adaround", "as adaround knows evenly spaced levels only"), ("gptq", ""), ("coordinate", "")],
)
def test_a_rounding_that_knows_no_vectors_says_so(rounding: str, said: str) -> None:
    asked = rule(4, 6).replace("encoding", f"rounding: {rounding}, encoding")
    quantized = quantized_of(dense(), "int8-weights", settings=(asked,))
    doubts = doubts_about_learning(quantized.plan, quantized.source, quantized.statistics)
    assert doubts == ([f"2 weights are rounded without samples, {said}: w, v"] if said else [])


@pytest.mark.parametrize("rounding", ["hqq", "squant", "nearest"])
@pytest.mark.parametrize("grid", ["format: product, bits: 6", "format: codebook, bits: 4"])
def test_roundings_without_samples_take_what_is_nearest(grid: str, rounding: str) -> None:
    asked = f"rules=[{{match: {{role: weight}}, grid: {{{grid}}}, rounding: {rounding}}}]"
    quantized, nearest = stored_of(dense(), settings=(asked,)), asked.replace(rounding, "nearest")
    assert quantized.model.serialize() == stored_of(dense(), settings=(nearest,)).model.serialize()


def test_codes_that_are_computed_when_they_are_needed() -> None:
    for bits in (1, 4, 6):
        quantized = stored_of(dense(), settings=(rule(3, bits),))
        deferred = {
            key: Deferred(codes.shape, codes.dtype.name, lambda codes=codes: np.asarray(codes))
            for key, codes in quantized.solution.codes.items()
        }
        again = apply_plan(quantized.source, quantized.plan, Solution(quantized.solution.scales, deferred))
        assert again.serialize() == quantized.model.serialize()


@pytest.mark.parametrize(("bits", "opset"), [(1, 17), (2, 25), (4, 21), (8, 17)])
def test_a_model_is_raised_to_what_its_codes_need(bits: int, opset: int) -> None:
    assert max(17, required_opset(load_recipe("int8-weights", (rule(4, bits),)))) == opset


@pytest.mark.parametrize("decode", ["load", "run"])
def test_a_model_with_vectors_is_known_to_be_quantized(decode: str) -> None:
    with pytest.raises(UnsupportedError, match="already quantized"):
        refuse_quantized(stored_of(dense(128), settings=(rule(4, 8, decode),)).model)


ROWS, SIZE = 400, 64


def saved_model(folder: Path) -> Path:
    """A table and two products whose constants lie beside the file."""
    weights = {"t": normal(0, ROWS, SIZE), "w": normal(1, SIZE, 120) / 8, "v": normal(2, 120, SIZE) / 8}
    nodes = [node("Gather", "t i", "e"), node("MatMul", "e w", "m"), node("MatMul", "m v", "y")]
    proto = proto_of(nodes, {}, {"y": None}, weights, opset=21)
    proto.graph.input.append(onnx.helper.make_tensor_value_info("i", onnx.TensorProto.INT64, ["n"]))
    onnx.save(proto, str(folder / "m.onnx"), save_as_external_data=True, location="m.bin", size_threshold=0)
    (folder / "calib").mkdir()
    for number in range(4):
        np.savez(folder / "calib" / f"{number}.npz", i=np.random.default_rng(number).integers(0, ROWS, 64))
    return folder / "m.onnx"


@pytest.mark.parametrize("rounding", ["nearest", "gptq", "{coordinate: {refit: 2}}"])
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_a_large_model_is_quantized_like_a_small_one(
    tmp_path: Path, granularity: str, rounding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its codes are computed as they are written, or learned part by part, some channels of a weight at a time."""
    path = saved_model(tmp_path)
    asked = rule(4, 6, extra=f", granularity: {granularity}").replace("encoding", f"rounding: {rounding}, encoding")
    ids, found = {"i": np.array([0, 399, 7, 7])}, dict[bool, Array]()
    for large in (False, True):
        if large:
            monkeypatch.setattr(on_disk, "LARGE_BYTES", 10_000)
            monkeypatch.setattr(on_disk, "STORED_BYTES", 4_000)
            monkeypatch.setattr("qcli.learn_weight._AT_ONCE", 20_000)
            monkeypatch.setattr("qcli.blocks._BLOCK_BYTES", 10_000)
        assert load_model(path).large is large
        job = QuantizeJob(
            model=path, recipe="int8-weights", settings=(asked,), calibration=tmp_path / "calib",
            output=tmp_path / "q.onnx", latency=False, cache=False,
        )  # fmt: skip
        quantize(job)
        found[large] = Session(tmp_path / "q.onnx").run(ids)["y"]
        assert read_storage(tmp_path / "q.onnx").weights == ROWS * SIZE + 2 * SIZE * 120
    exact = run(load_model(path), ids)["y"]
    assert np.square(found[True] - exact).sum() < 1.2 * np.square(found[False] - exact).sum()
    assert np.square(found[True] - exact).sum() < 0.9 * np.square(exact).sum()


def test_a_plan_is_kept_and_replayed(tmp_path: Path) -> None:
    path, asked = saved_model(tmp_path), rule(4, 6)
    assert main(["plan", str(path), "-r", "int8-weights", "--set", asked, "-o", str(tmp_path / "plan.yaml")]) == 0
    assert "product" in (tmp_path / "plan.yaml").read_text(encoding="utf-8")
    common = ["quantize", str(path), "-r", "int8-weights", "--set", asked, "--no-latency"]
    assert main([*common, "-o", str(tmp_path / "a.onnx")]) == 0
    assert main([*common, "--plan", str(tmp_path / "plan.yaml"), "-o", str(tmp_path / "b.onnx")]) == 0
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


@pytest.mark.parametrize(
    "grid",
    ["{format: {product: {dimensions: 9}}}", "{format: {product: {dimensions: 1}}}", "{format: product, bits: 9}"],
)
def test_recipes_that_ask_for_what_there_is_not_end_with_two(
    grid: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = f"rules=[{{match: {{role: weight}}, grid: {grid}}}]"
    assert main(["plan", str(saved_model(tmp_path)), "-r", "int8-weights", "--set", settings]) == 2
    assert "format 'product'" in (said := capsys.readouterr().err) and "hint: " in said
