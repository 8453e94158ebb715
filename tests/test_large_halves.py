"""Weights in 16 bits, and computing in them, where the weights of the model lie in files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from models import feeds_for, node, normal, proto_of, run

from qcli.graph import load_model, on_disk
from qcli.job import QuantizeJob
from qcli.pipeline import quantize

SIZE = 64


@pytest.mark.parametrize("settings", [(), ("convert.to=float16",)])
def test_a_large_model_becomes_what_a_small_one_does(
    settings: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = {f"w{index}": normal(index, SIZE, SIZE) / 8 for index in range(4)}
    names = ["x", "h0", "h1", "h2", "y"]
    nodes = [node("MatMul", f"{names[index]} w{index}", names[index + 1]) for index in range(4)]
    proto = proto_of(nodes, {"x": ["n", SIZE]}, {"y": ["n", SIZE]}, weights)
    path = tmp_path / "m.onnx"
    onnx.save(proto, str(path), save_as_external_data=True, location="m.bin", size_threshold=0)
    results = []
    for limit in (10_000, 1 << 30):
        monkeypatch.setattr(on_disk, "LARGE_BYTES", limit)
        monkeypatch.setattr(on_disk, "STORED_BYTES", 4_000)
        output = tmp_path / f"{limit}" / "o.onnx"
        output.parent.mkdir()
        report = quantize(QuantizeJob(model=path, recipe="fp16", output=output, settings=settings, latency=False))
        assert report.size is not None and report.size.ratio < 0.55
        assert report.accuracy is not None and (report.accuracy.sqnr or 0) > 50
        written = load_model(output)
        assert written.large is (limit == 10_000)
        results.append(run(written.serialize(), feeds_for(written))["y"])
    np.testing.assert_array_equal(*results)
