"""Weights that stay on the disk."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from models import assert_equal, assert_same, feeds_for, floats, node, normal, proto_of, run, wrapped
from onnx import TensorProto, helper, numpy_helper

from qcli.errors import InputError
from qcli.graph import (
    Model,
    add_initializer,
    add_turned,
    constant_of,
    finite,
    is_finite,
    load_model,
    native_type,
    normalize_graph,
    on_disk,
    raise_opset,
    save_model,
)
from qcli.graph import model as models
from qcli.graph.bits import packed
from qcli.graph.on_disk import StoredTensor, blocks_of, tensor_of
from qcli.parallel import in_order
from qcli.runtime import Session
from qcli.types import Array, Deferred


@pytest.fixture(autouse=True)
def _low_thresholds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models are large from two kilobytes of external data on."""
    monkeypatch.setattr(on_disk, "LARGE_BYTES", 1900)
    monkeypatch.setattr(on_disk, "STORED_BYTES", 1500)


def chain(opset: int = 17) -> onnx.ModelProto:
    weights = {
        "w1": normal(0, 16, 32) / 4,
        "w2": normal(1, 32, 16) / 4,
        "b": normal(2, 16),
        "w3": normal(3, 16, 32) / 4,
    }
    nodes = [
        node("MatMul", "x w1", "a"),
        node("Relu", "a", "r"),
        node("MatMul", "r w2", "c"),
        node("Add", "c b", "d"),
        node("MatMul", "d w3", "y"),
    ]
    return proto_of(nodes, {"x": ["n", 16]}, {"y": ["n", 32]}, weights, opset=opset)


def with_external_data(proto: onnx.ModelProto, path: Path) -> Path:
    """Saves a model whose constants lie in a file beside it."""
    onnx.save(
        proto,
        str(path),
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
        convert_attribute=True,
    )
    return path


def large(proto: onnx.ModelProto, folder: Path) -> Model:
    return load_model(with_external_data(onnx.ModelProto.FromString(proto.SerializeToString()), folder / "m.onnx"))


def stored_names(model: Model) -> set[str]:
    values = model.graph.initializers.values()
    return {value.name or "" for value in values if isinstance(value.const_value, StoredTensor)}


def test_large_weights_stay_in_their_file(tmp_path: Path) -> None:
    model = large(chain(), tmp_path)
    assert model.large and stored_names(model) == {"w1", "w2", "w3"}
    assert_same(chain(), model)
    w1 = constant_of(model.graph.initializers["w1"])
    np.testing.assert_array_equal(w1, normal(0, 16, 32) / 4)
    assert isinstance(w1, np.ndarray) and not w1.flags.writeable


def test_small_models_are_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_disk, "LARGE_BYTES", 1 << 20)
    model = large(chain(), tmp_path)
    assert not model.large and stored_names(model) == set()
    assert model.runnable() == (model.serialize(), "", {})


def test_the_digest_is_that_of_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = large(chain(), tmp_path)
    monkeypatch.setattr(on_disk, "LARGE_BYTES", 1 << 20)
    assert load_model(tmp_path / "m.onnx").sha256 == model.sha256


def test_a_session_reads_the_weights_from_their_file(tmp_path: Path) -> None:
    model = large(chain(), tmp_path)
    runnable = model.runnable()
    assert len(runnable.content) < 1500 and runnable.folder == str(tmp_path.resolve()) and runnable.arrays == {}
    feeds = feeds_for(model)
    for optimize in (True, False):
        assert_equal(run(chain(), feeds), Session(runnable, optimize=optimize).run(feeds))


def test_more_values_can_be_outputs_of_a_large_model_too(tmp_path: Path) -> None:
    model = large(chain(), tmp_path)
    feeds = feeds_for(model)
    found = Session(model.runnable(("r", "y"))).run(feeds)
    assert set(found) == {"y", "r"}
    assert found["r"].min() == 0


def test_changed_weights_are_put_on_a_shelf_and_run(tmp_path: Path) -> None:
    model = large(chain(), tmp_path)
    graph = model.graph
    doubled = np.asarray(constant_of(graph.initializers["w2"])) * 2
    new = add_initializer(graph, "w2", doubled)
    old = graph.initializers["w2"]
    old.replace_all_uses_with(new)
    model.remove_unused()
    assert isinstance(new.const_value, StoredTensor) and new.name == "w2_1"
    proto = chain()
    proto.graph.initializer[1].CopyFrom(numpy_helper.from_array(doubled, "w2"))
    feeds = feeds_for(model)
    runnable = model.runnable()
    assert set(runnable.arrays) == {"w2_1"}
    assert_equal(run(proto, feeds), Session(runnable).run(feeds))
    save_model(model, tmp_path / "new.onnx")
    assert_same(proto, load_model(tmp_path / "new.onnx"))


def test_copies_share_tensors_and_the_shelf(tmp_path: Path) -> None:
    model = large(chain(), tmp_path)
    copy = model.copy()
    assert copy.large
    assert copy.graph.initializers["w1"].const_value is model.graph.initializers["w1"].const_value
    value = add_initializer(copy.graph, "big", normal(5, 1000))
    del copy
    gc.collect()
    np.testing.assert_array_equal(constant_of(value), normal(5, 1000))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="Linux")
def test_a_shelf_goes_with_the_last_of_its_tensors(tmp_path: Path) -> None:
    model = large(chain(), tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    value = add_initializer(model.graph, "big", normal(5, 1000))
    array = constant_of(value)
    del model, value
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before
    np.testing.assert_array_equal(array, normal(5, 1000))


def test_deferred_constants_are_computed_when_they_are_read(tmp_path: Path) -> None:
    model = large(chain(), tmp_path)
    calls = []

    def make() -> np.ndarray[tuple[int, ...], np.dtype[np.int8]]:
        calls.append(1)
        return np.arange(2000, dtype=np.int8)

    value = add_initializer(model.graph, "codes", Deferred((2000,), "int8", make))
    model.graph.outputs.append(value)
    assert calls == [] and value.const_value is not None and value.const_value.nbytes == 2000
    np.testing.assert_array_equal(constant_of(value), make())
    save_model(model, tmp_path / "n.onnx")
    np.testing.assert_array_equal(constant_of(load_model(tmp_path / "n.onnx").graph.initializers["codes"]), make())


def test_the_digest_of_a_graph_depends_on_its_weights_and_not_on_where_they_lie(tmp_path: Path) -> None:
    model = large(chain(), tmp_path)
    before = model.digest()
    (tmp_path / "weights.bin").rename(tmp_path / "other.bin")
    proto = onnx.load(str(tmp_path / "m.onnx"), load_external_data=False)
    for tensor in proto.graph.initializer:
        tensor.external_data[0].value = "other.bin"
    onnx.save(proto, str(tmp_path / "m.onnx"))
    assert load_model(tmp_path / "m.onnx").digest() == before
    content = bytearray((tmp_path / "other.bin").read_bytes())
    content[100] ^= 1
    (tmp_path / "other.bin").write_bytes(bytes(content))
    assert load_model(tmp_path / "m.onnx").digest() != before


def test_raising_the_opset_touches_no_weight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = large(chain(opset=11), tmp_path)
    reading = StoredTensor._mapped
    monkeypatch.setattr(StoredTensor, "_mapped", _forbidden)
    monkeypatch.setattr(StoredTensor, "blocks", _forbidden)
    assert raise_opset(model, 17)
    assert model.large and stored_names(model) == {"w1", "w2", "w3"}
    assert model.inputs()[0].shape == (None, 16) and len(model.inputs()) == 1
    monkeypatch.undo()
    assert reading is StoredTensor._mapped
    assert_same(chain(), model)


def _forbidden(*_: object) -> None:
    raise AssertionError("a weight was read")


def constants_chain() -> onnx.ModelProto:
    """Every weight in a Constant node, one of them behind a Transpose."""
    nodes = [
        helper.make_node("Constant", [], ["w1"], value=numpy_helper.from_array(normal(0, 16, 32), "w1")),
        helper.make_node("Constant", [], ["w2"], value=numpy_helper.from_array(normal(1, 16, 32), "w2")),
        node("Transpose", "w2", "t"),
        node("MatMul", "x w1", "a"),
        node("MatMul", "a t", "y"),
    ]
    return proto_of(nodes, {"x": ["n", 16]}, {"y": ["n", 16]})


def test_weights_in_constant_nodes_stay_in_their_file_too(tmp_path: Path) -> None:
    model = large(constants_chain(), tmp_path)
    assert model.large and model.weight_bytes() == 2 * 16 * 32 * 4
    feeds = feeds_for(model)
    expected = run(constants_chain(), feeds)
    runnable = model.runnable()
    assert len(runnable.content) < 1500
    assert_equal(expected, Session(runnable).run(feeds))
    normalize_graph(model)
    assert stored_names(model) == {"w1", "w2"}
    assert_equal(expected, Session(model.runnable()).run(feeds))


def test_packed_weights_with_a_decoder_of_their_own_stay_stored_and_run(tmp_path: Path) -> None:
    packed = TensorProto(name="q", data_type=TensorProto.INT4, dims=[100, 64], raw_data=b"\x21" * 3200)
    zero = numpy_helper.from_array(np.array(0.5, np.float32), "s")
    nodes = [node("DequantizeLinear", "q s", "w"), node("MatMul", "x w", "y")]
    proto = proto_of(nodes, {"x": ["n", 100]}, {"y": ["n", 64]}, opset=21)
    proto.graph.initializer.extend([packed, zero])
    proto.ir_version = 10
    model = large(proto, tmp_path)
    assert model.large and stored_names(model) == {"q"}
    feeds = feeds_for(model)
    assert_equal(run(proto, feeds), Session(model.runnable(), optimize=False).run(feeds))
    save_model(model, tmp_path / "n.onnx")
    assert_equal(run(proto, feeds), Session(tmp_path / "n.onnx", optimize=False).run(feeds))


def test_bfloat16_weights_stay_stored_and_run(tmp_path: Path) -> None:
    bits = (normal(0, 16, 64).view(np.uint32) >> 16).astype(np.uint16)
    weight = TensorProto(name="w", data_type=TensorProto.BFLOAT16, dims=[16, 64], raw_data=bits.tobytes())
    nodes = [node("Cast", "w", "f", to=TensorProto.FLOAT), node("MatMul", "x f", "y")]
    proto = proto_of(nodes, {"x": ["n", 16]}, {"y": ["n", 64]})
    proto.graph.initializer.append(weight)
    model = large(proto, tmp_path)
    feeds = feeds_for(model)
    assert stored_names(model) == {"w"}
    assert_equal(run(proto, feeds), Session(model.runnable()).run(feeds))


def test_weights_that_are_inputs_too_can_stay_stored(tmp_path: Path) -> None:
    proto = chain()
    proto.graph.input.append(floats("w1", [16, 32]))
    model = large(proto, tmp_path)
    assert [spec.name for spec in model.inputs()] == ["x"]
    feeds = feeds_for(model)
    assert_equal(run(chain(), feeds), Session(model.runnable()).run(feeds))


def test_weights_in_memory_beyond_what_a_message_holds_are_handed_over(monkeypatch: pytest.MonkeyPatch) -> None:

    monkeypatch.setattr(models, "_PROTOBUF_LIMIT", 100)
    model = wrapped(chain())
    runnable = model.runnable()
    assert set(runnable.arrays) == {"w1", "w2", "w3"} and runnable.folder == ""
    feeds = feeds_for(model)
    assert_equal(run(chain(), feeds), Session(runnable).run(feeds))


@pytest.mark.parametrize("change", ["gone", "short"])
def test_files_that_change_while_they_are_read_are_an_input_error(tmp_path: Path, change: str) -> None:
    model = large(chain(), tmp_path)
    if change == "gone":
        (tmp_path / "weights.bin").unlink()
    else:
        (tmp_path / "weights.bin").write_bytes(b"short")
    tensor = model.graph.initializers["w1"].const_value
    assert isinstance(tensor, StoredTensor)
    for read in (tensor.numpy, model.digest, lambda: save_model(model, tmp_path / "n.onnx")):
        with pytest.raises(InputError, match="cannot be read any more"):
            read()
    assert not (tmp_path / "n.onnx").exists() and not list(tmp_path.glob("*.tmp"))


# Views and pieces


def test_the_transpose_of_a_stored_weight_is_a_view(tmp_path: Path) -> None:
    weight = normal(0, 24, 40)
    nodes = [node("Transpose", "w", "t", perm=[1, 0]), node("MatMul", "x t", "y")]
    proto = proto_of(nodes, {"x": ["n", 40]}, {"y": ["n", 24]}, {"w": weight})
    model = large(proto, tmp_path)
    [turning, product] = list(model.graph)
    constant = turning.inputs[0]
    assert constant is not None
    turned = add_turned(model.graph, turning.outputs[0], constant, (1, 0))
    assert turned is not None and turned.name == "t" and turned.const_value is not None
    array = turned.const_value.numpy()
    np.testing.assert_array_equal(array, weight.T)
    assert array.flags.f_contiguous and turned.const_value.tobytes() == weight.T.tobytes()
    turning.outputs[0].replace_all_uses_with(turned)
    model.graph.remove(turning, safe=True)
    model.remove_unused()
    assert product.inputs[1] is turned
    assert_same(proto, model)
    save_model(model, tmp_path / "saved.onnx")
    assert_equal(run(model, feeds_for(model)), run(load_model(tmp_path / "saved.onnx"), feeds_for(model)))


def test_other_constants_are_not_turned() -> None:
    nodes = [node("Transpose", "w", "t"), node("MatMul", "x t", "y")]
    model = wrapped(proto_of(nodes, {"x": ["n", 4]}, {"y": ["n", 3]}, {"w": normal(0, 3, 4)}))
    turning = model.graph[0]
    assert turning.inputs[0] is not None
    assert add_turned(model.graph, turning.outputs[0], turning.inputs[0], (1, 0)) is None
    assert turning.outputs[0].name == "t"


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("name", "kind"), [("INT4", "int8"), ("UINT2", "uint8"), ("INT8", "int8"), ("INT16", "int16")])
def test_what_is_written_in_pieces_is_what_would_be_written_at_once(name: str, kind: str, threads: int) -> None:
    codes = np.random.default_rng(0).integers(0, 2, (37, 5)).astype(kind)

    def pieces(then: Callable[[Array], Array]) -> Iterator[Array]:
        return in_order(lambda some: then(codes[some]), [slice(0, 8), slice(8, 32), slice(32, 37)], threads)

    dtype = native_type(name)
    whole = Deferred(codes.shape, kind, lambda: codes.astype(dtype.numpy()))
    tensors = [tensor_of(None, array, dtype) for array in (whole, replace(whole, pieces=pieces))]
    contents = [b"".join(blocks_of(tensor)) for tensor in tensors]
    assert contents[0] == contents[1] == tensors[0].tobytes()


def test_packed_constants_stay_in_their_file_and_run(tmp_path: Path) -> None:
    codes = np.random.default_rng(0).integers(-8, 8, (64, 64)).astype(np.int8)
    tensor = helper.make_tensor("q", TensorProto.INT4, codes.shape, packed(codes, 4).tobytes(), raw=True)
    nodes = [node("Cast", "q", "c", to=TensorProto.FLOAT), node("MatMul", "x c", "y")]
    proto = proto_of(nodes, {"x": ["n", 64]}, {"y": ["n", 64]}, {}, opset=21)
    proto.graph.initializer.append(tensor)
    model = large(proto, tmp_path)
    assert stored_names(model) == {"q"}
    stored = model.graph.initializers["q"].const_value
    assert stored is not None and stored.nbytes == 2048
    np.testing.assert_array_equal(stored.numpy().astype(np.int8), codes)
    assert b"".join(blocks_of(stored)) == packed(codes, 4).tobytes() == stored.tobytes()
    assert_same(proto, model)
    part = Session(model.constant_part([model.graph[0]], ["c"]), optimize=False).run({}, ["c"])
    np.testing.assert_array_equal(part["c"], codes.astype(np.float32))


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf, 0.0])
def test_a_constant_is_asked_once_whether_it_is_finite(
    wrong: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finite, "_PIECE", 100)
    proto = chain()
    name = proto.graph.initializer[1].name
    weight = np.array(numpy_helper.to_array(proto.graph.initializer[1]))
    weight[31, 15] = wrong
    proto.graph.initializer[1].CopyFrom(numpy_helper.from_array(weight, name))
    model = large(proto, tmp_path)
    assert is_finite(model.graph.initializers[name]) is bool(np.isfinite(wrong))
    monkeypatch.setattr(finite, "_all_finite", lambda _: pytest.fail("it was looked through again"))
    assert is_finite(model.copy().graph.initializers[name]) is bool(np.isfinite(wrong))
    assert is_finite(None)
