"""`range: batchnorm`: intervals without samples, from beta and gamma, followed through the graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import Shape, node, normal, proto_of, recipe_of, run, saved, wrapped

from qcli.calibrate import collect
from qcli.data_free import fill_in
from qcli.errors import NothingToDoError, UsageError
from qcli.expectation import Expectations, Expected
from qcli.graph import Model, infer_shapes
from qcli.job import QuantizeJob
from qcli.layers import batchnorm_of
from qcli.measured import requests_of
from qcli.opsets import calibrates
from qcli.pipeline import quantize
from qcli.plan import make_plan, plan_text, read_plan
from qcli.plugins import create
from qcli.recipe import load_recipe
from qcli.statistics import Statistics
from qcli.steps.fold_batchnorm import FoldBatchnorm
from qcli.types import Array, Entry, Plan, Role
from qcli.watch import Watch

SIGMAS = 6.0


def batchnorm(seed: int, channels: int, name: str) -> dict[str, Array]:
    return {
        f"{name}g": np.abs(normal(seed, channels)) + 0.2,
        f"{name}b": normal(seed + 1, channels),
        f"{name}m": normal(seed + 2, channels) / 4,
        f"{name}v": np.abs(normal(seed + 3, channels)) + 0.5,
    }


def normalized(name: str, source: str, result: str) -> onnx.NodeProto:
    return node("BatchNormalization", f"{source} {name}g {name}b {name}m {name}v", result)


def residual() -> onnx.ModelProto:
    """Two normalized convolutions around an addition, pooling, a classifier."""
    weights = {
        "w": normal(0, 8, 3, 3, 3) / 5, "u": normal(1, 8, 8, 3, 3) / 8, "d": normal(2, 8, 5) / 3, "e": normal(3, 5),
        **batchnorm(10, 8, "p"), **batchnorm(20, 8, "q"),
    }  # fmt: skip
    nodes = [
        node("Conv", "x w", "a", pads=[1, 1, 1, 1]), normalized("p", "a", "an"), node("Relu", "an", "ar"),
        node("Conv", "ar u", "c", pads=[1, 1, 1, 1]), normalized("q", "c", "cn"), node("Add", "cn ar", "s"),
        node("Relu", "s", "sr"), node("GlobalAveragePool", "sr", "g"), node("Flatten", "g", "f"),
        node("Gemm", "f d e", "y"),
    ]  # fmt: skip
    return proto_of(nodes, {"x": ["n", 3, 8, 8]}, {"y": ["n", 5]}, weights)


def known_of(
    nodes: Sequence[onnx.NodeProto], inputs: Mapping[str, Shape], weights: Mapping[str, Array], result: str = "y"
) -> tuple[Expected | None, str]:
    model = wrapped(proto_of(nodes, inputs, {"y": None}, weights))
    infer_shapes(model)
    known = Expectations(model.graph, SIGMAS, {})
    return known.get(result), known.why_not(result)


PARTS = batchnorm(0, 4, "n")
IMAGE: Mapping[str, Shape] = {"x": [2, 4, 6, 6]}


def behind(*nodes: onnx.NodeProto, **weights: Array) -> Expected:
    found, reason = known_of([normalized("n", "x", "h"), *nodes], IMAGE, {**PARTS, **weights})
    assert found is not None, reason
    return found


def ends(found: Expected) -> tuple[float, float]:
    return found.lower, found.upper


def test_batchnorm_itself() -> None:
    found, _ = known_of([normalized("n", "x", "y")], IMAGE, PARTS)
    assert found is not None
    np.testing.assert_allclose(found.mean, PARTS["nb"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.variance, PARTS["ng"] ** 2, rtol=1e-3)
    assert ends(found) == pytest.approx(
        ((PARTS["nb"] - 6 * PARTS["ng"]).min(), (PARTS["nb"] + 6 * PARTS["ng"]).max()), rel=1e-6
    )


@pytest.mark.parametrize(
    ("operator", "function", "attributes"),
    [
        ("Relu", lambda x: np.maximum(x, 0), {}),
        ("LeakyRelu", lambda x: np.where(x < 0, 0.2 * x, x), {"alpha": 0.2}),
        ("Sigmoid", lambda x: 1 / (1 + np.exp(-x)), {}),
        ("Tanh", np.tanh, {}),
        ("HardSwish", lambda x: x * np.clip(x / 6 + 0.5, 0, 1), {}),
        ("HardSigmoid", lambda x: np.clip(0.3 * x + 0.5, 0, 1), {"alpha": 0.3}),
    ],
)
def test_functions_are_applied_to_the_distribution(
    operator: str, function: object, attributes: dict[str, float]
) -> None:
    found = behind(node(operator, "h", "y", **attributes))
    drawn = PARTS["nb"][:, None] + PARTS["ng"][:, None] * np.random.default_rng(0).standard_normal((4, 200_000))
    expected = function(drawn)  # type: ignore[operator]
    np.testing.assert_allclose(found.mean, expected.mean(axis=1), atol=0.02)
    np.testing.assert_allclose(found.variance, expected.var(axis=1), rtol=0.03, atol=0.01)
    assert found.lower <= expected.min() + 1e-3 and found.upper >= expected.max()


@pytest.mark.parametrize("by_attribute", [False, True])
def test_clip(by_attribute: bool) -> None:
    weights = {"zero": np.array(0, np.float32), "six": np.array(0.5, np.float32)}
    if by_attribute:
        nodes = [normalized("n", "x", "h"), node("Clip", "h", "y", min=0.0, max=0.5)]
        proto = proto_of(nodes, IMAGE, {"y": None}, PARTS, opset=9)
        model = wrapped(proto)
        found = Expectations(model.graph, SIGMAS, {}).get("y")
        assert found is not None
    else:
        found = behind(node("Clip", "h zero six", "y"), **weights)
    assert ends(found) == (0.0, 0.5)


@pytest.mark.parametrize("group", [1, 2, 4])
def test_one_layer_is_followed(group: int) -> None:
    """Against independent values in front of it; the next layer is not."""
    weight, bias = normal(5, 8, 4 // group, 3, 3), normal(6, 8)
    layer = node("Conv", "h w b", "y", group=group)
    found = behind(layer, w=weight, b=bias)
    rng = np.random.default_rng(1)
    drawn = PARTS["nb"][:, None, None] + PARTS["ng"][:, None, None] * rng.standard_normal((3000, 4, 3, 3))
    proto = proto_of([layer], {"h": ["n", 4, 3, 3]}, {"y": None}, {"w": weight, "b": bias})
    result = run(proto, {"h": drawn.astype(np.float32)})["y"][:, :, 0, 0]
    np.testing.assert_allclose(found.mean, result.mean(axis=0), atol=0.5)
    np.testing.assert_allclose(found.variance, result.var(axis=0), rtol=0.15)
    nodes = [normalized("n", "x", "h"), node("Conv", "h w b", "i", group=group), node("Conv", "i v", "y")]
    again, reason = known_of(nodes, IMAGE, {**PARTS, "w": weight, "b": bias, "v": normal(7, 2, 8, 1, 1)})
    assert again is None and reason == "Conv '/y' is more than 1 layer behind the last BatchNormalization or the input"


def test_sums_and_products_of_independent_values() -> None:
    for operator, wanted in (("Add", np.add), ("Mul", np.multiply)):
        nodes = [
            normalized("n", "x", "h"),
            node("Relu", "h", "r"),
            normalized("m", "z", "k"),
            node(operator, "r k", "y"),
        ]
        other = batchnorm(50, 4, "m")
        found, reason = known_of(nodes, {**IMAGE, "z": IMAGE["x"]}, {**PARTS, **other})
        assert found is not None, reason
        rng = np.random.default_rng(2)
        first, second = (
            part["b"][:, None] + part["g"][:, None] * rng.standard_normal((4, 200_000))
            for part in ({"b": PARTS["nb"], "g": PARTS["ng"]}, {"b": other["mb"], "g": other["mg"]})
        )
        drawn = wanted(np.maximum(first, 0), second)
        np.testing.assert_allclose(found.mean, drawn.mean(axis=1), atol=0.03)
        np.testing.assert_allclose(found.variance, drawn.var(axis=1), rtol=0.1, atol=1e-5)


MOVES = [
    ([node("MaxPool", "h", "y", kernel_shape=[2, 2])], {}, 4),
    ([node("GlobalAveragePool", "h", "g"), node("Flatten", "g", "y")], {}, 4),
    ([node("Flatten", "h", "y")], {}, 144),
    ([node("Reshape", "h flat", "y")], {"flat": np.array([2, -1], np.int64)}, 144),
    ([node("Concat", "h h", "y", axis=1)], {}, 8),
    ([node("Slice", "h s e a", "y")], {"s": np.array([1], np.int64), "e": np.array([3], np.int64),
                                        "a": np.array([1], np.int64)}, 2),
    ([node("Slice", "h s e a", "y")], {"s": np.array([1], np.int64), "e": np.array([3], np.int64),
                                        "a": np.array([-1], np.int64)}, 4),
    ([node("Pad", "h p", "y")], {"p": np.array([0, 2, 0, 0, 0, 1, 0, 0], np.int64)}, 7),
]  # fmt: skip


@pytest.mark.parametrize(("nodes", "weights", "channels"), MOVES)
def test_moves_keep_channels(nodes: list[onnx.NodeProto], weights: dict[str, Array], channels: int) -> None:
    found = behind(*nodes, **weights)
    assert found.mean.size == channels
    assert found.lower >= behind(node("Identity", "h", "y")).lower


@pytest.mark.parametrize(
    ("nodes", "weights"),
    [
        ([node("Softmax", "h", "y")], {}),
        ([node("Concat", "h h", "y", axis=2)], {}),
        ([node("Pad", "h p one", "y")], {"p": np.zeros(8, np.int64), "one": np.array(1, np.float32)}),
        ([node("Add", "h c", "y")], {"c": np.ones((1, 4, 1, 1), np.float32)}),
    ],
)
def test_what_cannot_be_followed_is_named(nodes: list[onnx.NodeProto], weights: dict[str, Array]) -> None:
    found, reason = known_of(
        [
            normalized("n", "x", "h"),
            *nodes,
        ],
        IMAGE,
        {**PARTS, **weights},
    )
    assert found is None and "cannot be followed" in reason


def test_folding_keeps_what_batchnorm_said() -> None:
    model = wrapped(residual())
    before = Expectations(model.graph, SIGMAS, {}).get("sr")
    digest = model.copy()
    assert FoldBatchnorm().run(model) == 2
    copy = model.copy()
    after = Expectations(copy.graph, SIGMAS, {}).get("sr")
    assert before is not None and after is not None
    np.testing.assert_array_equal(before.points, after.points)
    assert b"qcli.batchnorm" not in copy.serialize() and digest.node_count() == copy.node_count() + 2


def test_a_layer_that_was_changed_since_is_no_longer_described() -> None:
    from qcli.graph import constant_of, set_constant

    model = wrapped(residual())
    FoldBatchnorm().run(model)
    layer = next(one for one in model.graph if one.op_type == "Conv")
    assert batchnorm_of(layer) is not None
    set_constant(model.graph, layer, 1, np.asarray(constant_of(layer.inputs[1])) * np.float32(2))
    assert batchnorm_of(layer) is None


def planned(proto: onnx.ModelProto, settings: Sequence[str] = ()) -> tuple[Model, Plan, Watch]:
    recipe, watch = load_recipe("int8-data-free", settings), Watch()
    model = wrapped(proto)
    FoldBatchnorm().run(model)
    infer_shapes(model)
    return model, fill_in(model, make_plan(model, recipe), recipe, watch.warn), watch


def activations(plan: Plan) -> list[Entry]:
    return [entry for entry in plan.entries if entry.site.role in (Role.INPUT, Role.OUTPUT)]


def test_the_plan_holds_the_ends_and_needs_no_samples(tmp_path: Path) -> None:
    model, plan, watch = planned(residual())
    assert requests_of(plan, model) == ()
    for entry in activations(plan):
        assert isinstance(entry.range, dict) and {"lower", "upper"} < set(entry.range["batchnorm"] or {})
        assert entry.because.endswith("beta and gamma of BatchNormalization, 6 standard deviations")
    (tmp_path / "plan.yaml").write_text(plan_text(plan))
    assert read_plan(tmp_path / "plan.yaml") == plan
    assert fill_in(model, plan, load_recipe("int8-data-free"), watch.warn) is plan
    assert len(watch.warnings) == 2 and "the input 'x' is assumed" in watch.warnings[1]


def test_no_samples_end_to_end(tmp_path: Path) -> None:
    path = saved(residual(), tmp_path / "m.onnx")
    watch = Watch()
    report = quantize(
        QuantizeJob(model=path, recipe="int8-data-free", output=tmp_path / "o.onnx", latency=False), watch
    )
    assert report.status == "passed" and report.samples.calibration is None
    assert report.accuracy is not None and (report.accuracy.sqnr or 0) > 20
    assert any("BatchNormalization's beta and gamma" in text for text in report.warnings)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ((), (-4.0, 4.0)),
        (("samples.calibration.preprocess=unit",), (0.0, 1.0)),
        (("samples.calibration.preprocess=raw",), (0.0, 255.0)),
        (("rules=[{match: {value: x, role: input}, range: {batchnorm: {lower: -1, upper: 2.5}}}]",), (-1.0, 2.5)),
    ],
)
def test_what_the_input_lies_between(settings: Sequence[str], expected: tuple[float, float]) -> None:
    _, plan, watch = planned(residual(), settings)
    entry = next(entry for entry in activations(plan) if entry.site.value == "x")
    found = create("ranges", entry.range)
    assert (found.lower, found.upper) == expected
    assert any("is assumed" in text for text in watch.warnings) is (settings == ())


def test_natural_ranges_stay() -> None:
    nodes = [node("Conv", "x w", "a"), normalized("n", "a", "b"), node("Sigmoid", "b", "s"), node("Conv", "s v", "y")]
    weights = {"w": normal(0, 4, 4, 1, 1), "v": normal(1, 4, 4, 1, 1), **PARTS}
    model, plan, _ = planned(proto_of(nodes, IMAGE, {"y": None}, weights))
    assert any(entry.range == {"fixed": {"lower": 0.0, "upper": 1.0}} for entry in plan.entries)
    assert requests_of(plan, model) == ()


def test_a_range_of_samples_beside_asks_for_them() -> None:
    model, plan, _ = planned(residual(), ("rules=[{match: {op: Add, role: output}, range: mse}]",))
    assert {request.value for request in requests_of(plan, model)} == {"sr"}
    empty = Statistics.empty(requests_of(plan, model))
    assert callable(collect) and empty.header.samples == 0


def test_it_refuses_with_the_node_that_breaks_the_chain() -> None:
    nodes = [node("Conv", "x w", "a"), node("Relu", "a", "b"), node("Conv", "b w", "c"), node("Relu", "c", "d"),
             node("Conv", "d w", "y")]  # fmt: skip
    proto = proto_of(nodes, IMAGE, {"y": None}, {"w": normal(0, 4, 4, 1, 1)})
    with pytest.raises(NothingToDoError, match="'d' is not known without samples: Conv '/c' is more than") as caught:
        planned(proto)
    assert caught.value.exit_code == 5 and "-d" in caught.value.hint


@pytest.mark.parametrize(
    "spec", ["{batchnorm: {lower: 1}}", "{batchnorm: {lower: 1, upper: 0}}", "{batchnorm: {sigmas: 0}}"]
)
def test_wrong_options(tmp_path: Path, spec: str) -> None:
    with pytest.raises(UsageError):
        recipe_of(f"version: 1\nextends: int8\nrules:\n  - {{match: {{role: input}}, range: {spec}}}\n", tmp_path)


def test_an_interval_that_nobody_filled_in_is_refused() -> None:
    from qcli.distribution import from_weights
    from qcli.types import Grid

    with pytest.raises(NothingToDoError, match="is for activations"):
        create("ranges", "batchnorm").interval(from_weights(normal(0, 4), None), Grid())


def test_check_does_not_ask_for_samples() -> None:
    assert not calibrates(load_recipe("int8-data-free"))
    assert calibrates(load_recipe("int8"))


@given(st.floats(0.5, 10), st.integers(0, 1000))
def test_more_deviations_never_narrow_a_range(sigmas: float, seed: int) -> None:
    nodes = [normalized("n", "x", "h"), node("Relu", "h", "y")]
    model = wrapped(proto_of(nodes, IMAGE, {"y": None}, batchnorm(seed, 4, "n")))
    narrow, wide = (Expectations(model.graph, many, {}).get("y") for many in (sigmas, sigmas * 1.5))
    assert narrow is not None and wide is not None
    assert wide.upper >= narrow.upper and wide.lower <= narrow.lower
