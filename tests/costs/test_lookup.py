"""What was measured once is found again; what another machine measured is believed, and never added to."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cost_graphs import graph

from qcli.costs import kept, measuring
from qcli.costs.kept import find_costs, keep_costs, this_machine
from qcli.costs.keys import conversion_key, key_of
from qcli.costs.lookup import costs_for, load_costs
from qcli.costs.nouns import CostTable, KernelCost, KernelKey, Mode
from qcli.costs.table_file import write_table
from qcli.errors import UsageError
from qcli.latency import Effort
from qcli.watch import Watch


def conversion(size: int, threads: int = 1) -> KernelKey:
    return conversion_key(Mode.QUANTIZE, (size,), threads)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QCLI_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(measuring, "EFFORT", Effort(least=0.0, most=0.01))
    return tmp_path / "cache"


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of models in each measurement."""
    calls: list[int] = []
    measure = measuring.measure

    def counted(models: Sequence[Any], *rest: Any) -> Any:
        calls.append(len(models))
        return measure(models, *rest)

    monkeypatch.setattr(measuring, "measure", counted)
    return calls


def test_a_second_run_measures_nothing(timed: list[int]) -> None:
    keys = [conversion(8), conversion(16), conversion(8)]
    first = costs_for(keys, 1)
    assert len(timed) == 2
    assert costs_for(keys, 1) == first
    assert len(timed) == 2
    assert [row.key for row in first.rows] == keys[:2]
    assert first.environment == this_machine(1)


def test_only_what_is_missing_is_measured(timed: list[int]) -> None:
    costs_for([conversion(8)], 1)
    costs_for([conversion(8), conversion(16)], 1)
    assert len(timed) == 2


def test_threads_are_kept_apart(timed: list[int], folder: Path) -> None:
    costs_for([conversion(8)], 1)
    costs_for([conversion(8, 2)], 2)
    assert len(timed) == 2
    assert len(list(folder.iterdir())) == 2


@pytest.mark.parametrize("fact", ["cpu_name", "runtime_version", "detect_isa"])
def test_another_machine_measures_anew(fact: str, timed: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    costs_for([conversion(8)], 1)
    monkeypatch.setattr(kept, fact, lambda: "other")
    table = costs_for([conversion(8)], 1)
    assert len(timed) == 2
    assert "other" in msgspec.structs.astuple(table.environment)


def test_a_damaged_cache_is_none(timed: list[int], folder: Path) -> None:
    costs_for([conversion(8)], 1)
    (file,) = folder.iterdir()
    file.write_bytes(file.read_bytes()[:-30])
    costs_for([conversion(8)], 1)
    costs_for([conversion(8)], 1)
    assert len(timed) == 2


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("QCLI_CACHE_DIR", str(tmp_path / "file" / "below"))
    assert costs_for([conversion(8)], 1).ms(conversion(8)) is not None


def test_what_was_measured_before_an_interrupt_is_kept(timed: list[int]) -> None:
    def interrupt(phase: str, done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    keys = [conversion(size) for size in (8, 16, 32)]
    with pytest.raises(KeyboardInterrupt):
        costs_for(keys, 1, watch=Watch(on_progress=interrupt))
    assert len(find_costs(this_machine(1))) == 2
    costs_for(keys, 1)
    assert len(timed) == 3


def test_what_cannot_be_measured_has_a_row_without_a_time(timed: list[int]) -> None:
    key = msgspec.structs.replace(conversion(8), op="NoSuchOperator")
    table = costs_for([key, conversion(8)], 1)
    assert table.ms(key) is None and table.missing([key]) == ()
    found = table.cost(key)
    assert found is not None and found.why
    assert key not in find_costs(this_machine(1))  # memory may have been short; the next run tries again


def test_the_rows_kept_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "_MOST_ROWS", 3)
    here = this_machine(1)
    for size in range(1, 6):
        keep_costs(here, [KernelCost(key=conversion(size), ms=1.0)])
    assert [key.inputs[0] and key.inputs[0].shape for key in find_costs(here)] == [(3,), (4,), (5,)]


def test_writers_do_not_disturb_each_other(folder: Path) -> None:
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        list(pool.map(_keep, range(8)))
    found = find_costs(this_machine(1))  # of two that write at once one may lose its rows, but the file stays whole
    assert found and all(row.ms == 1.0 for row in found.values())
    assert not [path for path in folder.iterdir() if path.suffix != ".json"]


def _keep(number: int) -> None:
    for size in range(4):
        keep_costs(this_machine(1), [KernelCost(key=conversion(10 * number + size + 1), ms=1.0)])


def foreign(*sizes: int, threads: int = 1, **facts: Any) -> CostTable:
    environment = msgspec.structs.replace(this_machine(threads), cpu="a phone", **facts)
    rows = tuple(KernelCost(key=conversion(size, threads), ms=float(size)) for size in sizes)
    return CostTable(environment=environment, rows=rows)


def test_a_foreign_table_is_not_added_to(timed: list[int]) -> None:
    watch = Watch()
    table = costs_for([conversion(8), conversion(16)], 1, foreign(8, 32), watch)
    assert timed == []
    assert table.environment.cpu == "a phone"
    assert [row.ms for row in table.rows] == [8.0]
    assert table.missing([conversion(16)]) == (conversion(16),)
    assert watch.warnings == ["the cost table lacks 1 of 2 kernels, which count as unknown"]


def test_a_whole_foreign_table_gives_no_warning() -> None:
    watch = Watch()
    costs_for([conversion(8)], 1, foreign(8), watch)
    assert watch.warnings == []


def test_a_foreign_table_for_other_threads_is_refused() -> None:
    with pytest.raises(UsageError, match="for 4 threads, not for 1") as caught:
        costs_for([conversion(8)], 1, foreign(8, threads=4))
    assert "--threads 4" in caught.value.hint


def test_keys_for_other_threads_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="2 threads"):
        costs_for([conversion(8, 2)], 1)


def test_a_table_of_another_onnxruntime_warns(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    for version, count in (("0.9", 1), (this_machine(1).onnxruntime, 0)):
        watch = Watch()
        table = foreign(8, onnxruntime=version)
        write_table(table, path)
        assert load_costs(path, watch) == table
        assert len(watch.warnings) == count
        assert all("0.9" in text and this_machine(1).onnxruntime in text for text in watch.warnings)


def test_nodes_are_looked_up_like_conversions(timed: list[int]) -> None:
    node, shapes = graph("MatMul", ((4, 16),), ((16, 8),))
    keys = [key for mode in (Mode.FLOAT, Mode.STATIC) if (key := key_of(node, mode, shapes, 1)) is not None]
    table = costs_for(keys, 1)
    assert all(table.ms(key) is not None for key in keys)
    assert len(timed) == 1
