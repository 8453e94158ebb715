"""`coordinate`: no single weight has a better code."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from roundings.problems import CASES, INPUTS, Case, case

from qcli.errors import UsageError
from qcli.plugins import create
from qcli.roundings._quadratic import descend
from qcli.roundings.coordinate import Coordinate
from qcli.roundings.gptq import Gptq


@settings(deadline=None)
@given(CASES)
def test_codes_are_levels_and_never_worse_than_those_of_gptq(found: Case) -> None:
    codes = Coordinate().learn(found.rows, found.measured)
    found.assert_codes(codes)
    before = found.error(Gptq().learn(found.rows, found.measured))
    assert found.error(codes) <= before * (1 + 1e-9) <= found.error(found.nearest()) * (1 + 1e-8)


@settings(deadline=None)
@given(CASES)
def test_no_single_weight_has_a_better_code(found: Case) -> None:
    codes = Coordinate(sweeps=100).learn(found.rows, found.measured)
    errors = found.errors(codes)
    for column in range(codes.shape[2]):
        for step in (-1, 1):
            tried = codes.copy()
            tried[..., column] = (tried[..., column] + step).clip(*found.rows.columns(column)[:2])
            assert (found.errors(tried) >= errors * (1 - 1e-9) - 1e-300).all()


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 9999), st.sampled_from(INPUTS))
def test_the_optimum_of_all_codes_is_no_worse_and_not_far(seed: int, kind: str) -> None:
    found = case(seed, kind, (1, 3, 4), bits=3)
    codes = Coordinate().learn(found.rows, found.measured)
    errors = found.errors(codes)[0]
    for row, error in enumerate(errors):
        assert found.optimum(row) <= error * (1 + 1e-9)


def test_the_optimum_is_found_more_often_than_by_nearest() -> None:
    hits = {"coordinate": 0, "nearest": 0}
    for seed in range(40):
        found = case(seed, "alike", (1, 1, 4), bits=3)
        for name, codes in (
            ("coordinate", Coordinate().learn(found.rows, found.measured)),
            ("nearest", found.nearest()),
        ):
            hits[name] += found.error(codes) <= found.optimum(0) * (1 + 1e-9)
    assert hits["coordinate"] >= 30 and hits["nearest"] <= 24


@pytest.mark.parametrize("block", [None, 16])
@pytest.mark.parametrize("kind", INPUTS)
def test_sweeps_never_make_it_worse(kind: str, block: int | None) -> None:
    found = case(2, kind, (2, 4, 70), block=block)
    products = found.products()
    codes, before = found.nearest(), np.inf
    for _ in range(4):
        error = found.error(codes)
        assert error <= before * (1 + 1e-9)
        codes, before = descend(codes, found.rows, products, 1), error


def test_descending_leaves_what_it_was_given() -> None:
    found = case(0)
    start = found.nearest()
    kept = start.copy()
    descend(start, found.rows, found.products(), 3)
    np.testing.assert_array_equal(start, kept)


def test_no_sweeps_are_gptq() -> None:
    found = case(4, "alike", (2, 3, 12))
    codes = Coordinate(sweeps=0).learn(found.rows, found.measured)
    np.testing.assert_array_equal(codes, Gptq().learn(found.rows, found.measured))


@pytest.mark.parametrize("sweeps", [-1, 1001])
def test_sweeps_out_of_bounds(sweeps: int) -> None:
    with pytest.raises(UsageError, match="sweeps"):
        create("roundings", {"coordinate": {"sweeps": sweeps}})
