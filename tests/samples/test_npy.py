"""`.npy` samples: one unnamed array a file."""

from __future__ import annotations

import io
import pickle
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcli.contracts import InputSpec, Record
from qcli.errors import InputError
from qcli.samples.npy import Npy

X = (InputSpec(name="x", dtype="float32", shape=(None, 3)),)


def read(path: Path) -> Record:
    (record,) = Npy().read(path, X)
    return record


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read(path)
    assert caught.value.exit_code == 3
    assert path.name in caught.value.message
    return caught.value.message


def test_claims_by_suffix_and_never_folders(tmp_path: Path) -> None:
    (tmp_path / "folder.npy").mkdir()
    assert Npy().claims(tmp_path / "a.npy")
    assert not Npy().claims(tmp_path / "a.npz")
    assert not Npy().claims(tmp_path / "folder.npy")


def test_the_array_is_unnamed(tmp_path: Path) -> None:
    array = np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3))
    np.save(tmp_path / "a.npy", array)
    record = read(tmp_path / "a.npy")
    assert (record.file, record.label, record.reference) == ("a.npy", None, {})
    assert set(record.arrays) == {""}
    np.testing.assert_array_equal(record.arrays[""], array)


def test_scalar(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.int64(16000))
    array = read(tmp_path / "a.npy").arrays[""]
    assert array.shape == ()
    assert array.dtype == np.int64


def test_objects(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([object], dtype=object), allow_pickle=True)
    assert "holds pickled objects" in refusal(tmp_path / "a.npy")


def test_a_pickle_by_another_name(tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(pickle.dumps([1, 2, 3]))
    assert "not a readable .npy" in refusal(tmp_path / "a.npy")


def test_structured(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros(2, dtype=[("a", "f4"), ("b", "i4")]))
    assert "not a tensor's dtype" in refusal(tmp_path / "a.npy")


def test_newer_format_version(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros(3))
    content = bytearray((tmp_path / "a.npy").read_bytes())
    content[6] = 3
    (tmp_path / "a.npy").write_bytes(content)
    assert "version 3.0" in refusal(tmp_path / "a.npy")


@pytest.mark.parametrize("change", [-1, -100, 1])
def test_data_shorter_or_longer_than_the_header_says(tmp_path: Path, change: int) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.zeros(30))
    content = path.read_bytes()
    path.write_bytes(content[:change] if change < 0 else content + bytes(change))
    assert f"the file holds {240 + change}" in refusal(path)


def test_declared_size_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    with (tmp_path / "a.npy").open("wb") as stream:
        header = {"descr": "<f8", "fortran_order": False, "shape": (1 << 50,)}
        np.lib.format.write_array_header_1_0(stream, header)
    assert "more than the limit" in refusal(tmp_path / "a.npy")


def test_missing_file(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "gone.npy")


@given(st.data())
@settings(deadline=None, max_examples=150)
def test_damaged_bytes_never_escape_as_anything_else(data: st.DataObject) -> None:
    stream = io.BytesIO()
    np.save(stream, np.arange(6, dtype=np.float32))
    content = bytearray(stream.getvalue())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.npy"
        path.write_bytes(content)
        try:
            read(path)
        except InputError as error:
            assert "a.npy" in error.message
