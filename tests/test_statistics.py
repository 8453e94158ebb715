"""Statistics of shards, merged, are those of one run: the same file, byte by byte."""

from __future__ import annotations

import zipfile
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qcli.errors import InputError, UsageError
from qcli.statistics import Header, Statistics, load_statistics
from qcli.types import Array, Request

REQUESTS = (
    Request(value="x", statistic="histogram"),
    Request(value="x", statistic="extrema"),
    Request(value="x", statistic="extrema", axis=1),
)
BATCHES = st.lists(hnp.arrays(np.float32, (2, 5), elements=st.floats(-1e6, 1e6, width=32)), min_size=1, max_size=6)


def empty(**digests: str) -> Statistics:
    return Statistics.empty(REQUESTS, **digests)


def measured(batches: list[Array]) -> Statistics:
    statistics = empty(model_sha256="m", recipe_sha256="r", prepared_sha256="p")
    for batch in batches:
        for request in REQUESTS:
            statistics.get(request).update(batch if request.axis is not None else batch.reshape(1, -1))
    return statistics.counted(len(batches))


def written(statistics: Statistics, folder: Path) -> bytes:
    statistics.save(folder / "s.npz")
    return (folder / "s.npz").read_bytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("statistics")


@settings(max_examples=25, deadline=None)
@given(batches=BATCHES, cut=st.integers(0, 6), data=st.data())
def test_shards_merged_are_one_run(folder: Path, batches: list[Array], cut: int, data: st.DataObject) -> None:
    whole = written(measured(batches), folder)
    shuffled = data.draw(st.permutations(batches))
    first, second = measured(shuffled[:cut]), measured(shuffled[cut:])
    assert written(first.merge(second), folder) == whole
    assert written(measured(shuffled[cut:]).merge(measured(shuffled[:cut])), folder) == whole


@settings(max_examples=25, deadline=None)
@given(batches=BATCHES)
def test_a_file_holds_everything(folder: Path, batches: list[Array]) -> None:
    whole = measured(batches)
    content = written(whole, folder)
    again = load_statistics(folder / "s.npz")
    assert again.header == whole.header and again.header.samples == len(batches)
    assert written(again, folder) == content
    grown = load_statistics(folder / "s.npz").merge(measured(batches))
    assert written(grown, folder) == written(measured([*batches, *batches]), folder)


def test_equal_requests_are_measured_once_and_their_order_does_not_matter(folder: Path) -> None:
    twice = Statistics.empty((*REQUESTS, *REQUESTS[::-1]))
    assert twice.header.requests == Statistics.empty(REQUESTS[::-1]).header.requests
    assert len(twice.header.requests) == 3


def test_what_was_not_measured_is_named() -> None:
    with pytest.raises(UsageError, match="histogram of 'z'") as caught:
        empty().get(Request(value="z", statistic="histogram"))
    assert "same recipe" in caught.value.hint


@pytest.mark.parametrize("digest", ["model_sha256", "recipe_sha256", "prepared_sha256"])
def test_statistics_of_something_else_do_not_merge(digest: str) -> None:
    with pytest.raises(UsageError, match="differ in model or recipe"):
        empty().merge(empty(**{digest: "other"}))


def test_statistics_of_other_requests_do_not_merge() -> None:
    with pytest.raises(UsageError, match="differ"):
        empty().merge(Statistics.empty(REQUESTS[:1]))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.npz' not found"):
        load_statistics(tmp_path / "absent.npz")


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04", b"\x93NUMPY", b"\x80\x04."])
def test_another_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "s.npz").write_bytes(content)
    with pytest.raises(InputError, match="is not a statistics file"):
        load_statistics(tmp_path / "s.npz")


def test_an_npz_of_something_else_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", x=np.zeros(3))
    with pytest.raises(InputError, match="is not a statistics file"):
        load_statistics(tmp_path / "s.npz")


def test_a_bare_array_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "s.npy", np.zeros(3))
    with pytest.raises(InputError, match="is not a statistics file"):
        load_statistics(tmp_path / "s.npy")


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        load_statistics(tmp_path)


@settings(max_examples=200, deadline=None)
@given(at=st.floats(0, 1), value=st.integers(0, 255))
def test_a_damaged_file_is_refused_or_read(folder: Path, at: float, value: int) -> None:
    content = bytearray(written(measured([np.ones((2, 5), np.float32)]), folder))
    content[min(int(at * len(content)), len(content) - 1)] = value
    (folder / "damaged.npz").write_bytes(bytes(content))
    try:
        load_statistics(folder / "damaged.npz")
    except (InputError, UsageError) as error:
        assert error.message


@pytest.mark.parametrize("part", range(16))
def test_a_truncated_file_is_refused(tmp_path: Path, part: int) -> None:
    content = written(measured([np.ones((2, 5), np.float32)]), tmp_path)
    (tmp_path / "s.npz").write_bytes(content[: len(content) * part // 16])
    with pytest.raises(InputError):
        load_statistics(tmp_path / "s.npz")


def test_a_file_that_lacks_a_measurement_is_damaged(tmp_path: Path) -> None:
    written(measured([np.ones((2, 5), np.float32)]), tmp_path)
    with zipfile.ZipFile(tmp_path / "s.npz") as archive, zipfile.ZipFile(tmp_path / "t.npz", "w") as less:
        for name in archive.namelist():
            if not name.startswith("1."):
                less.writestr(name, archive.read(name))
    with pytest.raises(InputError, match="damaged"):
        load_statistics(tmp_path / "t.npz")


@pytest.mark.parametrize(
    "header",
    [
        Header(format=2, model_sha256="", recipe_sha256="", prepared_sha256="", samples=0, requests=()),
        Header(
            model_sha256="",
            recipe_sha256="",
            prepared_sha256="",
            samples=0,
            requests=(Request(value="x", statistic="nosuch"),),
        ),
    ],
)
def test_a_file_of_another_version_is_refused(tmp_path: Path, header: Header) -> None:
    np.savez(tmp_path / "s.npz", header=np.frombuffer(msgspec.json.encode(header), np.uint8))
    with pytest.raises(InputError):
        load_statistics(tmp_path / "s.npz")


def test_pickles_are_never_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", header=np.array([{"a": 1}], dtype=object))
    with pytest.raises(InputError):
        load_statistics(tmp_path / "s.npz")
