from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from qcli.metrics.top_k import TopK
from qcli.types import Array


def scores(*rows: list[float]) -> Array:
    return np.array(rows, np.float32)


def test_agreement_needs_no_labels() -> None:
    metric = TopK()
    metric.update(scores([0, 1], [1, 0]), scores([0, 9], [0, 1]))
    assert metric.value() == 0.5
    assert metric.labelled == 0


def test_accuracy_of_both_models() -> None:
    metric = TopK()
    metric.update(scores([0, 1, 0]), scores([1, 0, 0]), label=1)
    metric.update(scores([1, 0, 0]), scores([1, 0, 0]), label=0)
    assert metric.share(metric.reference_top1) == 1.0
    assert metric.share(metric.result_top1) == 0.5


def test_top_5_of_6_classes() -> None:
    ranked = scores([5, 4, 3, 2, 1, 0])
    for label, right in enumerate([1, 1, 1, 1, 1, 0]):
        metric = TopK()
        metric.update(ranked, ranked, label)
        assert (metric.reference_top5, metric.result_top5) == (right, right)


def test_of_equal_scores_the_lower_index_comes_first() -> None:
    tied = scores([1, 1, 1, 1, 1, 1])
    metric = TopK()
    metric.update(tied, tied, label=0)
    assert (metric.result_top1, metric.result_top5) == (1, 1)
    metric = TopK()
    metric.update(tied, tied, label=5)
    assert (metric.result_top1, metric.result_top5) == (0, 0)


def test_a_row_with_nan_never_agrees_and_is_never_right() -> None:
    metric = TopK()
    metric.update(scores([1, 0]), scores([np.nan, 0]), label=0)
    assert (metric.value(), metric.result_top1, metric.result_top5) == (0.0, 0, 0)
    assert metric.reference_top1 == 1


@given(
    reference=arrays(np.float32, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.integers(0, 4)),
    data=st.data(),
)
def test_agrees_with_sorting(reference: Array, data: st.DataObject) -> None:
    label = data.draw(st.integers(0, reference.shape[1] - 1))
    order = np.argsort(-reference, axis=1, kind="stable")
    metric = TopK()
    metric.update(reference, reference, label)
    assert metric.reference_top1 == (order[:, 0] == label).sum()
    assert metric.reference_top5 == (order[:, :5] == label).any(axis=1).sum()
    assert metric.value() == 1.0
