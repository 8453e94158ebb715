"""What is suggested for what, and that each kind of fault gets its own remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
from models import conv_net, dense_net, quantized_of
from sabotaged import CHANNELS, SAMPLES, chain, convolutions, joined, outlying, samples

from qcli.analysis.groups import Group, grouped
from qcli.analysis.nouns import AnalyzeJob, Blame, Row, Suggestion, Whole
from qcli.analysis.simulate import simulate
from qcli.analysis.suggest import Findings, suggest
from qcli.analysis.trial import Change, Trials
from qcli.analysis.work import analyze, blame_of
from qcli.recipe import load_recipe
from qcli.watch import Watch
from qcli.yaml_file import parse_yaml


def whole(weights: float | None, activations: float | None, simulated: float = 20.0) -> Whole:
    return Whole(
        float_check=200,
        quantized=simulated,
        simulated=simulated,
        weights_only=weights,
        activations_only=activations,
    )


@pytest.mark.parametrize(
    ("found", "blame"),
    [
        (whole(20, 30), "weights"),
        (whole(30, 20), "activations"),
        (whole(22, 25), "both"),
        (whole(20, None), "weights"),
        (whole(None, 20), "activations"),
        (whole(70, 80, simulated=69), "neither"),
    ],
)
def test_who_is_to_blame(found: Whole, blame: Blame) -> None:
    assert blame_of(found) == blame


class Told(Trials):
    """Trials that run nothing: each change gains what it is told to."""

    def announce(self, changes: Any) -> None:
        self.seen = list(changes)

    def run(self, change: Change) -> Suggestion | None:
        gain = sum(self.gains.get(kind, 0.0) for kind in change.kinds)
        text = change.yaml(load_recipe("int8"))
        return Suggestion(why=change.why, yaml=text, sqnr=20 + gain, gain=gain)

    gains: dict[str, float]
    seen: list[Change]


def told(**gains: float) -> Told:
    trials = Told(job=None, base=None, against=None, watch=Watch())  # type: ignore[arg-type]
    trials.gains = {key.replace("_", " "): gain for key, gain in gains.items()}
    return trials


def findings(blame: Blame, proto: Any = None, recipe: str = "int8-minmax", **figures: float) -> Findings:
    """Rows in the order of the graph, all of which say the same."""
    made = quantized_of(proto or conv_net(), recipe)
    simulation = simulate(made.source, made.plan, made.solution)
    groups = grouped(simulation.layers, made.source, "node")
    rows = tuple((row_of(group, **figures), group) for group in groups)
    return Findings(made.source, made.plan, load_recipe(recipe).prepare, blame, rows)


def row_of(group: Group, **figures: float) -> Row:
    base: dict[str, Any] = {
        "output": 30.0,
        "alone": 30.0,
        "weights": 30.0,
        "activations": 40.0,
        "gain": 1.0,
        "share": 0.2,
    }
    layer = group.layers[0]
    return Row(name=group.name, op=group.op, nodes=(layer.name,), values=tuple(layer.values), **{**base, **figures})


def kinds(trials: Told) -> set[str]:
    return {kind for change in trials.seen for kind in change.kinds}


def test_blame_decides_what_is_tried(tmp_path: Path) -> None:
    trials = told()
    suggest(findings("weights", recipe="int8-per-tensor"), trials)
    assert {"granularity", "weight range", "float"} <= kinds(trials)
    assert not {"range", "equalize"} & kinds(trials)
    suggest(findings("activations", onnx.load(convolutions(tmp_path))), trials)
    assert {"range", "equalize", "float"} <= kinds(trials)
    assert not {"granularity", "weight range", "rounding"} & kinds(trials)
    suggest(findings("both"), trials)
    assert {"range", "weight range", "float"} <= kinds(trials)


def test_what_is_so_already_is_not_tried() -> None:
    trials = told()
    suggest(findings("weights", dense_net()), trials)
    assert "granularity" not in kinds(trials)
    rules = [rule for change in trials.seen for rule in change.rules]
    assert {"match": {"role": "weight"}, "range": "minmax"} not in rules
    assert {"match": {"role": "weight"}, "range": "mse"} in rules


def test_no_change_is_tried_twice() -> None:
    trials = told()
    _, count = suggest(findings("both"), trials)
    written = [change.yaml(load_recipe("int8")) for change in trials.seen]
    assert len(written) == len(set(written)) == count


def test_small_gains_are_not_shown() -> None:
    found, count = suggest(findings("both"), told(float=0.4))
    assert found == () and count > 3


def test_changes_with_the_same_result_are_one() -> None:
    found, _ = suggest(findings("both"), told(float=2.0))
    assert len(found) == 1, "one row in float, and three"


def test_the_best_are_tried_together() -> None:
    found, _ = suggest(findings("both", share=0.0), told(float=2.0, range=1.0))
    assert found[0].gain == pytest.approx(3.0)
    document = parse_yaml(found[0].yaml, "suggestion")
    assert [set(rule) for rule in document["rules"]] == [{"match", "keep"}, {"match", "range"}]


def test_steps_are_added_to_those_of_the_recipe(tmp_path: Path) -> None:
    found, _ = suggest(findings("activations", onnx.load(convolutions(tmp_path))), told(equalize=2.0))
    document = parse_yaml(found[0].yaml, "suggestion")
    assert document == {"prepare": [*load_recipe("int8").prepare, "equalize"]}


def test_a_layer_whose_result_is_at_fault_is_kept_float_with_its_readers() -> None:
    trials = told()
    suggest(findings("activations", weights=40.0, activations=30.0), trials)
    kept = [rule["match"]["name"] for change in trials.seen for rule in change.rules if "keep" in rule]
    assert kept[0] == ["/c1", "/c2", "/a"], "the next convolution and the residual Add read the first one's result"
    suggest(findings("weights", weights=30.0, activations=40.0), trials)
    kept = [rule["match"]["name"] for change in trials.seen for rule in change.rules if "keep" in rule]
    assert kept[0] == ["/c1"]


def job(model: Path, calib: Path, **options: Any) -> AnalyzeJob:
    return AnalyzeJob(model=model, calibration=calib, compared=SAMPLES, threads=1, cache=False, **options)


def test_outlying_channels_are_split_off(tmp_path: Path) -> None:
    analysis = analyze(job(*outlying(tmp_path), recipe="int8-minmax"))
    assert analysis.blame == "activations"
    split = [one for one in analysis.suggestions if "split_outliers" in one.yaml]
    assert split and split[0].gain > 10


def test_values_that_share_a_scale_are_named_together(tmp_path: Path) -> None:
    given = job(joined(tmp_path, 10), samples(tmp_path, 1, CHANNELS, 6, 6), recipe="int8-minmax")
    analysis = analyze(given)
    assert "/Concat" not in [row.name for row in analysis.rows], "it moves codes"
    assert {row.name for row in analysis.rows} == {"/left/Conv", "/right/Conv", "/last/Conv"}
    assert analysis.rows[0].name == "/left/Conv", "it has the fewest levels of the shared scale"
    best = analysis.suggestions[0]
    assert best.gain > 5 and "right" not in best.yaml


def test_a_model_without_faults_gets_no_suggestions(tmp_path: Path) -> None:
    given = job(chain(tmp_path), samples(tmp_path, 4, CHANNELS), recipe="int8", by="block")
    analysis = analyze(given)
    assert all(one.gain >= 0.5 for one in analysis.suggestions)
    quiet = analyze(job(given.model, given.calibration or tmp_path, suggest=False))
    assert quiet.suggestions == () and quiet.notes == ()
