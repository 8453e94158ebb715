"""Weights of a large model learn from samples, part by part: as if it had been small."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from decoders import SHAPE, count_as_large, decoder_in
from models import node, normal, proto_of

from qcli import by_parts, learn_weight
from qcli.errors import InputError, NothingToDoError, ResourceError
from qcli.graph import load_model
from qcli.job import QuantizeJob
from qcli.pipeline import calibrate_job, quantize
from qcli.report import Report
from qcli.roundings import _quadratic
from qcli.statistics import Statistics
from qcli.types import Array, Deferred
from qcli.watch import Watch

BLOCKS = "{format: int4, granularity: block, block: 32}"


def rule(rounding: str, range_: str = "minmax", grid: str = BLOCKS) -> str:
    match = "{op: MatMul, role: weight}"
    return f"rules=[{{match: {match}, grid: {grid}, rounding: {rounding}, range: {range_}}}]"


class Made(NamedTuple):
    report: Report
    constants: dict[str, Array]


def made(folder: Path, *settings: str, **options: object) -> Made:
    """What becomes of the decoder in `folder`."""
    output = folder / "out" / "q.onnx"
    output.parent.mkdir(exist_ok=True)
    job = {"model": folder / "model.onnx", "recipe": "int8-weights", "calibration": folder / "calib", "output": output}
    report = quantize(QuantizeJob(**{**job, "latency": False, "cache": False, "settings": settings, **options}))  # type: ignore[arg-type]
    return Made(report, {tensor.name or "": np.array(tensor.numpy()) for tensor in load_model(output).constants()})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return decoder_in(tmp_path).parent


def assert_alike(first: dict[str, Array], second: dict[str, Array]) -> None:
    assert first.keys() == second.keys()
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name], err_msg=name)


@pytest.mark.parametrize(
    "settings",
    [
        rule("gptq"),
        rule("{gptq: {refit: 1}}", grid="{format: int4, granularity: channel}"),
        rule("coordinate", "{mse: {weighted: true}}"),
        rule("{gptq: {sequential: false}}", grid="{format: uint4, symmetric: false, granularity: block, block: 16}"),
    ],
)
def test_codes_are_those_of_the_same_model_when_it_is_small(
    folder: Path, settings: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = made(folder, settings)
    count_as_large(monkeypatch)
    large = made(folder, settings)
    assert_alike(small.constants, large.constants)
    assert large.report.warnings == small.report.warnings


def test_learning_pays(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count_as_large(monkeypatch)
    nearest, learned = (made(folder, rule(rounding)).report.accuracy for rounding in ("nearest", "gptq"))
    assert nearest is not None and learned is not None
    assert (learned.sqnr or 0) > (nearest.sqnr or 0) + 1


def test_where_the_whole_may_not_run_its_parts_do(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = made(folder, rule("gptq"))
    count_as_large(monkeypatch)
    tight = made(folder, rule("gptq"), max_memory=60_000)
    assert tight.report.accuracy is None
    assert_alike(free.constants, tight.constants)


def test_the_same_bytes_on_any_number_of_threads(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count_as_large(monkeypatch)
    contents = []
    for threads in (1, 3):
        made(folder, rule("coordinate", "{mse: {weighted: true}}"), threads=threads)
        contents.append({path.name: path.read_bytes() for path in (folder / "out").iterdir()})
    assert contents[0] == contents[1]


def test_rows_of_a_wide_matrix_learn_on_several_threads(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count_as_large(monkeypatch)
    monkeypatch.setattr(learn_weight, "_AT_ONCE", 5_000)
    alone, beside = (made(folder, rule("{gptq: {refit: 1}}"), threads=threads) for threads in (1, 3))
    assert_alike(alone.constants, beside.constants)


def test_weights_with_one_input_share_what_is_computed_of_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Queries, keys and values; gate and up; what the attention mixed; what goes down: four for each layer."""
    count_as_large(monkeypatch)
    computed: list[int] = []
    original = _quadratic.inverse_factor
    monkeypatch.setattr(
        _quadratic, "inverse_factor", lambda products: (computed.append(len(products)), original(products))[1]
    )
    found = made(folder, rule("gptq"))
    assert found.report.plan is not None and found.report.plan.entries > 14
    assert len(computed) == 4 * SHAPE.layers + 1, "and one for the logits"


def test_sequential_roundings_learn_from_the_float_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layer after layer would run the whole model once for each."""
    count_as_large(monkeypatch)
    alone, in_order = (made(folder, rule(f"{{gptq: {{sequential: {word}}}}}")) for word in ("false", "true"))
    assert_alike(alone.constants, in_order.constants)


def test_output_channels_of_a_wide_matrix_learn_some_at_a_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = made(folder, rule("gptq"))
    monkeypatch.setattr(learn_weight, "_AT_ONCE", 5_000)
    parts = made(folder, rule("gptq"))
    differing = sum(int((array != parts.constants[name]).sum()) for name, array in whole.constants.items())
    assert differing <= 1e-3 * sum(array.size for array in whole.constants.values())


@pytest.mark.parametrize("grid", ["{format: int4, granularity: channel}", "{format: int8, granularity: tensor}"])
def test_channels_and_whole_tensors_are_joined_again(folder: Path, grid: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = made(folder, rule("gptq", grid=grid))
    monkeypatch.setattr(learn_weight, "_AT_ONCE", 5_000)
    parts = made(folder, rule("gptq", grid=grid))
    assert_alike({name: array.shape for name, array in whole.constants.items()}, _shapes(parts.constants))  # type: ignore[arg-type]
    assert whole.report.accuracy is not None and parts.report.accuracy is not None
    assert parts.report.accuracy.sqnr == pytest.approx(whole.report.accuracy.sqnr, abs=0.2)


def _shapes(arrays: dict[str, Array]) -> dict[str, object]:
    return {name: array.shape for name, array in arrays.items()}


def test_learned_codes_wait_in_a_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qcli import pipeline
    from qcli.apply import apply_plan as original

    count_as_large(monkeypatch)
    kept: list[object] = []
    spy: Callable[..., object] = lambda *given: (kept.extend(given[2].codes.values()), original(*given))[1]  # noqa: E731
    monkeypatch.setattr(pipeline, "apply_plan", spy)
    made(folder, rule("gptq"))
    large = [codes for codes in kept if getattr(codes, "size", 0) >= 4_000]
    assert len(large) >= 10 and all(isinstance(codes, Deferred) for codes in large)


def test_static_recipes_measure_activations_by_parts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = QuantizeJob(model=folder / "model.onnx", recipe="int8-minmax", calibration=folder / "calib", cache=False)
    small = calibrate_job(job)
    count_as_large(monkeypatch)
    large = calibrate_job(QuantizeJob(**{**_fields(job), "max_memory": 60_000}))
    assert isinstance(large, Statistics) and large.header.samples == small.header.samples == 4
    shared = set(small.header.requests) & set(large.header.requests)
    assert len(shared) > 10
    for request in shared:
        if request.statistic == "extrema":
            first, second = small.get(request).distribution(), large.get(request).distribution()
            np.testing.assert_allclose(first.upper, second.upper, rtol=1e-4, atol=1e-5)


def _fields(job: QuantizeJob) -> dict[str, object]:
    return {name: getattr(job, name) for name in job.__struct_fields__}


def test_nothing_is_left_in_the_temporary_folder(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "tmp"
    place.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(place))
    count_as_large(monkeypatch)
    most = 0
    original = by_parts._Crossing.forget

    def counted(self: by_parts._Crossing, given: object) -> None:
        nonlocal most
        original(self, given)  # type: ignore[arg-type]
        most = max(most, sum(1 for path in place.rglob("*.npy")))

    monkeypatch.setattr(by_parts._Crossing, "forget", counted)
    made(folder, rule("gptq"))
    assert 0 < most <= 4 * 6, "values that no later part reads are deleted"
    assert list(place.iterdir()) == []


# Errors


def test_learning_needs_samples(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count_as_large(monkeypatch)
    with pytest.raises(NothingToDoError, match="samples") as caught:
        made(folder, rule("gptq"), calibration=None)
    assert caught.value.exit_code == 5


def test_a_full_disk_is_said_before_it_is_full(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count_as_large(monkeypatch)
    usage = shutil.disk_usage(folder)._replace(free=1000)
    monkeypatch.setattr(by_parts.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ResourceError, match="between the parts of the model take") as caught:
        made(folder, rule("gptq"))
    assert caught.value.exit_code == 7 and "TMPDIR" in caught.value.hint


def test_too_little_memory_for_a_part_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count_as_large(monkeypatch)
    with pytest.raises(ResourceError, match="--max-memory") as caught:
        made(folder, rule("gptq"), max_memory=20_000)
    assert caught.value.exit_code == 7


def test_a_sample_that_overflows_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnx

    weights = {f"w{index}": normal(index, 64, 64) for index in range(3)}
    nodes = [
        node("MatMul", "x w0", "a"),
        node("Exp", "a", "b"),
        node("MatMul", "b w1", "c"),
        node("MatMul", "c w2", "y"),
    ]
    proto = proto_of(nodes, {"x": ["n", 64]}, {"y": ["n", 64]}, weights)
    path = tmp_path / "model.onnx"
    onnx.save(proto, str(path), save_as_external_data=True, location="m.bin", size_threshold=0)
    (tmp_path / "calib").mkdir()
    np.savez(tmp_path / "calib" / "good.npz", x=np.zeros((1, 64), np.float32))
    np.savez(tmp_path / "calib" / "wild.npz", x=np.full((1, 64), 1e3, np.float32))
    count_as_large(monkeypatch, part=17_000)
    with pytest.raises(InputError, match=r"wild\.npz"):
        made(tmp_path, rule("gptq"), max_memory=60_000)


def test_weights_that_no_sample_reaches_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnx
    from onnx import TensorProto, helper

    then = helper.make_graph([node("MatMul", "h w1", "t")], "then", [], [helper.make_tensor_value_info("t", 1, None)])
    other = helper.make_graph([node("Identity", "h", "u")], "other", [], [helper.make_tensor_value_info("u", 1, None)])
    nodes = [
        node("MatMul", "x w0", "h"),
        helper.make_node("If", ["on"], ["z"], name="/if", then_branch=then, else_branch=other),
        node("Compress", "z keep", "k", axis=0),
        node("MatMul", "k w2", "y"),
    ]
    weights = {f"w{index}": normal(index, 64, 64) / 8 for index in range(3)}
    proto = proto_of(nodes, {"x": ["n", 64]}, {"y": ["m", 64]}, {**weights, "keep": np.zeros(2, np.bool_)})
    proto.graph.input.append(helper.make_tensor_value_info("on", TensorProto.BOOL, []))
    onnx.save(proto, str(tmp_path / "model.onnx"), save_as_external_data=True, location="m.bin", size_threshold=0)
    (tmp_path / "calib").mkdir()
    np.savez(tmp_path / "calib" / "a.npz", x=normal(0, 2, 64), on=np.array(False))
    count_as_large(monkeypatch, part=17_000)
    watch = Watch()
    job = QuantizeJob(
        model=tmp_path / "model.onnx",
        recipe="int8-weights",
        calibration=tmp_path / "calib",
        output=tmp_path / "q.onnx",
        settings=(rule("gptq"),),
        max_memory=60_000,
    )
    quantize(job, watch)
    assert any("no sample reaches them: w2" in warning for warning in watch.warnings)
    assert any("body of another node: w1" in warning for warning in watch.warnings)
