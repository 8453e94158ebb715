"""`gptq`: what is erred is made up for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from roundings.problems import CASES, INPUTS, Case, case

from qcli.errors import InputError, UsageError
from qcli.plugins import create
from qcli.roundings._learned import Kept, kept
from qcli.roundings._quadratic import better, compensate, damped, error_of, refitted, refitted_parts
from qcli.roundings.gptq import Gptq
from qcli.types import Scale


@settings(deadline=None)
@given(CASES)
def test_codes_are_levels_and_never_worse_than_nearest(found: Case) -> None:
    codes = Gptq().learn(found.rows, found.measured)
    found.assert_codes(codes)
    assert found.error(codes) <= found.error(found.nearest()) * (1 + 1e-9)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_inputs_that_are_alike_make_up_for_each_other(bits: int) -> None:
    ratios = []
    for seed in range(10):
        found = case(seed, "alike", (1, 8, 64), bits)
        ratios.append(found.error(Gptq().learn(found.rows, found.measured)) / found.error(found.nearest()))
    assert np.median(ratios) < 0.9 and max(ratios) <= 1


def test_independent_inputs_of_one_size_are_rounded_to_nearest() -> None:
    found = case(0, "independent", (1, 4, 5))
    patches = np.eye(5)[None]
    independent = Case(found.rows, type(found.measured)(patches))
    np.testing.assert_array_equal(Gptq().learn(found.rows, independent.measured), found.nearest())


@pytest.mark.parametrize("block", [None, 7])
@pytest.mark.parametrize("kind", INPUTS)
def test_the_blocks_of_columns_do_not_show(kind: str, block: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    found = case(1, kind, (2, 3, 20), block=block)
    whole = Gptq().learn(found.rows, found.measured)
    monkeypatch.setattr("qcli.roundings._quadratic._BLOCK", 3)
    blocked = Gptq().learn(found.rows, found.measured)
    assert found.error(blocked) == pytest.approx(found.error(whole), rel=1e-6, abs=1e-300)


@pytest.mark.parametrize("block", [None, 7])
@pytest.mark.parametrize("kind", INPUTS)
def test_the_steps_within_a_block_do_not_show(kind: str, block: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    found = case(1, kind, (2, 3, 40), block=block)
    whole = Gptq().learn(found.rows, found.measured)
    monkeypatch.setattr("qcli.roundings._quadratic._STEP", 64)
    one_by_one = Gptq().learn(found.rows, found.measured)
    assert found.error(one_by_one) == pytest.approx(found.error(whole), rel=1e-6, abs=1e-300)


@pytest.mark.parametrize("rows_at_once", [1, 2, 512])
@pytest.mark.parametrize("block", [None, 3])
@pytest.mark.parametrize("kind", ["independent", "alike", "single"])
def test_of_two_choices_each_row_gets_the_better_one(
    kind: str, block: int | None, rows_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qcli.roundings._quadratic._ROWS", rows_at_once)
    found = case(2, kind, (2, 5, 9), block=block)
    moves = np.random.default_rng(0).integers(-1, 2, found.rows.exact.shape)
    first, second = found.nearest(), (found.nearest() + moves).clip(found.rows.lowest, found.rows.highest)
    for one, other in ((first, second), (second, first), (first, first)):
        chosen = better(one, other, found.rows, found.products())
        least = np.minimum(found.errors(one), found.errors(other))
        np.testing.assert_allclose(found.errors(chosen), least, rtol=1e-9)


@pytest.mark.parametrize("rounding", ["gptq", "coordinate"])
def test_what_is_kept_of_the_inputs_changes_nothing(rounding: str) -> None:
    found, plugin = case(4, "alike", (2, 5, 70), block=7), create("roundings", rounding)
    shared = kept(found.measured)
    assert isinstance(shared, Kept) and kept(shared) is shared
    expected = plugin.learn(found.rows, found.measured)
    for _ in range(2):
        np.testing.assert_array_equal(plugin.learn(found.rows, shared), expected)
    assert shared.factor(0.01) is shared.factor(0.01) and shared.factor(0.02) is not shared.factor(0.01)


def test_groups_are_layers_of_their_own() -> None:
    """As long as the inputs' order is the same."""
    found = case(3, "alike", (1, 3, 6))
    twice = {name: np.repeat(getattr(found.rows, name), 2, axis=0) for name in ("exact", "lowest", "highest")}
    codes = Gptq().learn(type(found.rows)(**twice), type(found.measured)(np.repeat(found.measured.patches, 2, axis=0)))
    np.testing.assert_array_equal(codes[0], codes[1])
    np.testing.assert_array_equal(codes[:1], Gptq().learn(found.rows, found.measured))


@pytest.mark.parametrize("damp", [1e-300, 1e-12, 1.0])
@pytest.mark.parametrize("kind", INPUTS)
def test_any_damping_serves_any_inputs(kind: str, damp: float) -> None:
    found = case(5, kind, (1, 3, 40))
    found.assert_codes(Gptq(damp=damp).learn(found.rows, found.measured))


def test_products_that_are_none_are_refused_and_nearly_none_are_damped() -> None:
    found = case(0)
    nearly = found.products(1e-3) - 1.0001 * np.linalg.eigvalsh(found.products(1e-3)).min() * np.eye(4)
    found.assert_codes(compensate(found.rows, nearly))
    with pytest.raises(InputError, match="damaged"):
        compensate(found.rows, -np.eye(4)[None])


@settings(deadline=None)
@given(CASES)
def test_the_factor_of_a_scale_is_the_best_one(found: Case) -> None:
    codes, products = found.nearest(), found.products()
    real, exact = codes * found.rows.sizes, found.rows.target
    factors = refitted(real, exact, products)
    assert (factors > 0).all()

    def error(scaled: np.ndarray) -> np.ndarray:
        wrong = scaled[..., None] * real - exact
        return np.einsum("grk,gkl,grl->gr", wrong, products, wrong)

    best = error(factors)
    for other in (0.9, 0.999, 1.001, 1.1):
        fitted = factors != 1
        assert (best[fitted] <= error(factors * other)[fitted] * (1 + 1e-9)).all()


@settings(deadline=None)
@given(CASES, st.integers(1, 4))
def test_the_factors_of_blocks_are_the_best_ones(found: Case, block: int) -> None:
    """Within their bounds, and no worse than leaving the steps alone."""
    codes, products = found.nearest(), found.products()
    groups, _, size = codes.shape
    parts = np.broadcast_to(np.arange(size) // block, (groups, size))
    factors = refitted_parts(codes, found.rows, products, parts)
    starts = np.arange(0, size, block)
    assert (factors == np.repeat(factors[..., starts], block, axis=2)[..., :size]).all(), "one for each block"
    assert (factors >= 0.5).all() and (factors <= 2).all()
    real, free = codes * found.rows.sizes, ((factors > 0.5) & (factors < 2)).all(axis=2)
    best = error_of(real * factors, found.rows.target, products)
    for other in (1 / factors, 0.99, 1.01):
        assert (best <= error_of(real * factors * other, found.rows.target, products) * (1 + 1e-4) + 1e-250)[free].all()


def test_damping_is_relative_to_the_inputs() -> None:
    products = np.array([[[2.0, 1.0], [1.0, 4.0]]])
    np.testing.assert_allclose(damped(products, 0.1), products + 0.3 * np.eye(2))
    np.testing.assert_allclose(damped(1e6 * products, 0.1), 1e6 * damped(products, 0.1))


def test_weights_that_no_sample_speaks_of_are_rounded_to_nearest() -> None:
    scale = Scale(
        scale=np.array([0.5, 1], np.float32), zero_point=np.array([0, 3]), axis=0, lowest=-8, highest=7, dtype="int8"
    )
    codes = Gptq().round(np.array([[0.3, -9.0], [1.6, 9.0]], np.float32), scale)
    assert codes.dtype == np.int8 and codes.tolist() == [[1, -8], [5, 7]]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"damp": 0}, "damp"), ({"damp": 1.5}, "damp"), ({"refit": -1}, "refit"), ({"refit": 99}, "refit")],
)
@pytest.mark.parametrize("name", ["gptq", "coordinate"])
def test_options_out_of_bounds(name: str, options: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        create("roundings", {name: options})
