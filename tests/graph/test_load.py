"""Model files that nobody vouches for: each loads or is refused with an error for people."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import SAMPLE_MODELS, assert_equal, conv_net, dense_net, feeds_for, floats, node, proto_of, run, saved
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import set_external_data

from qcli.errors import InputError, QcliError, UnsupportedError
from qcli.graph import load_model
from qcli.runtime import Session

_MLP = (SAMPLE_MODELS / "mlp" / "model.onnx").read_bytes()


def external(folder: Path, location: str = "weights.bin", **fields: Any) -> onnx.ModelProto:
    """The dense net with `w1` stored in a file of its own."""
    proto = dense_net()
    [tensor] = [item for item in proto.graph.initializer if item.name == "w1"]
    content = tensor.raw_data
    set_external_data(tensor, location, **fields)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    (folder / "weights.bin").write_bytes(content)
    return proto


def test_a_sample_model_says_what_it_is() -> None:
    model = load_model(SAMPLE_MODELS / "cnn" / "model.onnx")
    [image] = model.inputs()
    assert (image.name, image.dtype, image.shape) == ("image", "float32", (None, 1, 16, 16))
    assert model.outputs() == ("logits",)
    assert (model.opset, len(model.sha256)) == (17, 64)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.onnx' not found"):
        load_model(tmp_path / "absent.onnx")


def test_a_folder_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder"):
        load_model(tmp_path)


def test_a_name_too_long_for_the_disk_is_an_input_error() -> None:
    with pytest.raises(InputError):
        load_model(Path("a" * 5000 + ".onnx"))


@pytest.mark.parametrize("content", [b"", b"hello, world\n", b"\x00" * 100, b"\xff" * 100, b"PK\x03\x04", b"{}"])
def test_what_is_no_model_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(InputError):
        load_model(path)


def test_a_git_lfs_pointer_is_recognised(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n")
    with pytest.raises(InputError, match="Git LFS pointer") as caught:
        load_model(path)
    assert "git lfs pull" in caught.value.hint


@pytest.mark.parametrize("name", ["cnn", "transformer", "gru", "mlp"])
@pytest.mark.parametrize("part", range(1, 16))
def test_a_truncated_file_is_refused_or_loads(tmp_path: Path, name: str, part: int) -> None:
    content = (SAMPLE_MODELS / name / "model.onnx").read_bytes()
    path = tmp_path / "model.onnx"
    path.write_bytes(content[: len(content) * part // 16])
    try:
        load_model(path)
    except InputError as error:
        assert str(path) in error.message and error.hint


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damaged_bytes_never_raise_anything_else(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    content = bytearray(_MLP[:400] if data.draw(st.booleans()) else _MLP[-700:])
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.onnx"
    whole = bytes(content) + _MLP[400:] if len(content) == 400 else _MLP[:-700] + bytes(content)
    path.write_bytes(whole)
    try:
        load_model(path)
    except QcliError as error:
        assert error.exit_code in (3, 4)


def test_external_data_is_read(tmp_path: Path) -> None:
    path = saved(external(tmp_path, offset=0, length=12 * 16 * 4), tmp_path / "model.onnx")
    model = load_model(path)
    feeds = feeds_for(model)
    assert_equal(run(dense_net(), feeds), run(model, feeds))
    assert_equal(run(dense_net(), feeds), Session(model.copy().serialize()).run(feeds))


def test_external_data_counts_in_the_digest(tmp_path: Path) -> None:
    path = saved(external(tmp_path), tmp_path / "model.onnx")
    before = load_model(path).sha256
    content = bytearray((tmp_path / "weights.bin").read_bytes())
    content[0] ^= 1
    (tmp_path / "weights.bin").write_bytes(bytes(content))
    assert load_model(path).sha256 != before


def test_missing_external_data_is_named(tmp_path: Path) -> None:
    path = saved(external(tmp_path), tmp_path / "model.onnx")
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(InputError, match=r"external data 'weights\.bin' .* is missing"):
        load_model(path)


@pytest.mark.parametrize("stated", [True, False])
def test_short_external_data_is_refused(tmp_path: Path, stated: bool) -> None:
    fields: dict[str, Any] = {"offset": 0, "length": 12 * 16 * 4} if stated else {}
    path = saved(external(tmp_path, **fields), tmp_path / "model.onnx")
    (tmp_path / "weights.bin").write_bytes(b"\0" * 100)
    with pytest.raises(InputError, match="cut short"):
        load_model(path)


def test_a_length_that_is_not_that_of_the_tensor_is_refused(tmp_path: Path) -> None:
    path = saved(external(tmp_path, offset=0, length=8), tmp_path / "model.onnx")
    with pytest.raises(InputError):
        load_model(path)


@pytest.mark.parametrize("location", ["../weights.bin", "a/../../weights.bin", "..\\weights.bin", "", ".", "a\0b"])
def test_external_data_outside_the_folder_is_refused(tmp_path: Path, location: str) -> None:
    (tmp_path / "inner").mkdir()
    proto = external(tmp_path, location)
    with pytest.raises(InputError):
        load_model(saved(proto, tmp_path / "inner" / "model.onnx"))


def test_an_absolute_path_is_refused_even_inside_the_folder(tmp_path: Path) -> None:
    proto = external(tmp_path, str(tmp_path / "weights.bin"))
    with pytest.raises(InputError, match="outside the model's folder"):
        load_model(saved(proto, tmp_path / "model.onnx"))


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    proto = external(tmp_path)
    os.symlink(tmp_path / "weights.bin", tmp_path / "inner" / "weights.bin")
    with pytest.raises(InputError, match="outside the model's folder"):
        load_model(saved(proto, tmp_path / "inner" / "model.onnx"))


@pytest.mark.parametrize("key", ["offset", "length"])
@pytest.mark.parametrize("text", ["-1", "many", "1e3", ""])
def test_an_offset_that_is_no_number_is_refused(tmp_path: Path, key: str, text: str) -> None:
    proto = external(tmp_path)
    [tensor] = [item for item in proto.graph.initializer if item.name == "w1"]
    tensor.external_data.add(key=key, value=text)
    with pytest.raises(InputError, match="is no number"):
        load_model(saved(proto, tmp_path / "model.onnx"))


def test_external_data_in_a_constant_of_a_body_is_confined_too(tmp_path: Path) -> None:
    tensor = numpy_helper.from_array(np.zeros(3, np.float32), "c")
    set_external_data(tensor, "../secret", offset=0, length=12)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    constant = helper.make_node("Constant", [], ["inner"], value=tensor)
    body = helper.make_graph([constant], "body", [], [floats("inner", [3])])
    branch = helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=body)
    graph = helper.make_graph([branch], "g", [floats("c", [], TensorProto.BOOL)], [floats("y", [3])])
    (tmp_path / "inner").mkdir()
    (tmp_path / "secret").write_bytes(b"\0" * 12)
    with pytest.raises(InputError, match="outside"):
        load_model(saved(helper.make_model(graph), tmp_path / "inner" / "model.onnx"))


def test_training_information_is_refused_not_lost(tmp_path: Path) -> None:
    proto = dense_net()
    proto.training_info.add()
    with pytest.raises(UnsupportedError, match="training"):
        load_model(saved(proto, tmp_path / "model.onnx"))


def test_a_negative_dimension_is_a_free_one(tmp_path: Path) -> None:
    proto = conv_net()
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    proto.graph.output[0].type.tensor_type.shape.dim[0].dim_value = -1
    model = load_model(saved(proto, tmp_path / "model.onnx"))
    assert model.inputs()[0].shape == (None, 3, 8, 8)
    assert run(model, {"x": np.zeros((3, 3, 8, 8), np.float32)})["y"].shape == (3, 5)


def test_initializers_listed_as_inputs_need_not_be_fed(tmp_path: Path) -> None:
    proto = dense_net()
    proto.graph.input.append(floats("w1", [12, 16]))
    assert [spec.name for spec in load_model(saved(proto, tmp_path / "m.onnx")).inputs()] == ["x"]


@pytest.mark.parametrize("reads", ["node", "output"])
def test_a_value_that_nothing_produces_is_named(tmp_path: Path, reads: str) -> None:
    nodes = [node("Relu", "ghost" if reads == "node" else "x", "r")]
    proto = proto_of(nodes, {"x": [2]}, {"r" if reads == "node" else "ghost": [2]})
    with pytest.raises(InputError, match="ghost"):
        load_model(saved(proto, tmp_path / "m.onnx"))


def test_a_graph_without_outputs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no graph with outputs"):
        load_model(saved(proto_of([node("Relu", "x", "y")], {"x": [1]}, {}), tmp_path / "m.onnx"))


def test_loading_changes_nothing_beside_the_file(tmp_path: Path) -> None:
    path = saved(conv_net(), tmp_path / "m.onnx")
    before = path.read_bytes()
    load_model(path).graph.inputs[0].name = "changed"
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["m.onnx"]
