"""`.npz` samples: what is read, and every way in which a file can be refused."""

from __future__ import annotations

import io
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcli.contracts import InputSpec, Record
from qcli.errors import InputError
from qcli.samples import _arrays
from qcli.samples.npz import Npz
from qcli.types import Array

X = (InputSpec(name="x", dtype="float32", shape=(None, 3)),)


def read(path: Path, inputs: tuple[InputSpec, ...] = X) -> Record:
    (record,) = Npz().read(path, inputs)
    return record


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read(path)
    assert caught.value.exit_code == 3
    assert path.name in caught.value.message
    assert "\n" not in caught.value.message
    return caught.value.message


def npy_bytes(array: Array) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def npy_header(shape: tuple[int, ...], descr: str = "<f4") -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": descr, "fortran_order": False, "shape": shape})
    return stream.getvalue()


def archive(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def test_claims_by_suffix_and_never_folders(tmp_path: Path) -> None:
    (tmp_path / "folder.npz").mkdir()
    assert Npz().claims(tmp_path / "not_there.npz")
    assert Npz().claims(tmp_path / "A.NPZ")
    assert not Npz().claims(tmp_path / "a.npy")
    assert not Npz().claims(tmp_path / "folder.npz")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_keys_are_input_names(tmp_path: Path, save: object) -> None:
    x = np.arange(3, dtype=np.float32)[None]
    ids = np.array([[7, 8]], dtype=np.int64)
    assert callable(save)
    save(tmp_path / "a.npz", **{"x": x, "onnx::Flatten_0": ids})
    record = read(tmp_path / "a.npz")
    assert record.file == "a.npz"
    assert record.label is None
    np.testing.assert_array_equal(record.arrays["x"], x)
    np.testing.assert_array_equal(record.arrays["onnx::Flatten_0"], ids)
    assert record.arrays["onnx::Flatten_0"].dtype == np.int64


@given(
    st.sampled_from(["<f4", ">f4", "<f2", ">i8", "|u1", "|b1", "<f8"]),
    st.lists(st.integers(0, 4), max_size=4),
    st.booleans(),
)
@settings(deadline=None, max_examples=60)
def test_every_shape_and_dtype_comes_back(dtype: str, shape: list[int], fortran: bool) -> None:
    values = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
    array = np.asarray(values, order="F" if fortran else "C")
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / "a.npz", x=array)
        back = read(Path(folder) / "a.npz").arrays["x"]
    assert back.dtype == array.dtype.newbyteorder("=")
    assert back.dtype.isnative
    np.testing.assert_array_equal(back, values)


@pytest.mark.parametrize("stored", [np.int64(4), np.array([4], dtype=np.uint8)])
def test_label_key_is_the_label(tmp_path: Path, stored: Array) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((1, 3), np.float32), label=stored)
    record = read(tmp_path / "a.npz")
    assert record.label == 4
    assert set(record.arrays) == {"x"}


def test_label_key_is_an_input_if_the_model_has_one(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", label=np.zeros(3, np.float32))
    record = read(tmp_path / "a.npz", (InputSpec(name="label", dtype="float32", shape=(3,)),))
    assert record.label is None
    assert set(record.arrays) == {"label"}


@pytest.mark.parametrize("label", [np.float32(4), np.array([1, 2]), np.int64(-1), np.bool_(True)])
def test_label_must_be_one_class_index(tmp_path: Path, label: Array) -> None:
    np.savez(tmp_path / "a.npz", label=label)
    assert "'label' must be one class index" in refusal(tmp_path / "a.npz")


def test_pickled_objects_are_refused_and_not_loaded(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.array([{"an": "object"}], dtype=object), allow_pickle=True)
    message = refusal(tmp_path / "a.npz")
    assert "key 'x'" in message
    assert "holds pickled objects" in message


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04" + b"\0" * 60])
def test_not_a_zip(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npz").write_bytes(content)
    assert "not a readable .npz" in refusal(tmp_path / "a.npz")


def test_missing_file(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "gone.npz")


def test_truncated_and_flipped(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, x=np.arange(300, dtype=np.float32))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    refusal(path)
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    path.write_bytes(flipped)
    assert "CRC" in refusal(path)


def test_member_that_is_no_array(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.npz", {"x.npy": npy_bytes(np.zeros(3)), "readme.txt": b"hello"})
    assert "'readme.txt' in it is not an array" in refusal(path)


def test_same_key_twice(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        file.writestr("x.npy", npy_bytes(np.zeros(3)))
        with pytest.warns(UserWarning, match="Duplicate"):
            file.writestr("x.npy", npy_bytes(np.ones(3)))
    assert "the same key twice" in refusal(tmp_path / "a.npz")


def test_bomb_by_header(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.npz", {"x.npy": npy_header((1 << 20, 1 << 20))})
    assert "more than the limit" in refusal(path)


def test_bomb_by_members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qcli.samples.npz.MAX_BYTES", 10_000)
    path = archive(tmp_path / "a.npz", {f"x{i}.npy": npy_bytes(np.zeros(1000)) for i in range(3)})
    assert path.stat().st_size < 10_000
    assert "more than the limit of 10000" in refusal(path)


def test_real_limit_is_two_gibibytes() -> None:
    assert _arrays.MAX_BYTES == 2 * 1024**3


@given(st.lists(st.integers(-3, 1 << 40), max_size=5), st.integers(0, 64))
@settings(deadline=None, max_examples=60)
def test_header_that_does_not_match_the_data(shape: list[int], held: int) -> None:
    if min(shape, default=0) >= 0 and np.prod([float(size) for size in shape]) * 4 == held:
        return
    with tempfile.TemporaryDirectory() as folder:
        path = archive(Path(folder) / "a.npz", {"x.npy": npy_header(tuple(shape)) + bytes(held)})
        assert "declares" in refusal(path)


@pytest.mark.parametrize("descr", ["<M8[s]", "|V8", "<U0", "<S0"])
def test_dtypes_that_are_no_tensors(tmp_path: Path, descr: str) -> None:
    path = archive(tmp_path / "a.npz", {"x.npy": npy_header((1,), descr) + bytes(8)})
    assert "not a tensor's dtype" in refusal(path)


def test_encrypted_member(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.npz", {"x.npy": npy_bytes(np.zeros(3))})
    content = bytearray(path.read_bytes())
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    assert "encrypted" in refusal(path)


@given(st.data())
@settings(deadline=None, max_examples=150)
def test_damaged_bytes_never_escape_as_anything_else(data: st.DataObject) -> None:
    stream = io.BytesIO()
    np.savez_compressed(stream, x=np.arange(6, dtype=np.float32), label=np.int64(1))
    content = bytearray(stream.getvalue())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.npz"
        path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
        try:
            read(path)
        except InputError as error:
            assert "a.npz" in error.message
