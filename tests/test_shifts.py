"""Which channels can be shifted, and that shifting them by anything changes nothing."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import Shape, assert_same, node, normal, proto_of, wrapped

from qcli.graph import Model
from qcli.shift_rules import shifts_of
from qcli.shifts import Float64Array, shift
from qcli.steps._centre import Wish, terms_for
from qcli.types import Array

IMAGE: Mapping[str, Shape] = {"x": [2, 3, 6, 6]}

PARTS = {
    "w": normal(0, 4, 3, 1, 1), "b": normal(1, 4), "u": normal(2, 4, 3, 1, 1), "v": normal(3, 5, 4, 1, 1),
    "d": normal(4, 4, 1, 3, 3), "t": normal(5, 4, 6, 2, 2), "g": normal(6, 6, 2, 1, 1), "e": normal(7, 5, 8, 1, 1),
    "k": normal(8, 1, 4, 1, 1), "one": np.array(0.5, np.float32), "m": normal(9, 144, 5), "r": normal(10, 5),
    "n": normal(11, 5, 4), "o": normal(12, 3, 4, 2, 2),
}  # fmt: skip

FIRST = node("Conv", "x w b", "h")
SECOND = node("Conv", "x u", "k_")


def net(*nodes: onnx.NodeProto, outputs: tuple[str, ...] = ("y",)) -> onnx.ModelProto:
    """Behind two convolutions `h` and `k_` of four channels each; what is not read is left out."""
    used = {name for item in nodes for name in item.input} | set(outputs)
    nodes = tuple(item for item in (FIRST, SECOND) if item.output[0] in used) + nodes
    read = {name for item in nodes for name in item.input}
    known = {name: array for name, array in PARTS.items() if name in read}
    return proto_of(nodes, IMAGE, dict.fromkeys(outputs), known)


def shifted(proto: onnx.ModelProto, seed: int = 0) -> tuple[Model, dict[str, Float64Array]]:
    """Each tensor wants a random shift; the model after it, and what each tensor was shifted by."""
    model = wrapped(proto)
    found = shifts_of(model)
    generator = np.random.default_rng(seed)
    wishes = [Wish(track, generator.uniform(-3, 3, track.channels), 1.0) for track in found.tracks.values()]
    found.fixed.extend(gate.track for gate in found.gates)  # what stays within bounds, samples have to say
    terms = terms_for(found, wishes, [])
    shift(model.graph, found, terms)
    return model, {value.name or "": track.shift(terms) for value, track in found.tracks.items()}


KEPT = [
    ("bias", net(node("Conv", "h v", "y"))),
    ("no bias", net(node("Conv", "k_ v", "y"))),
    ("3x3 without pads", net(node("Conv", "h d", "y", group=4))),
    ("VALID", net(node("Conv", "h d", "y", group=4, auto_pad="VALID"))),
    ("SAME of one position", net(node("Conv", "h v", "y", auto_pad="SAME_UPPER", strides=[2, 2]))),
    ("groups", net(node("Conv", "h g", "y", group=2))),
    ("Add", net(node("Add", "h k_", "s"), node("Conv", "s v", "y"), node("Conv", "h v", "z"), outputs=("y", "z"))),
    ("Sub", net(node("Sub", "h k_", "s"), node("Conv", "s v", "y"), node("Conv", "h v", "z"), outputs=("y", "z"))),
    ("cancels", net(node("Add", "h k_", "y"), node("Conv", "h v", "z"), outputs=("y", "z"))),
    ("Add with x", net(node("Add", "h h", "s"), node("Conv", "s v", "y"))),
    ("Add constant", net(node("Add", "h k", "s"), node("Conv", "s v", "y"))),
    ("constant less", net(node("Sub", "k h", "s"), node("Conv", "s v", "y"))),
    ("less constant", net(node("Sub", "h k", "s"), node("Conv", "s v", "y"))),
    ("scalar", net(node("Add", "one h", "s"), node("Conv", "s v", "y"))),
    ("constant behind Relu", net(node("Relu", "h", "a"), node("Add", "a k", "s"), node("Conv", "s v", "y"))),
    ("Concat", net(node("Concat", "h k_", "c", axis=1), node("Conv", "c e", "y"))),
    ("Concat with another", net(node("Relu", "h", "a"), node("Concat", "a k_", "c", axis=1), node("Conv", "c e", "y"))),
    ("MaxPool", net(node("MaxPool", "h", "p", kernel_shape=[3, 3], pads=[1, 1, 1, 1]), node("Conv", "p v", "y"))),
    ("AveragePool", net(node("AveragePool", "h", "p", kernel_shape=[3, 3]), node("Conv", "p v", "y"))),
    ("AveragePool with pads", net(node("AveragePool", "h", "p", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
                                  node("Conv", "p v", "y"))),
    ("GlobalAveragePool", net(node("GlobalAveragePool", "h", "p"), node("Conv", "p v", "y"))),
    ("Flatten", net(node("Flatten", "h", "f"), node("Gemm", "f m r", "y"))),
    ("MatMul", net(node("Flatten", "h", "f"), node("MatMul", "f m", "q"), node("Add", "q r", "y"))),
    ("transB", net(node("GlobalMaxPool", "h", "p"), node("Flatten", "p", "f"), node("Gemm", "f n", "y", transB=1))),
    ("ConvTranspose writes", net(node("ConvTranspose", "x o", "s"), node("Conv", "s v", "y"))),
]  # fmt: skip


@pytest.mark.parametrize("proto", [proto for _, proto in KEPT], ids=[name for name, _ in KEPT])
def test_shifts_keep_the_outputs(proto: onnx.ModelProto) -> None:
    model, found = shifted(proto)
    assert any(np.abs(shifts).min() > 1e-3 for shifts in found.values())
    assert_same(proto, model)


FIXED = [
    ("output", net(outputs=("h",))),
    ("zero pads", net(node("Conv", "h d", "y", group=4, pads=[1, 1, 1, 1]))),
    ("one of them", net(node("Conv", "h d", "y", group=4, pads=[0, 0, 0, 1]))),
    ("SAME", net(node("Conv", "h d", "y", group=4, auto_pad="SAME_LOWER"))),
    ("a position with pads", net(node("Conv", "h v", "y", pads=[1, 1, 1, 1]))),
    ("Sigmoid", net(node("Sigmoid", "h", "a"), node("Conv", "a v", "y"))),
    ("LeakyRelu", net(node("LeakyRelu", "h", "a"), node("Conv", "a v", "y"))),
    ("Mul", net(node("Mul", "h k", "a"), node("Conv", "a v", "y"))),
    ("ConvTranspose", net(node("ConvTranspose", "h t", "y"))),
    ("counted pads", net(node("AveragePool", "h", "p", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1),
                         node("Conv", "p v", "y"))),
    ("MatMul alone", net(node("Flatten", "h", "f"), node("MatMul", "f m", "y"))),
    ("another axis", net(node("Concat", "h h", "c", axis=2), node("Conv", "c v", "y"))),
]  # fmt: skip


@pytest.mark.parametrize("proto", [proto for _, proto in FIXED], ids=[name for name, _ in FIXED])
def test_what_cannot_be_made_up_for_stays(proto: onnx.ModelProto) -> None:
    model, found = shifted(proto)
    assert not any(np.abs(shifts).max() > 1e-9 for shifts in found.values())
    assert_same(proto, model)


def test_operands_of_a_fixed_sum_cancel() -> None:
    """Both may be shifted as long as their sum is not."""
    _, found = shifted(dict(KEPT)["cancels"])
    np.testing.assert_allclose(found["h"], -found["k_"], atol=1e-9)
    np.testing.assert_allclose(found["y"], 0, atol=1e-9)
    assert np.abs(found["h"]).min() > 1e-3


def test_wishes_that_can_come_true_do() -> None:
    model = wrapped(dict(KEPT)["Add"])
    found = shifts_of(model)
    tracks = {value.name: track for value, track in found.tracks.items()}
    first, second = np.arange(4.0), np.ones(4)
    wishes = {"h": first, "k_": second, "s": first + second}
    terms = terms_for(found, [Wish(tracks[name], wish, 1.0) for name, wish in wishes.items()], [])
    for name, wish in wishes.items():
        np.testing.assert_allclose(tracks[name].shift(terms), wish, atol=1e-9)


def layer(seed: int, source: str, out: str, weights: dict[str, Array], kind: str) -> onnx.NodeProto:
    """A convolution with or without borders, bias and groups; the channels stay 4."""
    weights[f"w_{out}"] = normal(seed, 4, 1, 3, 3) if kind.startswith("deep") else normal(seed, 4, 4, 1, 1) / 2
    names = f"{source} w_{out}"
    if seed % 2:
        weights[f"b_{out}"] = normal(seed + 1, 4)
        names += f" b_{out}"
    if kind == "deep padded":
        return node("Conv", names, out, group=4, pads=[1, 1, 1, 1])
    return node("Conv", names, out, **({"group": 4, "auto_pad": "SAME_UPPER"} if kind == "deep same" else {}))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(
        ["point", "deep padded", "deep same", "Relu", "MaxPool", "AveragePool", "Identity", "add", "constant", "sub"]
    ), st.integers(0, 5), st.integers(0, 5)), min_size=3, max_size=12),
    st.integers(0, 1000),
)  # fmt: skip
def test_random_graphs_keep_their_outputs(parts: list[tuple[str, int, int]], seed: int) -> None:
    """Chains and residual streams of layers, sums, pools of one size and functions; each reads earlier results."""
    weights: dict[str, Array] = {"w_0": normal(seed, 4, 3, 1, 1)}
    nodes, known = [node("Conv", "x w_0", "t0")], ["t0"]
    for place, (kind, first, second) in enumerate(parts, 1):
        out, source, other = f"t{place}", known[-1 - first % len(known)], known[-1 - second % len(known)]
        pool = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": second % 2}
        if kind in ("add", "sub"):
            nodes.append(node(kind.capitalize(), f"{source} {other}", out))
        elif kind == "constant":
            weights[f"c{place}"] = normal(place, 4, 1, 1)
            nodes.append(node("Add", f"c{place} {source}", out))
        elif kind == "AveragePool":
            nodes.append(node(kind, source, out, **pool))
        elif kind == "MaxPool":
            nodes.append(node(kind, source, out, kernel_shape=[3, 3], pads=[1, 1, 1, 1]))
        elif kind in ("Relu", "Identity"):
            nodes.append(node(kind, source, out))
        else:
            nodes.append(layer(seed + place, source, out, weights, kind))
        known.append(out)
    weights["w_y"] = normal(seed, 2, 4, 1, 1)
    nodes.append(node("Conv", f"{known[-1]} w_y", "y"))
    proto = proto_of(nodes, {"x": [1, 3, 5, 5]}, {"y": None, known[len(known) // 2]: None}, weights)
    model = wrapped(proto)
    found = shifts_of(model)
    found.fixed.extend(gate.track for gate in found.gates)  # what stays within bounds, samples have to say
    generator = np.random.default_rng(seed)
    wishes = [Wish(track, generator.uniform(-1, 1, track.channels), 1.0) for track in found.tracks.values()]
    shift(model.graph, found, terms_for(found, wishes, []))
    assert_same(proto, model, tolerance=1e-3)
