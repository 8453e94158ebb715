"""What a target cannot run is refused with a reason and the right exit code, before any work is done."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from models import SAMPLE_MODELS, conv_net, dense_net, node, normal, proto_of, saved, wrapped

from qcli.cli import main
from qcli.errors import QcliError, UnsupportedError, UsageError
from qcli.graph import normalize_graph
from qcli.job import QuantizeJob
from qcli.pipeline import quantize
from qcli.plan import check_plan, make_plan, read_plan
from qcli.recipe import load_recipe
from qcli.tuning.nouns import Limits, TuneJob
from qcli.tuning.work import tune
from qcli.types import Plan

OTHERS = ("onnx-int8", "tensorrt", "qnn", "openvino")


def planned(proto: onnx.ModelProto, preset: str, *settings: str) -> Plan:
    model = wrapped(proto)
    normalize_graph(model)
    return make_plan(model, load_recipe(preset, settings))


def rule(text: str) -> str:
    return f"rules=[{{match: {{{text}}}]"


@pytest.mark.parametrize(
    ("preset", "settings", "word"),
    [
        ("tensorrt", rule("role: input}, grid: {format: uint8, symmetric: false}"), "no kernel for uint8"),
        ("tensorrt", rule("role: input}, grid: {format: int8, symmetric: false}"), "zero points are all 0"),
        ("tensorrt", rule("role: weight}, grid: {format: int8, symmetric: false}"), "zero points are all 0"),
        (
            "tensorrt",
            rule("role: weight}, grid: {format: int4, granularity: channel}"),
            "only in weights that are stored",
        ),
        ("qnn", rule("role: input}, grid: {format: int8}"), "no kernel for int8"),
        ("qnn", rule("role: weight}, grid: {format: uint8, granularity: channel}"), "symmetric int8"),
        ("qnn", rule("role: weight}, grid: {format: int4}"), "no kernel for int4"),
        ("openvino", rule("role: input}, grid: {format: uint16, symmetric: false}"), "no kernel for uint16"),
        ("openvino", rule("role: weight}, grid: {format: int8, symmetric: false}"), "are symmetric"),
        (
            "openvino",
            rule("role: weight}, grid: {format: int4, granularity: channel}"),
            "only in weights that are stored",
        ),
        ("onnx-int8", rule("role: weight}, grid: {format: int6}"), "no kernel for int6"),
    ],
)
def test_grids(preset: str, settings: str, word: str) -> None:
    with pytest.raises(UsageError) as error:
        planned(conv_net(), preset, settings)
    assert word in error.value.message and error.value.hint


@pytest.mark.parametrize("preset", OTHERS)
@pytest.mark.parametrize("encoding", ["dynamic", "matmul_nbits"])
def test_encodings(preset: str, encoding: str) -> None:
    grid = "granularity: block, block: 32" if encoding == "matmul_nbits" else "granularity: channel"
    proto = proto_of([node("MatMul", "x w", "y")], {"x": [4, 64]}, {"y": [4, 64]}, {"w": normal(1, 64, 64)})
    with pytest.raises(UsageError) as error:
        planned(
            proto, preset, rule(f"op: MatMul, role: weight}}, grid: {{format: int8, {grid}}}, encoding: {encoding}")
        )
    assert f"'{encoding}'" in error.value.message


def test_ways_to_decode() -> None:
    text = "op: MatMul, role: weight}, encoding: {weight_only: {decode: load}}"
    proto = proto_of([node("MatMul", "x w", "y")], {"x": [4, 64]}, {"y": [4, 64]}, {"w": normal(1, 64, 64)})
    with pytest.raises(QcliError) as error:
        planned(proto, "tensorrt", rule(text))
    assert "decode: load" in f"{error.value.message} {error.value.hint}"
    assert planned(proto, "openvino", rule(text)).entries[0].encoding == {"weight_only": {"decode": "load"}}


@pytest.mark.parametrize("target", ["onnx", "tensorrt"])
def test_steps_that_make_operators_of_others(target: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match=r"fuse_attention.*com\.microsoft"):
        load_recipe("int8", [f"target={target}"])
    model = SAMPLE_MODELS / "mlp" / "model.onnx"
    assert main(["plan", str(model), "-r", "int8", "--set", f"target={target}"]) == 2
    assert "hint: leave it out of 'prepare'" in capsys.readouterr().err


def test_operators_of_others_in_the_model() -> None:
    proto = dense_net()
    proto.graph.node[2].op_type, proto.graph.node[2].domain = "Gelu", "com.microsoft"
    proto.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    for preset in ("onnx-int8", "tensorrt"):
        with pytest.raises(UnsupportedError, match=r"lacks: com\.microsoft\.Gelu"):
            planned(proto, preset)
    assert planned(proto, "qnn").entries


@pytest.mark.parametrize(("preset", "opset"), [("tensorrt", 24), ("qnn", 22), ("openvino", 23)])
def test_operator_sets_that_are_too_new(preset: str, opset: int, tmp_path: Path) -> None:
    target = load_recipe(preset).target
    path = saved(conv_net(opset=opset + 1), tmp_path / "new.onnx")
    with pytest.raises(UnsupportedError) as error:
        quantize(QuantizeJob(model=path, recipe=preset, random_samples=2, output=tmp_path / "q.onnx"))
    assert f"reads up to {opset}" in error.value.message
    newer = f"target={{{target}: {{opset: {opset + 1}}}}}"
    assert planned(conv_net(opset=opset + 1), preset, newer).entries
    with pytest.raises(UnsupportedError):
        planned(conv_net(opset=17), preset, f"target={{{target}: {{opset: 16}}}}")


def test_grids_that_need_a_newer_operator_set(tmp_path: Path) -> None:
    path = saved(conv_net(), tmp_path / "m.onnx")
    wide = rule("role: input}, grid: {format: uint16, symmetric: false}")
    job = QuantizeJob(
        model=path,
        recipe="qnn",
        settings=(wide, "target={qnn: {opset: 19}}"),
        random_samples=2,
        output=tmp_path / "q.onnx",
    )
    with pytest.raises(UnsupportedError, match="the recipe's grids need opset 21"):
        quantize(job)
    assert main(["plan", str(path), "-r", "qnn", "--set", wide, "--set", "target={qnn: {opset: 19}}"]) == 4


def test_file_versions_that_are_too_new() -> None:
    proto = conv_net()
    proto.ir_version = 13
    with pytest.raises(UnsupportedError, match="IR version 13"):
        planned(proto, "tensorrt")
    assert planned(proto, "onnx-int8").entries and planned(proto, "int8", "prepare=[normalize]").entries


def test_a_plan_that_was_edited(tmp_path: Path) -> None:
    model = wrapped(conv_net())
    normalize_graph(model)
    plan = make_plan(model, load_recipe("int8", ["prepare=[normalize]"]))
    text = tmp_path / "plan.yaml"
    from qcli.plan import plan_text

    text.write_text(plan_text(plan).replace("target: ort_cpu", "target: tensorrt"))
    with pytest.raises(UsageError, match="no kernel for uint8"):
        check_plan(read_plan(text), model)


def test_tune_is_for_this_runtime(tmp_path: Path) -> None:
    folder = SAMPLE_MODELS / "mlp"
    job = TuneJob(
        model=folder / "model.onnx", recipe="tensorrt", calibration=folder / "calib", output=tmp_path / "t.onnx",
        time_limit=1.0, limits=Limits(min_sqnr=20.0), samples=4, cache=False,
    )  # fmt: skip
    with pytest.raises(UsageError, match="is not timed"):
        tune(job)


@pytest.mark.parametrize(
    ("text", "word"),
    [("target={tensorrt: {opset: 3}}", "opset"), ("target={qnn: {isa: x}}", "isa"), ("target=trt", "trt")],
)
def test_options_of_targets(text: str, word: str) -> None:
    with pytest.raises(UsageError, match=word):
        load_recipe("int8-minmax", [text])


@pytest.mark.parametrize("preset", ["codebook8", "fp16"])
def test_tables_and_halves_are_standard_onnx(preset: str, tmp_path: Path) -> None:
    recipe = tmp_path / "there.yaml"
    recipe.write_text(f"version: 1\nextends: {preset}\ntarget: onnx\n")
    output = tmp_path / "out.onnx"
    report = quantize(
        QuantizeJob(model=SAMPLE_MODELS / "cnn" / "model.onnx", recipe=str(recipe), output=output, latency=False)
    )
    assert report.size is not None and report.size.ratio < 0.6
    assert {item.domain for item in onnx.load(output).graph.node} <= {"", "ai.onnx"}
