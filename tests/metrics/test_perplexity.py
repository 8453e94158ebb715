from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from qcli.metrics import perplexity
from qcli.metrics.perplexity import Perplexity, power
from qcli.types import Array

VOCABULARY = 7


def everything(tokens: Array) -> Array:
    return np.ones(tokens.shape, np.bool_)


def measured(reference: Array, result: Array, tokens: Array) -> Perplexity:
    metric = Perplexity()
    metric.update(reference, result, tokens, everything(tokens))
    return metric


@st.composite
def cases(draw: st.DrawFn) -> tuple[Array, Array, Array]:
    shape = (draw(st.integers(1, 3)), draw(st.integers(2, 6)))
    values = st.floats(-50, 50, width=32)
    logits = [draw(arrays(np.float32, (*shape, VOCABULARY), elements=values)) for _ in range(2)]
    return logits[0], logits[1], draw(arrays(np.int64, shape, elements=st.integers(0, VOCABULARY - 1)))


def by_hand(logits: Array, tokens: Array) -> float:
    """The definition, one token at a time."""
    total, count = 0.0, 0
    for row, ids in zip(logits.astype(np.float64), tokens, strict=True):
        for place in range(len(ids) - 1):
            weights = [math.exp(value - row[place].max()) for value in row[place]]
            total -= math.log(weights[ids[place + 1]] / math.fsum(weights)) if weights[ids[place + 1]] else -745.0
            count += 1
    return total / count


@settings(deadline=None)
@given(case=cases())
def test_it_is_the_mean_log_likelihood_of_the_next_token(case: tuple[Array, Array, Array]) -> None:
    reference, result, tokens = case
    found = measured(*case).likelihoods()
    assert found == pytest.approx((by_hand(reference, tokens), by_hand(result, tokens)), rel=1e-9, abs=1e-9)


def test_equal_logits_know_nothing() -> None:
    tokens = np.arange(6).reshape(2, 3)
    logits = np.zeros((2, 3, VOCABULARY), np.float32)
    metric = measured(logits, logits, tokens)
    assert metric.tokens == 4
    assert metric.value() == pytest.approx(VOCABULARY)


def test_whoever_foretells_every_token_has_perplexity_one() -> None:
    tokens = np.array([[1, 5, 2]])
    logits = np.full((1, 3, VOCABULARY), -100.0, np.float32)
    logits[0, 0, 5] = logits[0, 1, 2] = 100.0
    assert measured(logits, logits, tokens).value() == pytest.approx(1.0)


def test_the_last_logits_and_the_first_token_count_for_nothing() -> None:
    tokens = np.array([[1, 5, 2]])
    logits = np.random.default_rng(0).standard_normal((1, 3, VOCABULARY)).astype(np.float32)
    other = logits.copy()
    other[:, -1] = 9.0
    first, second = measured(logits, logits, tokens), measured(other, other, np.array([[3, 5, 2]]))
    assert first.value() == second.value()


def test_tokens_that_do_not_count() -> None:
    tokens = np.array([[1, 5, 2, 0]])
    logits = np.random.default_rng(0).standard_normal((1, 4, VOCABULARY)).astype(np.float32)
    short = measured(logits[:, :3], logits[:, :3], tokens[:, :3])
    metric = Perplexity()
    metric.update(logits, logits, tokens, np.array([[True, True, True, False]]))
    assert (metric.tokens, metric.value()) == (2, pytest.approx(short.value()))


@settings(deadline=None)
@given(first=cases(), second=cases())
def test_merging_commutes_and_equals_updating(
    first: tuple[Array, Array, Array], second: tuple[Array, Array, Array]
) -> None:
    forth, back = measured(*first), measured(*second)
    forth.merge(measured(*second))
    back.merge(measured(*first))
    updated = measured(*first)
    updated.update(*second, everything(second[2]))
    assert forth.likelihoods() == pytest.approx(back.likelihoods())
    assert forth.likelihoods() == pytest.approx(updated.likelihoods())


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_bad_result_is_the_worst_and_stays_it(bad: float) -> None:
    tokens = np.array([[1, 5, 2]])
    logits = np.zeros((1, 3, VOCABULARY), np.float32)
    broken = logits.copy()
    broken[0, 1, 3] = bad
    metric = measured(logits, broken, tokens)
    metric.update(logits, logits, tokens, everything(tokens))
    assert metric.value() == Perplexity.WORST
    assert metric.likelihoods()[0] == pytest.approx(math.log(VOCABULARY))


def test_pieces_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = np.random.default_rng(0).standard_normal((2, 20, VOCABULARY)).astype(np.float32)
    tokens = np.arange(40).reshape(2, 20) % VOCABULARY
    whole = measured(logits, logits, tokens).value()
    monkeypatch.setattr(perplexity, "_PIECE", 3 * VOCABULARY)
    assert measured(logits, logits, tokens).value() == pytest.approx(whole, rel=1e-12)


def test_no_number_that_json_cannot_hold() -> None:
    assert power(1e9) == pytest.approx(Perplexity.WORST)
    assert Perplexity().likelihoods() == (0.0, 0.0)
