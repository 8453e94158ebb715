"""Statistics are measured once for one graph and one set of samples."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from models import SAMPLE_MODELS

from qcli.cache import cache_folder, cache_key, find_document, find_statistics, keep_document, keep_statistics
from qcli.job import QuantizeJob
from qcli.pipeline import calibrate_job
from qcli.statistics import Statistics
from qcli.types import Request

REQUESTS = (Request(value="x", statistic="extrema"), Request(value="y", statistic="histogram"))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QCLI_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def measured() -> Statistics:
    statistics = Statistics.empty(REQUESTS)
    for request in REQUESTS:
        statistics.get(request).update(np.arange(6, dtype=np.float32).reshape(1, -1))
    return statistics.counted(1)


def job(**changes: object) -> QuantizeJob:
    folder = SAMPLE_MODELS / "mlp"
    facts = {"model": folder / "model.onnx", "calibration": folder / "calib", "samples": 8, "threads": 1, **changes}
    return QuantizeJob(**facts)  # type: ignore[arg-type]


def test_the_folder_follows_the_environment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder() == folder
    monkeypatch.delenv("QCLI_CACHE_DIR")
    assert "qcli" in cache_folder().parts


def test_what_is_kept_is_found(folder: Path) -> None:
    assert find_statistics("key") is None
    keep_statistics("key", measured())
    found = find_statistics("key")
    assert found is not None and found.header.samples == 1
    assert found.get(REQUESTS[0]).arrays().keys() == measured().get(REQUESTS[0]).arrays().keys()


def test_documents_are_kept_beside_the_statistics(folder: Path) -> None:
    assert find_document("key") is None
    keep_statistics("key", measured())
    keep_document("key", b"{}")
    assert find_document("key") == b"{}"
    assert find_statistics("key") is not None


def test_the_documents_used_last_are_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qcli.cache._KEPT", 2)
    keep_statistics("measured", measured())
    for index, key in enumerate("abc"):
        keep_document(key, b"{}")
        os.utime(folder / f"{key}.json", (index, index))
    keep_document("d", b"{}")
    assert sorted(path.name for path in folder.iterdir()) == ["c.json", "d.json", "measured.npz"]


def test_a_damaged_file_is_none(folder: Path) -> None:
    keep_statistics("key", measured())
    (folder / "key.npz").write_bytes(b"not an archive")
    assert find_statistics("key") is None


def test_old_files_go(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qcli.cache._KEPT", 3)
    for number in range(6):
        keep_statistics(f"key{number}", measured())
    assert len(list(folder.glob("*.npz"))) == 3


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("QCLI_CACHE_DIR", str(tmp_path / "file" / "below"))
    keep_statistics("key", measured())
    assert find_statistics("key") is None


def test_every_fact_counts() -> None:
    keys = {
        cache_key("graph", "samples", None, REQUESTS),
        cache_key("other", "samples", None, REQUESTS),
        cache_key("graph", "other", None, REQUESTS),
        cache_key("graph", "samples", "imagenet", REQUESTS),
        cache_key("graph", "samples", None, REQUESTS[:1]),
    }
    assert len(keys) == 5


def test_a_second_calibration_reads_the_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = calibrate_job(job())
    assert len(list(folder.glob("*.npz"))) == 1
    monkeypatch.setattr("qcli.pipeline.collect", _refuse)
    second = calibrate_job(job())
    assert second.header == first.header
    for request in first.header.requests:
        for name, array in first.get(request).arrays().items():
            np.testing.assert_array_equal(array, second.get(request).arrays()[name])


def test_without_the_cache_nothing_is_kept(folder: Path) -> None:
    calibrate_job(job(cache=False))
    assert not folder.exists()


def test_other_samples_are_measured_again(folder: Path) -> None:
    calibrate_job(job())
    calibrate_job(job(samples=9))
    assert len(list(folder.glob("*.npz"))) == 2


def _refuse(*_: object, **__: object) -> None:
    raise AssertionError("measured again")
