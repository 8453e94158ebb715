"""What parts cost: times and noise are there for each, and the borders lie between neighbours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import SAMPLE_MODELS

from qcli.tuning.base import Base, build, settle
from qcli.tuning.costs import Machine, costs_of, network_for
from qcli.tuning.front import Costs
from qcli.tuning.nouns import Candidate, TuneJob
from qcli.tuning.parts import Network, without
from qcli.watch import Watch


def made(recipe: str, folder: Path) -> tuple[TuneJob, Base, Network, Costs]:
    home: dict[str, Any] = {
        "model": SAMPLE_MODELS / "cnn" / "model.onnx",
        "calibration": SAMPLE_MODELS / "cnn" / "calib",
    }
    gray = "samples.calibration.preprocess={channels: gray, preset: unit}"
    job = TuneJob(**home, recipe=recipe, settings=(gray,), samples=8, output=folder / "o.onnx", threads=1, cache=False)
    base = settle(job, recipe, Watch())
    assert base.prepared.calibration is not None
    samples = list(base.prepared.calibration)
    found = network_for(base, samples[0])
    return job, base, found[0], costs_of(base, found, samples, Machine(1, 2), Watch())


def test_every_part_has_times_and_noise(tmp_path: Path) -> None:
    _, base, network, costs = made("int8-minmax", tmp_path)
    assert len(network.parts) == len(costs.ms) == len(costs.noise) > 5
    weighted = [number for number, part in enumerate(network.parts) if part.weights is not None]
    assert all(min(costs.ms[number]) > 0 for number in weighted)
    assert all(costs.noise[number][1] > 0 for number in weighted)
    assert all(noise >= 0 and stored >= 0 for noise, stored in costs.noise)
    assert costs.borders and all(cost > 0 and one < other for (one, other), cost in costs.borders.items())
    assert base.computes()


def test_what_quantizes_as_it_runs_has_no_borders(tmp_path: Path) -> None:
    _, _, _, costs = made("int8-dynamic", tmp_path)
    assert costs.borders == {}


@pytest.mark.parametrize("taken", [0, 3])
def test_a_candidate_takes_over_what_its_base_learned(taken: int, tmp_path: Path) -> None:
    job, base, network, _ = made("int8-minmax", tmp_path)
    out = tuple(part for part in network.parts if part.weights is not None)[taken : taken + 2]
    built = build(base, Candidate(recipe="int8-minmax", why="", rules=without(out)), job, Watch())
    assert built is not None
    taken_out = {part.key for part in out}
    left = {entry.site.node: entry for entry in base.plan.entries if entry.site.op == "Conv"}
    assert taken_out & {kept.node for kept in built.plan.kept_float} == taken_out
    same = [entry for entry in built.plan.entries if left.get(entry.site.node) == entry]
    assert same, "the rest is as it was"


def test_rules_that_leave_nothing_give_no_model(tmp_path: Path) -> None:
    from qcli.types import Match, Rule

    job, base, _, _ = made("int8-minmax", tmp_path)
    nothing = Candidate(recipe="int8-minmax", why="", rules=(Rule(match=Match(), keep="float"),))
    assert build(base, nothing, job, Watch()) is None
