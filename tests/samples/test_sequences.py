"""Sequences and optionals as inputs, and bfloat16, which numpy's files cannot hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import OptionalProto, SequenceProto, TensorProto, helper, numpy_helper

from qcli.contracts import InputSpec, Record
from qcli.errors import InputError
from qcli.samples._check import check_sample
from qcli.samples.onnx_pb import OnnxPb

ROWS = [np.ones((2, 3), np.float32), np.zeros((1, 3), np.float32)]


def spec(kind: str, dtype: str = "float32") -> InputSpec:
    return InputSpec(name="x", dtype=dtype, shape=None, kind=kind)


def read(tmp_path: Path, kind: str, content: bytes) -> Any:
    folder = tmp_path / "test_data_set_0"
    folder.mkdir()
    (folder / "input_0.pb").write_bytes(content)
    [record] = OnnxPb().read(folder, (spec(kind),))
    return record.arrays["x"]


def test_a_sequence(tmp_path: Path) -> None:
    found = read(tmp_path, "sequence", numpy_helper.from_list(ROWS, "x").SerializeToString())
    assert len(found) == 2 and all(np.array_equal(*pair) for pair in zip(found, ROWS, strict=True))


@pytest.mark.parametrize("value", [ROWS[0], None])
def test_an_optional_tensor(tmp_path: Path, value: Any) -> None:
    found = read(tmp_path, "optional", numpy_helper.from_optional(value, "x").SerializeToString())
    assert found is None if value is None else np.array_equal(found, value)


def test_an_optional_sequence(tmp_path: Path) -> None:
    optional = OptionalProto(elem_type=OptionalProto.SEQUENCE, sequence_value=numpy_helper.from_list(ROWS))
    assert len(read(tmp_path, "optional", optional.SerializeToString())) == 2


def test_a_sequence_of_maps_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="something else than tensors"):
        read(tmp_path, "sequence", SequenceProto(elem_type=SequenceProto.MAP).SerializeToString())


def test_data_in_another_file_is_never_opened(tmp_path: Path) -> None:
    tensor = onnx.TensorProto(data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    sequence = SequenceProto(elem_type=SequenceProto.TENSOR, tensor_values=[tensor])
    with pytest.raises(InputError, match="another file"):
        read(tmp_path, "sequence", sequence.SerializeToString())


def check(value: Any, one: InputSpec) -> Any:
    return check_sample(Record(file="a", arrays={"x": value}), (one,))["x"]


def test_what_fits_is_passed_on() -> None:
    assert check(ROWS, spec("sequence")) is ROWS
    assert check(None, spec("optional")) is None
    assert check(ROWS[0], spec("optional")) is ROWS[0]


@pytest.mark.parametrize(
    ("value", "one", "what"),
    [
        (ROWS[0], spec("sequence"), "no sequence"),
        (ROWS, spec("sequence", "int64"), "holds float32"),
        ([np.array([np.nan], np.float32)], spec("sequence"), "NaN"),
        (np.array([1]), spec("optional"), "holds int64"),
    ],
)
def test_what_does_not_fit_is_refused(value: Any, one: InputSpec, what: str) -> None:
    with pytest.raises(InputError, match=what):
        check(value, one)


def test_float32_samples_do_for_bfloat16() -> None:
    found = check(ROWS[0], InputSpec(name="x", dtype="bfloat16", shape=(2, 3)))
    assert found.dtype == helper.tensor_dtype_to_np_dtype(TensorProto.BFLOAT16)
    with pytest.raises(InputError, match="Inf"):
        check(np.full((2, 3), np.inf, np.float32), InputSpec(name="x", dtype="bfloat16", shape=(2, 3)))
