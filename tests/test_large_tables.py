"""Tables in blocks in large models: codes are computed as they are written, with the scales as they are stored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from models import assert_equal, node, normal, proto_of, run

from qcli.graph import load_model, on_disk
from qcli.job import QuantizeJob
from qcli.pipeline import quantize
from qcli.runtime import Session

ROWS, SIZE = 200, 64


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A table and a product whose constants lie beside the file."""
    monkeypatch.setattr(on_disk, "LARGE_BYTES", 10_000)
    monkeypatch.setattr(on_disk, "STORED_BYTES", 4_000)
    weights = {"t": normal(0, ROWS, SIZE), "w": normal(1, SIZE, SIZE) / 8}
    proto = proto_of([node("Gather", "t i", "e"), node("MatMul", "e w", "y")], {}, {"y": None}, weights, opset=21)
    proto.graph.input.append(onnx.helper.make_tensor_value_info("i", onnx.TensorProto.INT64, ["n"]))
    path = tmp_path / "m.onnx"
    onnx.save(proto, str(path), save_as_external_data=True, location="m.bin", size_threshold=0)
    return path


@pytest.mark.parametrize("rounding", ["nearest", "hqq"])
@pytest.mark.parametrize("scales", ["float32", "float16", "{bits: 8, group: 2}"])
@pytest.mark.parametrize("encoding", ["weight_only", "{weight_only: {decode: run}}", "matmul_nbits"])
def test_a_large_model_is_quantized_like_a_small_one(model: Path, encoding: str, scales: str, rounding: str) -> None:
    assert load_model(model).large
    grid = f"{{format: uint4, symmetric: false, granularity: block, block: 16, scales: {scales}}}"
    rule = f"{{match: {{role: weight}}, range: minmax, grid: {grid}, encoding: {encoding}, rounding: {rounding}}}"
    output = model.parent / "q.onnx"
    quantize(
        QuantizeJob(model=model, recipe="int8-weights", settings=(f"rules=[{rule}]",), output=output, latency=False)
    )
    ids = {"i": np.array([0, 199, 7, 7])}
    exact = run(load_model(model), ids)["y"]
    found = Session(output).run(ids)["y"]
    assert np.square(found - exact).sum() < 0.02 * np.square(exact).sum()
    assert_equal(run(load_model(output), ids), {"y": found}, tolerance=0.02)
    stored = [tensor for tensor in load_model(output).constants() if tensor.nbytes == ROWS * SIZE // 2]
    assert len(stored) == 1


def test_widths_are_chosen_for_large_models(model: Path) -> None:
    output = model.parent / "q.onnx"
    settings = ("mixed={target_bpw: 6.0, widths: [4, 8]}",)
    report = quantize(QuantizeJob(model=model, recipe="int4-weights", settings=settings, output=output, latency=False))
    assert report.accuracy is not None and (report.accuracy.sqnr or 0) > 15
