"""Scales as AIMET writes them: what can be computed from the file is what the model computes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from models import SAMPLE_MODELS, conv_net, node, normal, proto_of, quantized_of, saved
from onnx import numpy_helper

from qcli.aimet import Version, encodings_json
from qcli.cli import main
from qcli.errors import UsageError
from qcli.job import QuantizeJob
from qcli.pipeline import quantize


def document(recipe: str = "int8-minmax", version: Version = "1.0.0", *settings: str) -> dict[str, Any]:
    made = quantized_of(conv_net(), recipe, settings=settings)
    found: dict[str, Any] = json.loads(encodings_json(made.plan, made.solution, version))
    assert found["version"] == version
    return found


def by_name(entries: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    named = {entry["name"]: entry for entry in entries}
    assert len(named) == len(entries)
    return named


@pytest.mark.parametrize("recipe", ["int8-minmax", "tensorrt", "qnn"])
def test_every_scale_of_the_model_is_there(recipe: str) -> None:
    made = quantized_of(conv_net(), recipe)
    found = json.loads(encodings_json(made.plan, made.solution))
    listed = {*by_name(found["activation_encodings"]), *by_name(found["param_encodings"])}
    assert listed == {entry.site.value for entry in made.plan.entries}
    assert by_name(found["param_encodings"]).keys() >= {"w1", "w2", "w3", "w4"}
    assert ("b1" in by_name(found["param_encodings"])) is (recipe != "tensorrt")


def test_entries_of_each_kind() -> None:
    found = document()
    weight = by_name(found["param_encodings"])["w1"]
    assert (weight["enc_type"], weight["bw"], weight["is_sym"], weight["dtype"]) == ("PER_CHANNEL", 8, True, "INT")
    assert len(weight["scale"]) == len(weight["offset"]) == 8 and set(weight["offset"]) == {-128}
    bias = by_name(found["param_encodings"])["b1"]
    assert bias["bw"] == 32 and set(bias["offset"]) == {-(2**31)}
    image = by_name(found["activation_encodings"])["x"]
    assert (image["enc_type"], image["bw"], image["is_sym"]) == ("PER_TENSOR", 8, False)
    assert len(image["scale"]) == 1 and -255 <= image["offset"][0] <= 0


def test_weights_decoded_by_the_file_are_those_of_the_model() -> None:
    """real = (code + offset) * scale, codes counted from 0."""
    made = quantized_of(conv_net(), "int8-minmax")
    weight = by_name(json.loads(encodings_json(made.plan, made.solution))["param_encodings"])["w4"]
    key = next(key for key in made.solution.codes if key[0] == "y" and key[1] == "weight")
    codes, scale = np.asarray(made.solution.codes[key]), made.solution.scales[key]
    counted = codes.astype(np.int64) + 128
    real = (counted + np.array(weight["offset"])[:, None]) * np.array(weight["scale"])[:, None]
    np.testing.assert_allclose(real, codes * scale.scale[:, None], rtol=1e-6)


@pytest.mark.parametrize("form", ["int4", "uint4", "int7", "uint16"])
def test_other_widths(form: str) -> None:
    bits = int(form.strip("uint"))
    setting = f"rules=[{{match: {{role: input}}, grid: {{format: {form}, symmetric: {str(form[0] == 'i').lower()}}}}}]"
    image = by_name(document("int8-minmax", "1.0.0", setting)["activation_encodings"])["x"]
    assert image["bw"] == bits and image["is_sym"] is (form[0] == "i")
    assert -(2**bits) < image["offset"][0] <= 0
    assert form[0] == "u" or image["offset"] == [-(2 ** (bits - 1))]


def test_the_older_version() -> None:
    old, new = document("int8-minmax", "0.6.1"), document()
    assert old["activation_encodings"].keys() == by_name(new["activation_encodings"]).keys()
    channels = old["param_encodings"]["w1"]
    assert len(channels) == 8
    for number, channel in enumerate(channels):
        assert set(channel) == {"bitwidth", "dtype", "is_symmetric", "max", "min", "offset", "scale"}
        assert (channel["bitwidth"], channel["dtype"], channel["is_symmetric"]) == (8, "int", "True")
        assert channel["scale"] == by_name(new["param_encodings"])["w1"]["scale"][number]
        assert channel["max"] == pytest.approx(127 * channel["scale"]) and channel["min"] == -channel["max"]
    image = old["activation_encodings"]["x"][0]
    assert image["min"] == pytest.approx(image["offset"] * image["scale"])
    assert image["max"] == pytest.approx((255 + image["offset"]) * image["scale"])


BLOCKS = "rules=[{match: {role: weight}, grid: {format: int4, granularity: block, block: 32}}]"


def test_blocks(tmp_path: Path) -> None:
    proto = proto_of([node("MatMul", "x w", "y")], {"x": [4, 64]}, {"y": [4, 64]}, {"w": normal(1, 64, 64)})
    made = quantized_of(proto, "int8-weights", settings=[BLOCKS])
    weight = json.loads(encodings_json(made.plan, made.solution))["param_encodings"][0]
    assert (weight["enc_type"], weight["block_size"], weight["bw"]) == ("PER_BLOCK", 32, 4)
    assert len(weight["scale"]) == len(weight["offset"]) == 2 * 64
    with pytest.raises(UsageError, match=r"0\.6\.1"):
        encodings_json(made.plan, made.solution, "0.6.1")
    path, output = saved(proto, tmp_path / "m.onnx"), tmp_path / "q.onnx"
    job = QuantizeJob(
        model=path, recipe="int8-weights", settings=(BLOCKS,), output=output, encodings=tmp_path / "e.json",
        encodings_version="0.6.1",
    )  # fmt: skip
    with pytest.raises(UsageError, match=r"0\.6\.1"):
        quantize(job)
    assert not output.exists() and not (tmp_path / "e.json").exists()


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = str(SAMPLE_MODELS / "mlp" / "model.onnx")
    output, file = tmp_path / "q.onnx", tmp_path / "scales.json"
    given = ["quantize", source, "-r", "int8-minmax", "--random-samples", "4", "--no-latency", "-o", str(output)]
    assert main([*given, "--encodings", str(file)]) == 0
    found = json.loads(file.read_bytes())
    known = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(output).graph.initializer}
    for entry in (*found["activation_encodings"], *found["param_encodings"]):
        stored = known[f"{entry['name']}_scale"]
        np.testing.assert_array_equal(np.float32(entry["scale"]), stored.reshape(-1))
    assert main([*given, "--encodings", str(output)]) == 2
    assert main([*given, "--encodings", str(file), "--encodings-version", "3"]) == 2
    assert "1.0.0 or 0.6.1" in capsys.readouterr().err
    file.unlink()
    failing = [*given, "--encodings", str(file), "--gate", "size.ratio < 0.01"]
    assert main(failing) == 1 and not file.exists()
    assert main([*failing, "--keep-failing"]) == 1 and file.exists()


@pytest.mark.parametrize("grid", ["format: codebook", "format: {product: {dimensions: 2}}, bits: 4"])
def test_places_in_a_table_are_left_out(grid: str) -> None:
    """The format has no form for levels that are not evenly spaced, nor for vectors."""
    found = document("int8-minmax", "1.0.0", f"rules=[{{match: {{op: Gemm, role: weight}}, grid: {{{grid}}}}}]")
    assert "w4" not in by_name(found["param_encodings"]) and "w1" in by_name(found["param_encodings"])
