"""Models side by side: what the report holds and what is refused, never how fast anything is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import dataset, first_sample, model_path
from models import node, normal, proto_of, saved

from qcli.benching.nouns import BenchJob
from qcli.benching.work import bench, bench_job
from qcli.errors import InputError, RuntimeFailure, UsageError
from qcli.graph import load_model, node_key, normalize_graph
from qcli.latency import Effort
from qcli.report import encode_report
from qcli.watch import Watch

SHORT = Effort(least=0.0, most=0.0)


def test_files(quantized_mlp: Path) -> None:
    report = bench([model_path("mlp"), quantized_mlp], [dict(first_sample("mlp").feeds)], effort=SHORT)
    first, second = report.models
    assert (first.path, second.path) == (str(model_path("mlp")), str(quantized_mlp))
    assert (first.bytes, first.speedup) == (model_path("mlp").stat().st_size, 1.0)
    assert second.speedup == pytest.approx(first.ms / second.ms)
    assert (report.invented_samples, report.samples, report.threads) == (False, 1, 1)
    assert report.nodes == () and first.peak_memory_mb is None, "not asked for"
    assert b'"schema": 1' in encode_report(report)


@pytest.mark.parametrize("name", ["cnn", "transformer", "gru", "mlp"])
def test_without_samples_it_says_that_it_made_them_up(name: str) -> None:
    assert bench([model_path(name)], effort=SHORT).invented_samples is True


def test_a_row_for_each_model_at_each_number_of_threads(quantized_mlp: Path) -> None:
    report = bench([model_path("mlp"), quantized_mlp], threads=(2, 1, 2), effort=SHORT)
    paths = [str(model_path("mlp")), str(quantized_mlp)]
    assert [(row.threads, row.path) for row in report.models] == [(count, path) for count in (2, 1) for path in paths]
    assert [row.speedup for row in report.models[::2]] == [1.0, 1.0], "each count has its own first model"
    assert report.threads == 2 and report.rounds == min(row.rounds for row in report.models)
    assert report.paths == tuple(paths)
    for row in report.models:
        assert 0 < row.fastest_ms <= row.ms <= row.slowest_ms
        assert 0 <= row.outliers <= 1


def test_the_profile_covers_every_node(quantized_cnn: Path) -> None:
    report = bench([model_path("cnn"), quantized_cnn, quantized_cnn], effort=SHORT, profile=True)
    model = load_model(model_path("cnn"))
    normalize_graph(model)
    keys = [key for cost in report.nodes for key in cost.sources]
    assert sorted(keys) == sorted(node_key(each) for each in model.nodes())
    assert all(len(cost.ms) == len(cost.ratios) == len(cost.conversions_ms) == 3 for cost in report.nodes)


def test_one_model_and_one_file_twice() -> None:
    path = model_path("mlp")
    assert [row.speedup for row in bench([path], effort=SHORT, profile=True).models] == [1.0]
    assert [row.path for row in bench([path, path], effort=SHORT).models] == [str(path)] * 2


def test_disturbed_runs_are_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qcli.latency.Latency.doubts", lambda _: iter(["use a quiet machine"]))
    watch = Watch()
    report = bench([model_path("mlp")], effort=SHORT, watch=watch)
    assert report.warnings == tuple(watch.warnings) == ("use a quiet machine",)
    report = bench([model_path("mlp")], threads=(1, 2), effort=SHORT)
    assert report.warnings == ("at 1 thread: use a quiet machine", "at 2 threads: use a quiet machine")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"models": ()}, "no model"),
        ({"threads": (0,)}, "0 threads"),
        ({"threads": (1, -1)}, "-1 threads"),
        ({"threads": (5000,)}, "5000 threads"),
        ({"threads": ()}, "no number of threads"),
        ({"effort": Effort(least=-1.0)}, "-1.0 seconds"),
        ({"effort": Effort(least=float("nan"))}, "nan seconds"),
        ({"effort": Effort(most=float("inf"))}, "seconds"),
        ({"effort": Effort(warm_up=-1)}, "-1 runs"),
        ({"reports": (Path("bench.html"),)}, "unknown format '.html'"),
        ({"reports": (Path("nowhere/bench.md"),)}, "does not exist"),
        ({"reports": (model_path("mlp"),)}, "is read or written"),
        ({"recipe": "int9"}, "int9"),
    ],
)
def test_what_makes_no_sense_is_refused(changed: dict[str, Any], message: str) -> None:
    job = BenchJob(**{"models": (model_path("mlp"),), "effort": SHORT, **changed})
    with pytest.raises(UsageError, match=message):
        bench_job(job)


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not found"):
        bench([model_path("mlp"), tmp_path / "none.onnx"])


def test_models_with_other_inputs() -> None:
    with pytest.raises(InputError, match="takes image"):
        bench([model_path("mlp"), model_path("cnn")])


def test_a_model_that_does_not_run_is_named(tmp_path: Path) -> None:
    nodes = [node("Reshape", "x shape", "y")]
    path = saved(proto_of(nodes, {"x": ["n", 8]}, {"y": None}, {"shape": np.array([3, 5])}), tmp_path / "bad.onnx")
    with pytest.raises(RuntimeFailure, match=r"bad\.onnx'"):
        bench([path], [{"x": normal(0, 1, 8)}], effort=SHORT)


def test_samples_are_read_and_bad_ones_refused(tmp_path: Path) -> None:
    job = BenchJob(models=(model_path("mlp"),), effort=SHORT, data=dataset("mlp").root)
    report = bench_job(job)
    assert report.invented_samples is False and 1 <= report.samples <= 8
    with pytest.raises(InputError, match="no such file or folder"):
        bench_job(BenchJob(models=(model_path("mlp"),), effort=SHORT, data=tmp_path / "none"))


def test_a_recipe_says_how_images_become_inputs() -> None:
    folder = model_path("cnn").parent
    job = BenchJob(models=(model_path("cnn"),), effort=SHORT, recipe=str(folder / "recipe.yaml"), data=folder / "eval")
    assert bench_job(job).invented_samples is False
