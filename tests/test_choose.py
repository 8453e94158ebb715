"""`range: auto`: what is chosen, because of what, and what happens where nothing can be tried."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from models import Feeds, Stream, conv_net, node, normal, proto_of, recipe_of, run, stream_for, wrapped
from onnx import TensorProto, helper

from qcli.apply import apply_plan
from qcli.calibrate import collect
from qcli.choose import _clearly_better, choose, is_undecided
from qcli.errors import UsageError
from qcli.graph import Model, infer_shapes, normalize_graph
from qcli.measured import requests_of
from qcli.metrics.sqnr import Sqnr
from qcli.plan import make_plan, plan_text, read_plan
from qcli.plugins import choice_of, create
from qcli.recipe import load_recipe
from qcli.solve import solve
from qcli.statistics import Statistics
from qcli.trial import relative_errors
from qcli.types import Entry, Plan, Role, Spec
from qcli.watch import Watch

AUTO = ("rules=[{match: {role: input}, range: auto}]",)


def planned(proto: onnx.ModelProto, settings: Sequence[str] = AUTO) -> tuple[Model, Plan]:
    model = wrapped(proto)
    normalize_graph(model)
    infer_shapes(model)
    return model, make_plan(model, load_recipe("int8", settings))


def chosen(
    proto: onnx.ModelProto, stream: Stream, settings: Sequence[str] = AUTO, *, threads: int = 1, blind: bool = False
) -> tuple[Model, Plan, Statistics, Watch]:
    model, plan = planned(proto, settings)
    statistics = collect(model, Statistics.empty(requests_of(plan, model)), stream)
    watch = Watch()
    decided = choose(model, plan, statistics, None if blind else stream, watch, threads=threads)
    return model, decided, statistics, watch


def activations(plan: Plan) -> list[Entry]:
    return [entry for entry in plan.entries if entry.site.role in (Role.INPUT, Role.OUTPUT)]


def ranges(plan: Plan) -> list[Spec]:
    return [entry.range for entry in activations(plan)]


def spiked(count: int = 8) -> tuple[onnx.ModelProto, Stream]:
    """A layer that does not look at the channel in which all the outliers are, and one that looks at nothing else."""
    weight, other = normal(0, 8, 4, 3, 3) / 6, normal(1, 8, 4, 3, 3) / 6
    weight[:, 0], other[:, 1:] = 0, 0
    nodes = [
        node("Relu", "x", "r"), node("Conv", "r w", "a", pads=[1, 1, 1, 1]),
        node("Relu", "z", "s"), node("Conv", "s v", "b", pads=[1, 1, 1, 1]),
    ]  # fmt: skip
    shapes = {"x": [1, 4, 16, 16], "z": [1, 4, 16, 16]}
    proto = proto_of(nodes, shapes, {"a": [1, 8, 16, 16], "b": [1, 8, 16, 16]}, {"w": weight, "v": other})
    samples = []
    for seed in range(count):
        values = normal(10 + seed, 1, 4, 16, 16)
        values[:, 0, ::7, ::7] *= 40
        samples.append({"x": values, "z": values})
    return proto, Stream(tuple(samples))


def test_each_value_gets_what_its_own_readers_want() -> None:
    proto, stream = spiked()
    settings = ("rules=[{match: {role: input}, range: {auto: {methods: [minmax, {percentile: {keep: 98}}]}}}]",)
    _, plan, _, watch = chosen(proto, stream, settings)
    found = {entry.site.value: entry for entry in activations(plan)}
    assert choice_of(found["r"].range).name == "percentile"
    assert found["s"].range == "minmax"
    assert not watch.warnings


def test_the_first_method_stays_where_no_other_is_clearly_better() -> None:
    """98 and 98.1 percent are about as good for what looks at no outlier; minmax is not."""
    proto, stream = spiked()
    for first, second in ((98, 98.1), (98.1, 98)):
        methods = f"[{{percentile: {{keep: {first}}}}}, {{percentile: {{keep: {second}}}}}]"
        settings = (f"rules=[{{match: {{role: input}}, range: {{auto: {{methods: {methods}}}}}}}]",)
        found = {entry.site.value: entry for entry in activations(chosen(proto, stream, settings)[1])}
        assert choice_of(found["r"].range).options == {"keep": first}
    settings = ("rules=[{match: {role: input}, range: {auto: {methods: [minmax, {percentile: {keep: 98}}]}}}]",)
    found = {entry.site.value: entry for entry in activations(chosen(proto, stream, settings)[1])}
    assert choice_of(found["r"].range).name == "percentile"


@pytest.mark.parametrize("count", [16, 32])
def test_samples_without_any_error_decide_nothing(count: int) -> None:
    """Outputs behind a saturated Sigmoid are exact now and then: the logarithm of no error must not outweigh all."""
    rng = np.random.default_rng(0)
    known = rng.uniform(0.9, 1.1, count)
    better = known * 0.5
    assert _clearly_better(better, known)
    known[: count // 2] = 0
    better[: count // 2] = 0
    assert _clearly_better(np.where(known > 0, known * 0.1, 0), known)
    lucky = np.where(known > 0, known * 1.5, 0)
    lucky[-1], known[-1] = 0, 30
    assert not _clearly_better(lucky, known)


def test_the_plan_says_what_was_chosen_and_why(tmp_path: Path) -> None:
    proto, stream = spiked()
    _, plan, _, _ = chosen(proto, stream)
    assert not any(is_undecided(entry) for entry in plan.entries)
    for entry in activations(plan):
        by = "of its own values" if entry.site.value in ("a", "b") else "of what reads it"  # nothing reads outputs
        _, _, why = entry.because.partition(f"--set rules[0]; auto, dB {by}: ")
        assert why.split(",")[0].startswith(choice_of(entry.range).name)
    path = tmp_path / "plan.yaml"
    path.write_text(plan_text(plan))
    assert read_plan(path) == plan


def test_threads_and_repetition_do_not_matter() -> None:
    proto = conv_net()
    stream = stream_for(wrapped(proto), 9)
    first = chosen(proto, stream)[1]
    for threads in (1, 2, 4):
        assert plan_text(chosen(proto, stream, threads=threads)[1]) == plan_text(first)


def test_tied_values_share_one_choice() -> None:
    weights = {"w": normal(0, 6, 4, 3, 3) / 6, "v": normal(1, 6, 4, 1, 1) / 2, "u": normal(2, 5, 12, 3, 3) / 8}
    nodes = [
        node("Conv", "x w", "a", pads=[1, 1, 1, 1]), node("Conv", "x v", "b"), node("Concat", "a b", "c", axis=1),
        node("MaxPool", "c", "p", kernel_shape=[2, 2]), node("Conv", "p u", "y"),
    ]  # fmt: skip
    proto = proto_of(nodes, {"x": [1, 4, 8, 8]}, {"y": [1, 5, 5, 5]}, weights)
    _, plan, _, _ = chosen(proto, stream_for(wrapped(proto), 8))
    found = {entry.site.value: entry for entry in activations(plan)}
    tied = [found[name] for name in ("a", "b", "c", "p")]
    assert len({repr(entry.range) for entry in tied}) == 1
    assert len({entry.because.split("auto")[1] for entry in tied}) == 1
    assert "of what reads it" in tied[0].because


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_never_much_worse_than_the_methods_it_chooses_from(count: int) -> None:
    proto, stream = spiked(count)
    model, plan, statistics, _ = chosen(proto, stream)
    found = quality(model, plan, statistics, stream)
    for method in create("ranges", "auto").methods:
        everywhere = [
            msgspec.structs.replace(entry, range=method) if entry in activations(plan) else entry
            for entry in plan.entries
        ]
        uniform = msgspec.structs.replace(plan, entries=tuple(everywhere))
        assert found >= quality(model, uniform, statistics, stream) - 0.5


def quality(model: Model, plan: Plan, statistics: Statistics, stream: Stream) -> float:
    result = apply_plan(model, plan, solve(model, plan, statistics))
    metric = Sqnr()
    for feeds in stream.samples:
        for name, expected in run(model, feeds).items():
            metric.update(expected, run(result, feeds)[name])
    return metric.value()


def test_one_method_for_all_where_that_is_clearly_better(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the layers say is turned upside down: the outputs then overrule it."""
    proto, stream = spiked(24)
    settings = ("rules=[{match: {role: input}, range: {auto: {methods: [minmax, {percentile: {keep: 90}}]}}}]",)
    monkeypatch.setattr(
        "qcli.choose.relative_errors",
        lambda *given, **named: [
            one and one._replace(readers=1 / one.readers) for one in relative_errors(*given, **named)
        ],
    )
    _, plan, _, _ = chosen(proto, stream, settings)
    assert ranges(plan) == ["minmax"] * 4
    assert all("of the model's outputs: by site" in entry.because for entry in activations(plan))


def test_without_samples_the_values_decide_and_a_warning_says_so() -> None:
    proto, stream = spiked()
    model, plan, statistics, watch = chosen(proto, stream, blind=True)
    assert len(watch.warnings) == 1 and "there are no samples; name some with -d" in watch.warnings[0]
    for entry in activations(plan):
        assert "auto, dB of its own values: " in entry.because
    blind = planned(proto)[1]
    solve(model, blind, statistics)  # an undecided plan can be solved as it is


def test_a_model_that_does_not_run_with_trials_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    from qcli.errors import RuntimeFailure

    def fails(*given: object, **named: object) -> None:
        raise RuntimeFailure("it broke")

    monkeypatch.setattr("qcli.choose.relative_errors", fails)
    proto, stream = spiked()
    _, plan, _, watch = chosen(proto, stream)
    assert "it broke" in watch.warnings[0]
    assert not any(is_undecided(entry) for entry in plan.entries)


def test_nothing_to_choose_changes_nothing() -> None:
    proto = conv_net()
    model, plan = planned(proto, ())
    stream = stream_for(wrapped(proto), 2)
    statistics = collect(model, Statistics.empty(requests_of(plan, model)), stream)
    assert choose(model, plan, statistics, stream, Watch()) is plan


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_constant_activations_and_dead_channels(value: float) -> None:
    proto = conv_net()
    shape = next(iter(stream_for(wrapped(proto), 1).samples))["x"].shape
    stream = Stream(tuple({"x": np.full(shape, value, np.float32)} for _ in range(3)))
    model, plan, statistics, watch = chosen(proto, stream)
    assert not watch.warnings
    solve(model, plan, statistics)


def test_huge_activations() -> None:
    proto, stream = spiked()
    loud = Stream(tuple({name: array * np.float32(1e25) for name, array in feeds.items()} for feeds in stream.samples))
    model, plan, statistics, _ = chosen(proto, loud)
    assert all("of its own values" in entry.because for entry in activations(plan))
    solve(model, plan, statistics)


def branching() -> onnx.ModelProto:
    """A convolution inside of each branch of an If, behind one outside."""

    def branch(name: str) -> onnx.GraphProto:
        nodes = [node("Conv", f"h {name}_w", f"{name}_c"), node("Relu", f"{name}_c", f"{name}_r"),
                 node("Conv", f"{name}_r {name}_v", f"{name}_y")]  # fmt: skip
        inner = proto_of(
            nodes, {}, {f"{name}_y": None}, {f"{name}_w": normal(1, 4, 4, 1, 1), f"{name}_v": normal(2, 4, 4, 1, 1)}
        )
        return inner.graph

    nodes = [
        node("Conv", "x w", "h"), node("ReduceMax", "x", "m", keepdims=0), node("Greater", "m zero", "q"),
        node("If", "q", "y", then_branch=branch("t"), else_branch=branch("e")),
    ]  # fmt: skip
    weights = {"w": normal(0, 4, 3, 1, 1), "zero": np.array(0, np.float32)}
    return proto_of(nodes, {"x": [1, 3, 5, 5]}, {"y": None}, weights)


def test_values_in_bodies_are_judged_by_themselves() -> None:
    stream = Stream(tuple({"x": normal(seed, 1, 3, 5, 5) * (1 if seed % 2 else -1)} for seed in range(6)))
    model, plan, statistics, _ = chosen(branching(), stream)
    inside = [entry for entry in activations(plan) if entry.site.graph]
    assert inside and all("of its own values" in entry.because for entry in inside)
    solve(model, plan, statistics)


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("{auto: {methods: []}}", "nothing to choose from"),
        ("{auto: {methods: [mse, auto]}}", "cannot name auto itself"),
        ("{auto: {methods: [msee]}}", "unknown range 'msee'"),
        ("{auto: {method: [mse]}}", "unknown key 'method'"),
        ("{auto: {methods: [{percentile: {keep: 0}}]}}", "keep"),
    ],
)
def test_what_cannot_be_chosen_from_is_refused(tmp_path: Path, spec: str, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        recipe_of(f"version: 1\nextends: int8\nrules:\n  - {{match: {{role: input}}, range: {spec}}}\n", tmp_path)


def test_a_group_of_several_recipes_takes_the_methods_of_its_first() -> None:
    """Rules may name different methods for values that share a scale."""
    proto, stream = spiked()
    settings = (
        "rules=[{match: {role: input}, range: {auto: {methods: [mse]}}}, "
        "{match: {role: input, value: s}, range: {auto: {methods: [minmax, entropy]}}}]",
    )
    _, plan, _, _ = chosen(proto, stream, settings)
    found = {entry.site.value: entry.range for entry in activations(plan)}
    assert found["r"] == "mse" and found["s"] in ("minmax", "entropy")


def test_integers_beside_do_not_matter() -> None:
    nodes = [
        node("Gather", "table x", "g"),
        node("MatMul", "g w", "h"),
        node("Relu", "h", "r"),
        node("MatMul", "r v", "y"),
    ]
    weights = {"table": normal(0, 9, 8), "w": normal(1, 8, 8), "v": normal(2, 8, 4)}
    proto = proto_of(nodes, {}, {"y": None}, weights)
    proto.graph.input.append(helper.make_tensor_value_info("x", TensorProto.INT64, [2, 3]))
    rng = np.random.default_rng(0)
    feeds: list[Feeds] = [{"x": rng.integers(0, 9, (2, 3))} for _ in range(6)]
    _, plan, _, watch = chosen(proto, Stream(tuple(feeds)))
    assert not any(is_undecided(entry) for entry in plan.entries) and not watch.warnings
