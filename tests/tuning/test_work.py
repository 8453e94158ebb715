"""The search on real models: what it leaves on the disk, what it says, and how it ends."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from conftest import SAMPLE_MODELS

import qcli.tuning.judge
import qcli.tuning.work
from qcli import QuantizeJob, TuneJob, TuneReport, quantize, tune
from qcli.errors import Interrupted, NothingToDoError, UsageError
from qcli.graph import load_model
from qcli.latency import Effort, Latency
from qcli.tuning.files import plan_path, write_tuning
from qcli.tuning.nouns import Candidate, Limits
from qcli.tuning.trying import Tried, Trying
from qcli.watch import Standing, Watch

GRAY = "samples.calibration.preprocess={channels: gray, preset: unit}"


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is measured here is not how fast anything is."""
    monkeypatch.setattr(qcli.tuning.judge, "_EFFORT", Effort(least=0.01, most=0.02))
    monkeypatch.setattr(qcli.tuning.judge, "_RACE", Effort(least=0.01, most=0.02))
    monkeypatch.setenv("QCLI_CACHE_DIR", str(tmp_path / "cache"))


def job(folder: Path, name: str = "cnn", **options: Any) -> TuneJob:
    home = SAMPLE_MODELS / name
    facts: dict[str, Any] = {
        "model": home / "model.onnx",
        "calibration": home / "calib",
        "settings": (GRAY,),
        "recipe": "int8-minmax",
        "samples": 24,
        "output": folder / "out.onnx",
        "threads": 1,
        "time_limit": 30.0,
        **options,
    }
    return TuneJob(**facts)


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[TuneJob, TuneReport]:
    folder = tmp_path_factory.mktemp("searched")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(qcli.tuning.judge, "_EFFORT", Effort(least=0.01, most=0.02))
        patch.setattr(qcli.tuning.judge, "_RACE", Effort(least=0.01, most=0.02))
        patch.setenv("QCLI_CACHE_DIR", str(folder / "cache"))
        given = job(folder, recipes=("int8-weights",), limits=Limits(min_sqnr=36.0, max_size=0.95))
        return given, tune(given)


def test_the_result_keeps_the_limits_and_is_what_lies_there(searched: tuple[TuneJob, TuneReport]) -> None:
    given, report = searched
    best = report.tried[report.best]
    assert report.met and report.reason == "" and best.sqnr >= 36.5
    assert report.result is not None and report.result.output is not None
    assert report.result.output.path == str(given.output)
    assert given.output is not None and load_model(given.output).sha256 == report.result.output.sha256
    assert report.result.accuracy is not None and report.result.accuracy.sqnr is not None
    assert report.result.accuracy.sqnr > 30


def test_float_is_the_first_thing_tried_and_parts_are_tried_too(searched: tuple[TuneJob, TuneReport]) -> None:
    _, report = searched
    assert report.tried[0].candidate == Candidate(recipe="float", why="the model as it was", foretold=1.0)
    assert (report.tried[0].sqnr, report.tried[0].speedup, report.tried[0].size) == (200.0, 1.0, 1.0)
    whole = [one for one in report.tried if not one.candidate.rules]
    assert [one.candidate.recipe for one in whole] == ["float", "int8-minmax", "int8-weights"]
    parts = [one for one in report.tried if one.candidate.rules]
    assert parts and all(one.candidate.recipe == "int8-minmax" for one in parts)
    assert max(one.sqnr for one in parts) > whole[1].sqnr + 1, "parts in float make it more accurate"
    assert len({msgspec.json.encode(one.candidate.rules) for one in parts}) == len(parts), "nothing twice"
    assert [one.found for one in report.tried] == sorted(one.found for one in report.tried)


def test_the_fronts_are_numbers_of_what_was_tried(searched: tuple[TuneJob, TuneReport]) -> None:
    _, report = searched
    for numbers, cost in ((report.front_latency, "time"), (report.front_size, "size")):
        ratios = [report.tried[number].sqnr for number in numbers]
        costs = [getattr(report.tried[number], cost) for number in numbers]
        assert ratios == sorted(ratios, reverse=True) and costs == sorted(costs, reverse=True)


def test_the_plan_is_replayed_by_quantize(searched: tuple[TuneJob, TuneReport], tmp_path: Path) -> None:
    given, report = searched
    best = report.tried[report.best].candidate
    assert given.output is not None and given.calibration is not None
    again = QuantizeJob(
        model=given.model,
        recipe=best.recipe,
        settings=given.settings,
        calibration=given.calibration,
        samples=given.samples,
        plan=plan_path(given.output),
        output=tmp_path / "again.onnx",
        latency=False,
        threads=1,
        cache=False,
    )
    quantize(again)
    ours, theirs = (
        {item.name: (item.op_type, tuple(item.input)) for item in onnx.load(path).graph.node}
        for path in (given.output, tmp_path / "again.onnx")
    )
    assert ours == theirs


@pytest.mark.parametrize("suffix", [".json", ".csv", ".md"])
def test_reports(searched: tuple[TuneJob, TuneReport], tmp_path: Path, suffix: str) -> None:
    _, report = searched
    write_tuning(report, tmp_path / f"r{suffix}")
    text = (tmp_path / f"r{suffix}").read_text()
    if suffix == ".json":
        assert msgspec.json.decode(text, type=TuneReport) == report
    elif suffix == ".csv":
        rows = list(csv.DictReader(text.splitlines()))
        assert [row["why"] for row in rows] == [one.candidate.why for one in report.tried]
        for mark, numbers in (("front_latency", report.front_latency), ("front_size", report.front_size)):
            assert {number for number, row in enumerate(rows) if row[mark] == "True"} == set(numbers)
        assert [number for number, row in enumerate(rows) if row["best"] == "True"] == [report.best]
        assert rows[report.best]["kept"] == "True"
    else:
        assert text.count("| \\* |") == 2, "the best, in both tables"
        assert text.count("```") == 4 and text.count("* best") == 2 and text.count("F float") == 2
        assert text.count("| float, the model as it was |") == 2 and "out.onnx: " in text


def test_what_nothing_keeps_gives_the_smallest_accurate_model(tmp_path: Path) -> None:
    report = tune(job(tmp_path, limits=Limits(min_sqnr=30.0, max_size=0.01), time_limit=3.0))
    assert not report.met and report.tried[report.best].candidate.recipe == "int8-minmax"
    assert "the smallest accurate model" in report.reason and "0.01 at most was asked for" in report.reason
    assert (tmp_path / "out.onnx").stat().st_size < (SAMPLE_MODELS / "cnn" / "model.onnx").stat().st_size


def test_the_float_model_where_nothing_else_is_accurate(tmp_path: Path) -> None:
    """Or the prepared one: which of the two is faster is chance."""
    report = tune(job(tmp_path, "mlp", limits=Limits(min_sqnr=120.0), settings=()))
    written, source = (onnx.load(path) for path in (tmp_path / "out.onnx", SAMPLE_MODELS / "mlp" / "model.onnx"))
    operators = [node.op_type for node in written.graph.node]
    assert report.met and "QuantizeLinear" not in operators and "DequantizeLinear" not in operators
    if report.tried[report.best].candidate.recipe == "float":
        assert report.result is None and operators == [node.op_type for node in source.graph.node]


def test_the_second_search_measures_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Latency, "steady", True)  # what was timed on a busy machine is not kept
    given = job(tmp_path, "mlp", settings=(), limits=Limits(min_sqnr=20.0), time_limit=600.0)
    first = tune(given)
    asked: list[object] = []
    accuracy = qcli.tuning.judge.Judge.accuracy

    def counted(self: qcli.tuning.judge.Judge, model: Any) -> Any:
        asked.append(model)
        return accuracy(self, model)

    monkeypatch.setattr(qcli.tuning.judge.Judge, "accuracy", counted)
    second = tune(given)
    assert len(asked) == 1, "the float model alone"
    assert [one.candidate for one in second.tried] == [one.candidate for one in first.tried]
    assert [one.ms for one in second.tried[1:]] == [one.ms for one in first.tried[1:]]
    other = tune(msgspec.structs.replace(given, limits=Limits(min_sqnr=10.0)))
    assert other.tried[1] == msgspec.structs.replace(second.tried[1], found=other.tried[1].found)


def test_an_interrupt_leaves_the_best_so_far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure = Trying.measure
    calls: list[Sequence[Tried]] = []

    def stops(self: Trying, batch: Sequence[Tried]) -> None:
        calls.append(batch)
        if len(calls) > 1:
            raise Interrupted(2)
        measure(self, batch)

    monkeypatch.setattr(Trying, "measure", stops)
    report = tune(job(tmp_path, recipes=("int8-weights",), limits=Limits(min_sqnr=20.0)))
    assert [one.candidate.recipe for one in report.tried] == ["float", "int8-minmax"]
    assert (tmp_path / "out.onnx").is_file()
    assert any("interrupted" in text for text in report.warnings)


def test_an_interrupt_before_there_is_anything_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stops(*_: Any) -> None:
        raise Interrupted(2)

    monkeypatch.setattr(qcli.tuning.work, "settle", stops)
    monkeypatch.setattr(qcli.tuning.work._Search, "_start", stops)
    with pytest.raises(Interrupted):
        tune(job(tmp_path))
    assert not (tmp_path / "out.onnx").exists()


def test_a_time_that_is_too_short_still_gives_the_first_recipe(tmp_path: Path) -> None:
    report = tune(job(tmp_path, recipes=("int8-weights",), time_limit=0.001))
    assert [one.candidate.recipe for one in report.tried] == ["float", "int8-minmax"]
    assert any("the time limit of 0.001 s was over before int8-weights was tried" in text for text in report.warnings)


def test_a_time_without_parts_is_said(tmp_path: Path) -> None:
    report = tune(job(tmp_path, time_limit=0.001))
    assert any("was over before any part of a recipe was tried" in text for text in report.warnings)


def test_a_machine_that_is_busy_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    latency = qcli.tuning.judge.Judge.latency

    def disturbed(self: qcli.tuning.judge.Judge, models: Any, *, race: bool = False) -> Latency:
        seen = latency(self, models, race=race)
        first, *others = seen.timings
        slow = {"median_ms": 2 * first.median_ms, "spread_ms": 9 * first.median_ms}
        return msgspec.structs.replace(seen, timings=(first, *(msgspec.structs.replace(one, **slow) for one in others)))

    monkeypatch.setattr(qcli.tuning.judge.Judge, "latency", disturbed)
    report = tune(job(tmp_path, time_limit=0.001, reports=(tmp_path / "r.md",)))
    first, *_, last = [text for text in report.warnings if "the machine" in text]
    assert "the float model differs from itself by 100%" in first
    assert "while 2 of 2 plans were timed" in last
    assert "## Warnings" in (tmp_path / "r.md").read_text()


def test_the_standing_is_told_after_each_plan(tmp_path: Path) -> None:
    told: list[Standing | None] = []
    begin = perf_counter()
    report = tune(job(tmp_path, time_limit=0.001), Watch(on_standing=told.append))
    *during, after = told
    assert after is None, "the search is over before the result is made"
    assert [one.tried for one in during if one is not None] == list(range(1, len(report.tried) + 1))
    first, last = during[0], during[-1]
    assert first is not None and first.best == "float, the model as it was: 1.00x, 200.0 dB, size 1.000"
    assert last is not None and last.ends == first.ends > begin
    assert f"{last}".endswith("; 2 tried, 0 s left")


def test_few_samples_are_said_to_flatter(tmp_path: Path) -> None:
    watch = Watch()
    report = tune(job(tmp_path, samples=4, limits=Limits(max_drop=0.1), time_limit=1.0), watch)
    assert report.samples == 4
    assert any("they flatter" in text for text in watch.warnings)
    assert any("cannot be told on 4 samples: one of them is 0.2500" in text for text in watch.warnings)


def test_half_of_the_samples_judge(searched: tuple[TuneJob, TuneReport]) -> None:
    assert searched[1].samples == 12


def test_a_drop_needs_classes(tmp_path: Path) -> None:
    rows = tmp_path / "calib"
    rows.mkdir()
    for seed in range(9):
        np.savez(rows / f"{seed}.npz", x=np.random.default_rng(seed).standard_normal((1, 8, 6)).astype(np.float32))
    from models import node, normal, proto_of, saved

    proto = proto_of([node("MatMul", "x w", "y")], {"x": [1, 8, 6]}, {"y": [1, 8, 5]}, {"w": normal(0, 6, 5)})
    model = saved(proto, tmp_path / "m.onnx")
    given = job(tmp_path, model=model, calibration=rows, settings=(), limits=Limits(max_drop=0.1))
    with pytest.raises(UsageError, match="no output of this model is a matrix of scores"):
        tune(given)


def test_samples_are_needed(tmp_path: Path) -> None:
    with pytest.raises(NothingToDoError, match="there are none"):
        tune(job(tmp_path, calibration=None))


def test_places_are_checked_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown format"):
        tune(job(tmp_path, reports=(tmp_path / "r.xml",)))
    with pytest.raises(UsageError, match="is the input"):
        tune(job(tmp_path, output=SAMPLE_MODELS / "cnn" / "model.onnx"))
    with pytest.raises(UsageError):
        tune(job(tmp_path, output=tmp_path / "nowhere" / "out.onnx"))


@pytest.mark.parametrize("read", ["mine.py", "table.json", "mine.yaml"])
@pytest.mark.parametrize("written", ["output", "reports", "plan"])
def test_what_a_search_reads_is_not_overwritten(read: str, written: str, tmp_path: Path) -> None:
    path = tmp_path / (read if written != "plan" else "out.plan.yaml")
    path.write_text("mine")
    inputs: dict[str, Any] = {
        "mine.py": {"metric": str(path), "allow_code": True},
        "table.json": {"cost_table": path},
        "mine.yaml": {"recipes": (str(path),)},
    }
    outputs: dict[str, Any] = {
        "output": {"output": path},
        "reports": {"reports": (path.with_suffix(".json"),)},
        "plan": {},
    }
    if written == "reports" and read != "table.json":
        pytest.skip("a report has a name of its own")
    with pytest.raises(UsageError, match="is read or written otherwise"):
        tune(job(tmp_path, "mlp", settings=(), **inputs[read], **outputs[written]))
    assert path.read_text() == "mine"
