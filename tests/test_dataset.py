"""A folder of samples as a whole: order, subsets, labels, problems, digest."""

from __future__ import annotations

import gc
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from qcli.contracts import InputSpec
from qcli.dataset import Dataset, check_all, open_dataset
from qcli.errors import InputError, NothingToDoError, UsageError
from qcli.types import Array

X = (InputSpec(name="x", dtype="float32", shape=(None, 2)),)


def fill(folder: Path, count: int, first: int = 0) -> Path:
    folder.mkdir(exist_ok=True)
    for index in range(first, first + count):
        np.savez(folder / f"{index:03}.npz", x=np.full((1, 2), index, np.float32))
    return folder


def files(dataset: Dataset) -> list[str]:
    return [file.name for file in dataset.files]


def values(dataset: Dataset) -> list[float]:
    return [float(sample.feeds["x"].flat[0]) for sample in dataset]


def failure(dataset: Dataset) -> InputError:
    with pytest.raises(InputError) as caught:
        list(dataset)
    assert caught.value.exit_code == 3
    return caught.value


def test_iterates_in_order_and_again(tmp_path: Path) -> None:
    dataset = open_dataset(fill(tmp_path, 5), X)
    assert len(dataset) == 5
    assert values(dataset) == values(dataset) == [0, 1, 2, 3, 4]
    first, second = iter(dataset), iter(dataset)
    assert [next(first).file, next(first).file, next(second).file] == ["000.npz", "001.npz", "000.npz"]


def test_path_may_be_text(tmp_path: Path) -> None:
    assert values(open_dataset(str(fill(tmp_path, 1)), X)) == [0]


def test_opening_reads_no_sample(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"damaged")
    assert len(open_dataset(tmp_path, X)) == 1


def test_all_kinds_in_one_folder(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    spec = (InputSpec(name="x", dtype="float32", shape=(None, 3, 4, 4)),)
    array = np.zeros((1, 3, 4, 4), np.float32)
    np.save(tmp_path / "a.npy", array[0])
    np.savez(tmp_path / "b.npz", x=array)
    Image.new("RGB", (4, 4)).save(tmp_path / "c.png")
    (tmp_path / "test_data_set_0").mkdir()
    tensor = onnx.numpy_helper.from_array(array)
    for name in ("input_0.pb", "output_0.pb"):
        (tmp_path / "test_data_set_0" / name).write_bytes(tensor.SerializeToString())
    samples = list(open_dataset(tmp_path, spec, preprocess={"preset": "unit"}))
    assert [sample.file for sample in samples] == ["a.npy", "b.npz", "c.png", "test_data_set_0"]
    assert all(np.array_equal(sample.feeds["x"], array) for sample in samples)
    assert [set(sample.reference) for sample in samples] == [set(), set(), set(), {"output_0"}]


def test_single_file(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", np.array([1, 2], np.float32))
    np.save(tmp_path / "two.npy", np.array([3, 4], np.float32))
    (sample,) = open_dataset(tmp_path / "one.npy", X)
    assert (sample.file, sample.feeds["x"].shape, sample.label) == ("one.npy", (1, 2), None)


def test_one_sample_in_memory_at_a_time(tmp_path: Path) -> None:
    seen: list[weakref.ref[Array]] = []
    for sample in open_dataset(fill(tmp_path, 6), X):
        seen.append(weakref.ref(sample.feeds["x"]))
        del sample
        gc.collect()
        assert sum(reference() is not None for reference in seen) <= 1


def test_missing_path(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file or folder") as caught:
        open_dataset(tmp_path / "gone", X)
    assert caught.value.exit_code == 3
    assert "gone" in caught.value.message


def test_folder_that_must_not_be_entered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "exists", refuse)
    with pytest.raises(InputError, match="cannot be searched"):
        open_dataset(tmp_path, X)


@pytest.mark.parametrize("content", [None, "readme.txt", ".hidden.npz"])
def test_nothing_to_do(tmp_path: Path, content: str | None) -> None:
    if content:
        (tmp_path / content).touch()
    with pytest.raises(NothingToDoError, match="no samples found in") as caught:
        open_dataset(tmp_path, X)
    assert caught.value.exit_code == 5
    assert str(tmp_path) in caught.value.message
    for suffix in (".npz", ".npy", ".png", ".jpg", ".jpeg", ".bmp", ".webp", "test_data_set_*"):
        assert suffix in caught.value.hint


def test_file_of_no_kind(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    with pytest.raises(NothingToDoError):
        open_dataset(tmp_path / "a.txt", X)


def test_images_without_preprocess(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "c.png")
    with pytest.raises(UsageError, match="images need 'preprocess'") as caught:
        list(open_dataset(tmp_path, X))
    assert caught.value.exit_code == 2


def test_bad_preprocess_is_found_on_opening(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown key 'resze'"):
        open_dataset(fill(tmp_path, 1), X, preprocess={"resze": 3})


# --- subsets ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "expected"),
    [(1, [0]), (2, [0, 5]), (4, [0, 2, 5, 8]), (10, list(range(10))), (99, list(range(10)))],
)
def test_limit_spreads_evenly(tmp_path: Path, limit: int, expected: list[int]) -> None:
    assert values(open_dataset(fill(tmp_path, 10), X, limit=limit)) == expected


@given(st.integers(1, 60), st.integers(1, 70))
@settings(deadline=None, max_examples=40)
def test_limit_takes_distinct_files_evenly(count: int, limit: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for index in range(count):
            (Path(folder) / f"{index:03}.npz").touch()
        chosen = [int(name[:3]) for name in files(open_dataset(folder, X, limit=limit))]
    assert len(chosen) == min(limit, count)
    assert chosen == sorted(set(chosen))
    gaps = np.diff([*chosen, count])
    assert gaps.max() - gaps.min() <= 2


@given(st.integers(1, 30), st.integers(1, 30), st.one_of(st.none(), st.integers(1, 40)))
@settings(deadline=None, max_examples=40)
def test_shards_are_disjoint_and_make_the_whole(count: int, shards: int, limit: int | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for index in range(count):
            (Path(folder) / f"{index:03}.npz").touch()
        whole = files(open_dataset(folder, X, limit=limit))
        used = range(1, min(shards, len(whole)) + 1)
        parts = [files(open_dataset(folder, X, limit=limit, shard=(index, shards))) for index in used]
    assert sorted(name for part in parts for name in part) == whole
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_shard_takes_every_nth(tmp_path: Path) -> None:
    assert values(open_dataset(fill(tmp_path, 7), X, shard=(2, 3))) == [1, 4]


def test_empty_shard(tmp_path: Path) -> None:
    with pytest.raises(NothingToDoError, match="shard 4/8 of 3 samples is empty") as caught:
        open_dataset(fill(tmp_path, 3), X, shard=(4, 8))
    assert caught.value.exit_code == 5


@pytest.mark.parametrize("options", [{"shard": (0, 3)}, {"shard": (4, 3)}, {"shard": (-1, 0)}, {"limit": 0}])
def test_subsets_that_make_no_sense(tmp_path: Path, options: Any) -> None:
    with pytest.raises(UsageError) as caught:
        open_dataset(fill(tmp_path, 3), X, **options)
    assert caught.value.exit_code == 2


# --- labels -------------------------------------------------------------------------------------------------


def test_labels_beside_the_samples(tmp_path: Path) -> None:
    (fill(tmp_path, 2) / "labels.csv").write_text("file,label\n001.npz,7\n000.npz,3\n")
    assert [sample.label for sample in open_dataset(tmp_path, X)] == [3, 7]
    assert [sample.label for sample in open_dataset(tmp_path, X, limit=1)] == [3]
    assert [sample.label for sample in open_dataset(tmp_path / "001.npz", X)] == [7]


def test_labels_in_subfolders(tmp_path: Path) -> None:
    for name, label in (("cat", 4), ("dog", 5)):
        (fill(tmp_path / name, 1) / "labels.csv").write_text(f"file,label\n000.npz,{label}\n")
    labels = {sample.file: sample.label for sample in open_dataset(tmp_path, X)}
    assert labels == {"cat/000.npz": 4, "dog/000.npz": 5}


def test_given_labels_replace_those_beside(tmp_path: Path) -> None:
    calib = fill(tmp_path / "calib", 1)
    (calib / "labels.csv").write_text("not a table")
    (tmp_path / "truth.csv").write_text("file,label\n000.npz,9\n")
    (sample,) = open_dataset(calib, X, labels=tmp_path / "truth.csv")
    assert sample.label == 9


@pytest.mark.parametrize("text", ["file,label\n", "file,label\n000.npz,cat\n", "file,label\n000.npz,1\ngone.npz,1\n"])
def test_bad_labels_are_found_on_opening(tmp_path: Path, text: str) -> None:
    (fill(tmp_path, 1) / "labels.csv").write_text(text)
    with pytest.raises(InputError, match=r"labels\.csv"):
        open_dataset(tmp_path, X)


def test_label_in_the_npz(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((1, 2), np.float32), label=np.int64(5))
    (sample,) = open_dataset(tmp_path, X)
    assert (sample.label, list(sample.feeds)) == (5, ["x"])
    (tmp_path / "labels.csv").write_text("file,label\na.npz,5\n")
    assert next(iter(open_dataset(tmp_path, X))).label == 5


def test_labels_that_contradict(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((1, 2), np.float32), label=np.int64(5))
    (tmp_path / "labels.csv").write_text("file,label\na.npz,6\n")
    assert "a.npz: its own label is 5, labels.csv says 6" in failure(open_dataset(tmp_path, X)).message


# --- problems -----------------------------------------------------------------------------------------------


def spoil(folder: Path) -> Dataset:
    """Five samples: 000 and 003 are good; 001 is no zip, 002 has another name, 004 holds NaN."""
    fill(folder, 5)
    (folder / "001.npz").write_bytes(b"no zip")
    np.savez(folder / "002.npz", y=np.zeros((1, 2), np.float32))
    np.savez(folder / "004.npz", x=np.array([[0, np.nan]], np.float32))
    return open_dataset(folder, X)


def test_good_samples_come_first_then_one_error_for_all_bad_ones(tmp_path: Path) -> None:
    good = []
    with pytest.raises(InputError) as caught:
        for sample in spoil(tmp_path):
            good.append(sample.file)
    assert good == ["000.npz", "003.npz"]
    lines = caught.value.message.splitlines()
    assert lines[0] == f"3 of 5 samples in {tmp_path} are bad:"
    assert lines[1].startswith("  001.npz: not a readable .npz: ")
    assert lines[2] == "  002.npz: the model has no input 'y' (known: x)"
    assert lines[3].startswith("  004.npz: input 'x' holds NaN at [0, 1] (")
    assert caught.value.hint == ""


def test_validate_raises_the_same(tmp_path: Path) -> None:
    dataset = spoil(tmp_path)
    with pytest.raises(InputError) as caught:
        dataset.validate()
    assert caught.value.message == failure(dataset).message
    open_dataset(tmp_path / "000.npz", X).validate()


def test_check_all_returns_lines(tmp_path: Path) -> None:
    lines = check_all(spoil(tmp_path))
    assert [line.partition(":")[0] for line in lines] == ["001.npz", "002.npz", "004.npz"]
    assert lines[1] == "002.npz: the model has no input 'y' (known: x)"
    assert check_all(open_dataset(tmp_path / "000.npz", X)) == []


def test_ten_problems_are_listed_and_a_shared_hint_is_said_once(tmp_path: Path) -> None:
    for index in range(12):
        np.savez(tmp_path / f"{index:02}.npz", x=np.zeros((1, 2)))
    error = failure(open_dataset(tmp_path, X))
    lines = error.message.splitlines()
    assert lines[0].startswith("12 of 12 samples")
    assert lines[10] == "  09.npz: input 'x' is float64, the model takes float32"
    assert lines[11:] == ["  … and 2 more"]
    assert "astype('float32')" in error.hint
    assert len(check_all(open_dataset(tmp_path, X))) == 12


def test_one_bad_sample_is_one_line(tmp_path: Path) -> None:
    fill(tmp_path, 3)
    np.savez(tmp_path / "001.npz", x=np.zeros((1, 3), np.float32))
    told = "001.npz: input 'x' has shape [1, 3], the model takes [?, 2]"
    assert failure(open_dataset(tmp_path, X)).message == f"1 of 3 samples in {tmp_path} is bad: {told}"
    assert failure(open_dataset(tmp_path / "001.npz", X)).message == told


def test_stopping_early_raises_nothing(tmp_path: Path) -> None:
    samples = iter(spoil(tmp_path))
    assert next(samples).file == "000.npz"
    del samples


def test_the_callers_own_input_error_is_not_taken_for_a_bad_sample(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="mine"):
        for _ in open_dataset(fill(tmp_path, 2), X):
            raise InputError("mine")


def test_file_that_vanishes_after_opening(tmp_path: Path) -> None:
    dataset = open_dataset(fill(tmp_path, 2), X)
    (tmp_path / "001.npz").unlink()
    assert "1 of 2 samples" in failure(dataset).message
    with pytest.raises(InputError, match=r"001\.npz"):
        dataset.digest()


# --- digest -------------------------------------------------------------------------------------------------


def test_digest_does_not_depend_on_where_and_when(tmp_path: Path) -> None:
    fill(fill(tmp_path / "a", 2) / "sub", 1)
    (tmp_path / "b" / "sub").mkdir(parents=True)
    for name in ("sub/000.npz", "001.npz", "000.npz"):
        shutil.copy(tmp_path / "a" / name, tmp_path / "b" / name)
    one, two = (open_dataset(tmp_path / folder, X) for folder in ("a", "b"))
    assert one.digest() == two.digest() == one.digest()
    assert len(one.digest()) == 64


def test_digest_sees_names_bytes_and_selection(tmp_path: Path) -> None:
    fill(tmp_path, 3)
    digests = [open_dataset(tmp_path, X).digest(), open_dataset(tmp_path, X, limit=2).digest()]
    (tmp_path / "002.npz").rename(tmp_path / "003.npz")
    digests.append(open_dataset(tmp_path, X).digest())
    with (tmp_path / "003.npz").open("ab") as stream:
        stream.write(b"\0")
    digests.append(open_dataset(tmp_path, X).digest())
    assert len(set(digests)) == 4


def test_digest_of_a_folder_sample_sees_its_files(tmp_path: Path) -> None:
    folder = tmp_path / "test_data_set_0"
    folder.mkdir()
    (folder / "input_0.pb").write_bytes(b"a")
    (folder / ".hidden").touch()
    before = open_dataset(tmp_path, X).digest()
    (folder / ".hidden").unlink()
    assert open_dataset(tmp_path, X).digest() == before
    (folder / "input_0.pb").write_bytes(b"b")
    assert open_dataset(tmp_path, X).digest() != before
    dataset = open_dataset(tmp_path, X)
    shutil.rmtree(folder)
    with pytest.raises(InputError, match="test_data_set_0"):
        dataset.digest()
