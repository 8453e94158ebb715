"""Which files of a tree are samples, in which order."""

from __future__ import annotations

import os
import random
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcli.errors import InputError
from qcli.samples._find import Findings, find
from qcli.samples.npy import Npy
from qcli.samples.npz import Npz
from qcli.samples.onnx_pb import OnnxPb

READERS = (Npy(), Npz(), OnnxPb())


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def names(found: Findings) -> list[str]:
    return [file.name for file in found.files]


def test_recursive_sorted_bytewise(tmp_path: Path) -> None:
    touch(tmp_path, "b.npz", "a/z.npz", "a.npz", "Z.npy", "a/y/x.npz", "é.npz", "10.npz", "9.npz")
    assert names(find(tmp_path, READERS)) == [
        "10.npz", "9.npz", "Z.npy", "a.npz", "a/y/x.npz", "a/z.npz", "b.npz", "é.npz",
    ]  # fmt: skip


def test_hidden_and_foreign_files_are_skipped(tmp_path: Path) -> None:
    touch(tmp_path, "a.npz", ".b.npz", ".git/c.npz", "labels.csv", "readme.txt", "model.onnx", "sub/.DS_Store")
    assert names(find(tmp_path, READERS)) == ["a.npz"]


def test_folder_that_is_one_sample_is_not_searched(tmp_path: Path) -> None:
    touch(tmp_path, "model/test_data_set_1/input_0.pb", "model/test_data_set_0/a.npz", "model/model.onnx")
    assert names(find(tmp_path, READERS)) == ["model/test_data_set_0", "model/test_data_set_1"]
    single = find(tmp_path / "model" / "test_data_set_1", READERS)
    assert (names(single), single.root) == (["test_data_set_1"], tmp_path / "model")


def test_single_file_even_if_hidden(tmp_path: Path) -> None:
    touch(tmp_path, ".a.npz", "labels.csv")
    found = find(tmp_path / ".a.npz", READERS)
    assert (names(found), found.root) == ([".a.npz"], tmp_path)
    assert [table.path for table in found.tables] == [tmp_path / "labels.csv"]


def test_single_file_of_no_kind(tmp_path: Path) -> None:
    touch(tmp_path, "a.txt")
    assert names(find(tmp_path / "a.txt", READERS)) == []


def test_tables_of_labels_with_their_folders(tmp_path: Path) -> None:
    touch(tmp_path, "labels.csv", "sub/deep/labels.csv", "sub/a.npz")
    assert [table.folder for table in find(tmp_path, READERS).tables] == ["", "sub/deep"]


@pytest.mark.parametrize("target", [".", "..", "../sub", "../../outside"])
def test_link_loops_end(tmp_path: Path, target: str) -> None:
    root = tmp_path / "root"
    touch(root, "sub/a.npz", "b.npz")
    touch(tmp_path, "outside/c.npz")
    (tmp_path / "outside" / "back").symlink_to(root)
    (root / "sub" / "link").symlink_to(target)
    extra = ["sub/link/c.npz"] if "outside" in target else []
    assert names(find(root, READERS)) == ["b.npz", "sub/a.npz", *extra]


def test_folder_below_the_root_keeps_its_own_name(tmp_path: Path) -> None:
    touch(tmp_path, "z/a.npz")
    (tmp_path / "b").symlink_to("z")
    (tmp_path / "c.npz").symlink_to("z/a.npz")
    assert names(find(tmp_path, READERS)) == ["c.npz", "z/a.npz"]


def test_broken_link_is_found_so_that_it_gets_reported(tmp_path: Path) -> None:
    (tmp_path / "a.npz").symlink_to("gone.npz")
    assert names(find(tmp_path, READERS)) == ["a.npz"]


def test_pipes_are_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.npz")
    assert names(find(tmp_path, READERS)) == []


def test_folder_that_cannot_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(InputError, match="Permission denied") as caught:
        find(tmp_path, READERS)
    assert str(tmp_path) in caught.value.message


@given(
    st.sets(st.text("ab.é-", min_size=1, max_size=3), min_size=1, max_size=8),
    st.randoms(use_true_random=False),
)
@settings(deadline=None, max_examples=40)
def test_order_of_creation_does_not_matter(stems: set[str], order: random.Random) -> None:
    wanted = [f"{folder}/{stem}.npz" for stem in stems for folder in ("f", "g.x", "f-1")]
    visible = [name for name in wanted if not name.partition("/")[2].startswith(".")]
    order.shuffle(wanted)
    with tempfile.TemporaryDirectory() as root:
        touch(Path(root), *wanted)
        assert names(find(Path(root), READERS)) == sorted(visible, key=os.fsencode)
