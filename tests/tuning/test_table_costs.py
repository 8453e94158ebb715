"""A search by the kernels of another machine: nothing is timed on this one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from tune_bases import tune_job

import qcli.latency
import qcli.tuning.costs
import qcli.tuning.judge
from qcli import TuneJob, TuneReport, tune
from qcli.cost_listing import KernelsJob, list_kernels
from qcli.costs import measuring
from qcli.costs.nouns import CostTable, Mode
from qcli.costs.table_file import read_table, write_table
from qcli.errors import UsageError
from qcli.latency import Effort
from qcli.tuning.base import settle
from qcli.tuning.nouns import Limits
from qcli.tuning.stored_bytes import float_bytes
from qcli.tuning.table_costs import Elsewhere, foretold_costs, table_for
from qcli.tuning.uniform import network_for, uniforms
from qcli.tuning.ways import UNTOUCHED, WAYS
from qcli.watch import Watch


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kernels of the mlp, with times as of a machine where integers take half as long as floats."""
    folder = tmp_path_factory.mktemp("table")
    job = tune_job(folder, "mlp")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QCLI_CACHE_DIR", str(folder / "cache"))
        patch.setattr(measuring, "EFFORT", Effort(least=0.0, most=0.01))
        list_kernels(KernelsJob(model=job.model, calibration=job.calibration, save=folder / "t.json"), Watch())
    found = read_table(folder / "t.json")
    times = {Mode.FLOAT: 1.0, Mode.WEIGHT_ONLY: 1.0, Mode.QUANTIZE: 0.01, Mode.DEQUANTIZE: 0.01}
    rows = tuple(
        row if row.ms is None else msgspec.structs.replace(row, ms=times.get(row.key.mode, 0.5)) for row in found.rows
    )
    write_table(msgspec.structs.replace(found, rows=rows), folder / "t.json")
    return folder / "t.json"


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("QCLI_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def untimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever would measure a time fails."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("something was timed")

    monkeypatch.setattr(qcli.tuning.judge.Judge, "latency", refuse)
    monkeypatch.setattr(qcli.tuning.judge, "measure", refuse)
    monkeypatch.setattr(qcli.latency, "measure", refuse)
    monkeypatch.setattr(qcli.tuning.costs, "profiles", refuse)


def job(folder: Path, table: Path, **options: Any) -> TuneJob:
    facts: dict[str, Any] = {"limits": Limits(min_sqnr=25.0), "cost_table": table, **options}
    return tune_job(folder, "mlp", **facts)


def changed(table: Path, folder: Path, **changes: Any) -> Path:
    """The table with another environment or other rows."""
    found = read_table(table)
    rows = changes.pop("rows", found.rows)
    environment = msgspec.structs.replace(found.environment, **changes)
    write_table(CostTable(environment=environment, rows=rows), folder / "changed.json")
    return folder / "changed.json"


def facts(report: TuneReport) -> list[Any]:
    return [(one.candidate, one.sqnr, one.ms, one.speedup, one.size) for one in report.tried]


@pytest.mark.usefixtures("untimed")
def test_speeds_are_those_foretold(table: Path, tmp_path: Path) -> None:
    report = tune(job(tmp_path, table))
    assert report.met and len(report.tried) > 2 and all(one.steady for one in report.tried)
    for one in report.tried:
        assert one.candidate.foretold == pytest.approx(one.time)
        assert one.ms == pytest.approx(report.tried[0].ms * one.time)
    whole = report.tried[1]
    assert 1.2 < whole.speedup < 2.0, "conversions and what stays float keep it from two"
    assert report.result is not None and report.result.latency is None and report.result.accuracy is not None
    assert facts(tune(job(tmp_path, table))) == facts(report), "from the cache"


def test_what_the_parts_cost(table: Path, tmp_path: Path) -> None:
    given = job(tmp_path, table)
    base = settle(given, given.recipe, Watch())
    assert base.prepared.calibration is not None
    samples = list(base.prepared.calibration)
    found = network_for(base, samples[0])
    others = uniforms(base, found[0], given, Watch())
    costs, missing = foretold_costs(base, found, others, samples, Elsewhere(read_table(table), 1))
    last = WAYS.index(UNTOUCHED)
    assert missing == 0 and costs.float_bytes == float_bytes(base.prepared.model)
    assert costs.float_ms == pytest.approx(sum(row[last] or 0.0 for row in costs.ms) + costs.rest[1])
    assert costs.time((last,) * len(costs.ms)) == pytest.approx(1.0)
    for part, row in zip(found[0].parts, costs.ms, strict=True):
        if part.weights is not None:
            assert row[last] == 1.0 and row[0] is not None and 0.5 <= row[0] < 0.6
    own = costs.prices("latency").own
    size = sum(max(sizes) for sizes in costs.bytes)
    assert sum(row[last] for row in own) == pytest.approx(
        sum(row[last] or 0.0 for row in costs.ms) + 0.2 * costs.float_ms * size / costs.float_bytes
    ), "a byte is not worth more than it is where times are measured"


def test_another_number_of_threads(table: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is for 1 threads, not for 2") as caught:
        tune(job(tmp_path, table, threads=2))
    assert "--threads 1" in caught.value.hint and not (tmp_path / "out.onnx").exists()
    assert table_for(job(tmp_path, table, threads=0), Watch()) == read_table(table)
    assert table_for(tune_job(tmp_path, "mlp"), Watch()) is None


@pytest.mark.parametrize("content", [None, b"", b"\x00\xff", b"[]", b'{"schema": 1}', b'{"rows": []}'])
def test_what_is_no_table(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "t.json").write_bytes(content)
    with pytest.raises(UsageError):
        tune(job(tmp_path, tmp_path / "t.json"))


@pytest.mark.usefixtures("untimed")
def test_a_table_of_another_onnxruntime(table: Path, tmp_path: Path) -> None:
    report = tune(job(tmp_path, changed(table, tmp_path, onnxruntime="0.0.1"), time_limit=0.01))
    assert any("was measured with onnxruntime 0.0.1, this is" in text for text in report.warnings)
    assert len(report.tried) == 2


@pytest.mark.usefixtures("untimed")
def test_a_table_without_any_row_of_the_model(table: Path, tmp_path: Path) -> None:
    report = tune(job(tmp_path, changed(table, tmp_path, rows=())))
    assert any("the cost table lacks" in text and "qcli doctor --kernels" in text for text in report.warnings)
    assert (tmp_path / "out.onnx").is_file()
    assert {one.speedup for one in report.tried} == {1.0}, "nobody knows"
    assert report.tried[report.best].size < 1


@pytest.mark.usefixtures("untimed")
def test_another_table_is_no_cached_outcome(table: Path, tmp_path: Path) -> None:
    """Even where the float model takes as long."""
    first = tune(job(tmp_path, table, time_limit=0.01))
    rows = tuple(
        msgspec.structs.replace(row, ms=0.9) if row.ms and row.key.mode is Mode.STATIC else row
        for row in read_table(table).rows
    )
    second = tune(job(tmp_path, changed(table, tmp_path, rows=rows), time_limit=0.01))
    assert first.tried[0].ms == second.tried[0].ms and first.tried[1].speedup > second.tried[1].speedup


@pytest.mark.usefixtures("untimed")
def test_a_recipe_that_has_nothing_to_do_is_passed_over(table: Path, tmp_path: Path) -> None:
    nothing = tmp_path / "nothing.yaml"
    nothing.write_text("version: 1\nextends: int8-minmax\nrules:\n  - {keep: float}\n")
    report = tune(job(tmp_path, table, recipe=str(nothing), recipes=("int8-minmax",), time_limit=5.0))
    assert {one.candidate.recipe for one in report.tried} == {"float", "int8-minmax"}
