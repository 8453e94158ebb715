"""Attention in one node computes what it did in many, in whatever form an exporter wrote it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import assert_equal, node, normal, operators, proto_of, run, sample_model, wrapped
from onnx import TensorProto, helper

from qcli.graph import Model, normalize_graph
from qcli.steps.fuse_attention import FuseAttention
from qcli.types import Array

LOWEST = float(np.finfo(np.float32).min)


@dataclass(frozen=True)
class Form:
    """How attention is written: where its heads come from, how keys are turned, where it is scaled and masked."""

    source: str = "split"
    order: tuple[int, int, int] = (0, 1, 2)
    heads: int = 2
    size: int = 4
    inputs: int = 12
    tokens: int = 5
    bias: bool = True
    keys: str = "once"
    scale: str = "mul"
    factor: float = 0.5
    masked: bool = False
    opset: int = 17

    @property
    def width(self) -> int:
        return self.heads * self.size

    def proto(self, extra: tuple[onnx.NodeProto, ...] = (), **changed: Array) -> onnx.ModelProto:
        """A model with data x [batch, tokens, inputs], maybe a mask m [batch, tokens], and the result y."""
        nodes = [*self._mask(), *self._heads(), *self._products(), *extra]
        feeds: dict[str, Any] = {"x": ["batch", self.tokens, self.inputs]}
        proto = proto_of(nodes, feeds, {"y": None}, {**self._constants(), **changed}, opset=self.opset)
        if self.masked:
            proto.graph.input.append(helper.make_tensor_value_info("m", TensorProto.INT64, ["batch", self.tokens]))
        return proto

    def feeds(self, batch: int = 2, seed: int = 0) -> dict[str, Array]:
        data = {"x": normal(seed, batch, self.tokens, self.inputs)}
        lengths = np.arange(batch)[:, None] % self.tokens + (batch > 3)  # none at all in the first, if there are many
        mask = (np.arange(self.tokens) <= lengths) if batch <= 3 else (np.arange(self.tokens) < lengths - 1)
        return {**data, "m": mask.astype(np.int64)} if self.masked else data

    def _mask(self) -> list[onnx.NodeProto]:
        if not self.masked:
            return []
        return [
            node("Unsqueeze", "m mask_axes", "m4"),
            node("Cast", "m4", "mf", to=1),
            node("Sub", "one mf", "absent"),
            node("Mul", "absent lowest", "mask"),
        ]

    def _layer(self, name: str) -> list[onnx.NodeProto]:
        if not self.bias:
            return [node("MatMul", f"x w{name}", f"p{name}")]
        return [node("MatMul", f"x w{name}", f"n{name}"), node("Add", f"b{name} n{name}", f"p{name}")]

    def _heads(self) -> list[onnx.NodeProto]:
        """qh, kt and vh, the keys turned."""
        if self.source == "packed":
            made = [
                *self._layer(""),
                node("Reshape", "p packed", "r"),
                node("Transpose", "r", "t", perm=[2, 0, 3, 1, 4]),
            ]
            made += [node("Gather", f"t i{self.order[at]}", f"{name}h", axis=0) for at, name in enumerate("qkv")]
            return [*made, node("Transpose", "kh", "kt", perm=[0, 1, 3, 2])]
        if self.source == "split":
            parts = " ".join("qkv"[self.order.index(at)] for at in range(3))
            made = [*self._layer(""), node("Split", "p thirds", parts, axis=-1)]
        else:
            made = [made for name in "qkv" for made in self._layer(name)]
        for name in "qkv":
            source = name if self.source == "split" else f"p{name}"
            turned = name == "k" and self.keys == "once"
            made.append(node("Reshape", f"{source} divided", f"r{name}"))
            made.append(
                node(
                    "Transpose",
                    f"r{name}",
                    "kt" if turned else f"{name}h",
                    perm=[0, 2, 3, 1] if turned else [0, 2, 1, 3],
                )
            )
        return made if self.keys == "once" else [*made, node("Transpose", "kh", "kt", perm=[0, 1, 3, 2])]

    def _products(self) -> list[onnx.NodeProto]:
        queries, keys, scores, made = "qh", "kt", "s", []
        if self.scale == "queries":
            made, queries = [node("Mul", "qh factor", "qs")], "qs"
        if self.scale == "both":
            made, queries, keys = [node("Mul", "qh root", "qs"), node("Mul", "root kt", "ks")], "qs", "ks"
        made.append(node("MatMul", f"{queries} {keys}", "s"))
        if self.scale == "mul":
            made, scores = [*made, node("Mul", "factor s", "ss")], "ss"
        if self.scale == "div":
            made, scores = [*made, node("Div", "s inverse", "ss")], "ss"
        if self.masked:
            made, scores = [*made, node("Add", f"{scores} mask", "sm")], "sm"
        return [
            *made,
            node("Softmax", scores, "a", axis=-1),
            node("MatMul", "a vh", "o"),
            node("Transpose", "o", "ot", perm=[0, 2, 1, 3]),
            node("Reshape", "ot joined", "y"),
        ]

    def _constants(self) -> dict[str, Array]:
        weights = {"w": normal(1, self.inputs, 3 * self.width), "b": normal(2, 3 * self.width)}
        if self.source == "apart":
            weights = {f"w{name}": normal(at, self.inputs, self.width) for at, name in enumerate("qkv")}
            weights |= {f"b{name}": normal(at + 3, self.width) for at, name in enumerate("qkv")}
        scalars = {"factor": self.factor, "inverse": 1 / self.factor, "root": abs(self.factor) ** 0.5}
        shapes = {"divided": [0, 0, self.heads, self.size], "joined": [0, 0, self.width], "thirds": [self.width] * 3}
        shapes |= {"packed": [0, self.tokens, 3, self.heads, self.size], "mask_axes": [1, 2]}
        known = {
            **weights,
            **{name: np.asarray(value, np.float32) for name, value in scalars.items()},
            **{"one": np.float32(1) * np.ones(()), "lowest": np.asarray(LOWEST, np.float32)},
            **{name: np.asarray(value, np.int64) for name, value in shapes.items()},
            **{f"i{index}": np.asarray(index, np.int64) for index in range(3)},
        }
        return {name: np.asarray(value, np.float32) if name == "one" else value for name, value in known.items()}


def fused(proto: onnx.ModelProto) -> Model:
    model = wrapped(proto)
    normalize_graph(model)
    assert FuseAttention().run(model) == 1
    return model


def check(form: Form, batch: int = 2) -> Model:
    proto, feeds = form.proto(), form.feeds(batch)
    model = fused(proto)
    assert {"Softmax", "MatMul", "Transpose"}.isdisjoint(operators(model))
    assert operators(model).count("Attention") == 1
    assert model.outputs() == ("y",)
    for optimize in (False, True):
        assert_equal(run(proto, feeds), run(model, feeds, optimize=optimize), tolerance=1e-5)
    return model


FORMS = st.builds(
    Form,
    source=st.sampled_from(["split", "apart", "packed"]),
    order=st.permutations([0, 1, 2]).map(tuple),
    heads=st.integers(1, 5),
    size=st.integers(1, 9),
    inputs=st.integers(1, 20),
    tokens=st.integers(1, 9),
    bias=st.booleans(),
    keys=st.sampled_from(["once", "twice"]),
    scale=st.sampled_from(["none", "mul", "div", "queries", "both"]),
    factor=st.floats(0.1, 3),
    masked=st.booleans(),
)


@settings(deadline=None)
@given(form=FORMS, batch=st.integers(1, 5))
def test_every_form_computes_the_same(form: Form, batch: int) -> None:
    check(form, batch)


@pytest.mark.parametrize("source", ["split", "apart", "packed"])
def test_the_weight_of_one_projection_is_used_as_it_is(source: str) -> None:
    kept = "w" in check(Form(source=source)).graph.initializers
    assert kept is (source != "apart")


@pytest.mark.parametrize(("factor", "said"), [(0.5, False), (0.25, True)])
def test_the_usual_scale_is_not_said(factor: float, said: bool) -> None:
    attention = next(item for item in check(Form(size=4, factor=factor)).nodes() if item.op_type == "Attention")
    assert ("scale" in attention.attributes) is said


def test_it_is_named_after_the_layer_that_recipes_name() -> None:
    attention = next(item for item in check(Form()).nodes() if item.op_type == "Attention")
    assert attention.name == "/n"
    assert attention.outputs[0].name == "y"


def test_a_mask_for_all_batches() -> None:
    form = Form(masked=True)
    proto = form.proto()
    proto.graph.input[1].type.tensor_type.shape.dim[0].ClearField("dim_param")
    feeds = {**form.feeds(batch=3), "m": np.asarray([[1, 1, 0, 1, 0]])}
    model = fused(proto)
    assert "Expand" in operators(model)
    assert_equal(run(proto, feeds), run(model, feeds), tolerance=1e-5)


def test_one_cast_of_the_mask_for_all_layers() -> None:
    model = check(Form(masked=True))
    assert operators(model) == ["Cast", "Attention"]


def test_a_softmax_without_axis_is_over_the_last_from_13() -> None:
    for opset, count in ((17, 1), (12, 0)):
        proto = Form(opset=opset).proto()
        if opset < 13:
            split = next(item for item in proto.graph.node if item.op_type == "Split")
            del split.input[1]
        softmax = next(item for item in proto.graph.node if item.op_type == "Softmax")
        del softmax.attribute[:]
        assert FuseAttention().run(wrapped(proto)) == count


def test_the_sample_transformer() -> None:
    model = sample_model("transformer")
    normalize_graph(model)
    assert FuseAttention().run(model) == 2
    assert "Softmax" not in operators(model)


def changed(form: Form, output: str, made: onnx.NodeProto, **constants: Array) -> onnx.ModelProto:
    """The model with another node where `output` is made."""
    proto = form.proto(**constants)
    at = next(index for index, item in enumerate(proto.graph.node) if output in item.output)
    proto.graph.node[at].CopyFrom(made)
    return proto


FORM = Form()
SQUARE = replace(FORM, tokens=2, heads=2)
UNLIKE = {
    "softmax over the keys": changed(FORM, "a", node("Softmax", "ss", "a", axis=-2)),
    "values that are turned otherwise": changed(SQUARE, "vh", node("Transpose", "rv", "vh", perm=[0, 1, 2, 3])),
    "a result that is turned otherwise": changed(SQUARE, "ot", node("Transpose", "o", "ot", perm=[0, 1, 2, 3])),
    "tokens and heads in one axis": changed(
        SQUARE, "rq", node("Reshape", "q mixed", "rq"), mixed=np.asarray([2, -1, 2, 4], np.int64)
    ),
    "a factor for each token": changed(FORM, "ss", node("Mul", "s many", "ss"), many=normal(0, 5)),
    "a constant over the scores": changed(FORM, "ss", node("Div", "factor s", "ss")),
    "queries that no layer makes": changed(FORM, "p", node("Add", "n n", "p")),
    "a bias for each token": changed(FORM, "p", node("Add", "b n", "p"), b=normal(0, 5, 24)),
    "a relu behind the layer": changed(replace(FORM, bias=False), "p", node("Softplus", "x3", "p")),
    "a mask of any numbers": changed(
        replace(FORM, masked=True), "mask", node("Mul", "absent some", "mask"), some=normal(0, 1, 1, 5)
    ),
    "a mask for each query": changed(
        replace(FORM, masked=True), "m4", node("Unsqueeze", "m where", "m4"), where=np.asarray([0, 1], np.int64)
    ),
    "a mask that favours": changed(
        replace(FORM, masked=True), "mask", node("Mul", "absent some", "mask"), some=np.asarray(9, np.float32)
    ),
    "a mask with another one": changed(
        replace(FORM, masked=True), "absent", node("Sub", "two mf", "absent"), two=np.asarray(2, np.float32)
    ),
}


@pytest.mark.parametrize("name", UNLIKE)
def test_what_is_something_else_stays(name: str) -> None:
    proto = UNLIKE[name]
    if name == "a relu behind the layer":
        proto.graph.node.insert(0, node("MatMul", "x w", "x3"))
    model = wrapped(proto)
    assert FuseAttention().run(model) == 0
    assert "Softmax" in operators(model)


@pytest.mark.parametrize("value", ["p", "q", "rk", "kt", "s", "ss", "a", "o", "ot"])
def test_what_something_else_reads_stays(value: str) -> None:
    read = wrapped(Form().proto(extra=(node("Neg", value, "z"),)))
    shown = Form().proto()
    shown.graph.output.append(helper.make_tensor_value_info(value, TensorProto.FLOAT, None))
    assert FuseAttention().run(wrapped(shown)) == 0
    assert FuseAttention().run(read) == 0


def test_masks_need_shape_with_a_beginning_and_an_end() -> None:
    form = Form(masked=True, opset=14)
    proto = form.proto()
    proto.graph.node[0].CopyFrom(node("Unsqueeze", "m mask_axes", "m4"))
    assert FuseAttention().run(wrapped(proto)) == 0


def test_doubles_stay() -> None:
    proto = Form().proto()
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.elem_type = TensorProto.DOUBLE
    for tensor in proto.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            array = onnx.numpy_helper.to_array(tensor).astype(np.float64)
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    assert FuseAttention().run(wrapped(proto)) == 0
