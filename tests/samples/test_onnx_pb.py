"""ONNX's own `test_data_set_*` folders."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from qcli.contracts import InputSpec, Record
from qcli.errors import InputError
from qcli.samples.onnx_pb import OnnxPb
from qcli.types import Array

INPUTS = (
    InputSpec(name="image", dtype="float32", shape=(1, 2)),
    InputSpec(name="rate", dtype="int64", shape=()),
)


def write(path: Path, array: Array, name: str = "") -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(numpy_helper.from_array(array, name).SerializeToString())


def read(path: Path) -> Record:
    (record,) = OnnxPb().read(path, INPUTS)
    return record


def refusal(path: Path, file: str) -> str:
    with pytest.raises(InputError) as caught:
        read(path)
    assert caught.value.exit_code == 3
    assert path.name in caught.value.message
    assert file in caught.value.message
    return caught.value.message


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "test_data_set_0"


def test_claims_folders_by_name(tmp_path: Path) -> None:
    (tmp_path / "test_data_set_7").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "test_data_set_8").write_bytes(b"")
    claimed = [path.name for path in sorted(tmp_path.iterdir()) if OnnxPb().claims(path)]
    assert claimed == ["test_data_set_7"]


def test_inputs_by_position_and_outputs_as_reference(folder: Path) -> None:
    image, rate = np.array([[1, 2]], np.float32), np.array(16000, np.int64)
    write(folder / "input_1.pb", rate, "a name that does not matter")
    write(folder / "input_0.pb", image)
    write(folder / "output_0.pb", image * 2, "prob")
    write(folder / "output_10.pb", image * 3)
    (folder / "notes.txt").write_text("ignored")
    record = read(folder)
    assert record.file == "test_data_set_0"
    assert set(record.arrays) == {"image", "rate"}
    np.testing.assert_array_equal(record.arrays["image"], image)
    assert record.arrays["rate"].shape == ()
    assert set(record.reference) == {"output_0", "output_10"}
    np.testing.assert_array_equal(record.reference["output_0"], image * 2)


def test_input_that_is_not_there_is_left_to_the_check(folder: Path) -> None:
    write(folder / "input_1.pb", np.array(1, np.int64))
    assert set(read(folder).arrays) == {"rate"}


def test_more_inputs_than_the_model_has(folder: Path) -> None:
    write(folder / "input_2.pb", np.zeros(1))
    assert "has no input to go to, the model has 2" in refusal(folder, "input_2.pb")


@pytest.mark.parametrize("content", [b"", b"\xff\xff\xff", b"version https://git-lfs", b"\x08\x01\x10\x01\x4a\x01\0"])
def test_damaged(folder: Path, content: bytes) -> None:
    folder.mkdir()
    (folder / "input_0.pb").write_bytes(content)
    assert "not a readable tensor" in refusal(folder, "input_0.pb")


def test_dims_beyond_the_data(folder: Path) -> None:
    folder.mkdir()
    tensor = TensorProto(data_type=TensorProto.FLOAT, dims=[1 << 40, 1 << 20], raw_data=bytes(8))
    (folder / "input_0.pb").write_bytes(tensor.SerializeToString())
    assert "not a readable tensor" in refusal(folder, "input_0.pb")


def test_external_data_is_not_followed(folder: Path) -> None:
    (folder.parent / "secret").write_bytes(bytes(8))
    tensor = helper.make_tensor("x", TensorProto.FLOAT, [2], bytes(8), raw=True)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret")
    folder.mkdir()
    (folder / "input_0.pb").write_bytes(tensor.SerializeToString())
    assert "lies in another file" in refusal(folder, "input_0.pb")


def test_too_large(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qcli.samples.onnx_pb.MAX_BYTES", 100)
    write(folder / "output_0.pb", np.zeros(100))
    assert "more than the limit of 100" in refusal(folder, "output_0.pb")


def test_folder_that_is_gone(folder: Path) -> None:
    assert "not a readable folder" in refusal(folder, "test_data_set_0")


def test_importing_the_reader_does_not_import_onnx() -> None:
    code = "import sys, qcli.samples.onnx_pb, qcli.dataset; sys.exit('onnx' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=Path(__file__).parents[2]).returncode == 0


@given(st.data())
@settings(deadline=None, max_examples=150)
def test_damaged_bytes_never_escape_as_anything_else(data: st.DataObject) -> None:
    tensor = numpy_helper.from_array(np.arange(6, dtype=np.float32).reshape(2, 3), "x")
    content = bytearray(tensor.SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "test_data_set_0"
        folder.mkdir()
        (folder / "input_0.pb").write_bytes(content[: data.draw(st.integers(0, len(content)))])
        try:
            read(folder)
        except InputError as error:
            assert "input_0.pb" in error.message
