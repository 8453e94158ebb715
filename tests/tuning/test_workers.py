"""Processes that judge: what they say is what this process would say, and none outlives the search."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from math import inf
from pathlib import Path
from threading import Timer, get_ident
from typing import Any

import msgspec
import pytest
from tune_bases import tune_job

import qcli.tuning.judge
import qcli.tuning.search
from qcli import TuneJob, tune
from qcli.apply import apply_plan
from qcli.errors import Interrupted, UsageError
from qcli.graph import load_model, save_model
from qcli.latency import Effort
from qcli.recipe import load_recipe
from qcli.tuning.base import settle
from qcli.tuning.front import everything
from qcli.tuning.judge import Judged, open_judge
from qcli.tuning.metric import metric_of
from qcli.tuning.nouns import Limits
from qcli.tuning.workers import Workers
from qcli.watch import Watch


@pytest.fixture(autouse=True)
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[subprocess.Popen[bytes]]:
    """All processes that were started."""
    found: list[subprocess.Popen[bytes]] = []
    start = subprocess.Popen

    def noted(*given: Any, **options: Any) -> subprocess.Popen[bytes]:
        found.append(start(*given, **options))
        return found[-1]

    monkeypatch.setattr(subprocess, "Popen", noted)
    monkeypatch.setattr(qcli.tuning.judge, "_EFFORT", Effort(least=0.01, most=0.02))
    monkeypatch.setenv("QCLI_CACHE_DIR", str(tmp_path / "cache"))
    return found


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The mlp as it is, by two recipes, and one that onnxruntime does not run."""
    folder = tmp_path_factory.mktemp("models")
    paths = []
    for recipe in ("int8-minmax", "int8-weights"):
        job = tune_job(folder, "mlp", recipe=recipe, cache=False)
        base = settle(job, recipe, Watch())
        paths.append(folder / f"{recipe}.onnx")
        save_model(apply_plan(base.prepared.model, base.plan, base.solution), paths[-1])
    source = job.model
    (folder / "bad.onnx").write_bytes(b"no model")
    return [source, *paths, folder / "bad.onnx"]


def here(job: TuneJob, paths: Sequence[Path]) -> list[Judged]:
    judge, _ = open_judge(job, load_model(job.model), load_recipe(job.recipe, job.settings), metric_of(job))
    return [judge.accuracy(load_model(path)) for path in paths]


def test_what_they_say_is_what_this_process_says(
    models: list[Path], tmp_path: Path, started: list[subprocess.Popen[bytes]]
) -> None:
    job = tune_job(tmp_path, "mlp", jobs=2)
    with Workers(job, 2) as pool:
        found = pool.accuracies(models)
        assert pool.accuracies(models[:1]) == found[:1] and pool.accuracies([]) == []
    assert found == [*here(job, models[:3]), None]
    assert found[1] is not None and found[1].error_db > 0
    assert len(started) == 2 and all(process.poll() is not None for process in started)


def test_no_process_before_there_is_work(tmp_path: Path, started: list[subprocess.Popen[bytes]]) -> None:
    with Workers(tune_job(tmp_path, "mlp"), 3):
        assert started == []


def test_one_that_was_killed_is_started_anew(
    models: list[Path], tmp_path: Path, started: list[subprocess.Popen[bytes]]
) -> None:
    with Workers(tune_job(tmp_path, "mlp"), 1) as pool:
        first = pool.accuracies(models[1:2])
        started[0].kill()
        started[0].wait()
        assert pool.accuracies(models[1:2]) == first, "it is not the model's fault"
        assert len(started) == 2
    assert all(process.poll() is not None for process in started)


CRASHING = """
import os
def metric(expected, given, label):
    if abs(expected["logits"] - given["logits"]).max() > 0:
        os._exit(3)
    return 1.0
"""


def test_a_model_that_ends_its_process_has_no_accuracy(
    models: list[Path], tmp_path: Path, started: list[subprocess.Popen[bytes]]
) -> None:
    (tmp_path / "mine.py").write_text(CRASHING)
    job = tune_job(tmp_path, "mlp", metric=str(tmp_path / "mine.py"), allow_code=True)
    source, quantized, *_ = models
    with Workers(job, 1) as pool:
        first, second, third = pool.accuracies([source, quantized, source])
    assert first is not None and first.metric == 1.0 and second is None and third == first
    assert len(started) == 2


TALKING = """
import os, sys
print("to python's stdout")
os.write(1, b"to the process's stdout\\n")
def metric(expected, given, label):
    os.system("echo from a child")
    assert sys.stdin.read() == ""
    return 0.5
"""


def test_what_a_metric_prints_is_no_answer(models: list[Path], tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(TALKING)
    job = tune_job(tmp_path, "mlp", samples=8, metric=str(tmp_path / "mine.py"), allow_code=True)
    with Workers(job, 1) as pool:
        assert [one and one.metric for one in pool.accuracies(models[:2])] == [0.5, 0.5]


def test_an_error_of_a_metric_travels(
    models: list[Path], tmp_path: Path, started: list[subprocess.Popen[bytes]]
) -> None:
    (tmp_path / "mine.py").write_text("def metric(expected, given, label):\n    return given['nothing']\n")
    job = tune_job(tmp_path, "mlp", metric=str(tmp_path / "mine.py"), allow_code=True)
    with Workers(job, 2) as pool, pytest.raises(UsageError) as caught:
        pool.accuracies(models[:3])
    with pytest.raises(UsageError) as expected:
        here(job, models[:1])
    assert (caught.value.message, caught.value.hint) == (expected.value.message, expected.value.hint)
    assert all(process.poll() is not None for process in started)


SLOW = """
import time
def metric(expected, given, label):
    time.sleep(600)
"""


@pytest.fixture
def interrupting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """SIGINT raises as the command line lets it, two seconds from now."""

    def interrupt(number: int, _: Any) -> None:
        raise Interrupted(number)

    before = signal.signal(signal.SIGINT, interrupt)
    timer = Timer(2.0, signal.pthread_kill, [get_ident(), signal.SIGINT])
    timer.start()
    yield
    timer.cancel()
    timer.join()
    signal.signal(signal.SIGINT, before)


@pytest.mark.skipif(os.name == "nt", reason="no signal reaches one thread there")
@pytest.mark.usefixtures("interrupting")
def test_an_interrupt_leaves_none_behind(
    models: list[Path], tmp_path: Path, started: list[subprocess.Popen[bytes]]
) -> None:
    """And does not wait for the ten minutes that they would take."""
    (tmp_path / "mine.py").write_text(SLOW)
    job = tune_job(tmp_path, "mlp", metric=str(tmp_path / "mine.py"), allow_code=True)
    with pytest.raises(Interrupted), Workers(job, 2) as pool:
        pool.accuracies(models[:2])
    assert len(started) == 2 and all(process.poll() is not None for process in started)


def test_they_end_when_nobody_asks_any_more(tmp_path: Path) -> None:
    """As after SIGKILL of the search, when nothing could be cleared away."""
    job = msgspec.json.encode(tune_job(tmp_path, "mlp", samples=8), enc_hook=str)
    for said in (b"", job + b"\n"):
        done = subprocess.run(
            [sys.executable, "-m", "qcli.tuning.workers"], input=said, capture_output=True, check=False, timeout=120
        )
        assert (done.returncode, done.stdout) == (0, b"")


@pytest.mark.slow
def test_a_search_with_two_jobs_tries_what_one_alone_tries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qcli.tuning.search, "everything", lambda prices: islice(everything(prices), 4))
    monkeypatch.setattr(qcli.tuning.search, "_MOST_PLANS", inf)
    options: dict[str, Any] = {"limits": Limits(min_sqnr=25.0), "search": "exhaustive", "cache": False}
    [alone, together] = [tune(tune_job(tmp_path, "mlp", jobs=jobs, **options)).tried for jobs in (1, 2)]
    by_plan = [{msgspec.json.encode(one.candidate.rules): one for one in tried[1:]} for tried in (alone, together)]
    shared = by_plan[0].keys() & by_plan[1].keys()
    assert len(shared) >= 1 and len(together) > 2
    for plan in shared:
        one, other = by_plan[0][plan], by_plan[1][plan]
        assert (one.sqnr, one.drop, one.error_db, one.size) == (other.sqnr, other.drop, other.error_db, other.size)
