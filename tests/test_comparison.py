"""The accuracy so far, and the check of the kernels, without running anything."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from conftest import dataset, model_path

from qcli.comparison import Comparison, OptimizationCheck
from qcli.dataset import Sample
from qcli.runtime import Session
from qcli.types import Array

SAMPLE = Sample(file="s", feeds={})


def compared(reference: Mapping[str, object], result: Mapping[str, object]) -> Comparison:
    comparison = Comparison()
    comparison.update(reference, result, SAMPLE)
    return comparison


def floats(*values: float) -> Array:
    return np.array(values, np.float32)


@pytest.mark.parametrize(
    ("outputs", "classifier"),
    [
        ({"y": np.ones((1, 10), np.float32)}, True),
        ({"y": np.ones((4, 2), np.float16)}, True),
        ({"y": np.ones((1, 1), np.float32)}, False),
        ({"y": np.ones(10, np.float32)}, False),
        ({"y": np.ones((1, 10, 2), np.float32)}, False),
        ({"y": np.ones((1, 10), np.int64)}, False),
        ({"ids": np.ones((1, 10), np.int64), "scores": np.ones((1, 10), np.float32)}, True),
    ],
)
def test_what_counts_as_a_classifier(outputs: dict[str, object], classifier: bool) -> None:
    assert (compared(outputs, outputs).accuracy().agreement is not None) is classifier


def test_the_first_matrix_of_scores_decides() -> None:
    reference = {"first": floats(0, 1)[None], "second": floats(1, 0)[None]}
    result = {"first": floats(0, 1)[None], "second": floats(0, 1)[None]}
    assert compared(reference, result).accuracy().agreement == 1.0


@pytest.mark.parametrize(
    ("reference", "result", "equal"),
    [
        (np.array([1, 2, 3, 4]), np.array([1, 2, 3, 5]), 0.75),
        (np.array(["a", "b"], object), np.array(["a", "c"], object), 0.5),
        (np.array([1, 2]), np.array([1, 2, 3]), 0.0),
        (np.array([], np.int64), np.array([], np.int64), 1.0),
        ([{"a": 0.5}], [{"a": 0.5}], 1.0),
        ([{"a": 0.5}], [{"a": 0.6}], 0.0),
    ],
)
def test_equal_elements(reference: object, result: object, equal: float) -> None:
    accuracy = compared({"y": reference}, {"y": result}).accuracy()
    assert accuracy.outputs["y"].equal == equal
    assert accuracy.sqnr is None


@pytest.mark.parametrize("result", [floats(1, 2, 3), [1.0, 2.0], np.array(["1", "2"], object)])
def test_what_cannot_be_compared_is_the_worst(result: object) -> None:
    comparison = compared({"y": floats(1, 2)}, {"y": result})
    assert comparison.accuracy().sqnr == -200.0
    [warning] = comparison.warnings()
    assert warning == "the compressed model's output 'y' has another shape or type for 1 of 1 samples, first 's'"


def test_integers_for_floats_are_compared_as_numbers() -> None:
    assert compared({"y": floats(1, 2)}, {"y": np.array([1, 2])}).accuracy().sqnr == 200.0


def test_free_shapes_may_change_from_sample_to_sample() -> None:
    comparison = Comparison()
    for length in (3, 5, 0):
        outputs = {"y": np.ones((1, length, 2), np.float32)}
        comparison.update(outputs, outputs, SAMPLE)
    assert comparison.samples == 3
    assert comparison.accuracy().sqnr == 200.0


class _Written:
    """Stands in for the unoptimized session."""

    def __init__(self, outputs: dict[str, Array]) -> None:
        self._outputs = outputs

    def run(self, feeds: object) -> dict[str, Array]:
        return self._outputs


@pytest.mark.parametrize(
    ("reference", "written", "optimized", "agree"),
    [
        (10.0, 11.0, 11.0, True),  # the kernels do what is written
        (10.0, 11.0, 11.4, True),  # they add less than twice the error
        (10.0, 11.0, 9.0, True),  # they differ, but are as near to the float model
        (10.0, 11.0, 11.5, False),  # they add more
        (10.0, 10.0, 10.1, True),  # they add more than nothing, but 40 dB below the signal
        (10.0, 10.0, 11.0, False),
        (10.0, 10.0, np.nan, False),
    ],
)
def test_when_kernels_agree_with_what_is_written(
    reference: float, written: float, optimized: float, agree: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qcli.comparison.Session", lambda *_, **__: _Written({"y": floats(written)}))
    check = OptimizationCheck(b"", samples=1, threads=1)
    check.update({"y": floats(reference)}, {"y": floats(optimized)}, SAMPLE)
    found = check.agreement()
    assert found is not None
    assert found.agree is agree
    assert len(list(check.warnings())) == (not agree)


def test_only_the_first_samples_are_checked(quantized_mlp: Path) -> None:
    check = OptimizationCheck(quantized_mlp, samples=2, threads=1)
    session = Session(model_path("mlp"))
    found = []
    for sample in dataset("mlp", limit=4):
        outputs = session.run(sample.feeds)
        check.update(outputs, outputs, sample)
        found.append(check.agreement())
    assert found[0] != found[1]
    assert found[1] == found[2] == found[3]


def test_a_model_that_does_not_load_unoptimized_is_a_warning_not_an_error() -> None:
    check = OptimizationCheck(b"not a model", samples=1, threads=1)
    check.update({"y": floats(1)}, {"y": floats(1)}, SAMPLE)
    assert check.agreement() is None
    [warning] = check.warnings()
    assert warning.startswith("the kernels are unchecked, the model does not run unoptimized: onnxruntime cannot load")
