"""`adaround`: learned choices between two neighbouring codes."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from roundings.problems import INPUTS, Case, Measured, case

from qcli.errors import UsageError
from qcli.plugins import create
from qcli.roundings._objectives import Mixed, Objective, Quadratic, Sampled
from qcli.roundings._relaxed import Schedule, relaxed
from qcli.roundings._rows import Answer
from qcli.roundings.adaround import Adaround
from qcli.roundings.coordinate import Coordinate
from qcli.stats.patches import Patches

Float64Array = npt.NDArray[np.float64]

QUICK = Adaround(iterations=60)

KINDS = [kind for kind in INPUTS if kind != "huge"]
"""A statistic holds float32 numbers."""


@dataclass(frozen=True)
class WithSample:
    """A case whose inputs were measured with a sample of the patches."""

    case: Case
    measured: Patches
    objective: Objective


def answer(shape: tuple[int, int], kind: str, seed: int = 0) -> Answer:
    bias = np.random.default_rng(seed).normal(0, 4, shape)
    lower, upper = {"relu": (0.0, np.inf), "relu6": (0.0, 6.0), "leaky": (-np.inf, np.inf)}[kind]
    slope = 0.1 if kind == "leaky" else 1.0
    return Answer(bias=bias, lower=np.full(shape, lower), upper=np.full(shape, upper), slope=slope)


def sampled(found: Case, kind: str = "relu") -> WithSample:
    statistic = Patches.empty()
    statistic.update(found.measured.patches.astype(np.float32))
    rows = msgspec.structs.replace(found.rows, answer=answer(found.rows.exact.shape[:2], kind))
    assert rows.answer is not None
    changed = Case(rows, Measured(found.measured.patches))
    quadratic = Quadratic(rows, QUICK.products(statistic))
    return WithSample(changed, statistic, Mixed(Sampled(rows, rows.answer, statistic.sample, 64), quadratic))


CASES = st.builds(
    case,
    st.integers(0, 9999),
    st.sampled_from(KINDS),
    st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 9)),
    st.integers(2, 8),
    st.sampled_from((None, None, 1, 3, 9)),
)


@settings(deadline=None, max_examples=40)
@given(CASES)
def test_without_an_answer_codes_are_never_worse_than_those_of_coordinate(found: Case) -> None:
    codes = QUICK.learn(found.rows, found.measured)
    found.assert_codes(codes)
    before = found.error(Coordinate().learn(found.rows, found.measured))
    assert found.error(codes) <= before * (1 + 1e-9)


@settings(deadline=None, max_examples=40)
@given(CASES, st.sampled_from(["relu", "relu6", "leaky"]))
def test_with_an_answer_codes_are_never_worse_than_those_of_coordinate(found: Case, kind: str) -> None:
    given_ = sampled(found, kind)
    codes = QUICK.learn(given_.case.rows, given_.measured)
    found.assert_codes(codes)
    before = given_.objective.error(Coordinate().learn(found.rows, given_.measured))
    assert (given_.objective.error(codes) <= before * (1 + 1e-6)).all()


def test_it_finds_better_codes_than_coordinate() -> None:
    ratios = []
    for seed in range(6):
        found = case(seed, "alike", (1, 8, 48), 4)
        coordinate = found.error(Coordinate().learn(found.rows, found.measured))
        ratios.append(found.error(Adaround().learn(found.rows, found.measured)) / coordinate)
    assert np.median(ratios) < 0.99 and max(ratios) <= 1 + 1e-9


def test_what_a_relu_hides_does_not_count() -> None:
    """Rows whose output is zero on all samples cost nothing, whatever their codes are."""
    found = sampled(case(0, "alike", (1, 2, 6)))
    assert found.case.rows.answer is not None
    dark = msgspec.structs.replace(found.case.rows.answer, bias=np.full((1, 2), -1e6))
    rows = msgspec.structs.replace(found.case.rows, answer=dark)
    objective = Sampled(rows, dark, found.measured.sample, 64)
    assert (objective.error(found.case.nearest()) == 0).all() and (objective.active() == 0).all()
    found.case.assert_codes(QUICK.learn(rows, found.measured))


@pytest.mark.parametrize("block", [None, 2])
@pytest.mark.parametrize("kind", ["relu", "relu6", "leaky"])
def test_gradients_are_those_of_the_error(kind: str, block: int | None) -> None:
    found = sampled(case(0, "alike", (2, 2, 5), block=block), kind)
    rows, objective = found.case.rows, found.objective
    wrong = np.random.default_rng(1).uniform(-1, 1, rows.exact.shape)
    gradient = objective.gradient(wrong.astype(np.float32), 0)
    for index in np.ndindex(*rows.exact.shape):
        step = np.zeros_like(wrong)
        step[index] = 1e-2
        ahead, behind = (objective.error(rows.exact + wrong + sign * step).sum() for sign in (1, -1))
        slope = (ahead - behind) / 2e-2 / 2  # gradients are those of half the error
        assert abs(gradient[index] - slope) <= 0.05 * abs(slope) + 0.02 * np.abs(gradient).max()


def test_a_sample_on_which_nothing_bends_tells_the_quadratic_error() -> None:
    found = sampled(case(0, "alike", (1, 3, 5)), "leaky")
    linear = Answer(bias=np.ones((1, 3)), lower=np.full((1, 3), -np.inf), upper=np.full((1, 3), np.inf), slope=1.0)
    rows = msgspec.structs.replace(found.case.rows, answer=linear)
    objective = Sampled(rows, linear, found.measured.sample, 64)
    quadratic = Quadratic(rows, found.measured.moments()[0])
    codes = found.case.nearest()
    np.testing.assert_allclose(objective.error(codes), quadratic.error(codes), rtol=1e-3)


def test_patches_that_were_seen_often_count_more() -> None:
    found = case(0, "alike", (1, 2, 4))
    patches = found.measured.patches.astype(np.float32)
    often, once = Patches.empty(), Patches.empty()
    once.update(patches)
    for _ in range(9):
        often.update(patches[..., :1])
    often.update(patches)
    made = answer((1, 2), "relu")
    first, last = (Sampled(found.rows, made, statistic.sample, 64) for statistic in (once, often))
    one = Case(found.rows, Measured(patches[..., :1].astype(np.float64)))
    assert often.sample.counts.max() == 10
    assert not np.allclose(first.error(one.nearest()), last.error(one.nearest()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [2, 8])
def test_any_inputs(kind: str, bits: int) -> None:
    found = sampled(case(3, kind, (3, 1, 9), bits))
    codes = QUICK.learn(found.case.rows, found.measured)
    found.case.assert_codes(codes)
    np.testing.assert_array_equal(codes, QUICK.learn(found.case.rows, found.measured))


def test_codes_stay_beside_the_start() -> None:
    found = case(0, "alike", (1, 3, 12), 3)
    start = found.nearest()
    objective = Quadratic(found.rows, found.products())
    for regularization in (0.0, 1.0, 100.0):
        codes = relaxed(found.rows, start, objective, Schedule(80, 0.05, regularization))
        found.assert_codes(codes)
        assert np.abs(codes - start).max() <= 1
        moved = codes != start
        assert (np.sign(codes - start)[moved] == np.sign(found.rows.exact - start)[moved]).all()


def test_without_iterations_the_start_remains() -> None:
    found = case(0, "alike", (1, 3, 12), 3)
    start = found.nearest()
    objective = Quadratic(found.rows, found.products())
    np.testing.assert_array_equal(relaxed(found.rows, start, objective, Schedule(0, 0.05, 1.0)), start)
    codes = Adaround(iterations=0).learn(found.rows, found.measured)
    np.testing.assert_array_equal(codes, Coordinate().learn(found.rows, found.measured))


def test_the_exponent_falls_after_a_warm_up() -> None:
    schedule = Schedule(100, 0.1, 1.0)
    betas = [schedule.beta(step) for step in range(100)]
    assert betas[:20] == [0.0] * 20 and betas[20] == 20.0
    assert betas[20:] == sorted(betas[20:], reverse=True) and 2 <= betas[-1] < 2.1


@pytest.mark.parametrize(
    "options",
    [
        {"iterations": -1},
        {"iterations": 10**6},
        {"learning_rate": 0},
        {"learning_rate": 2},
        {"regularization": -1},
        {"batch": 0},
        {"batch": 2000},
        {"damp": 0},
    ],
    ids=str,
)
def test_options_out_of_bounds(options: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(options))):
        create("roundings", {"adaround": options})
