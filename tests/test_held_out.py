"""Trying models on held-out samples."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from models import Stream, conv_net, dense_net, node, normal, proto_of, quantized_of, recipe_of, stream_for, wrapped
from test_data_free import residual

import qcli.held_out
from qcli.graph import Model, normalize_graph
from qcli.held_out import Trial, Yardstick, few_of
from qcli.recipe import load_recipe
from qcli.runtime import Session
from qcli.steps.fold_batchnorm import FoldBatchnorm


def numbered(count: int) -> Stream:
    return Stream(tuple({"x": np.full((1, 12), place, np.float32)} for place in range(count)))


@pytest.mark.parametrize("stride", [2, 4])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 7, 16])
def test_the_parts_divide_the_samples(count: int, stride: int) -> None:
    trial = Trial(wrapped(dense_net()), load_recipe("int8-minmax"), numbered(count), stride=stride)
    seen = [[int(feeds["x"][0, 0]) for _, feeds in part.feeds()] for part in (trial.judge, trial.fit)]
    assert [len(trial.judge), len(trial.fit)] == [len(places) for places in seen]
    assert sorted(seen[0] + seen[1]) == list(range(count)) and len(seen[0]) == count // stride


@pytest.mark.parametrize("stride", [2, 4])
def test_neither_names_nor_the_order_of_samples_matter(stride: int) -> None:
    parts = []
    for samples in (numbered(16), Stream(numbered(16).samples[::-1])):
        trial = Trial(wrapped(dense_net()), load_recipe("int8-minmax"), samples, stride=stride)
        parts.append([int(feeds["x"][0, 0]) for _, feeds in trial.judge.feeds()])
    assert parts[0] == parts[1]


@pytest.mark.parametrize("count", [128, 129, 300])
def test_few_of_many_are_spread(count: int) -> None:
    places = sorted(int(feeds["x"][0, 0]) for _, feeds in few_of(numbered(count)).feeds())
    assert 64 <= len(places) <= 128 and set(np.diff(places)) == {-(-count // 128)}


def test_few_are_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qcli.held_out, "_MOST_BYTES", 250)
    assert len(few_of(numbered(9))) == 5, "of 48 bytes each"
    monkeypatch.setattr(qcli.held_out, "_MOST_BYTES", 1)
    assert len(few_of(numbered(9))) == 4, "however large they are"


def trial_of(proto: onnx.ModelProto, recipe: str = "int8-minmax", count: int = 8) -> tuple[Trial, Model]:
    source = wrapped(proto)
    model = source.copy()
    normalize_graph(model)
    return Trial(source, load_recipe(recipe), stream_for(source, count)), model


def ratios(trial: Trial, model: Model) -> list[float]:
    return [ratio for ratio in trial.decibels(model) if ratio is not None]


def test_more_noise_is_fewer_decibels(tmp_path: Path) -> None:
    good, model = trial_of(conv_net())
    known = ratios(good, model)
    coarse = recipe_of(
        "version: 1\nextends: int8-minmax\nrules:\n  - {match: {role: weight}, grid: {format: int4}}\n", tmp_path
    )
    poor = ratios(Trial(wrapped(conv_net()), coarse, stream_for(model)), model)
    assert len(known) == len(poor) == 2 and 60 > min(known) > max(poor) + 6 > 6


def test_the_float_model_itself_is_without_noise() -> None:
    trial, model = trial_of(dense_net())
    assert trial.compare(model) == 200.0


def test_the_worst_output_counts() -> None:
    nodes = [node("MatMul", "x w", "y"), node("Relu", "x", "z")]
    trial, model = trial_of(proto_of(nodes, {"x": ["n", 12]}, {"y": None, "z": None}, {"w": normal(0, 12, 4)}))
    quantized = quantized_of(model.proto()).model
    found = trial.compare(quantized)
    assert found is not None and 10 < found < 60


def test_too_few_samples_or_no_float_outputs_tell_nothing() -> None:
    trial, model = trial_of(dense_net(), count=1)
    assert list(trial.decibels(model)) == []
    nodes = [node("MatMul", "x w", "m"), node("ArgMax", "m", "y", axis=1)]
    proto = proto_of(nodes, {"x": ["n", 12]}, {"y": None}, {"w": normal(0, 12, 4)})
    proto.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    trial, model = trial_of(proto)
    assert list(trial.decibels(model)) == [None]


def test_a_model_that_cannot_be_quantized_gives_nothing() -> None:
    nodes = [node("Div", "x zero", "d"), node("Relu", "d", "r"), node("MatMul", "r w", "y")]
    weights = {"w": normal(0, 12, 4), "zero": np.zeros((), np.float32)}
    trial, model = trial_of(proto_of(nodes, {"x": ["n", 12]}, {"y": None}, weights))
    assert list(trial.decibels(model)) == [None]


def test_values_that_are_not_finite_do_not_count() -> None:
    nodes = [node("MatMul", "x w", "m"), node("Relu", "m", "r"), node("Log", "r", "l"), node("Add", "l mask", "y")]
    weights = {"w": normal(0, 12, 4), "mask": np.array([0, 0, 0, -np.inf], np.float32)}
    trial, model = trial_of(proto_of(nodes, {"x": ["n", 12]}, {"y": None}, weights))
    assert trial.compare(model) == 200.0


def test_results_of_another_shape_do_not_count() -> None:
    nodes = [node("MatMul", "x w", "y"), node("NonZero", "y", "n"), node("Cast", "n", "z", to=1)]
    trial, model = trial_of(proto_of(nodes, {"x": ["n", 12]}, {"y": None, "z": None}, {"w": normal(0, 12, 4)}))
    fewer = wrapped(
        proto_of(
            [
                node("MatMul", "x w", "y"),
                node("Relu", "y", "r"),
                node("NonZero", "r", "n"),
                node("Cast", "n", "z", to=1),
            ],
            {"x": ["n", 12]},
            {"y": None, "z": None},
            {"w": normal(0, 12, 4)},
        )
    )
    assert trial.compare(model) == trial.compare(fewer) == 200.0


def test_data_free_ranges_are_filled_in() -> None:
    source = wrapped(residual())
    model = source.copy()
    FoldBatchnorm().run(model)
    found = ratios(Trial(source, load_recipe("int8-data-free"), stream_for(source)), model)
    assert len(found) == 2 and min(found) > 15


def test_the_reference_is_bounded_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    source = wrapped(dense_net())
    few = few_of(stream_for(source, 16))
    monkeypatch.setattr(qcli.held_out, "_MOST_BYTES", 3 * 2 * 4 * 4)  # of three results [2, 4]
    runs: list[int] = []
    results = Yardstick._results

    def counted(self: Yardstick, session: Session, count: int) -> Iterator[dict[str, Any]]:
        runs.append(count)
        return results(self, session, count)

    monkeypatch.setattr(Yardstick, "_results", counted)
    yardstick = Yardstick(source, few, 1)
    assert yardstick.decibels(source) == yardstick.decibels(source) == 200.0
    assert runs == [16, 3, 3]


def test_a_result_too_large_to_keep_is_still_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    source = wrapped(dense_net())
    few = few_of(stream_for(source))
    monkeypatch.setattr(qcli.held_out, "_MOST_BYTES", 1)
    assert Yardstick(source, few, 2).decibels(source) == 200.0


def test_a_model_that_fails_leaves_the_reference_whole() -> None:
    trial, model = trial_of(dense_net())
    other = wrapped(proto_of([node("MatMul", "x w", "y")], {"x": ["n", 5]}, {"y": None}, {"w": normal(0, 5, 4)}))
    assert list(trial.decibels(other)) == [None]
    assert ratios(trial, model) == ratios(trial_of(dense_net())[0], model)


def test_threads_do_not_matter() -> None:
    source = wrapped(conv_net())
    model = source.copy()
    normalize_graph(model)
    found = {
        tuple(Trial(source, load_recipe("int8-minmax"), stream_for(source), threads=threads).decibels(model))
        for threads in (1, 2)
    }
    assert len(found) == 1
