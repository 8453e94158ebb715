"""Layers as products of matrices: rows times patches is what onnxruntime computes."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from models import node, normal, proto_of, run, wrapped

from qcli.graph import Node, infer_shapes
from qcli.types import Array, Window
from qcli.windows import patches_of, reads_of, rows_of, weight_of, window_of

MANY = settings(max_examples=60, deadline=None)


@dataclass(frozen=True)
class Layer:
    """A model of one layer, `x` in and `y` out."""

    proto: onnx.ModelProto
    data: Array
    weight: Array

    @property
    def node(self) -> Node:
        model = wrapped(self.proto)
        infer_shapes(model)
        return next(iter(model.graph))

    def window(self, most: int = 1 << 20) -> Window:
        window = window_of(self.node, most)
        assert window is not None
        return window

    def expected(self) -> Array:
        return np.asarray(run(self.proto, {"x": self.data})["y"])


def layer(operator: str, data: Array, weight: Array, **attributes: Any) -> Layer:
    made = node(operator, "x w", "y", **attributes)
    return Layer(proto_of([made], {"x": data.shape}, {"y": None}, {"w": weight}), data, weight)


def computed(found: Layer, window: Window) -> Array:
    """The output as rows times patches, in the layout of the operator."""
    rows, patches = rows_of(found.node, found.weight, window), patches_of(found.data, window)
    products = rows.astype(np.float64) @ patches
    whole = products.reshape(window.groups, window.blocks, *products.shape[1:]).sum(axis=1)
    shape = found.expected().shape
    if not window.kernel:
        return whole[0].T.reshape(shape)
    return np.moveaxis(whole.reshape(shape[1], shape[0], *shape[2:]), 1, 0)


def assert_computes(found: Layer, most: int = 1 << 20) -> Window:
    window = found.window(most)
    expected = found.expected()
    assert prod(expected.shape) // expected.shape[1 if window.kernel else -1] <= 1024, "all places are looked at"
    np.testing.assert_allclose(computed(found, window), expected, rtol=0, atol=1e-4 * max(1, np.abs(expected).max()))
    rows = rows_of(found.node, found.weight, window)
    assert patches_of(found.data, window).dtype == np.float32
    assert rows.shape[0] == window.groups * window.blocks and rows.shape[2] <= max(most, 1)
    np.testing.assert_array_equal(weight_of(found.node, rows, window, found.weight.shape), found.weight)
    return window


def sizes(axes: int, low: int, high: int) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(low, high), min_size=axes, max_size=axes)


@st.composite
def convolutions(draw: st.DrawFn, turned: bool) -> Layer:
    axes = draw(st.integers(1, 3))
    groups, inner, outer = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    kernel, size = draw(sizes(axes, 1, 3)), draw(sizes(axes, 1, {1: 9, 2: 6, 3: 3}[axes]))
    strides, dilations = draw(sizes(axes, 1, 3)), draw(sizes(axes, 1, 2))
    reach = [(one - 1) * step for one, step in zip(kernel, dilations, strict=True)]
    pads = [draw(st.integers(0, most)) for most in reach] + [draw(st.integers(0, most)) for most in reach]
    attributes: dict[str, Any] = {"strides": strides, "dilations": dilations, "pads": pads, "group": groups}
    data = normal(draw(st.integers(0, 99)), draw(st.integers(1, 2)), groups * inner, *size)
    padded = [one + pads[axis] + pads[axes + axis] - reach[axis] for axis, one in enumerate(size)]
    if not turned:
        assume(min(padded) >= 1)
        return layer("Conv", data, normal(1, groups * outer, inner, *kernel), **attributes)
    extra = [draw(st.integers(0, step - 1)) for step in strides]
    spaced = [(one - 1) * step + 1 for one, step in zip(size, strides, strict=True)]
    written = [one + reach[axis] - pads[axis] - pads[axes + axis] + extra[axis] for axis, one in enumerate(spaced)]
    assume(min(written) >= 1 and prod(written) <= 512)
    attributes["output_padding"] = extra
    return layer("ConvTranspose", data, normal(1, groups * inner, outer, *kernel), **attributes)


@MANY
@given(convolutions(turned=False), st.sampled_from([1 << 20, 7, 4]))
def test_convolutions_of_any_geometry(found: Layer, most: int) -> None:
    assert_computes(found, most)


@MANY
@given(convolutions(turned=True), st.sampled_from([1 << 20, 7, 4]))
def test_transposed_convolutions_of_any_geometry(found: Layer, most: int) -> None:
    assert_computes(found, most)


@MANY
@given(sizes(2, 3, 8), sizes(2, 1, 3), sizes(2, 1, 3), st.sampled_from(["SAME_UPPER", "SAME_LOWER", "VALID"]))
def test_padding_by_name(size: list[int], kernel: list[int], strides: list[int], auto: str) -> None:
    weight = normal(1, 2, 3, *kernel)
    assert_computes(layer("Conv", normal(0, 1, 3, *size), weight, strides=strides, auto_pad=auto))


@pytest.mark.parametrize("operator", ["Conv", "ConvTranspose"])
def test_depthwise_layers_have_a_group_for_each_channel(operator: str) -> None:
    found = layer(operator, normal(0, 2, 5, 6, 6), normal(1, 5, 1, 3, 3), group=5, pads=[1, 1, 1, 1])
    assert assert_computes(found).groups == 5
    assert rows_of(found.node, found.weight, found.window()).shape == (5, 1, 9)


@MANY
@given(st.lists(st.integers(1, 4), max_size=3), st.integers(1, 9), st.integers(1, 4), st.sampled_from([1 << 20, 4, 1]))
def test_products_of_vectors_along_the_last_axis(lead: list[int], reads: int, writes: int, most: int) -> None:
    found = layer("MatMul", normal(0, *lead, reads), normal(1, reads, writes))
    window = assert_computes(found, most)
    assert window.blocks == -(-reads // most)


@pytest.mark.parametrize("turned", [0, 1])
@pytest.mark.parametrize("most", [1 << 20, 3])
def test_gemm(turned: int, most: int) -> None:
    weight = normal(1, 4, 7) if turned else normal(1, 7, 4)
    assert_computes(layer("Gemm", normal(0, 5, 7), weight, transB=turned), most)


def test_blocks_end_in_zeros() -> None:
    found = layer("MatMul", normal(0, 3, 7), normal(1, 7, 2))
    window = found.window(3)
    assert window.blocks == 3
    rows, patches = rows_of(found.node, found.weight, window), patches_of(found.data, window)
    assert rows.shape == (3, 2, 3) and patches.shape == (3, 3, 3)
    assert not rows[2, :, 1:].any() and not patches[2, 1:].any()


@pytest.mark.parametrize(
    ("operator", "weight", "attributes"),
    [
        ("Conv", (4, 3, 3, 3), {}),
        ("Conv", (4, 1, 3, 3), {"group": 3}),
        ("ConvTranspose", (3, 4, 2, 2), {}),
        ("Gemm", (3, 5), {}),
        ("Gemm", (5, 3), {"transB": 1}),
        ("MatMul", (3, 5), {}),
    ],
)
def test_what_one_output_reads(operator: str, weight: tuple[int, ...], attributes: dict[str, Any]) -> None:
    attributes = {**attributes, "group": 3} if weight[:2] == (4, 1) else attributes
    weight = (6, *weight[1:]) if attributes.get("group") else weight
    data = (2, 3) if operator in ("Gemm", "MatMul") else (2, 3, 5, 5)
    found = layer(operator, normal(0, *data), normal(1, *weight), **attributes)
    window = found.window()
    assert reads_of(found.node, weight, window) == rows_of(found.node, found.weight, window).shape[2]


@pytest.mark.parametrize("shape", [(1, 3, 80, 80), (2000, 3, 3, 3), (7, 3, 30, 30)])
def test_of_many_places_some_are_looked_at_and_always_the_same(shape: tuple[int, ...]) -> None:
    found = layer("Conv", normal(0, *shape), normal(1, 2, 3, 3, 3))
    patches = patches_of(found.data, found.window())
    assert patches.shape == (1, 27, 1024)
    np.testing.assert_array_equal(patches, patches_of(found.data.copy(), found.window()))
    first = found.data[0, :, :3, :3].reshape(-1)
    last = found.data[-1, :, -3:, -3:].reshape(-1)
    np.testing.assert_array_equal(patches[0, :, 0], first)
    np.testing.assert_array_equal(patches[0, :, -1], last)


def test_of_many_vectors_some_are_looked_at() -> None:
    found = layer("MatMul", normal(0, 3, 1000, 4), normal(1, 4, 2))
    patches = patches_of(found.data, found.window())
    assert patches.shape == (1, 4, 1024)
    np.testing.assert_array_equal(patches[0, :, -1], found.data[-1, -1])


@pytest.mark.parametrize("blocks", [1, 2])
def test_values_without_elements_have_no_patches(blocks: int) -> None:
    matmul = layer("MatMul", normal(0, 1, 4), normal(1, 4, 2)).window(4 // blocks)
    assert patches_of(np.zeros((0, 4), np.float32), matmul).shape == (blocks, 4 // blocks, 0)
    found = layer("Conv", normal(0, 1, 2, 4, 4), normal(1, 2, 2, 2, 2))
    window = found.window(8 // blocks)
    assert patches_of(np.zeros((0, 2, 4, 4), np.float32), window).shape == (blocks, 8 // blocks, 0)


def test_a_vector_is_one_patch() -> None:
    found = layer("MatMul", normal(0, 4), normal(1, 4, 2))
    assert patches_of(found.data, found.window()).shape == (1, 4, 1)


@pytest.mark.parametrize(
    ("operator", "data", "weight", "attributes"),
    [
        ("MatMul", (2, 3, 4), (2, 4, 5), {}),
        ("MatMul", (3, 4), (4,), {}),
        ("Gemm", (4, 3), (4, 5), {"transA": 1}),
        ("ConvTranspose", (1, 2, 4, 4), (2, 2, 3, 3), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
        ("ConvTranspose", (1, 2, 4, 4), (2, 2, 3, 3), {"output_shape": [8, 8], "strides": [2, 2]}),
        ("ConvTranspose", (1, 2, 9, 9), (2, 2, 2, 2), {"pads": [2, 2, 2, 2]}),
    ],
)
def test_forms_that_are_no_such_product(
    operator: str, data: tuple[int, ...], weight: tuple[int, ...], attributes: dict[str, Any]
) -> None:
    found = layer(operator, normal(0, *data), normal(1, *weight), **attributes)
    assert window_of(found.node, 1024) is None


def test_operands_that_are_not_what_they_should_be() -> None:
    two = proto_of([node("MatMul", "x z", "y")], {"x": [2, 2], "z": [2, 2]}, {"y": None})
    constant = proto_of([node("MatMul", "w x", "y")], {"x": [2, 2]}, {"y": None}, {"w": normal(0, 2, 2)})
    other = proto_of([node("Relu", "x", "y")], {"x": [2, 2]}, {"y": None})
    for proto in (two, constant, other):
        assert window_of(next(iter(wrapped(proto).graph)), 1024) is None


def test_a_convolution_of_unknown_rank_is_left_alone() -> None:
    proto = proto_of([node("Conv", "x w", "y")], {"x": None}, {"y": None}, {"w": normal(0, 2, 2, 3, 3)})  # type: ignore[dict-item]
    assert window_of(next(iter(wrapped(proto).graph)), 1024) is None
