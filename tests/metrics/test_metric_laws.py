"""Every streaming metric: batches in any cut, and merged halves, give what the whole gives."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from qcli import plugins
from qcli.types import Array

PAIRWISE = ("cosine", "max_abs", "sqnr")

_values = st.floats(-1e6, 1e6, width=32)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Array, Array]:
    """A reference and a result [n, m] of one shape."""
    shape = draw(array_shapes(min_dims=2, max_dims=2, max_side=8))
    both = [draw(arrays(np.float32, shape, elements=_values)) for _ in range(2)]
    return both[0], both[1]


def measured(name: str, reference: Array, result: Array) -> Any:
    metric = plugins.load("metrics", name)()
    metric.update(reference, result)
    return metric


def close(left: float, right: float) -> bool:
    return math.isclose(left, right, rel_tol=1e-6, abs_tol=1e-6)


def test_all_metrics_are_known() -> None:
    assert plugins.names("metrics") == ("cosine", "max_abs", "perplexity", "sqnr", "top_k")


@pytest.mark.parametrize("name", [*PAIRWISE, "top_k"])
@given(pair=pairs(), data=st.data())
def test_streaming_gives_what_the_whole_gives(name: str, pair: tuple[Array, Array], data: st.DataObject) -> None:
    cut = data.draw(st.integers(1, len(pair[0])))
    streamed = measured(name, pair[0][:cut], pair[1][:cut])
    if cut < len(pair[0]):
        streamed.update(pair[0][cut:], pair[1][cut:])
    assert close(streamed.value(), measured(name, *pair).value())


@pytest.mark.parametrize("name", [*PAIRWISE, "top_k"])
@given(first=pairs(), second=pairs())
def test_merging_commutes_and_equals_updating(
    name: str, first: tuple[Array, Array], second: tuple[Array, Array]
) -> None:
    forth, back = measured(name, *first), measured(name, *second)
    forth.merge(measured(name, *second))
    back.merge(measured(name, *first))
    updated = measured(name, *first)
    updated.update(*second)
    assert close(forth.value(), back.value())
    assert close(forth.value(), updated.value())


@pytest.mark.parametrize("name", [*PAIRWISE, "top_k"])
@given(pair=pairs())
def test_merging_with_nothing_changes_nothing(name: str, pair: tuple[Array, Array]) -> None:
    metric = measured(name, *pair)
    before = metric.value()
    metric.merge(plugins.load("metrics", name)())
    assert metric.value() == before


@pytest.mark.parametrize("name", PAIRWISE)
@given(pair=pairs(), bad=st.sampled_from([np.nan, np.inf, -np.inf]))
def test_a_bad_result_is_the_worst_and_stays_it(name: str, pair: tuple[Array, Array], bad: float) -> None:
    metric = measured(name, *pair)
    broken = pair[1].copy()
    broken.flat[0] = bad
    metric.update(pair[0], broken)
    worst = metric.value()
    metric.update(*pair)
    assert metric.value() == worst
    assert worst in (-200.0, -1.0, float(np.finfo(np.float32).max))


@pytest.mark.parametrize("name", PAIRWISE)
@given(pair=pairs())
def test_values_are_numbers_that_json_can_hold(name: str, pair: tuple[Array, Array]) -> None:
    value = measured(name, *pair).value()
    assert isinstance(value, float)
    assert json.loads(json.dumps(value, allow_nan=False)) == value


@pytest.mark.parametrize("name", PAIRWISE)
@given(pair=pairs())
def test_a_perfect_result_is_the_best(name: str, pair: tuple[Array, Array]) -> None:
    best = {"cosine": 1.0, "max_abs": 0.0, "sqnr": 200.0}[name]
    assert close(measured(name, pair[0], pair[0]).value(), best)


@pytest.mark.parametrize("name", PAIRWISE)
def test_empty_outputs_count_for_nothing(name: str) -> None:
    empty = np.zeros((0, 4), np.float32)
    best = {"cosine": 1.0, "max_abs": 0.0, "sqnr": 200.0}[name]
    assert measured(name, empty, empty).value() == best
