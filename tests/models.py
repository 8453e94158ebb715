"""Small models written by hand, samples for them, and the stages run on them one by one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from qcli.apply import apply_plan
from qcli.calibrate import collect
from qcli.graph import Model, load_model, normalize_graph
from qcli.measured import requests_of
from qcli.plan import make_plan
from qcli.recipe import Recipe, load_recipe
from qcli.runtime import Session
from qcli.solve import Solution, solve
from qcli.statistics import Statistics
from qcli.types import Array, Plan

SAMPLE_MODELS = Path(__file__).parent.parent / "sample_models"

Shape = Sequence[int | str | None]
Feeds = dict[str, Array]


def node(operator: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    """A node; names are separated by spaces, `-` is an empty one. It is named after its first output."""
    named = attributes.pop("name", f"/{outputs.split()[0]}")
    reads = ["" if name == "-" else name for name in inputs.split()]
    made: onnx.NodeProto = helper.make_node(operator, reads, outputs.split(), name=named, **attributes)
    return made


def floats(name: str, shape: Shape | None, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    info: onnx.ValueInfoProto = helper.make_tensor_value_info(name, kind, shape)
    return info


def proto_of(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Shape],
    outputs: Mapping[str, Shape | None],
    weights: Mapping[str, Array] | None = None,
    *,
    opset: int = 17,
) -> onnx.ModelProto:
    """A float model, not checked."""
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [floats(name, shape) for name, shape in inputs.items()],
        [floats(name, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    made: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return made


def wrapped(proto: onnx.ModelProto) -> Model:
    """The model as qcli holds it; the proto stays as it is."""
    copy = onnx.ModelProto.FromString(proto.SerializeToString())
    return Model(ir.from_proto(copy), sha256="0" * 64)


def saved(proto: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(proto.SerializeToString())
    return path


def normal(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def feeds_for(model: Model, seed: int = 0, free: int = 2) -> Feeds:
    """Standard normal inputs, `free` for free dimensions."""
    generator = np.random.default_rng(seed)
    return {
        spec.name: generator.standard_normal([free if size is None else size for size in spec.shape or ()]).astype(
            spec.dtype
        )
        for spec in model.inputs()
    }


def run(
    model: Model | onnx.ModelProto | bytes, feeds: Mapping[str, Array], *, optimize: bool = False
) -> dict[str, Any]:
    """The outputs by name, each operator by itself unless `optimize`."""
    if isinstance(model, Model):
        model = model.serialize()
    content = model if isinstance(model, bytes) else model.SerializeToString()
    return Session(content, optimize=optimize).run(feeds)


def assert_equal(
    reference: Mapping[str, Any], result: Mapping[str, Any], *, tolerance: float = 1e-4, what: str = ""
) -> None:
    """The same outputs, up to `tolerance` of the largest value."""
    assert reference.keys() == result.keys(), what
    for name, expected in reference.items():
        assert expected.shape == result[name].shape, f"{what} {name}"
        largest = max(1.0, float(np.abs(expected).max(initial=0.0))) if expected.dtype.kind == "f" else 1.0
        np.testing.assert_allclose(result[name], expected, rtol=0, atol=tolerance * largest, err_msg=f"{what} {name}")


def assert_same(before: onnx.ModelProto | Model, after: Model, *, seeds: int = 2, tolerance: float = 1e-4) -> None:
    """Both models compute the same on random inputs, as written and as onnxruntime optimizes them."""
    first = before if isinstance(before, Model) else wrapped(before)
    for seed in range(seeds):
        feeds = feeds_for(first, seed)
        reference = run(before, feeds)
        assert_equal(reference, run(after, feeds), tolerance=tolerance)
    onnx.checker.check_model(after.proto(), full_check=True)


def operators(model: Model) -> list[str]:
    """The operators of all nodes, in order."""
    return [item.op_type for item in model.nodes()]


@dataclass(frozen=True)
class Stream:
    """Samples in memory, as the calibration wants them."""

    samples: tuple[Feeds, ...]

    def __len__(self) -> int:
        return len(self.samples)

    def feeds(self) -> Iterator[tuple[str, Mapping[str, Array]]]:
        for index, feeds in enumerate(self.samples):
            yield f"sample_{index}.npz", feeds


def stream_for(model: Model, count: int = 8, free: int = 2) -> Stream:
    return Stream(tuple(feeds_for(model, seed, free) for seed in range(count)))


@dataclass(frozen=True)
class Quantized:
    """One run of the stages, each result kept."""

    source: Model
    plan: Plan
    statistics: Statistics
    solution: Solution
    model: Model


def recipe_of(text: str, folder: Path, name: str = "recipe.yaml") -> Recipe:
    path = folder / name
    path.write_text(text)
    return load_recipe(str(path))


def quantized_of(
    proto: onnx.ModelProto,
    recipe: str | Recipe = "int8-minmax",
    stream: Stream | None = None,
    settings: Sequence[str] = (),
) -> Quantized:
    """Normalize, plan, calibrate, solve and apply, without files."""
    source = wrapped(proto)
    normalize_graph(source)
    known = recipe if isinstance(recipe, Recipe) else load_recipe(recipe, settings)
    plan = make_plan(source, known)
    return finished(source, plan, stream or stream_for(source))


def finished(source: Model, plan: Plan, stream: Stream) -> Quantized:
    """Calibrate, solve and apply a plan."""
    empty = Statistics.empty(requests_of(plan, source))
    statistics = collect(source, empty, stream)
    solution = solve(source, plan, statistics)
    return Quantized(source, plan, statistics, solution, apply_plan(source, plan, solution))


def sample_model(name: str) -> Model:
    """A sample model after normalization."""
    model = load_model(SAMPLE_MODELS / name / "model.onnx")
    normalize_graph(model)
    return model


def conv_net(seed: int = 0, channels: int = 8, opset: int = 17) -> onnx.ModelProto:
    """Conv, Relu, depthwise Conv, Clip, Add of a branch, MaxPool, GlobalAveragePool, Flatten, Gemm."""
    weights: dict[str, Array] = {
        "w1": normal(seed, channels, 3, 3, 3) / 5,
        "b1": normal(seed + 1, channels) / 5,
        "w2": normal(seed + 2, channels, 1, 3, 3) / 3,
        "w3": normal(seed + 3, channels, channels, 1, 1) / 3,
        "w4": normal(seed + 4, 5, channels) / 3,
        "b4": normal(seed + 5, 5) / 3,
        "low": np.array(0, np.float32),
        "high": np.array(6, np.float32),
    }
    nodes = [
        node("Conv", "x w1 b1", "c1", pads=[1, 1, 1, 1]),
        node("Relu", "c1", "r1"),
        node("Conv", "r1 w2", "c2", pads=[1, 1, 1, 1], group=channels),
        node("Clip", "c2 low high", "k2"),
        node("Conv", "k2 w3", "c3"),
        node("Add", "c3 r1", "a"),
        node("MaxPool", "a", "m", kernel_shape=[2, 2], strides=[2, 2]),
        node("GlobalAveragePool", "m", "g"),
        node("Flatten", "g", "f"),
        node("Gemm", "f w4 b4", "y", transB=1),
    ]
    return proto_of(nodes, {"x": ["n", 3, 8, 8]}, {"y": ["n", 5]}, weights, opset=opset)


def dense_net(seed: int = 0) -> onnx.ModelProto:
    """MatMul, Add, Relu, Gemm with a bias of shape [1, N]."""
    weights = {
        "w1": normal(seed, 12, 16) / 3,
        "b1": normal(seed + 1, 16),
        "w2": normal(seed + 2, 16, 4) / 4,
        "b2": normal(seed + 3, 1, 4),
    }
    nodes = [
        node("MatMul", "x w1", "m"),
        node("Add", "m b1", "a"),
        node("Relu", "a", "r"),
        node("Gemm", "r w2 b2", "y"),
    ]
    return proto_of(nodes, {"x": ["n", 12]}, {"y": ["n", 4]}, weights)
