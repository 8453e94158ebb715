"""What parts cost: times and noise are there for each, and the borders lie between neighbours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import SAMPLE_MODELS

from qcli.tuning.base import NOTHING, Base, build, settle
from qcli.tuning.cost_sums import Corrected, Costs
from qcli.tuning.costs import Machine, costs_of, static_parts
from qcli.tuning.nouns import Candidate, TuneJob
from qcli.tuning.parts import Network
from qcli.tuning.uniform import network_for, uniforms
from qcli.tuning.ways import BLOCKS, DYNAMIC, STORED, UNTOUCHED, WAYS
from qcli.watch import Watch


def made(recipe: str, folder: Path, model: str = "cnn") -> tuple[TuneJob, Base, Network, Costs]:
    home: dict[str, Any] = {
        "model": SAMPLE_MODELS / model / "model.onnx",
        "calibration": SAMPLE_MODELS / model / "calib",
    }
    settings = ("samples.calibration.preprocess={channels: gray, preset: unit}",) if model == "cnn" else ()
    job = TuneJob(**home, recipe=recipe, settings=settings, samples=8, output=folder / "o.onnx", threads=1, cache=False)
    base = settle(job, recipe, Watch())
    assert base.prepared.calibration is not None
    samples = list(base.prepared.calibration)
    found = network_for(base, samples[0])
    others = uniforms(base, found[0], job, Watch())
    return job, base, found[0], costs_of(base, found, others, samples, Machine(1, 2))


def test_every_part_has_times_noise_and_bytes(tmp_path: Path) -> None:
    _, base, network, costs = made("int8-minmax", tmp_path)
    assert len(network.parts) == len(costs.ms) == len(costs.noise) == len(costs.bytes) > 5
    stored, untouched = WAYS.index(STORED), WAYS.index(UNTOUCHED)
    for number, part in enumerate(network.parts):
        times, noise, sizes = costs.ms[number], costs.noise[number], costs.bytes[number]
        assert times[0] is not None and times[untouched] is not None and min(noise) >= 0 == noise[untouched]
        if part.weights is not None:
            assert times[0] > 0 and times[untouched] > 0
            assert times[stored] == times[untouched] and noise[0] >= noise[stored] > 0
            assert sizes[0] < 0.6 * sizes[untouched] and sizes[stored] < 0.6 * sizes[untouched]
    assert costs.borders and all(cost > 0 and one < other for (one, other), cost in costs.borders.items())
    assert base.computes()


def test_convolutions_have_no_dynamic_way_and_products_have(tmp_path: Path) -> None:
    _, _, network, costs = made("int8-minmax", tmp_path)
    for part, times in zip(network.parts, costs.ms, strict=True):
        product = part.op in ("MatMul", "Gemm") and part.weights is not None
        assert times[WAYS.index(DYNAMIC)] is None or product
        assert (times[WAYS.index(BLOCKS)] is not None) == product


def test_the_last_part_reads_codes_though_its_result_is_float(tmp_path: Path) -> None:
    """Its input's grid stands with the part before it."""
    _, base, network, costs = made("int8-minmax", tmp_path, "mlp")
    assert static_parts(network, base.plan) == [True, True, True]
    assert set(costs.borders) == {(0, 1), (1, 2)}


def test_what_quantizes_as_it_runs_has_no_borders(tmp_path: Path) -> None:
    _, _, _, costs = made("int8-dynamic", tmp_path, "transformer")
    assert costs.borders == {}
    assert all(times[WAYS.index(DYNAMIC)] is None for times in costs.ms), "they are dynamic as it is"
    assert any(times[WAYS.index(BLOCKS)] is not None for times in costs.ms)


def test_the_time_of_the_whole_is_that_of_its_profile(tmp_path: Path) -> None:
    _, _, network, costs = made("int8-minmax", tmp_path)
    untouched = (WAYS.index(UNTOUCHED),) * len(network.parts)
    assert costs.time(untouched) == pytest.approx(1.0)
    assert 0 < costs.time((0,) * len(network.parts)) < 20


@pytest.mark.parametrize("plain", [1.0, 0.45])
@pytest.mark.parametrize("whole", [0.2, 0.4, 0.8, 1.1])
def test_corrected_by_what_was_measured(whole: float, plain: float) -> None:
    ways = 2
    costs = Costs(
        ms=((1.0, 2.0),) * 4,
        noise=((0.1, 0.0),) * 4,
        bytes=((1.0, 4.0),) * 4,
        crossings=(),
        rest=(1.0, 2.0),
        float_ms=10.0,
        float_bytes=16.0,
    )
    assert costs.time((0,) * 4) == 0.5 and costs.time((1,) * 4) == 1.0
    fixed = Corrected(costs, whole, plain)
    assert fixed.time((0,) * 4) == whole
    slope = min(max((plain - whole) / 0.5, 0.5 * plain), 2.0 * plain)
    assert fixed.time((0, 0, 1, 1)) == pytest.approx(whole + slope * (costs.time((0, 0, 1, 1)) - 0.5))
    fixed.note((0, 1, 1, 1), 0.7)
    assert fixed.time((0, 1, 1, 1)) == 0.7
    nearer = 0.7 + slope * (costs.time((1, 1, 1, 1)) - costs.time((0, 1, 1, 1)))
    assert fixed.time((1, 1, 1, 1)) == pytest.approx(nearer)
    small, fast = costs.prices("size"), costs.prices("latency")
    assert small.own[0][0] == pytest.approx(1.0, abs=0.01) and fast.own[0][0] == pytest.approx(1.125)
    assert len(fast.own[0]) == ways


@pytest.mark.parametrize("taken", [0, 3])
def test_a_candidate_takes_over_what_its_base_learned(taken: int, tmp_path: Path) -> None:
    job, base, network, _ = made("int8-minmax", tmp_path)
    out = tuple(part for part in network.parts if part.weights is not None)[taken : taken + 2]
    built = build(base, Candidate(recipe="int8-minmax", why="", rules=STORED.of(out)), job, Watch())
    assert built is not None
    taken_out = {part.key for part in out}
    left = {entry.site.node: entry for entry in base.plan.entries if entry.site.op == "Conv"}
    assert taken_out & {kept.node for kept in built.plan.kept_float} == taken_out
    same = [entry for entry in built.plan.entries if left.get(entry.site.node) == entry]
    assert same, "the rest is as it was"


def test_rules_that_leave_nothing_give_no_model_unless_that_is_all_they_say(tmp_path: Path) -> None:
    job, base, _, _ = made("int8-minmax", tmp_path)
    nothing = Candidate(recipe="int8-minmax", why="", rules=(*NOTHING, *NOTHING))
    assert build(base, nothing, job, Watch()) is None
    plain = build(base, Candidate(recipe="int8-minmax", why="", rules=NOTHING), job, Watch())
    assert plain is not None and plain.plan.entries == ()
    assert plain.model.digest() == base.prepared.model.digest()
