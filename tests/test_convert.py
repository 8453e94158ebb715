"""`convert`: which operators compute in 16 bits, what the result computes, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import Stream, conv_net, feeds_for, node, normal, operators, proto_of, run, sample_model, saved, wrapped
from onnx import TensorProto, helper, numpy_helper

from qcli.conversion import KEPT_BY_DEFAULT, Convert
from qcli.convert import Converted, Evidence, convert_model
from qcli.errors import NothingToDoError, UnsupportedError, UsageError
from qcli.graph import Model, load_model, normalize_graph, operator_names
from qcli.job import QuantizeJob
from qcli.pipeline import quantize
from qcli.recipe import load_recipe
from qcli.report import Report
from qcli.types import Array

FLOAT16 = Convert(to="float16")
HALF = 2.0**-11
SAMPLES = Path(__file__).parent.parent / "sample_models"


def model_of(proto: onnx.ModelProto) -> Model:
    model = wrapped(proto)
    normalize_graph(model)
    return model


def chain(nodes: list[onnx.NodeProto], weights: dict[str, Array] | None = None, width: int = 8) -> Model:
    """A model from x [n, width] to y."""
    return model_of(proto_of(nodes, {"x": ["n", width]}, {"y": None}, weights or {}))


def converted(model: Model, convert: Convert = FLOAT16, *samples: Array, **kept: str) -> Converted:
    stream = Stream(tuple({"x": sample} for sample in samples))
    return convert_model(model, convert, kept, Evidence(model, stream) if samples else None)


def reasons(result: Converted) -> dict[str, str]:
    return {kept.node: kept.reason for kept in result.facts.kept_float}


def in_float16(result: Converted) -> set[str]:
    return set(result.nodes)


def types_of(model: Model) -> tuple[list[str], list[str]]:
    """The types of inputs and outputs."""
    proto = model.proto()
    names = {TensorProto.FLOAT: "float32", TensorProto.FLOAT16: "float16"}
    return tuple(  # type: ignore[return-value]
        [names[value.type.tensor_type.elem_type] for value in values]
        for values in (proto.graph.input, proto.graph.output)
    )


WEIGHTS = {"w1": normal(0, 8, 8), "w2": normal(1, 8, 8), "b": normal(2, 8)}


def test_a_network_computes_in_float16_between_two_casts() -> None:
    source = model_of(conv_net())
    result = convert_model(source, FLOAT16, {}, None)
    assert operators(result.model)[0] == operators(result.model)[-1] == "Cast"
    assert operators(result.model).count("Cast") == 2 and not result.facts.kept_float
    assert {t.data_type for t in result.model.proto().graph.initializer} == {TensorProto.FLOAT16}
    onnx.checker.check_model(result.model.proto())
    feeds = feeds_for(source)
    np.testing.assert_allclose(run(result.model, feeds)["y"], run(source, feeds)["y"], rtol=0, atol=0.02)
    assert operators(source)[0] == "Conv", "the model that was given stays as it is"


def test_inputs_and_outputs_are_converted_on_demand() -> None:
    result = convert_model(model_of(conv_net()), Convert(to="float16", io="convert"), {}, None)
    assert "Cast" not in operators(result.model)
    assert types_of(result.model) == (["float16"], ["float16"])
    assert types_of(convert_model(model_of(conv_net()), FLOAT16, {}, None).model) == (["float32"], ["float32"])


def test_operators_of_the_list_stay_in_float32_between_casts() -> None:
    nodes = [node("MatMul", "x w1", "a"), node("Softmax", "a", "s"), node("MatMul", "s w2", "y")]
    result = converted(chain(nodes, WEIGHTS))
    assert in_float16(result) == {"a", "y"}
    assert reasons(result)["s"] == KEPT_BY_DEFAULT["Softmax"]
    assert operators(result.model) == ["Cast", "MatMul", "Cast", "Softmax", "Cast", "MatMul", "Cast"]
    whole = converted(chain(nodes, WEIGHTS), Convert(to="float16", keep=()))
    assert in_float16(whole) == {"a", "s", "y"} and operators(whole.model).count("Cast") == 2
    more = converted(chain(nodes, WEIGHTS), Convert(to="float16", keep=("default", "MatMul")))
    assert not more.nodes and reasons(more)["a"] == "convert.keep names it"


def test_the_default_list_names_operators_that_exist() -> None:
    assert set(KEPT_BY_DEFAULT) <= operator_names()


def test_a_constant_beyond_the_range_keeps_its_node_and_what_reads_it() -> None:
    nodes = [node("MatMul", "x w1", "a"), node("Add", "a m", "c"), node("Relu", "c", "r"), node("MatMul", "r w2", "y")]
    weights = {**WEIGHTS, "m": np.array([0, -3e38] * 4, np.float32)}
    result = converted(chain(nodes, weights))
    assert in_float16(result) == {"a", "y"}
    assert reasons(result)["c"] == "its constant 'm' reaches 3e+38, beyond float16"
    assert reasons(result)["r"].startswith("it reads what '/c' gives, which has a constant beyond")


def test_a_constant_that_is_too_small_keeps_its_node() -> None:
    nodes = [node("MatMul", "x w1", "a"), node("Add", "a e", "c"), node("MatMul", "c w2", "y")]
    result = converted(chain(nodes, {**WEIGHTS, "e": np.array(1e-12, np.float32)}))
    assert reasons(result) == {"c": "its constant 'e' is at most 1e-12, which float16 cannot hold well"}


def test_infinite_masks_are_no_overflow() -> None:
    nodes = [node("MatMul", "x w1", "a"), node("Add", "a m", "c"), node("MatMul", "c w2", "y")]
    mask = np.array([0, -np.inf] * 4, np.float32)
    assert in_float16(converted(chain(nodes, {**WEIGHTS, "m": mask}))) == {"a", "c", "y"}


def test_values_beyond_the_range_in_the_samples_stay_in_float32() -> None:
    nodes = [node("MatMul", "x w1", "a"), node("Mul", "a k", "m"), node("Mul", "m s", "c"), node("MatMul", "c w2", "y")]
    weights = {**WEIGHTS, "k": np.array(3e4, np.float32), "s": np.array(1e-3, np.float32)}
    unseen = converted(chain(nodes, weights))
    assert in_float16(unseen) == {"a", "m", "c", "y"} and unseen.facts.samples is unseen.facts.sqnr is None
    seen = converted(chain(nodes, weights), FLOAT16, normal(7, 4, 8), normal(8, 4, 8))
    assert in_float16(seen) == {"a", "y"} and seen.facts.samples == 2
    assert reasons(seen)["m"].startswith("'m' reaches ") and reasons(seen)["c"] == reasons(seen)["m"]
    assert seen.facts.sqnr is not None and seen.facts.sqnr > 50
    feeds = {"x": normal(9, 4, 8)}
    assert np.isfinite(run(seen.model, feeds)["y"]).all()


def test_room_is_left_for_other_samples() -> None:
    nodes = [node("Mul", "x k", "m"), node("MatMul", "m w1", "y")]
    model = chain(nodes, {**WEIGHTS, "k": np.array(4e4, np.float32)})
    result = converted(model, FLOAT16, np.eye(8, dtype=np.float32))
    assert reasons(result)["m"] == "'m' reaches 4e+04 in the samples, beyond half of what float16 holds"


def test_an_input_beyond_the_range_cannot_be_converted() -> None:
    model = chain([node("MatMul", "x w1", "y")], WEIGHTS)
    with pytest.raises(UnsupportedError, match=r"'x' reaches 1e.05 in the samples") as caught:
        converted(model, Convert(to="float16", io="convert"), np.full((1, 8), 1e5, np.float32))
    assert "convert.io=keep" in caught.value.hint


def test_what_becomes_infinite_by_rounding_stays_in_float32() -> None:
    """1 / (1 - x) with x so near to 1 that it is 1 in float16."""
    nodes = [
        node("Relu", "x", "r"), node("Sub", "one r", "d"), node("Div", "one d", "q"), node("MatMul", "q w1", "y"),
    ]  # fmt: skip
    model = chain(nodes, {**WEIGHTS, "one": np.array(1, np.float32)})
    near = np.full((1, 8), 1 - 2.0**-13, np.float32)
    result = converted(model, FLOAT16, near)
    assert reasons(result)["q"] == "'q' is Inf or NaN in 16 bits"
    assert np.isfinite(run(result.model, {"x": near})["y"]).all()


def test_a_rule_keeps_a_node(tmp_path: Path) -> None:
    result = converted(chain([node("MatMul", "x w1", "a"), node("MatMul", "a w2", "y")], WEIGHTS), FLOAT16, a="so")
    assert in_float16(result) == {"y"} and reasons(result) == {"a": "so"}
    report, _ = converted_file(conv_net(), tmp_path, settings=("rules=[{match: {op: Gemm}, keep: float}]",))
    assert report.conversion is not None
    assert [kept.reason for kept in report.conversion.kept_float] == ["--set rules[0] keeps it float"]


def test_sizes_are_computed_as_before() -> None:
    """A reshape to sizes that go through floats, which float16 would round."""
    nodes = [
        node("MatMul", "x w1", "a"), node("Shape", "a", "s"), node("Cast", "s", "f", to=1), node("Mul", "f one", "g"),
        node("Cast", "g", "i", to=7), node("Reshape", "a i", "t"), node("MatMul", "t w2", "y"),
    ]  # fmt: skip
    result = converted(chain(nodes, {**WEIGHTS, "one": np.array(1, np.float32)}))
    assert in_float16(result) == {"a", "t", "y"} and not result.facts.kept_float
    feeds = {"x": np.ones((2051, 8), np.float32)}
    assert run(result.model, feeds)["y"].shape == (2051, 8)


def test_whole_numbers_stay_whole() -> None:
    nodes = [node("Cast", "i", "f", to=1), node("Add", "f one", "g"), node("MatMul", "g w1", "y")]
    proto = proto_of(nodes, {}, {"y": None}, {**WEIGHTS, "one": np.array(1, np.float32)})
    proto.graph.input.append(helper.make_tensor_value_info("i", TensorProto.INT64, ["n", 8]))
    result = convert_model(model_of(proto), FLOAT16, {}, None)
    assert in_float16(result) == {"y"} and reasons(result)["g"].startswith("it reads whole numbers")


def test_bodies_stay_in_float32_and_read_what_lies_outside() -> None:
    body = helper.make_graph([node("Relu", "a", "t")], "then", [], [helper.make_empty_tensor_value_info("t")])
    other = helper.make_graph([node("Neg", "a", "e")], "else", [], [helper.make_empty_tensor_value_info("e")])
    nodes = [
        node("MatMul", "x w1", "a"), node("If", "c", "q", then_branch=body, else_branch=other),
        node("MatMul", "q w2", "y"),
    ]  # fmt: skip
    proto = proto_of(nodes, {"x": ["n", 8]}, {"y": ["n", 8]}, WEIGHTS)
    proto.graph.initializer.append(numpy_helper.from_array(np.array(True), "c"))
    source = model_of(proto)
    result = convert_model(source, FLOAT16, {}, None)
    assert in_float16(result) == {"a", "y"} and reasons(result)["q"] == "the bodies of If stay in float32"
    feeds = feeds_for(source)
    np.testing.assert_allclose(run(result.model, feeds)["y"], run(source, feeds)["y"], atol=0.1)


def test_weights_stored_in_float16_lose_their_casts(tmp_path: Path) -> None:
    report, model = converted_file(conv_net(channels=16), tmp_path)
    assert operators(model).count("Cast") == 2 and report.plan is not None and report.plan.entries > 0
    assert report.size is not None and report.size.ratio < 0.8


def test_a_layer_that_stays_in_float32_keeps_its_stored_weight(tmp_path: Path) -> None:
    report, model = converted_file(conv_net(channels=16), tmp_path, settings=("convert.keep=[Conv]",))
    kinds = {t.data_type for t in model.proto().graph.initializer if len(t.dims) == 4}
    assert TensorProto.FLOAT16 in kinds and report.conversion is not None and report.conversion.nodes > 0


def converted_file(
    proto: onnx.ModelProto, folder: Path, recipe: str = "fp16", settings: tuple[str, ...] = (), **options: Any
) -> tuple[Report, Model]:
    path = saved(proto, folder / "m.onnx")
    job = QuantizeJob(
        model=path,
        recipe=recipe,
        output=folder / "o.onnx",
        settings=("convert.to=float16", *settings),
        latency=False,
        cache=False,
        threads=1,
        **options,
    )
    return quantize(job), load_model(folder / "o.onnx")


def test_the_result_is_validated_whatever_its_inputs(tmp_path: Path) -> None:
    report, model = converted_file(conv_net(), tmp_path, settings=("convert.io=convert",))
    assert types_of(model) == (["float16"], ["float16"])
    assert report.accuracy is not None and report.accuracy.sqnr is not None and report.accuracy.sqnr > 45
    assert report.conversion is not None and report.conversion.samples is None
    assert any("no samples: whether the values stay within the range of float16" in text for text in report.warnings)
    assert report.kernels is not None
    assert {kept.reason for kept in report.kernels.kept_float} == {"it computes in float16"}


@pytest.mark.parametrize("name", ["cnn", "transformer", "gru"])
def test_sample_models_on_their_samples(name: str, tmp_path: Path) -> None:
    folder = SAMPLES / name
    proto = onnx.load(folder / "model.onnx")
    setting = () if name != "cnn" else ("samples.calibration.preprocess={preset: unit, channels: gray}",)
    report, _ = converted_file(
        proto, tmp_path, settings=setting, calibration=folder / "calib", evaluation=folder / "eval", samples=8
    )
    assert report.conversion is not None and report.conversion.samples == 8 and report.conversion.nodes > 1
    assert report.conversion.sqnr is not None and report.conversion.sqnr > 40
    assert report.accuracy is not None and report.accuracy.sqnr is not None and report.accuracy.sqnr > 40


def test_a_plan_without_entries_is_enough(tmp_path: Path) -> None:
    recipe = tmp_path / "own.yaml"
    recipe.write_text("{version: 1, prepare: [normalize], convert: {to: float16}}")
    report, model = converted_file(conv_net(), tmp_path, recipe=str(recipe))
    assert report.plan is not None and report.plan.entries == 0
    assert {t.data_type for t in model.proto().graph.initializer} == {TensorProto.FLOAT16}


def test_integers_and_float16_in_one_model(tmp_path: Path) -> None:
    folder = SAMPLES / "cnn"
    proto = onnx.load(folder / "model.onnx")
    report, model = converted_file(
        proto,
        tmp_path,
        recipe="int8",
        settings=("samples.calibration.preprocess={preset: unit, channels: gray}",
                  "rules=[{match: {op: Gemm, role: [input, weight]}, keep: float}]", "convert.keep=[]"),
        calibration=folder / "calib",
        samples=8,
    )  # fmt: skip
    assert report.kernels is not None and report.kernels.integer > 0
    assert "QuantizeLinear" in operators(model)


def test_no_operator_to_convert_is_nothing_to_do(tmp_path: Path) -> None:
    recipe = tmp_path / "own.yaml"
    recipe.write_text("{version: 1, convert: {to: float16, keep: [default, MatMul]}}")
    proto = proto_of([node("MatMul", "x w1", "y")], {"x": [2, 8]}, {"y": [2, 8]}, WEIGHTS)
    with pytest.raises(NothingToDoError, match="no operator of this model can compute in float16") as caught:
        converted_file(proto, tmp_path, recipe=str(recipe))
    assert caught.value.hint == "MatMul: convert.keep names it"


def test_bfloat16_without_kernels_is_refused_or_stored(tmp_path: Path) -> None:
    proto = conv_net(channels=16, opset=22)
    with pytest.raises(UnsupportedError, match="has no bfloat16 kernel for Conv, Relu, Clip, Add, MaxPool and 2 more"):
        converted_file(proto, tmp_path, recipe="bf16", settings=("convert.to=bfloat16",))
    settings = ("convert.to=bfloat16", "convert.without_kernel=keep")
    report, model = converted_file(proto, tmp_path, recipe="bf16", settings=settings)
    assert any("no operator computes in bfloat16, weights are stored" in text for text in report.warnings)
    assert TensorProto.BFLOAT16 in {t.data_type for t in model.proto().graph.initializer}


def test_an_old_operator_set_is_raised(tmp_path: Path) -> None:
    proto = proto_of([node("MatMul", "x w1", "y")], {"x": [2, 8]}, {"y": [2, 8]}, WEIGHTS, opset=9)
    _, model = converted_file(proto, tmp_path)
    assert model.opset == 13


@pytest.mark.parametrize(
    ("setting", "problem", "hint"),
    [
        ("convert.to=flaot16", "convert.to: unknown 'flaot16'", "did you mean 'float16'?"),
        ("convert={to: float16, io: kep}", "convert.io: unknown 'kep'", "did you mean 'keep'?"),
        ("convert={to: float16, keep: [Sofmax]}", "no operator is called 'Sofmax'", "did you mean 'Softmax'?"),
        ("convert={to: float16, keep: [qqqqq]}", "no operator is called 'qqqqq'", "'qcli inspect' lists the operators"),
        ("convert={to: float16, without_kernel: refus}", "without_kernel: unknown 'refus'", "did you mean 'refuse'?"),
        ("convert={io: keep, keep: []}", "there is no type to compute in", "add 'to: float16'"),
        ("convert={too: float16}", "unknown key 'too'", "did you mean 'to'?"),
    ],
)
def test_what_is_wrong_in_a_recipe_is_named(setting: str, problem: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_recipe("fp16", [setting])
    assert problem in caught.value.message and hint in caught.value.hint


def test_keys_add_up_and_an_empty_one_switches_off(tmp_path: Path) -> None:
    base = tmp_path / "base.yaml"
    base.write_text("{version: 1, extends: fp16, convert: {to: float16, io: convert}}")
    recipe = load_recipe(str(base), ["convert.keep=[Conv]"])
    assert recipe.convert == Convert(to="float16", io="convert", keep=("Conv",))
    assert recipe.origins["convert.to"] == "base.yaml" and recipe.origins["convert.keep"] == "--set"
    assert load_recipe(str(base), ["convert={}"]).convert is None


def test_it_does_not_depend_on_threads() -> None:
    model = sample_model("transformer")
    stream = Stream(tuple(feeds_for(model, seed) for seed in range(3)))
    results = [convert_model(model, FLOAT16, {}, Evidence(model, stream, threads)) for threads in (1, 2)]
    assert results[0].facts == results[1].facts and results[0].model.serialize() == results[1].model.serialize()


ELEMENTWISE = st.lists(st.sampled_from(["Relu", "Neg", "Abs", "Tanh", "Sigmoid", "Transpose"]), max_size=5)


@settings(deadline=None, max_examples=12)
@given(before=ELEMENTWISE, after=ELEMENTWISE, kept=st.sets(st.sampled_from(["Relu", "Tanh", "Neg"])), io=st.booleans())
def test_any_chain_computes_the_same_up_to_rounding(
    before: list[str], after: list[str], kept: set[str], io: bool
) -> None:
    """Each of a dozen operators adds at most half a step of what is at most 8 here."""
    value, nodes = "x", []
    for index, operator in enumerate([*before, "MatMul", *after]):
        reads = f"{value} w" if operator == "MatMul" else value
        nodes.append(node(operator, reads, f"v{index}"))
        value = f"v{index}"
    weights = {"w": normal(3, 8, 8) / 4}
    source = model_of(proto_of(nodes, {"x": [8, 8]}, {value: [8, 8]}, weights))
    convert = Convert(to="float16", keep=tuple(sorted(kept)), io="convert" if io else "keep")
    result = convert_model(source, convert, {}, None)
    onnx.checker.check_model(result.model.proto())
    feeds = feeds_for(source)
    exact, found = run(source, feeds)[value], run(result.model, feeds)[value].astype(np.float32)
    assert np.abs(exact - found).max() <= 12 * 8 * HALF
    assert types_of(result.model)[0] == (["float16"] if io else ["float32"])
