"""The errors that grids make in what reads a value, against the same computed by running the model on both."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from models import Feeds, Stream, assert_equal, node, normal, proto_of, run, wrapped

from qcli.graph import Model, infer_shapes, node_key
from qcli.plugins import create
from qcli.trial import output_errors, relative_errors
from qcli.trial_graph import Trial, laid_out
from qcli.types import Array, Grid, Interval, Scale

GRID = Grid(format="uint8", symmetric=False)


def scales(*ends: float) -> tuple[Scale, ...]:
    """Grids that span plus and minus each of `ends`."""
    format_ = create("formats", "uint8")
    return tuple(format_.scale(Interval(lower=np.full(1, -end), upper=np.full(1, end)), GRID) for end in ends)


def on_grid(values: Array, scale: Scale) -> Array:
    format_ = create("formats", "uint8")
    return np.asarray(format_.decode(format_.encode(values, scale), scale))


def loaded(proto: onnx.ModelProto) -> Model:
    model = wrapped(proto)
    infer_shapes(model)
    return model


def trial_of(model: Model, value: str, *ends: float) -> Trial:
    found = next(item for item in model.graph.inputs if item.name == value)
    return Trial(value, scales(*ends), tuple((node_key(reader), operand) for reader, operand in found.uses()))


WEIGHTS: dict[str, Array] = {
    "c": normal(0, 6, 4, 3, 3) / 6, "b": normal(1, 6), "t": normal(2, 4, 5, 2, 2) / 4, "g": normal(3, 36, 5) / 6,
    "gt": normal(4, 5, 36) / 6, "m": normal(5, 6, 7) / 3,
    "zero": np.array(0, np.float32), "six": np.array(1, np.float32),
    "flat": np.array([0, -1], np.int64), "d": normal(6, 4, 1, 3, 3) / 3, "v": normal(7, 6) / 3,
}  # fmt: skip

CASES = {
    "conv": ([node("Conv", "x c b", "y", pads=[1, 1, 1, 1])], [2, 4, 6, 6]),
    "depthwise": ([node("Conv", "x d", "y", group=4)], [1, 4, 6, 6]),
    "transposed": ([node("ConvTranspose", "x t", "y")], [2, 4, 6, 6]),
    "gemm": ([node("Gemm", "x gt b2", "y", transB=1, alpha=0.5)], [3, 36]),
    "matmul": ([node("MatMul", "x m", "y")], [2, 5, 6]),
    "matmul with a vector": ([node("MatMul", "x v", "y")], [5, 6]),
    "matmul of a vector": ([node("MatMul", "x m", "y")], [6]),
    "through relu and pooling": (
        [node("Relu", "x", "r"), node("MaxPool", "r", "p", kernel_shape=[2, 2]), node("Conv", "p c b", "y")],
        [2, 4, 6, 6],
    ),
    "through clip and reshape": (
        [node("Clip", "x zero six", "r"), node("Reshape", "r flat", "f"), node("Gemm", "f g", "y")],
        [0, 4, 3, 3],
    ),
    "through a join": ([node("Sigmoid", "o", "s"), node("Concat", "x s", "j", axis=1), node("Conv", "j c8", "y")],
                       [1, 4, 5, 5]),
    "no layer": ([node("Relu", "x", "y")], [2, 3]),
    "what is not known": ([node("Softmax", "x", "y")], [2, 3]),
}  # fmt: skip


def test_grids_of_fewer_bits_stop_at_their_own_levels() -> None:
    model, samples = two_layers()
    format_ = create("formats", "uint8")
    grid = Grid(format="uint8", symmetric=False, bits=4)
    few = format_.scale(Interval(lower=np.full(1, -1.0), upper=np.full(1, 1.0)), grid)
    trial = trial_of(model, "x", 1.0)
    found = relative_errors(model, [Trial("x", (few,), trial.readers)], feeds_of(samples))[0]
    assert found is not None
    power = sum(float((feeds["x"].astype(np.float64) ** 2).sum()) for feeds in samples)
    noise = sum(float(((on_grid(feeds["x"], few).astype(np.float64) - feeds["x"]) ** 2).sum()) for feeds in samples)
    np.testing.assert_allclose(found.own, [noise / power], rtol=1e-4)


@pytest.mark.parametrize("opset", [11, 13, 18])
@pytest.mark.parametrize("name", CASES)
def test_errors_are_those_of_the_model_itself(name: str, opset: int) -> None:
    nodes, shape = CASES[name]
    shape = [size or 2 for size in shape]
    weights = {**WEIGHTS, "b2": normal(8, 5), "c8": normal(9, 3, 8, 3, 3) / 8}
    used = {value for one in nodes for value in one.input}
    kept = {key: array for key, array in weights.items() if key in used}
    inputs = {"x": shape, **({"o": shape} if "o" in used else {})}
    proto = proto_of(nodes, inputs, {"y": None}, kept, opset=opset)
    model = loaded(proto)
    samples = [{key: normal(20 + seed, *size) for key, size in inputs.items()} for seed in range(3)]
    trial = trial_of(model, "x", 1.0, 3.0)
    found = relative_errors(model, [trial], list(Stream(tuple(samples)).feeds()), threads=2)[0]
    assert found is not None
    readers, own = expected(proto, samples, trial), expected(proto, samples, trial, itself=True)
    np.testing.assert_allclose(found.own, own, rtol=1e-3)
    np.testing.assert_allclose(found.readers, own if name == "what is not known" else readers, rtol=1e-3)


def expected(proto: onnx.ModelProto, samples: Sequence[Feeds], trial: Trial, *, itself: bool = False) -> Array:
    noise, signal = np.zeros(len(trial.scales)), 0.0
    for feeds in samples:
        plain = feeds["x"] if itself else run(proto, feeds)["y"]
        signal += float((plain.astype(np.float64) ** 2).sum())
        for number, scale in enumerate(trial.scales):
            rough = on_grid(feeds["x"], scale)
            result = rough if itself else run(proto, {**feeds, "x": rough})["y"]
            noise[number] += float(((result.astype(np.float64) - plain) ** 2).sum())
    return np.asarray(noise / signal)


def two_layers() -> tuple[Model, tuple[Feeds, ...]]:
    weights = {"w": normal(0, 6, 8) / 2, "v": normal(1, 8, 3) / 2}
    nodes = [node("MatMul", "x w", "h"), node("Relu", "h", "r"), node("MatMul", "r v", "y")]
    proto = proto_of(nodes, {"x": [4, 6]}, {"y": [4, 3]}, weights)
    return loaded(proto), tuple({"x": normal(30 + seed, 4, 6)} for seed in range(7))


def feeds_of(samples: Sequence[Feeds]) -> list[tuple[str, Feeds]]:
    return [(f"{number}.npz", feeds) for number, feeds in enumerate(samples)]


def test_threads_and_batches_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    model, samples = two_layers()
    reader = next(one for one in model.graph if one.op_type == "Relu")
    inner = Trial("h", scales(1.0, 2.0), ((node_key(reader), 0),))
    trials = [trial_of(model, "x", 1.0, 2.0, 4.0), inner]
    alone = relative_errors(model, trials, feeds_of(samples))
    for threads in (1, 4):
        again = relative_errors(model, trials, feeds_of(samples), threads=threads)
        assert all(np.array_equal(one, two) for one, two in zip(alone, again, strict=True) if one is not None)
    monkeypatch.setattr("qcli.trial._TRIAL_BYTES", 1)
    apart = relative_errors(model, trials, feeds_of(samples))
    for one, two in zip(alone, apart, strict=True):
        assert one is not None and two is not None
        np.testing.assert_allclose(one, two, rtol=1e-5)


def test_what_is_too_large_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    model, samples = two_layers()
    monkeypatch.setattr("qcli.trial._LARGEST_TRIAL", 1)
    assert relative_errors(model, [trial_of(model, "x", 1.0, 2.0)], feeds_of(samples)) == [None]


def test_few_samples_are_enough_for_large_values(monkeypatch: pytest.MonkeyPatch) -> None:
    model, samples = two_layers()
    trial = trial_of(model, "x", 1.0, 2.0)
    first = relative_errors(model, [trial], feeds_of(samples[:4]))[0]
    monkeypatch.setattr("qcli.trial._WORK_BYTES", 1)
    assert np.array_equal(relative_errors(model, [trial], feeds_of(samples))[0], first)  # type: ignore[arg-type]


@pytest.mark.parametrize("factor", [0.0, 1e30])
def test_no_signal_and_numbers_beyond_float32_say_nothing(factor: float) -> None:
    model, samples = two_layers()
    scaled = [{"x": feeds["x"] * np.float32(factor)} for feeds in samples]
    assert relative_errors(model, [trial_of(model, "x", 1.0, 2.0)], feeds_of(scaled)) == [None]


def test_without_samples_nothing_is_known() -> None:
    model, _ = two_layers()
    assert relative_errors(model, [trial_of(model, "x", 1.0)], []) == [None]


def test_what_is_laid_out_for_each_candidate() -> None:
    model, _ = two_layers()
    assert list(laid_out(model, [trial_of(model, "x", 1.0)])) == [["x", "h", "w"]]


def test_errors_of_whole_models_by_sample() -> None:
    model, samples = two_layers()
    changed = {"w": normal(0, 6, 8) / 2, "v": normal(1, 8, 3) / 2 * 1.25}
    nodes = [node("MatMul", "x w", "h"), node("Relu", "h", "r"), node("MatMul", "r v", "y")]
    louder = loaded(proto_of(nodes, {"x": [4, 6]}, {"y": [4, 3]}, changed))
    same, other = output_errors(model, [model, louder], feeds_of(samples), threads=3)
    assert same.tolist() == [0.0] * 7
    powers = np.array([float((run(model, feeds)["y"] ** 2).sum()) for feeds in samples])
    np.testing.assert_allclose(other, powers / powers.mean() / 16, rtol=1e-4)


def test_a_result_of_another_shape_or_beyond_all_numbers_is_infinitely_wrong() -> None:
    model, samples = two_layers()
    nodes = [node("MatMul", "x w", "h"), node("Log", "h", "r"), node("MatMul", "r v", "y")]
    weights = {"w": normal(0, 6, 8) / 2, "v": normal(1, 8, 3) / 2}
    nan = loaded(proto_of(nodes, {"x": [4, 6]}, {"y": [4, 3]}, weights))
    wide = loaded(proto_of([*nodes[:2], node("MatMul", "r w2", "y")], {"x": [4, 6]}, {"y": [4, 2]},
                           {"w": weights["w"], "w2": normal(1, 8, 2)}))  # fmt: skip
    for error in output_errors(model, [nan, wide], feeds_of(samples)):
        assert np.isinf(error).all()


def test_samples_end_where_outputs_would_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model, samples = two_layers()
    monkeypatch.setattr("qcli.trial._REFERENCE_BYTES", 100)
    assert output_errors(model, [model], feeds_of(samples))[0].shape == (2,)


def test_graph_outputs_keep_their_place() -> None:
    """The copy with trials computes what the model computes."""
    from qcli.trial_graph import with_trials

    model, samples = two_layers()
    changed, outputs = with_trials(model, [trial_of(model, "x", 1.0)])
    assert len(outputs[0]) == 2
    assert_equal(run(model, samples[0]), run(changed, samples[0]))
