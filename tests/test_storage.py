"""Every byte of a model file is in one place, and in the right one."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from models import SAMPLE_MODELS, node, normal, proto_of, saved
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import convert_model_to_external_data

from qcli.gates import check_gates, evaluate
from qcli.graph import load_model
from qcli.inspect import inspect_model
from qcli.job import QuantizeJob
from qcli.pipeline import quantize
from qcli.report import Report, Size, model_bytes
from qcli.side_by_side import CompareJob, compare_models
from qcli.sizes import Storage
from qcli.storage import read_storage
from qcli.types import Array

PLAIN = "prepare=[normalize]"
FOUR_BITS = "rules=[{match: {role: weight}, grid: {format: int4, granularity: channel}}]"


def total(storage: Storage) -> int:
    by = storage.bytes_by
    parts = (by.scales, by.zero_points, by.tables, by.biases, by.other, by.graph, by.padding)
    return sum(by.weights.values()) + sum(parts)


def stored(path: Path) -> Storage:
    """The storage of a model, whose parts must be all of its bytes."""
    load_model(path)
    storage = read_storage(path)
    assert total(storage) == model_bytes(path)
    assert min(storage.bytes_by.padding, storage.bytes_by.graph) >= 0
    return storage


def model(
    path: Path, nodes: list[onnx.NodeProto], weights: dict[str, Array], *, opset: int = 21, ids: bool = False
) -> Storage:
    proto = proto_of(nodes, {"x": [2, 64]}, {"y": None}, weights, opset=opset)
    if ids:
        proto.graph.input[0].type.tensor_type.elem_type = TensorProto.INT64
    return stored(saved(proto, path))


@pytest.mark.parametrize("name", ["cnn", "gru", "mlp", "transformer"])
def test_float_models(name: str) -> None:
    path = SAMPLE_MODELS / name / "model.onnx"
    storage = stored(path)
    assert set(storage.bytes_by.weights) == {"float32"} and storage.bits_per_weight == 32
    assert storage.bytes_by.biases and not storage.bytes_by.scales and not storage.external_bytes


@pytest.mark.parametrize(
    ("name", "recipe", "settings", "formats"),
    [
        ("cnn", "int8", (PLAIN,), {"int8"}),
        ("gru", "int8-weights", (), {"int8"}),
        ("transformer", "int8-dynamic", (), {"int8"}),
        ("cnn", "int8", (PLAIN, FOUR_BITS), {"int4"}),
        ("mlp", "int8-weights", ("rules=[{match: {role: weight}, grid: {format: int16}}]",), {"int16"}),
    ],
)
def test_quantized_models(name: str, recipe: str, settings: tuple[str, ...], formats: set[str], tmp_path: Path) -> None:
    folder, output = SAMPLE_MODELS / name, tmp_path / "q.onnx"
    job = QuantizeJob(
        model=folder / "model.onnx", recipe=recipe, settings=settings, output=output,
        random_samples=4, latency=False, cache=False,
    )  # fmt: skip
    report = quantize(job)
    storage = stored(output)
    assert set(storage.bytes_by.weights) == formats
    assert storage.bytes_by.scales > 0 and storage.bytes_by.tables == 0
    assert storage.weights == stored(folder / "model.onnx").weights
    assert report.size is not None and report.size.bytes_by == storage.bytes_by
    assert report.size.bits_per_weight == storage.bits_per_weight and report.memory is None
    if formats == {"int8"}:
        assert storage.bits_per_weight is not None and 8 < storage.bits_per_weight < 9.5


def test_blocks_and_their_zero_points(tmp_path: Path) -> None:
    grid = "{format: uint4, granularity: block, block: 32, symmetric: false}"
    rule = f"rules=[{{match: {{op: MatMul, role: weight}}, grid: {grid}"
    for encoding, weights in (("weight_only", 8), ("{weight_only: {decode: run}}", 8), ("matmul_nbits", 8)):
        path = saved(
            proto_of([node("MatMul", "x w", "y")], {"x": [2, 64]}, {"y": None}, {"w": normal(1, 64, 96)}),
            tmp_path / "m.onnx",
        )
        output = tmp_path / "q.onnx"
        settings = (f"{rule}, encoding: {encoding}}}]",)
        quantize(QuantizeJob(model=path, recipe="int8-weights", settings=settings, output=output, latency=False))
        storage = stored(output)
        assert storage.weights == 64 * 96, encoding
        assert storage.bytes_by.weights == {"uint4": 64 * 96 // 2}, encoding
        assert storage.bytes_by.zero_points == 96, encoding
        numbers = 0 if "run" in encoding or "nbits" in encoding else 64 * 4
        assert storage.bytes_by.scales == 2 * 96 * 4 + numbers, encoding
        assert storage.bits_per_weight == weights * (64 * 48 + 96 + 2 * 96 * 4 + numbers) / (64 * 96), encoding


def test_a_table_that_packed_codes_choose_from(tmp_path: Path) -> None:
    codes = np.random.default_rng(0).integers(0, 16, (64, 8)).astype(ml_dtypes.uint4)
    nodes = [
        node("Cast", "codes", "wide", to=TensorProto.INT32),
        node("Gather", "table wide", "levels"),
        node("Mul", "levels steps", "w"),
        node("MatMul", "x w", "y"),
    ]
    weights = {"codes": codes, "table": normal(1, 16), "steps": normal(2, 8)}
    storage = model(tmp_path / "m.onnx", nodes, weights)
    assert storage.bytes_by.weights == {"uint4": 256}
    assert (storage.bytes_by.tables, storage.bytes_by.scales, storage.weights) == (64, 32, 512)
    assert storage.bits_per_weight == 8 * (256 + 64 + 32) / 512


@pytest.mark.parametrize(("preset", "most"), [("ternary", 3.0), ("binary", 2.5)])
def test_a_byte_that_holds_several_codes_counts_as_several_weights(preset: str, most: float, tmp_path: Path) -> None:
    """Else a file of less than two bits a weight would report eight."""
    net = proto_of([node("MatMul", "x w", "y")], {"x": ["n", 301]}, {"y": None}, {"w": normal(0, 301, 301)})
    coarse = f"rules=[{{match: {{role: weight}}, grid: {{format: {preset}, granularity: channel}}}}]"
    job = QuantizeJob(
        model=saved(net, tmp_path / "m.onnx"), recipe=preset, settings=(coarse,), output=tmp_path / "q.onnx",
        latency=False,
    )  # fmt: skip
    quantize(job)
    storage = stored(tmp_path / "q.onnx")
    assert storage.weights is not None and 0 <= storage.weights - 301 * 301 < 8
    assert storage.bits_per_weight is not None and 1 < storage.bits_per_weight < most


def test_rows_of_codes_that_are_decoded_as_the_model_runs(tmp_path: Path) -> None:
    codes = np.zeros((100, 8), np.int8)
    nodes = [
        node("Gather", "codes x", "rows"),
        node("Cast", "rows", "floats", to=TensorProto.FLOAT),
        node("Sub", "floats zero", "centred"),
        node("Mul", "centred steps", "y"),
    ]
    weights = {"codes": codes, "zero": normal(3, 8), "steps": normal(2, 8)}
    storage = model(tmp_path / "m.onnx", nodes, weights, ids=True)
    assert storage.bytes_by.weights == {"int8": 800}
    assert (storage.bytes_by.scales, storage.bytes_by.zero_points) == (32, 32)
    table = [
        node("Gather", "codes x", "rows"),
        node("Cast", "rows", "wide", to=TensorProto.INT64),
        node("Gather", "book wide", "y"),
    ]
    storage = model(tmp_path / "t.onnx", table, {"codes": codes.astype(np.uint8), "book": normal(1, 16)}, ids=True)
    assert (storage.bytes_by.weights, storage.bytes_by.tables) == ({"uint8": 800}, 64)


def test_what_is_read_as_two_things_is_the_first_of_them(tmp_path: Path) -> None:
    both = [node("MatMul", "x w", "h"), node("Add", "h w", "y")]
    storage = model(tmp_path / "m.onnx", both, {"w": normal(1, 64, 64)})
    assert storage.bytes_by.weights == {"float32": 64 * 64 * 4}
    idle = [node("Relu", "x", "y")]
    storage = model(tmp_path / "i.onnx", idle, {"unread": normal(1, 64)})
    assert storage.bytes_by.other == 256 and storage.weights == 0 and storage.bits_per_weight is None


def test_floats_of_other_widths_and_permuted_weights(tmp_path: Path) -> None:
    half = [node("Cast", "w", "wide", to=TensorProto.FLOAT), node("MatMul", "x wide", "y")]
    assert model(tmp_path / "m.onnx", half, {"w": normal(1, 64, 8).astype(np.float16)}).bytes_by.weights == {
        "float16": 1024
    }
    moved = [node("Gather", "w order", "p"), node("MatMul", "x p", "y")]
    storage = model(tmp_path / "p.onnx", moved, {"w": normal(1, 64, 8), "order": np.arange(64)[::-1].copy()})
    assert (storage.bytes_by.weights, storage.bytes_by.other) == ({"float32": 2048}, 512)


def test_numbers_written_one_by_one_constants_in_nodes_bodies_and_functions(tmp_path: Path) -> None:
    typed = helper.make_tensor("w", TensorProto.FLOAT, [64, 8], normal(1, 64, 8).ravel())
    small = helper.make_tensor("c", TensorProto.INT32, [3], [1, -1, 300])
    text = helper.make_tensor("t", TensorProto.STRING, [2], [b"ab", b"cde"])
    inner = helper.make_graph(
        [node("MatMul", "x inside", "z")], "then", [], [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(normal(2, 64, 8), "inside")],
    )  # fmt: skip
    other = helper.make_graph(
        [helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(normal(3, 64, 8))),
         node("MatMul", "x k", "z")],
        "else", [], [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)],
    )  # fmt: skip
    proto = proto_of(
        [node("MatMul", "x w", "a"), node("If", "flag", "b", then_branch=inner, else_branch=other),
         node("Add", "a b", "y")],
        {"x": [2, 64]}, {"y": None},
    )  # fmt: skip
    proto.graph.initializer.extend([typed, small, text, numpy_helper.from_array(np.array(True), "flag")])
    storage = stored(saved(proto, tmp_path / "m.onnx"))
    assert storage.bytes_by.weights == {"float32": 3 * 2048} and storage.weights == 3 * 512
    assert storage.bytes_by.other == (1 + 10 + 2) + 5 + 1


def test_chains_without_end_are_given_up(tmp_path: Path) -> None:
    """A thousand nodes between a constant and its reader, and none of them a weight's."""
    names = ["w", *(f"v{index}" for index in range(1500))]
    nodes = [node("Neg", first, second) for first, second in pairwise(names)]
    storage = model(tmp_path / "m.onnx", [*nodes, node("MatMul", f"x {names[-1]}", "y")], {"w": normal(1, 64, 8)})
    assert storage.bytes_by.weights == {"float32": 2048}


@pytest.fixture
def outside(tmp_path: Path) -> Callable[[bool], Path]:
    def write(raw: bool) -> Path:
        proto = proto_of(
            [node("MatMul", "x w", "h"), node("MatMul", "x v", "g"), node("Add", "h g", "y")],
            {"x": [2, 64]}, {"y": None}, {"w": normal(1, 64, 8), "v": normal(2, 64, 8)},
        )  # fmt: skip
        convert_model_to_external_data(proto, all_tensors_to_one_file=True, location="m.data", size_threshold=0)
        onnx.save(proto, tmp_path / "m.onnx")
        if raw:  # what nobody reads, and two tensors in one place
            (tmp_path / "m.data").write_bytes((tmp_path / "m.data").read_bytes() + bytes(100))
            loaded = onnx.load(tmp_path / "m.onnx", load_external_data=False)
            del loaded.graph.initializer[1].external_data[:]
            loaded.graph.initializer[1].external_data.extend(loaded.graph.initializer[0].external_data)
            saved(loaded, tmp_path / "m.onnx")
        return tmp_path / "m.onnx"

    return write


def test_external_data(outside: Callable[[bool], Path]) -> None:
    storage = stored(outside(False))
    assert storage.bytes_by.weights == {"float32": 4096}
    assert storage.external_bytes == storage.bytes_by.padding + 4096
    storage = stored(outside(True))
    assert storage.bytes_by.weights == {"float32": 2048}
    assert storage.weights == 512 and storage.external_bytes == 2048 + storage.bytes_by.padding
    assert storage.bytes_by.padding >= 2148


def test_a_large_model_that_was_quantized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qcli.graph.save._EMBED_LIMIT", 100)
    output = tmp_path / "q.onnx"
    source = SAMPLE_MODELS / "mlp" / "model.onnx"
    quantize(QuantizeJob(model=source, recipe="int8-weights", output=output, latency=False))
    storage = stored(output)
    assert storage.external_bytes >= 16_384 and storage.bytes_by.weights == {"int8": 17_024}


def test_gates_on_bytes_and_memory(tmp_path: Path) -> None:
    path = SAMPLE_MODELS / "mlp" / "model.onnx"
    output = tmp_path / "q.onnx"
    gates = ("size.bits_per_weight <= 9", "size.bytes_by.weights.int8 == 17024", "size.bytes_by.weights.int4 == 0")
    job = QuantizeJob(
        model=path, recipe="int8-weights", output=output, latency=False, memory=True,
        gates=(*gates, "memory.compressed.peak_mb > 1"),
    )  # fmt: skip
    report = quantize(job)
    assert report.status == "passed"
    assert report.memory is not None and report.memory.float_ is not None
    assert report.memory.float_.peak_mb > report.memory.float_.base_mb
    compared = compare_models(
        CompareJob(float_model=path, compressed=output, evaluation=path.parent / "eval", latency=False, memory=True)
    )
    assert compared.memory is not None and compared.memory.compressed is not None
    assert compared.size is not None and report.size is not None
    assert compared.size.bytes_by == report.size.bytes_by
    size = Size(float_bytes=2, bytes=1, ratio=0.5, bytes_by=read_storage(output).bytes_by)
    zero = Report(command="quantize", size=size)
    assert evaluate(check_gates(("size.bytes_by.weights.int4 < 1",)), zero)[0].passed


def test_inspect_tells_parts_and_memory() -> None:
    seen = inspect_model(SAMPLE_MODELS / "cnn" / "model.onnx", memory=True)
    assert seen.memory is not None and seen.memory.peak_mb > 1
    assert seen.bytes_by.graph > 0 and seen.weights == 56_608
    assert inspect_model(SAMPLE_MODELS / "cnn" / "model.onnx").memory is None


@pytest.mark.zoo
@pytest.mark.skipif("QCLI_ZOO" not in os.environ, reason="QCLI_ZOO is not set")
def test_real_models() -> None:
    found = sorted(Path(os.environ["QCLI_ZOO"]).glob("*/model.onnx"))
    assert found
    for path in found:
        storage = stored(path)
        assert storage.weights and storage.bytes_by.graph > 0, path
