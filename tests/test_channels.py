"""Which channels belong together, and that scaling them by anything changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import Shape, assert_same, node, normal, proto_of, wrapped
from onnx import TensorProto, helper

from qcli.channels import Channels, channels_of, rescale
from qcli.graph import Model
from qcli.types import Array

IMAGE: Mapping[str, Shape] = {"x": [2, 3, 6, 6]}

PARTS = {
    "w": normal(0, 4, 3, 1, 1), "b": normal(1, 4), "u": normal(2, 4, 3, 1, 1), "v": normal(3, 5, 4, 1, 1),
    "d": normal(4, 4, 1, 3, 3), "t": normal(5, 4, 6, 2, 2), "g": normal(6, 6, 2, 1, 1),
}  # fmt: skip

FIRST = node("Conv", "x w b", "h")
SECOND = node("Conv", "x u", "k")


def net(*nodes: onnx.NodeProto, outputs: tuple[str, ...] = ("y",), **weights: Array) -> onnx.ModelProto:
    """Behind two convolutions `h` and `k` of four channels each; what is not read is left out."""
    used = {name for item in nodes for name in _reads(item)} | set(outputs)
    nodes = tuple(item for item in (FIRST, SECOND) if item.output[0] in used) + nodes
    read = {name for item in nodes for name in _reads(item)}
    known = {name: array for name, array in {**PARTS, **weights}.items() if name in read}
    return proto_of(nodes, IMAGE, dict.fromkeys(outputs), known)


def _reads(item: onnx.NodeProto) -> set[str]:
    bodies = [attribute.g for attribute in item.attribute if attribute.HasField("g")]
    return {*item.input, *(name for body in bodies for inner in body.node for name in _reads(inner))}


def free(model: Model, name: str) -> tuple[int, ...] | None:
    """The classes of a value's channels, renumbered; 0 for those that are fixed; None without a track."""
    found = channels_of(model)
    track = next((track for value, track in found.tracks.items() if value.name == name), None)
    if track is None:
        return None
    root = found.resolved()
    seen: dict[int, int] = {0: 0}
    return tuple(seen.setdefault(number, len(seen)) for number in root[track.classes].tolist())


def scaled(proto: onnx.ModelProto, seed: int = 0) -> tuple[Model, Channels, Array]:
    model = wrapped(proto)
    found = channels_of(model)
    root = found.resolved()
    factors = np.exp2(np.random.default_rng(seed).uniform(-3, 3, root.size))
    factors[0] = 1
    limits: dict[int, float] = {}
    for clip in found.clips:
        limits.update(dict.fromkeys(root[clip.track.classes].tolist(), 1.0))
    for number, factor in limits.items():
        factors[number] = factor
    rescale(model.graph, found, factors[root])
    model.fix_names()
    return model, found, factors[root]


FREE = (1, 2, 3, 4)
FIXED = (0, 0, 0, 0)
LAST = node("Conv", "a v", "y")
FLAT = np.array([2, -1], np.int64)
WIDE = np.array([0, 144], np.int64)

TIED: dict[str, tuple[list[onnx.NodeProto], dict[str, Array], tuple[int, ...]]] = {
    "a chain": ([node("Conv", "h v", "y")], {}, FREE),
    "Relu": ([node("Relu", "h", "a"), LAST], {}, FREE),
    "LeakyRelu": ([node("LeakyRelu", "h", "a"), LAST], {}, FREE),
    "PRelu": ([node("PRelu", "h s", "a"), LAST], {"s": normal(7, 4, 1, 1)}, FREE),
    "Clip": ([node("Clip", "h lo hi", "a"), LAST], {"lo": np.float32(-1), "hi": np.float32(1)}, FREE),
    "pooling": ([node("MaxPool", "h", "a", kernel_shape=[2, 2]), LAST], {}, FREE),
    "averages": ([node("GlobalAveragePool", "h", "a"), LAST], {}, FREE),
    "Add": ([node("Add", "h k", "a"), LAST], {}, FREE),
    "Add of itself": ([node("Add", "h h", "a"), LAST], {}, FREE),
    "Sub": ([node("Sub", "k h", "a"), LAST], {}, FREE),
    "an offset": ([node("Add", "h o", "a"), LAST], {"o": normal(7, 4, 1, 1)}, FREE),
    "an offset of one": ([node("Sub", "o h", "a"), LAST], {"o": np.float32(0.5)}, FREE),
    "an offset by place": ([node("Add", "h o", "a"), LAST], {"o": normal(7, 6, 6)}, FREE),
    "a factor": ([node("Mul", "o h", "a"), LAST], {"o": normal(7, 1, 4, 1, 1)}, FREE),
    "a divisor": ([node("Div", "h o", "a"), LAST], {"o": np.float32(3)}, FREE),
    "a gate": ([node("Sigmoid", "x", "s"), node("ReduceMean", "s", "m"), node("Mul", "h m", "a"), LAST], {}, FREE),
    "Concat": (
        [node("Concat", "h k", "a", axis=1), node("Conv", "a v", "y")], {"v": normal(7, 5, 8, 1, 1)}, FREE,
    ),
    "Concat from the end": (
        [node("Concat", "k h", "a", axis=-3), node("Conv", "a v", "y")], {"v": normal(7, 5, 8, 1, 1)}, FREE,
    ),
    "Concat with the input": (
        [node("Concat", "x h", "a", axis=1), node("Conv", "a v", "y")], {"v": normal(7, 5, 7, 1, 1)}, FREE,
    ),
    "Flatten": ([node("Flatten", "h", "a"), node("Gemm", "a m", "y")], {"m": normal(7, 144, 3)}, FREE),
    "Reshape": ([node("Reshape", "h s", "a"), node("MatMul", "a m", "y")], {"s": FLAT, "m": normal(7, 144, 3)}, FREE),
    "Reshape to a number": (
        [node("Reshape", "h s", "a"), node("Gemm", "a m", "y", transB=1)], {"s": WIDE, "m": normal(7, 3, 144)}, FREE,
    ),
    "depthwise": ([node("Conv", "h d", "a", group=4), LAST], {}, FREE),
    "grouped": ([node("Conv", "h g", "y", group=2)], {}, FREE),
    "transposed": ([node("ConvTranspose", "h t", "y")], {}, FREE),
    "transposed groups": ([node("ConvTranspose", "h t", "y", group=2)], {}, FREE),
}  # fmt: skip
"""What lets channels be scaled: nodes behind `h`, their constants, and the classes of the channels of `h`."""


@pytest.mark.parametrize("kind", TIED)
def test_what_can_be_scaled(kind: str) -> None:
    nodes, weights, expected = TIED[kind]
    assert free(wrapped(net(*nodes, **weights)), "h") == expected


@pytest.mark.parametrize("kind", TIED)
@given(seed=st.integers(0, 1 << 20))
@settings(max_examples=6, deadline=None)
def test_scaling_changes_nothing(kind: str, seed: int) -> None:
    nodes, weights, _ = TIED[kind]
    proto = net(*nodes, **weights)
    model, found, factors = scaled(proto, seed)
    assert kind == "Clip" or any((factors[track.classes] != 1).any() for track in found.tracks.values())
    assert_same(proto, model)


def body(*nodes: onnx.NodeProto) -> onnx.GraphProto:
    return helper.make_graph(list(nodes), "body", [], [helper.make_tensor_value_info("e", TensorProto.FLOAT, None)])


CHOSEN = node("If", "c", "z", then_branch=body(node("Neg", "h", "e")), else_branch=body(node("Identity", "h", "e")))

REFUSED: dict[str, tuple[list[onnx.NodeProto], dict[str, Array], tuple[str, ...]]] = {
    "an output": ([node("Conv", "h v", "y")], {}, ("y", "h")),
    "a tied output": ([node("Relu", "h", "a"), LAST], {}, ("y", "a")),
    "a function that does not scale": ([node("Sigmoid", "h", "a"), LAST], {}, ("y",)),
    "one reader of two": ([node("Conv", "h v", "y"), node("Exp", "h", "z")], {}, ("y", "z")),
    "a body": ([CHOSEN, node("Conv", "h v", "y")], {"c": np.array(True)}, ("y", "z")),
    "a product of two": ([node("Mul", "h k", "a"), LAST], {}, ("y",)),
    "a square": ([node("Mul", "h h", "a"), LAST], {}, ("y",)),
    "below a division": ([node("Div", "o h", "a"), LAST], {"o": np.float32(1)}, ("y",)),
    "added to something else": ([node("Sigmoid", "k", "s"), node("Add", "h s", "a"), LAST], {}, ("y",)),
    "an offset that widens": (
        [node("GlobalAveragePool", "h", "p"), node("Add", "p o", "a"), node("Conv", "a v", "y")],
        {"o": normal(7, 2, 1, 4, 1, 1)[0, :1]}, ("a",),
    ),
    "Concat of places": ([node("Concat", "h k", "a", axis=2), LAST], {}, ("y",)),
    "Clip above zero": ([node("Clip", "h lo", "a"), LAST], {"lo": np.float32(0.5)}, ("y",)),
    "Clip by a computed bound": (
        [node("ReduceMean", "x", "m", keepdims=0), node("Clip", "h - m", "a"), LAST], {}, ("y",),
    ),
    "the slope of a PRelu": ([node("PRelu", "k h", "a"), LAST], {}, ("y",)),
    "its own slope": ([node("PRelu", "h h", "a"), LAST], {}, ("y",)),
    "Flatten by another axis": (
        [node("Flatten", "h", "a", axis=2), node("MatMul", "a m", "y")], {"m": normal(7, 36, 3)}, ("y",),
    ),
    "Reshape of channels": (
        [node("Reshape", "h s", "a"), node("Conv", "a p", "y")],
        {"s": np.array([2, 2, 2, 36], np.int64), "p": normal(7, 5, 2, 1, 1)}, ("y",),
    ),
    "a product over places": ([node("MatMul", "h m", "y")], {"m": normal(7, 6, 3)}, ("y",)),
    "a product from the left": ([node("MatMul", "m h", "y")], {"m": normal(7, 6, 6)}, ("y",)),
    "Transpose": ([node("Transpose", "h", "a", perm=[0, 2, 3, 1]), node("MatMul", "a m", "y")],
                  {"m": normal(7, 4, 3)}, ("y",)),
    "a weight read twice": ([node("Conv", "h q", "a"), node("Conv", "a q", "y")], {"q": normal(7, 4, 4, 1, 1)}, ("y",)),
    "another domain": ([node("Relu", "h", "a", domain="com.example"), LAST], {}, ("y",)),
}  # fmt: skip
"""What leaves the channels of `h` as they are."""


@pytest.mark.parametrize("kind", REFUSED)
def test_what_stays_fixed(kind: str) -> None:
    nodes, weights, outputs = REFUSED[kind]
    proto = net(*nodes, outputs=outputs, **weights)
    if kind == "a body":
        proto.graph.initializer[-1].CopyFrom(onnx.numpy_helper.from_array(np.array(True), "c"))
    assert free(wrapped(proto), "h") in (FIXED, None)


@pytest.mark.parametrize("kind", sorted(set(REFUSED) - {"another domain"}))
def test_what_stays_fixed_stays_exact(kind: str) -> None:
    nodes, weights, outputs = REFUSED[kind]
    proto = net(*nodes, outputs=outputs, **weights)
    model, _, _ = scaled(proto)
    assert_same(proto, model)


def test_added_tensors_share_their_classes() -> None:
    model = wrapped(net(node("Add", "h k", "a"), node("Relu", "a", "r"), node("Conv", "r v", "y")))
    found = channels_of(model)
    root = found.resolved()
    classes = {value.name: root[track.classes].tolist() for value, track in found.tracks.items()}
    assert classes["h"] == classes["k"] == classes["a"] == classes["r"] != classes["y"]
    assert not any(classes["y"]), "an output is fixed"


def test_concatenated_tensors_keep_their_own() -> None:
    nodes = [node("Concat", "h x k", "a", axis=1), node("Conv", "a v", "y")]
    assert free(wrapped(net(*nodes, v=normal(0, 5, 11, 1, 1))), "a") == (1, 2, 3, 4, 0, 0, 0, 5, 6, 7, 8)


def test_a_bias_that_two_layers_read_ends_the_attempt() -> None:
    nodes = [node("Conv", "h q b", "a"), node("Conv", "a v", "y")]
    model = wrapped(net(*nodes, q=normal(7, 4, 4, 1, 1)))
    assert free(model, "h") is None and free(model, "a") is None


def test_attributes_of_an_old_clip_are_bounds() -> None:
    for bounds, expected in (({"min": -1.0, "max": 1.0}, FREE), ({"min": 0.5}, FIXED)):
        proto = net(node("Clip", "h", "a", **bounds), LAST)
        proto.opset_import[0].version = 9
        model = wrapped(proto)
        assert free(model, "h") == expected
        clips = channels_of(model).clips
        assert [(clip.lower, clip.upper) for clip in clips] == ([(-1.0, 1.0)] if expected == FREE else [])


def test_a_depthwise_layer_is_known() -> None:
    model = wrapped(net(node("Conv", "h d", "a", group=4), LAST))
    assert [layer.depthwise for layer in channels_of(model).layers] == [False, True, False]


def test_gemm_with_factors_and_a_bias_of_two_axes() -> None:
    weights = {"m": normal(0, 6, 8), "n": normal(1, 1, 8), "o": normal(2, 3, 8), "p": normal(3, 3)}
    nodes = [
        node("Gemm", "x m n", "h", alpha=0.5, beta=2.0),
        node("Relu", "h", "r"),
        node("Gemm", "r o p", "y", transB=1),
    ]
    proto = proto_of(nodes, {"x": [4, 6]}, {"y": None}, weights)
    assert free(wrapped(proto), "h") == tuple(range(1, 9))
    assert_same(proto, scaled(proto)[0])


Grow = Callable[[np.random.Generator, str, int], tuple[list[onnx.NodeProto], dict[str, Array], str, int]]


def _convolution(
    rng: np.random.Generator, source: str, channels: int
) -> tuple[list[onnx.NodeProto], dict[str, Array], str, int]:
    name, group = f"n{rng.integers(1 << 30)}", int(rng.choice([1, 2]))
    wide = int(rng.integers(1, 4)) * 2
    weights = {f"{name}w": normal(int(rng.integers(99)), wide, channels // group, 1, 1), f"{name}b": normal(3, wide)}
    return [node("Conv", f"{source} {name}w {name}b", name, group=group)], weights, name, wide


def _pointwise(
    rng: np.random.Generator, source: str, channels: int
) -> tuple[list[onnx.NodeProto], dict[str, Array], str, int]:
    name = f"n{rng.integers(1 << 30)}"
    operator = str(rng.choice(["Relu", "LeakyRelu", "Sigmoid", "Add", "Mul", "AveragePool", "Identity"]))
    weights = {f"{name}c": normal(int(rng.integers(99)), channels, 1, 1)} if operator in ("Add", "Mul") else {}
    attributes = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]} if operator == "AveragePool" else {}
    return [node(operator, " ".join([source, *weights]), name, **attributes)], weights, name, channels


def random_net(seed: int) -> onnx.ModelProto:
    """A tree of layers and what may stand between them; now and then two branches meet."""
    rng = np.random.default_rng(seed)
    nodes: list[onnx.NodeProto] = []
    weights: dict[str, Array] = {}
    ends = [("x", 4)]
    for step in range(int(rng.integers(3, 12))):
        source, channels = ends[int(rng.integers(len(ends)))]
        grow: Grow = _convolution if rng.random() < 0.5 else _pointwise
        made, constants, name, wide = grow(rng, source, channels)
        nodes += made
        weights |= constants
        ends.append((name, wide))
        same = [known for known, size in ends if size == wide and known not in ("x", name)]
        if same and rng.random() < 0.5:
            operator = str(rng.choice(["Add", "Sub", "Concat", "Mul"]))
            attributes = {"axis": 1} if operator == "Concat" else {}
            nodes.append(node(operator, f"{name} {rng.choice(same)}", f"m{step}", **attributes))
            ends.append((f"m{step}", wide * 2 if operator == "Concat" else wide))
    outputs = {ends[-1][0], str(rng.choice([name for name, _ in ends[1:]]))}
    return proto_of(nodes, {"x": [2, 4, 5, 5]}, dict.fromkeys(sorted(outputs)), weights)


@given(st.integers(0, 1 << 20))
@settings(max_examples=60, deadline=None)
def test_random_nets_stay_exact(seed: int) -> None:
    proto = random_net(seed)
    model, _, _ = scaled(proto, seed)
    assert_same(proto, model, seeds=1, tolerance=1e-3)
