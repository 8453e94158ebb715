"""Inputs that something is wrong with. Each builder returns what to name on the command line."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx

from cli.conftest import SAMPLE_MODELS
from qcli.types import Array

MLP = SAMPLE_MODELS / "mlp" / "model.onnx"
GOOD = np.linspace(0, 1, 64, dtype=np.float32).reshape(1, 64)


def missing_model(folder: Path) -> Path:
    return folder / "nowhere.onnx"


def text_model(folder: Path) -> Path:
    return _written(folder / "text.onnx", b"This is no model.\n")


def truncated_model(folder: Path) -> Path:
    return _written(folder / "short.onnx", MLP.read_bytes()[:5000])


def missing_external_data(folder: Path) -> Path:
    path = external_data(folder, "weights.bin")
    (folder / "weights.bin").unlink()
    return path


def escaping_external_data(folder: Path) -> Path:
    path = external_data(folder, "weights.bin")
    proto = onnx.load(path, load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../weights.bin"
    return _written(path, proto.SerializeToString())


def external_data(folder: Path, location: str) -> Path:
    """The mlp with its weights in a file of their own."""
    path = folder / "external.onnx"
    proto = onnx.load(MLP)
    onnx.save_model(proto, path, save_as_external_data=True, location=location, size_threshold=0)
    return path


def unknown_operator(folder: Path) -> Path:
    """A model that is valid and that onnxruntime has no kernel for."""
    proto = onnx.load(MLP)
    proto.opset_import.append(onnx.helper.make_opsetid("far.away", 1))
    node = proto.graph.node[-1]
    node.output[0] = "before"
    proto.graph.node.append(onnx.helper.make_node("Teleport", ["before"], ["logits"], domain="far.away"))
    return _written(folder / "unknown.onnx", proto.SerializeToString())


def nothing_to_quantize(folder: Path) -> Path:
    info = onnx.helper.make_tensor_value_info
    nodes = [onnx.helper.make_node("Tanh", ["pixels"], ["logits"])]
    shapes = [info(name, onnx.TensorProto.FLOAT, ["batch", 64]) for name in ("pixels", "logits")]
    graph = onnx.helper.make_graph(nodes, "tanh", shapes[:1], shapes[1:])
    opsets = [onnx.helper.make_opsetid("", 17)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)
    return _written(folder / "tanh.onnx", model.SerializeToString())


def empty_folder(folder: Path) -> Path:
    (folder / "empty").mkdir()
    return folder / "empty"


def wrong_name(folder: Path) -> Path:
    return _samples(folder, pixel=GOOD)


def wrong_shape(folder: Path) -> Path:
    return _samples(folder, pixels=np.zeros((1, 63), np.float32))


def wrong_dtype(folder: Path) -> Path:
    return _samples(folder, pixels=GOOD.astype(np.float64))


def not_a_number(folder: Path) -> Path:
    return _samples(folder, pixels=np.where(GOOD > 0.5, np.nan, GOOD).astype(np.float32))


def infinite(folder: Path) -> Path:
    return _samples(folder, pixels=np.where(GOOD > 0.5, np.inf, GOOD).astype(np.float32))


def pickled(folder: Path) -> Path:
    np.savez(_sample_folder(folder) / "bad.npz", pixels=np.array([{"a": 1}], dtype=object))
    return folder / "samples"


def no_image(folder: Path) -> Path:
    _written(_sample_folder(folder) / "bad.png", b"not a picture")
    return folder / "samples"


def labels_of_others(folder: Path) -> Path:
    return _written(folder / "labels.csv", b"file,label\nsomewhere_else.npz,3\n")


def recipe(folder: Path, text: str) -> Path:
    return _written(folder / "recipe.yaml", f"version: 1\nextends: int8\n{text}\n".encode())


def below_a_file(folder: Path) -> Path:
    """A place that nobody can write to, whoever they are."""
    _written(folder / "file", b"")
    return folder / "file" / "out.onnx"


def copy_of_mlp(folder: Path) -> Path:
    return Path(shutil.copy(MLP, folder / "copy.onnx"))


def many_samples(folder: Path, count: int) -> Path:
    """One sample under many names."""
    source = _samples(folder, pixels=GOOD) / "bad.npz"
    for index in range(count):
        (folder / "samples" / f"{index}.npz").hardlink_to(source)
    return folder / "samples"


def _samples(folder: Path, **arrays: Array) -> Path:
    np.savez(_sample_folder(folder) / "bad.npz", allow_pickle=False, **arrays)
    return folder / "samples"


def _sample_folder(folder: Path) -> Path:
    (folder / "samples").mkdir()
    return folder / "samples"


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path
