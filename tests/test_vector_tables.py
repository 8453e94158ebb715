"""What the codewords of a weight are learned from, and the scales beside them."""

from __future__ import annotations

import numpy as np
import pytest

from qcli.levels import nearest_codes, real_values
from qcli.plugins import create
from qcli.tables import fitted_scale
from qcli.types import Array, Grid, Scale, Spec

WEIGHT = np.random.default_rng(0).standard_normal((24, 10, 7)).astype(np.float32)
SPEC: Spec = {"product": {"dimensions": 3}}


def scale_of(weight: Array, axis: int | None = 0, rows: int = 0, energies: Array | None = None) -> Scale:
    granularity = "tensor" if axis is None else "channel"
    grid = Grid(format=SPEC, bits=5, granularity=granularity, axis=axis)
    return fitted_scale(weight, grid, create("formats", SPEC), energies, rows)


def error_of(weight: Array, scale: Scale, energies: Array | None = None) -> float:
    wrong = np.square(real_values(nearest_codes(weight, scale), scale).astype(np.float64) - weight)
    return float((wrong if energies is None else wrong * energies).sum())


@pytest.mark.parametrize("rows", [0, 1, 2])
@pytest.mark.parametrize("axis", [None, 0, 2])
def test_scales_and_codewords_of_any_layout(axis: int | None, rows: int) -> None:
    scale = scale_of(WEIGHT, axis, rows)
    assert scale.vectors is not None and scale.vectors.words.shape == (32, 3)
    assert scale.scale.shape == ((1,) if axis is None else (WEIGHT.shape[axis],))
    assert error_of(WEIGHT, scale) < 0.25 * np.square(WEIGHT).sum()


@pytest.mark.parametrize("axis", [None, 0, 2])
def test_a_weight_is_worked_on_in_parts(axis: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """With energies and without: the same codewords and scales, but for the last digits."""
    energies = np.broadcast_to(np.linspace(0.1, 3, 7), WEIGHT.shape)
    for much in (None, energies):
        whole = scale_of(WEIGHT, axis, 0, much)
        with monkeypatch.context() as patch:
            patch.setattr("qcli.blocks._BLOCK_BYTES", 1000)
            parts = scale_of(WEIGHT, axis, 0, much)
        assert whole.vectors is not None and parts.vectors is not None
        assert parts.vectors.words == pytest.approx(whole.vectors.words, abs=2e-3)
        assert parts.scale == pytest.approx(whole.scale, rel=1e-3)


def test_each_channel_has_the_best_scale_for_its_codes() -> None:
    """None of a few hundred others errs less."""
    scale = scale_of(WEIGHT)
    codes = nearest_codes(WEIGHT, scale)
    units = real_values(codes, scale) / scale.scale[:, None, None]
    best = (units * WEIGHT).sum(axis=(1, 2)) / np.square(units).sum(axis=(1, 2))
    assert scale.scale == pytest.approx(best, rel=0.05)


def test_rows_of_any_size_count_alike() -> None:
    sizes = np.logspace(-3, 3, 24).astype(np.float32)[:, None, None]
    plain, spread = scale_of(WEIGHT), scale_of(WEIGHT * sizes)
    relative = [
        np.square(real_values(nearest_codes(weight, scale), scale) - weight).sum(axis=(1, 2))
        / np.square(weight).sum(axis=(1, 2))
        for weight, scale in ((WEIGHT, plain), (WEIGHT * sizes, spread))
    ]
    assert relative[1] == pytest.approx(relative[0], rel=0.1)


def test_what_meets_large_inputs_errs_less() -> None:
    energies = np.broadcast_to(np.where(np.arange(70) % 3 == 0, 100.0, 1.0).reshape(10, 7), WEIGHT.shape)
    alike, weighed = scale_of(WEIGHT), scale_of(WEIGHT, energies=energies)
    assert error_of(WEIGHT, weighed, energies) < 0.9 * error_of(WEIGHT, alike, energies)


def test_a_sample_of_a_large_weight_says_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 16,384 vectors a quarter, at every place of a row."""
    weight = np.random.default_rng(1).standard_normal((256, 192)).astype(np.float32)
    whole = scale_of(weight)
    monkeypatch.setattr("qcli.vector_tables._SAMPLE", 4096)
    assert error_of(weight, scale_of(weight)) < 1.05 * error_of(weight, whole)


def test_zeros_stay_zero() -> None:
    weight = WEIGHT.copy()
    weight[3] = 0
    scale = scale_of(weight)
    assert scale.scale[3] == 0 and not real_values(nearest_codes(weight, scale), scale)[3].any()
    assert error_of(np.zeros_like(WEIGHT), scale_of(np.zeros_like(WEIGHT), None)) == 0


def test_the_same_weight_gives_the_same_table() -> None:
    first, second = scale_of(WEIGHT), scale_of(WEIGHT.copy())
    assert first.vectors is not None and second.vectors is not None
    assert np.array_equal(first.vectors.words, second.vectors.words) and np.array_equal(first.scale, second.scale)
