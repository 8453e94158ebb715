"""Candidates are made and measured once; what says nothing for sure is not kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tune_bases import tune_job

import qcli.tuning.judge
import qcli.tuning.trying
from qcli import TuneJob, tune
from qcli.cache import find_document
from qcli.errors import RuntimeFailure
from qcli.graph import Model, load_model
from qcli.latency import Effort, Latency
from qcli.recipe import load_recipe
from qcli.report import environment
from qcli.tuning.base import NOTHING, Base, Built, settle
from qcli.tuning.judge import Judge, Judged, open_judge
from qcli.tuning.metric import metric_of
from qcli.tuning.nouns import Candidate, Limits
from qcli.tuning.trying import Tried, Trying
from qcli.types import Match, Role, Rule
from qcli.watch import Watch

WHOLE = Candidate(recipe="int8-minmax", why="as it is")
STORED = Candidate(recipe="int8-minmax", why="stored", rules=(Rule(match=Match(role=Role.INPUT), keep="float"),))


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(qcli.tuning.judge, "_EFFORT", Effort(least=0.01, most=0.02))
    monkeypatch.setenv("QCLI_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return settle(tune_job(tmp_path_factory.mktemp("base"), "mlp", cache=False), "int8-minmax", Watch())


def trying(job: TuneJob, watch: Watch | None = None) -> Trying:
    source = load_model(job.model)
    judge, _ = open_judge(job, source, load_recipe(job.recipe, job.settings), metric_of(job))
    return Trying(job, source, judge, watch or Watch())


def tried(one: Trying, base: Base, candidate: Candidate = WHOLE) -> Tried:
    """A candidate that was made and measured."""
    found = Tried(candidate, one.key(base, candidate))
    one.make(found, base)
    one.measure([found])
    return found


def test_what_was_measured_is_known(base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Latency, "steady", True)
    one = trying(tune_job(tmp_path, "mlp"))
    first = tried(one, base)
    assert first.outcome is not None and first.outcome.size < 0.5 and first.outcome.seconds > 0
    again = Tried(msgspec.structs.replace(WHOLE, foretold=0.25), first.key)
    one.known(again)
    assert again.outcome == msgspec.structs.replace(first.outcome, candidate=again.candidate)
    other = Tried(STORED, one.key(base, STORED))
    one.known(other)
    assert other.outcome is None


def test_what_a_busy_machine_measured_is_not_kept(base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Latency, "steady", False)
    found = tried(trying(tune_job(tmp_path, "mlp")), base)
    assert found.outcome is not None and not found.outcome.steady and find_document(found.key) is None


def test_without_a_cache_nothing_is_kept_or_found(base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Latency, "steady", True)
    one = trying(tune_job(tmp_path, "mlp", cache=False))
    assert find_document(tried(one, base).key) is None
    kept = tried(trying(tune_job(tmp_path, "mlp")), base)
    assert find_document(kept.key) is not None
    again = Tried(WHOLE, kept.key)
    one.known(again)
    assert again.outcome is None


def test_each_fact_has_a_key_of_its_own(base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("mine.py", "other.py"):
        (tmp_path / name).write_text(f"def metric(expected, given, label): return 1.0  # {name}\n")
    for name in ("a.json", "b.json"):
        (tmp_path / name).write_text(name)
    mine = {"metric": str(tmp_path / "mine.py"), "allow_code": True}
    jobs: Sequence[dict[str, Any]] = (
        {},
        {"metric": "agreement"},
        mine,
        {**mine, "metric": str(tmp_path / "other.py")},
        {"threads": 2},
        {"samples": 12},
        {"cost_table": tmp_path / "a.json"},
        {"cost_table": tmp_path / "b.json"},
    )
    keys = [trying(tune_job(tmp_path, "mlp", **options)).key(base, WHOLE) for options in jobs]
    one = trying(tune_job(tmp_path, "mlp"))
    keys.append(one.key(base, STORED))
    assert len(set(keys)) == len(keys)
    for same in ({}, {"limits": Limits(min_sqnr=9.0)}, {"time_limit": 9.0}, {"search": "greedy"}, {"jobs": 2}):
        assert trying(tune_job(tmp_path, "mlp", **same)).key(base, WHOLE) == keys[0]
    assert one.key(base, msgspec.structs.replace(WHOLE, why="in other words", foretold=0.1)) == keys[0]
    elsewhere = msgspec.structs.replace(environment(), cpu="another")
    monkeypatch.setattr(qcli.tuning.trying, "environment", lambda: elsewhere)
    assert one.key(base, WHOLE) not in keys


def test_what_onnxruntime_cannot_run_is_passed_over(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged = Judge.accuracy

    def picky(self: Judge, model: Model) -> Judged:
        if not any(node.op_type == "QuantizeLinear" for node in model.nodes()):
            raise RuntimeFailure("no kernel", "")
        return judged(self, model)

    monkeypatch.setattr(Judge, "accuracy", picky)
    watch = Watch()
    one = trying(tune_job(tmp_path, "mlp"), watch)
    bad = Tried(msgspec.structs.replace(WHOLE, why="1 float; of 3 parts"), "bad", Built(base.prepared.model, base.plan))
    good = Tried(WHOLE, one.key(base, WHOLE))
    one.make(good, base)
    one.measure([bad, good, Tried(STORED, "not made")])
    assert bad.outcome is None and good.outcome is not None
    assert watch.warnings == ["int8-minmax, 1 float; of 3 parts: onnxruntime does not run it"]


def test_a_recipe_that_does_not_run_leaves_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judged = Judge.accuracy

    def picky(self: Judge, model: Model) -> Judged:
        if any(node.op_type == "QuantizeLinear" for node in model.nodes()):
            raise RuntimeFailure("no kernel", "")
        return judged(self, model)

    monkeypatch.setattr(Judge, "accuracy", picky)
    report = tune(tune_job(tmp_path, "mlp", recipes=("int8-weights",), time_limit=60.0, cache=False))
    assert {one.candidate.recipe for one in report.tried if not one.candidate.rules} == {"float", "int8-weights"}
    assert any("int8-minmax, as it is: onnxruntime does not run it" in text for text in report.warnings)


def test_rules_that_leave_nothing_make_no_model(base: Base, tmp_path: Path) -> None:
    nothing = Candidate(recipe="int8-minmax", why="", rules=(*NOTHING, *NOTHING))
    found = tried(trying(tune_job(tmp_path, "mlp")), base, nothing)
    assert found.built is None and found.outcome is None
