"""`hqq`: scales and zero points without data."""

from __future__ import annotations

import numpy as np
import pytest
from codes import stored_of, with_decoded_weights
from hypothesis import given, settings
from hypothesis import strategies as st
from models import assert_equal, feeds_for, node, normal, proto_of, run

from qcli import blocks
from qcli.contracts import along
from qcli.errors import UsageError
from qcli.plugins import create
from qcli.roundings.hqq import Hqq
from qcli.types import Array, Grid, Scale


def scale_for(weight: Array, **more: object) -> Scale:
    grid = Grid(**{"format": "uint4", "symmetric": False, "granularity": "block", "block": 16, "axis": 0, **more})  # type: ignore[arg-type]
    interval, _ = blocks.interval_of(weight, grid, lambda part: create("ranges", "minmax").interval(part, grid))
    return create("formats", grid.format).scale(interval, grid)  # type: ignore[no-any-return]


def loss(weight: Array, scale: Scale, p: float) -> float:
    codes = Hqq().round(weight, scale)
    steps, zero = along(scale, weight.shape)
    return float((np.abs(weight - (codes.astype(np.float64) - zero) * steps) ** p).sum())


LAYOUTS = (
    {},
    {"axis": 1},
    {"format": "int4", "symmetric": True},
    {"granularity": "channel", "block": None, "axis": 1},
    {"granularity": "tensor", "block": None, "axis": None},
    {"format": "uint2"},
)


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(LAYOUTS), st.sampled_from([0.5, 0.7, 1.0, 2.0]), st.integers(0, 9))
def test_it_is_never_worse_than_what_it_began_with(layout: dict[str, object], p: float, seed: int) -> None:
    weight = normal(seed, 40, 24) ** 3
    scale = scale_for(weight, **layout)
    fitted = Hqq(p=p).fitted(weight, scale)
    assert fitted.scale.shape == scale.scale.shape and fitted.zero_point.shape == scale.zero_point.shape
    assert loss(weight, fitted, p) <= loss(weight, scale, p) * (1 + 1e-5)
    assert (fitted.scale > 0).all()
    assert (fitted.zero_point >= scale.lowest).all() and (fitted.zero_point <= scale.highest).all()
    if layout.get("symmetric"):
        assert np.array_equal(fitted.zero_point, scale.zero_point)


def test_it_gains_on_two_and_four_bits() -> None:
    weight = normal(0, 512, 64)
    for format_, least in (("uint4", 1.03), ("uint2", 1.1)):
        scale = scale_for(weight, format=format_)
        assert loss(weight, scale, 2) > least * loss(weight, Hqq(p=1.0).fitted(weight, scale), 2)


def test_outliers_are_forgiven() -> None:
    """With p below 1 most errors become small; with 2 the outlier is what counts."""
    weight = normal(1, 16, 200)
    weight[3] = 9.0
    scale = scale_for(weight)
    errors = {}
    for p in (0.7, 2.0):
        fitted = Hqq(p=p).fitted(weight, scale)
        steps, zero = along(fitted, weight.shape)
        errors[p] = np.abs(weight - (Hqq().round(weight, fitted).astype(np.float64) - zero) * steps)
    assert np.median(errors[0.7]) < np.median(errors[2.0])


def test_zeros_stay_zero() -> None:
    weight = np.zeros((32, 4), np.float32)
    fitted = Hqq().fitted(weight, scale_for(weight))
    assert np.isfinite(fitted.scale).all() and loss(weight, fitted, 2) == 0


def test_large_weights_are_fitted_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = normal(3, 64, 40)
    for layout in LAYOUTS:
        scale = scale_for(weight, **layout)
        floor = np.zeros(scale.scale.shape)
        whole = blocks.fitted(weight, scale, Hqq(), floor)
        with monkeypatch.context() as patch:
            patch.setattr(blocks, "_BLOCK_BYTES", 2048)
            parts = blocks.fitted(weight, scale, Hqq(), floor)
        assert np.allclose(whole.scale, parts.scale, rtol=1e-5) or layout.get("granularity") == "tensor"
        assert np.array_equal(whole.zero_point, parts.zero_point)
    lifted = blocks.fitted(weight, scale_for(weight), Hqq(), np.full((4, 40), 5.0))
    assert (lifted.scale == 5).all()


def test_others_keep_their_scale() -> None:
    weight = normal(3, 64, 40)
    scale = scale_for(weight)
    assert blocks.fitted(weight, scale, create("roundings", "nearest"), np.zeros(scale.scale.shape)) is scale


@pytest.mark.parametrize("scales", ["float32", "float16", "{bits: 8, group: 4}"])
@pytest.mark.parametrize("encoding", ["weight_only", "matmul_nbits"])
def test_the_result_runs(encoding: str, scales: str) -> None:
    proto = proto_of([node("MatMul", "x w", "y")], {"x": [3, 128]}, {"y": None}, {"w": normal(1, 128, 64)}, opset=21)
    grid = f"{{format: uint4, symmetric: false, granularity: block, block: 16, scales: {scales}}}"
    rule = f"{{match: {{role: weight}}, range: minmax, rounding: hqq, grid: {grid}, encoding: {encoding}}}"
    quantized = stored_of(proto, settings=(f"rules=[{rule}]",))
    [scale] = quantized.solution.scales.values()
    assert scale.form == quantized.plan.entries[0].grid.scales
    feeds = feeds_for(quantized.source)
    expected = run(with_decoded_weights(quantized), feeds)
    assert_equal(expected, run(quantized.model, feeds, optimize=True), tolerance=1e-4)
    before = stored_of(proto, settings=(f"rules=[{rule.replace('hqq', 'nearest')}]",))
    exact = run(proto, feeds)["y"]
    errors = [float(np.square(run(one.model, feeds)["y"] - exact).mean()) for one in (quantized, before)]
    assert errors[0] < errors[1]


@pytest.mark.parametrize("options", [{"p": 0}, {"p": 2.5}, {"beta": 0}, {"kappa": 0.5}, {"iterations": 0}, {"q": 1}])
def test_options_that_make_no_sense(options: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        create("roundings", {"hqq": options})


def test_steps_stay_normal() -> None:
    weight = (normal(0, 32, 8) * 1e-30).astype(np.float32)
    fitted = Hqq().fitted(weight, scale_for(weight))
    assert np.isfinite(fitted.scale).all() and (fitted.scale > 0).all()
