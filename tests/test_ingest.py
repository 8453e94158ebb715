"""Any ONNX file in, a result or a reason out: one network in every form that files take."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from models import floats, node, normal, proto_of, saved
from onnx import TensorProto, helper, numpy_helper

from qcli import QuantizeJob, quantize
from qcli.errors import NothingToDoError, QcliError, RuntimeFailure, UnsupportedError
from qcli.graph import load_model
from qcli.report import Report
from qcli.types import Array
from qcli.watch import Watch

WEIGHTS = {"w": normal(0, 32, 48) / 6, "v": normal(1, 48, 16) / 7}
NODES = (node("MatMul", "x w", "m"), node("Relu", "m", "r"), node("MatMul", "r v", "y"))


def net(*nodes: onnx.NodeProto, opset: int = 17) -> onnx.ModelProto:
    return proto_of(nodes or NODES, {"x": ["n", 32]}, {"y": ["n", 16]}, WEIGHTS, opset=opset)


def old_file() -> onnx.ModelProto:
    proto = net(opset=7)
    proto.ir_version = 3
    proto.graph.input.extend(floats(name, array.shape) for name, array in WEIGHTS.items())
    return proto


def old_file_without_inputs_for_its_weights() -> onnx.ModelProto:
    """Not quite allowed, but onnxruntime takes it."""
    proto = net(opset=7)
    proto.ir_version = 3
    return proto


def constants() -> onnx.ModelProto:
    proto = net()
    made = [helper.make_node("Constant", [], [tensor.name], value=tensor) for tensor in proto.graph.initializer]
    nodes = [*made, *proto.graph.node]
    del proto.graph.initializer[:]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    return proto


def unsorted() -> onnx.ModelProto:
    return net(*reversed(NODES))


def unnamed() -> onnx.ModelProto:
    proto = net()
    for index, item in enumerate(proto.graph.node):
        item.name = "" if index else "same"
    return proto


def wasteful() -> onnx.ModelProto:
    proto = net(node("MatMul", "x w", "m"), node("Add", "m zero", "a"), node("Add", "a nil", "r"), NODES[2])
    for name in ("zero", "nil", "unused"):
        proto.graph.initializer.append(numpy_helper.from_array(np.zeros(48, np.float32), name))
    return proto


def computed_weights() -> onnx.ModelProto:
    """Cast, Transpose, Reshape and Identity between the weights and their readers."""
    proto = net(
        node("Cast", "h", "c", to=TensorProto.FLOAT),
        node("Transpose", "c", "t", perm=[1, 0]),
        node("MatMul", "x t", "m"),
        node("Relu", "m", "r"),
        node("Reshape", "flat shape", "s"),
        node("Identity", "s", "i"),
        node("MatMul", "r i", "y"),
    )
    del proto.graph.initializer[:]
    kept = {"h": WEIGHTS["w"].T.astype(np.float16), "flat": WEIGHTS["v"].reshape(-1), "shape": np.array([48, 16])}
    proto.graph.initializer.extend(numpy_helper.from_array(np.ascontiguousarray(a), name) for name, a in kept.items())
    return proto


def in_type(code: int) -> Callable[[], onnx.ModelProto]:
    def made() -> onnx.ModelProto:
        proto = net()
        kind = helper.tensor_dtype_to_np_dtype(code)
        for tensor in proto.graph.initializer:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(kind), tensor.name))
        for info in (*proto.graph.input, *proto.graph.output):
            info.type.tensor_type.elem_type = code
        return proto

    return made


def function() -> onnx.ModelProto:
    """A function made for another operator set, which onnxruntime overlooks, with a name that the model uses too."""
    body = [node("MatMul", "a b", "m"), node("Identity", "m", "z")]
    proto = net(node("Layer", "x w", "first", domain="my"), node("Relu", "first", "r"), NODES[2])
    proto.functions.append(helper.make_function("my", "Layer", ["a", "b"], ["z"], body, [helper.make_opsetid("", 13)]))
    proto.opset_import.append(helper.make_opsetid("my", 1))
    return proto


def sparse() -> onnx.ModelProto:
    proto = net()
    weight = proto.graph.initializer[0]
    dense = numpy_helper.to_array(weight).reshape(-1)
    places = np.arange(dense.size, dtype=np.int64)
    values = numpy_helper.from_array(dense, "w")
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, numpy_helper.from_array(places), [32, 48]))
    del proto.graph.initializer[0]
    return proto


def untyped() -> onnx.ModelProto:
    """Behind an operator of onnxruntime's own, inference knows no type."""
    proto = net(NODES[0], node("FastGelu", "m", "r", domain="com.microsoft"), NODES[2])
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return proto


def undeclared() -> onnx.ModelProto:
    proto = net()
    proto.graph.input[0].type.tensor_type.shape.dim[0].ClearField("dim_param")
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    return proto


FORMS = {
    "as it is": net,
    "opset 7, IR 3, weights are inputs": old_file,
    "opset 7, IR 3, weights are no inputs": old_file_without_inputs_for_its_weights,
    "weights in Constant nodes": constants,
    "nodes out of order": unsorted,
    "names empty or the same": unnamed,
    "weights unused or doubled": wasteful,
    "weights computed": computed_weights,
    "float16": in_type(TensorProto.FLOAT16),
    "bfloat16": in_type(TensorProto.BFLOAT16),
    "float64": in_type(TensorProto.DOUBLE),
    "a function": function,
    "a sparse weight": sparse,
    "a type that inference cannot tell": untyped,
    "shapes not declared": undeclared,
}


def samples(folder: Path, **arrays: Array) -> Path:
    folder.mkdir()
    for index in range(8):
        rolled = {name: np.roll(array, index) for name, array in arrays.items()}
        np.savez(folder / f"{index}.npz", **rolled)
    return folder


def quantized(proto: onnx.ModelProto, tmp_path: Path, watch: Watch | None = None, **arrays: Array) -> Report:
    job = QuantizeJob(
        model=saved(proto, tmp_path / "model.onnx"),
        calibration=samples(tmp_path / "calib", **arrays),
        output=tmp_path / "out.onnx",
        latency=False,
        cache=False,
    )
    return quantize(job, watch)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_quantized_as_a_whole(tmp_path: Path, form: str) -> None:
    proto = FORMS[form]()
    kind = helper.tensor_dtype_to_np_dtype(proto.graph.input[0].type.tensor_type.elem_type)
    stored = np.float32 if kind.name == "bfloat16" else kind  # numpy's files have no bfloat16
    watch = Watch()
    report = quantized(proto, tmp_path, watch, x=normal(5, 4, 32).astype(stored))
    assert report.status == "passed" and not any("undone" in warning for warning in watch.warnings)
    assert report.kernels is not None and report.kernels.integer == 2 and report.kernels.float_ == 0
    assert report.accuracy is not None and (report.accuracy.sqnr or 0) > 30
    result = load_model(tmp_path / "out.onnx")
    assert [spec.dtype for spec in result.inputs()] == [kind.name] and result.outputs() == ("y",)


def test_bfloat16_says_what_it_is_compared_with(tmp_path: Path) -> None:
    watch = Watch()
    quantized(in_type(TensorProto.BFLOAT16)(), tmp_path, watch, x=normal(5, 4, 32))
    assert any("compared with its float32 form" in warning for warning in watch.warnings)


def refusal(proto: onnx.ModelProto, tmp_path: Path, **arrays: Array) -> QcliError:
    with pytest.raises(QcliError) as caught:
        quantized(proto, tmp_path, **arrays)
    assert not (tmp_path / "out.onnx").exists()
    return caught.value


def test_a_custom_operator_that_cannot_run(tmp_path: Path) -> None:
    proto = net(NODES[0], node("Mine", "m", "r", domain="my.own"), NODES[2])
    proto.opset_import.append(helper.make_opsetid("my.own", 1))
    error = refusal(proto, tmp_path, x=normal(5, 4, 32))
    assert isinstance(error, RuntimeFailure) and "Mine" in error.message


def test_a_model_of_another_domain_alone(tmp_path: Path) -> None:
    proto = proto_of([node("Normalizer", "x", "y", domain="ai.onnx.ml", norm="L2")], {"x": [1, 4]}, {"y": [1, 4]})
    del proto.opset_import[:]
    proto.opset_import.append(helper.make_opsetid("ai.onnx.ml", 1))
    assert isinstance(refusal(proto, tmp_path, x=normal(5, 1, 4)), NothingToDoError)


def test_what_cannot_be_converted_names_the_operator(tmp_path: Path) -> None:
    """Scan had a batch axis before opset 9, which the conversion forgets."""
    shape, scalar = [3, 2], [2]
    body = helper.make_graph(
        [node("Add", "sum next", "total"), node("Identity", "total", "each")],
        "body",
        [floats("sum", scalar), floats("next", scalar)],
        [floats("total", scalar), floats("each", scalar)],
    )
    scan = helper.make_node("Scan", ["", "start", "x"], ["last", "y"], num_scan_inputs=1, body=body)
    proto = proto_of([], {"x": [1, *shape]}, {"last": [1, 2], "y": [1, *shape]}, opset=8)
    proto.graph.node.append(scan)
    proto.graph.initializer.append(numpy_helper.from_array(np.zeros((1, 2), np.float32), "start"))
    error = refusal(proto, tmp_path, x=normal(5, 1, 3, 2))
    assert isinstance(error, UnsupportedError) and "Scan" in error.message


def test_no_elements_is_no_bug(tmp_path: Path) -> None:
    proto = net()
    proto.graph.initializer.append(numpy_helper.from_array(np.zeros((0, 3), np.float32), "nothing"))
    proto.graph.node.append(node("Relu", "nothing", "still"))
    proto.graph.output.append(floats("still", [0, 3]))
    assert quantized(proto, tmp_path, x=normal(5, 4, 32)).status == "passed"


def test_other_inputs_are_passed_on(tmp_path: Path) -> None:
    """Integers and booleans beside the floats."""
    proto = net(
        node("Gather", "x at", "g", axis=0),
        node("Where", "mask g zero", "s"),
        node("MatMul", "s w", "m"),
        node("Relu", "m", "r"),
        NODES[2],
    )
    proto.graph.initializer.append(numpy_helper.from_array(np.float32(0), "zero"))
    proto.graph.input.append(floats("at", ["k"], TensorProto.INT64))
    proto.graph.input.append(floats("mask", ["k", 32], TensorProto.BOOL))
    report = quantized(proto, tmp_path, x=normal(5, 4, 32), at=np.array([2, 0]), mask=normal(1, 2, 32) > 0)
    assert report.kernels is not None and report.kernels.integer == 2


def test_sequences_as_inputs(tmp_path: Path) -> None:
    proto = net(node("ConcatFromSequence", "parts", "x", axis=0), *NODES)
    element = helper.make_tensor_type_proto(TensorProto.FLOAT, [None, 32])
    proto.graph.input[0].CopyFrom(helper.make_value_info("parts", helper.make_sequence_type_proto(element)))
    path = saved(proto, tmp_path / "model.onnx")
    for index in range(4):
        folder = tmp_path / "calib" / f"test_data_set_{index}"
        folder.mkdir(parents=True)
        parts = numpy_helper.from_list([normal(index, 2, 32), normal(9, 1, 32)], "parts")
        (folder / "input_0.pb").write_bytes(parts.SerializeToString())
    report = quantize(
        QuantizeJob(model=path, calibration=tmp_path / "calib", output=tmp_path / "o.onnx", latency=False)
    )
    assert report.kernels is not None and report.kernels.integer == 2


def test_masks_with_inf_are_not_stored_as_integers(tmp_path: Path) -> None:
    mask = np.where(np.tri(32) > 0, 0, -np.inf).astype(np.float32)
    proto = net(node("Add", "x mask", "a"), node("Softmax", "a", "p"), node("MatMul", "p w", "m"), NODES[1], NODES[2])
    proto.graph.initializer.append(numpy_helper.from_array(mask, "mask"))
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 32
    path = saved(proto, tmp_path / "model.onnx")
    job = QuantizeJob(model=path, recipe="int8-weights", output=tmp_path / "out.onnx", latency=False)
    report = quantize(job)
    assert report.status == "passed" and report.size is not None and report.size.ratio < 0.6
