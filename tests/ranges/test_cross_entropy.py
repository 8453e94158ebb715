"""`cross_entropy`: logits whose answer stays, from the mathematics to the model that onnxruntime runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from models import Stream, node, normal, proto_of, quantized_of, run, saved, wrapped

from qcli.distribution import Distribution, from_weights
from qcli.errors import UsageError
from qcli.measured import requests_of
from qcli.plan import make_plan
from qcli.plugins import create
from qcli.ranges.cross_entropy import CrossEntropy
from qcli.ranges.minmax import MinMax
from qcli.ranges.mse import Mse
from qcli.recipe import load_recipe
from qcli.stats.rows import Rows
from qcli.types import Array, FloatArray, Grid, Interval, Role

GRIDS = (
    Grid(format="uint8", symmetric=False),
    Grid(format="uint8", symmetric=False, bits=4),
    Grid(format="uint8", symmetric=False, bits=2),
    Grid(bits=4),
)
LOGITS = hnp.arrays(np.float32, st.tuples(st.integers(1, 8), st.integers(2, 6)), elements=st.floats(-50, 50, width=32))


def known(logits: FloatArray) -> Distribution:
    statistic = Rows.empty()
    statistic.update(logits.T)
    return statistic.distribution()


def softmax(logits: Array) -> Array:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def cross_entropy(logits: FloatArray, interval: Interval, grid: Grid) -> float:
    """H(softmax(v), softmax(q(v))), by the format's own encoding and decoding."""
    number_format = create("formats", grid.format)
    scale = number_format.scale(interval, grid)
    decoded = number_format.decode(number_format.encode(logits, scale), scale).astype(np.float64)
    wanted, found = softmax(logits.astype(np.float64)), softmax(decoded)
    return float(-(wanted * np.log(np.maximum(found, 1e-300))).sum(axis=1).mean())


@settings(deadline=None)
@given(LOGITS, st.sampled_from(GRIDS))
def test_never_worse_than_minmax(logits: FloatArray, grid: Grid) -> None:
    found = cross_entropy(logits, CrossEntropy().interval(known(logits), grid), grid)
    assert found <= cross_entropy(logits, MinMax().interval(known(logits), grid), grid) + 1e-4


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("seed", range(3))
def test_about_as_good_as_trying_everything(grid: Grid, seed: int) -> None:
    logits = long_tailed(seed, 60)
    low, high = min(float(logits.min()), 0.0), max(float(logits.max()), 0.0)
    shares = np.linspace(0.02, 1, 40)
    pairs = [(low * first, high * second) for first in shares for second in shares]
    if grid.symmetric:
        most = max(-low, high)
        pairs = [(max(low, -share * most), min(high, share * most)) for share in np.linspace(0.02, 1, 200)]
    bounds = [Interval(lower=np.array([first]), upper=np.array([second])) for first, second in pairs]
    entropy = cross_entropy(logits, Interval(lower=np.array([low * 99]), upper=np.array([high * 99])), grid)
    best = min(cross_entropy(logits, bound, grid) for bound in bounds)
    found = cross_entropy(logits, CrossEntropy().interval(known(logits), grid), grid)
    assert found - best <= 0.05 * (entropy - best)


def long_tailed(seed: int, count: int) -> FloatArray:
    """Logits with one large one a row, and now and then one that is very negative."""
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((count, 10))
    logits[np.arange(count), rng.integers(0, 10, count)] += rng.uniform(1, 8, count)
    logits[:: max(1, count // 4), 3] -= 60
    return np.asarray(logits, np.float32)


def test_what_no_answer_depends_on_is_clipped() -> None:
    logits, grid = long_tailed(0, 200), Grid(format="uint8", symmetric=False, bits=4)
    widest, least, found = (kind().interval(known(logits), grid) for kind in (MinMax, Mse, CrossEntropy))
    assert found.lower[0] > 0.5 * widest.lower[0] and found.upper[0] > 0.7 * widest.upper[0]
    assert cross_entropy(logits, found, grid) < min(cross_entropy(logits, other, grid) for other in (widest, least))


def test_values_that_are_no_rows_are_refused() -> None:
    for distribution in (from_weights(normal(0, 3, 4), None), known(normal(0, 5, 1))):
        with pytest.raises(UsageError, match="two classes or more"):
            CrossEntropy().interval(distribution, Grid())


def test_all_zeros() -> None:
    found = CrossEntropy().interval(known(np.zeros((3, 4), np.float32)), Grid())
    assert found.lower.tolist() == found.upper.tolist() == [0.0]


def classifier() -> onnx.ModelProto:
    """A classifier that ends in a convolution, as SqueezeNet does; its logits are codes."""
    layers = [
        node("Conv", "x w b", "features", pads=[1, 1, 1, 1], name="/features"),
        node("Relu", "features", "active"),
        node("Conv", "active v c", "maps", name="/classifier"),
        node("GlobalAveragePool", "maps", "pooled"),
        node("Flatten", "pooled", "logits", name="/logits"),
    ]
    weights = {"w": normal(1, 8, 3, 3, 3), "b": normal(2, 8), "v": normal(3, 10, 8, 1, 1), "c": normal(4, 10)}
    return proto_of(layers, {"x": (1, 3, 8, 8)}, {"logits": (1, 10)}, weights)


RULE = (
    "rules=[{match: {value: [pooled, logits], role: output}, range: cross_entropy,"
    " grid: {format: uint8, symmetric: false, bits: 4}}]"
)


def test_the_last_layer_of_a_classifier() -> None:
    stream = Stream(tuple({"x": normal(seed, 1, 3, 8, 8)} for seed in range(40)))
    found = quantized_of(classifier(), "int8-minmax", stream, (RULE,))
    plain = quantized_of(classifier(), "int8-minmax", stream, (RULE.replace("cross_entropy", "minmax"),))
    ranges = {entry.site.value: entry.range for entry in found.plan.entries if entry.site.role is Role.OUTPUT}
    assert ranges["logits"] == "cross_entropy" and ranges["maps"] == "minmax"
    asked = [request for request in requests_of(found.plan, found.source) if request.statistic == "rows"]
    assert {(request.value, request.axis) for request in asked} == {("pooled", 1), ("logits", 1)}
    losses = []
    for model in (found.model, plain.model):
        pairs = [(run(classifier(), feeds)["logits"], run(model, feeds)["logits"]) for feeds in stream.samples]
        losses.append(np.mean([-(softmax(exact) * np.log(softmax(result))).sum() for exact, result in pairs]))
    assert losses[0] <= losses[1] + 1e-3


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("{match: {role: input}, range: cross_entropy}", "not [N, classes]"),
        ("{match: {role: weight}, range: cross_entropy}", "is a weight"),
        ("{match: {value: maps, role: output}, range: cross_entropy}", "[1, 10, 8, 8]"),
    ],
)
def test_other_sites_are_refused(rule: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        make_plan(wrapped(classifier()), load_recipe("int8-minmax", (f"rules=[{rule}]",)))
    assert "for logits" in caught.value.message and said in caught.value.message
    assert "role: output" in caught.value.hint


def test_logits_that_stay_float_have_no_range() -> None:
    proto = proto_of([node("Gemm", "x w", "y")], {"x": (1, 8)}, {"y": (1, 4)}, {"w": normal(0, 8, 4)})
    rule = "rules=[{match: {value: y, role: output}, range: cross_entropy}]"
    with pytest.raises(UsageError, match="nothing that it matches") as caught:
        make_plan(wrapped(proto), load_recipe("int8-minmax", (rule,)))
    assert "stay float" in caught.value.hint


def test_auto_cannot_choose_it() -> None:
    with pytest.raises(UsageError, match="more than a histogram"):
        create("ranges", {"auto": {"methods": ["cross_entropy"]}})


def test_the_command_refuses_with_code_2(tmp_path: Path) -> None:
    model = saved(classifier(), tmp_path / "m.onnx")
    rule = "rules=[{match: {role: input}, range: cross_entropy}]"
    command = [sys.executable, "-m", "qcli", "plan", str(model), "-r", "int8", "--set", rule]
    finished = subprocess.run(command, check=False, capture_output=True, text=True)
    assert finished.returncode == 2 and "cross_entropy" in finished.stderr
