"""Small models to start from, and what can be done to them: to their bytes, and to their graphs."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from models import SAMPLE_MODELS, conv_net, dense_net, node, normal, proto_of
from onnx import AttributeProto, TensorProto, helper, numpy_helper
from test_zoo import ZOO

_SMALL = 100_000
"""Bytes of a model of the zoo that is worth a fuzzed case: large ones take their time to be refused."""

_WORDS = ("", "x", "y", "a b", "ü", "a/b", "*", "\0", "-1", "constant", "x_folded", "n" * 300)
_NUMBERS = (0, 1, -1, 2, 3, 7, 255, -128, 2**31 - 1, -(2**31), 2**40, 2**63 - 1, -(2**63))
_OPERATORS = (
    "Add", "Mul", "Relu", "Conv", "MatMul", "Gemm", "Concat", "Reshape", "Shape", "Identity", "Softmax", "Cast",
    "Flatten", "Clip", "Pad", "Resize", "Transpose", "ConstantOfShape", "Expand", "Tile", "Range", "LSTM", "Split",
    "Gather", "Loop", "If", "NonZero", "QuantizeLinear", "BatchNormalization", "Dropout", "MaxPool", "Nothing",
)  # fmt: skip
_KINDS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.INT64, TensorProto.INT8, 0, 23, 99)

Choice = random.Random


def base_models() -> dict[str, onnx.ModelProto]:
    """Models by name, each of a few kilobytes."""
    found = {
        "conv": conv_net(channels=4),
        "dense": dense_net(),
        "branch": _branch(),
        "function": _function(),
        "shapes": _shapes(),
        "old": conv_net(channels=4, opset=11),
        "mlp": onnx.load(SAMPLE_MODELS / "mlp" / "model.onnx"),
    }
    for path in sorted(ZOO.rglob("*.onnx")) if ZOO.is_dir() else ():
        if 300 < path.stat().st_size < _SMALL:
            found[f"zoo/{path.parent.name}/{path.stem}"] = onnx.load(path, load_external_data=False)
    return found


def _branch() -> onnx.ModelProto:
    """An If whose bodies hold a MatMul and constants of their own."""
    bodies = {}
    for name, operator in (("then_branch", "Relu"), ("else_branch", "Sigmoid")):
        weight = numpy_helper.from_array(normal(3, 12, 4), f"{name}_w")
        nodes = [node("MatMul", f"x {name}_w", f"{name}_m"), node(operator, f"{name}_m", f"{name}_y")]
        result = helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, None)
        bodies[name] = helper.make_graph(nodes, name, [], [result], [weight])
    nodes = [
        node("ReduceSum", "x", "sum", keepdims=0),
        node("Greater", "sum zero", "positive"),
        node("If", "positive", "b", **bodies),
        node("Gemm", "b w", "y"),
    ]
    weights = {"zero": np.array(0, np.float32), "w": normal(4, 4, 4)}
    return proto_of(nodes, {"x": ["n", 12]}, {"y": None}, weights)


def _function() -> onnx.ModelProto:
    """A function that is called twice."""
    body = [helper.make_node("MatMul", ["a", "b"], ["c"]), helper.make_node("Relu", ["c"], ["d"])]
    made = helper.make_function("my", "Layer", ["a", "b"], ["d"], body, [helper.make_opsetid("", 17)])
    nodes = [node("Layer", "x w", "h", domain="my"), node("Layer", "h v", "y", domain="my")]
    proto = proto_of(nodes, {"x": ["n", 12]}, {"y": None}, {"w": normal(0, 12, 12), "v": normal(1, 12, 4)})
    proto.functions.append(made)
    proto.opset_import.append(helper.make_opsetid("my", 1))
    return proto


def _shapes() -> onnx.ModelProto:
    """Shapes computed in the graph, as exporters write them."""
    nodes = [
        node("Shape", "x", "s"),
        node("Gather", "s zero", "n"),
        node("Unsqueeze", "n axis", "n1"),
        node("Constant", "", "rest", value=numpy_helper.from_array(np.array([-1], np.int64))),
        node("Concat", "n1 rest", "wanted", axis=0),
        node("Reshape", "x wanted", "flat"),
        node("MatMul", "flat w", "m"),
        node("ConstantOfShape", "two", "ones", value=numpy_helper.from_array(np.array([0.5], np.float32))),
        node("Add", "m ones", "a"),
        node("Identity", "a", "i"),
        node("Softmax", "i", "y"),
    ]
    weights = {
        "zero": np.array(0, np.int64),
        "axis": np.array([0], np.int64),
        "two": np.array([1, 4], np.int64),
        "w": normal(0, 12, 4),
    }
    return proto_of(nodes, {"x": ["n", 3, 4]}, {"y": None}, weights)


# To bytes


def mutated_bytes(content: bytes, choice: Choice, other: bytes) -> bytes:
    """A file with some of its bytes changed, moved, cut out or taken from another file."""
    data = bytearray(content)
    for _ in range(choice.choice((1, 1, 2, 4, 16))):
        at = choice.randrange(len(data) + 1) if choice.random() < 0.5 else choice.randrange(min(len(data), 400) + 1)
        length = min(choice.choice((1, 1, 2, 8, 64, 1024)), max(len(data) - at, 0))
        what = choice.randrange(7)
        if what == 0:
            data[at : at + length] = choice.randbytes(length)
        elif what == 1:
            data[at : at + length] = bytes([choice.choice((0, 1, 0x7F, 0x80, 0xFF))]) * length
        elif what == 2:
            del data[at : at + length]
        elif what == 3:
            data[at:at] = data[at : at + length] * choice.choice((1, 2, 5))
        elif what == 4:
            start = choice.randrange(len(other) + 1)
            data[at:at] = other[start : start + length]
        elif what == 5 and at < len(data):
            data[at] ^= 1 << choice.randrange(8)
        elif what == 6 and choice.random() < 0.2:
            del data[at:]
    return bytes(data)


# To graphs


def mutated_graph(proto: onnx.ModelProto, choice: Choice) -> onnx.ModelProto:
    """A model with a few things done to its graph that leave it a protobuf message of the right form."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    for _ in range(choice.choice((1, 1, 1, 2, 3, 6))):
        with contextlib.suppress(Exception):  # an edit that the ones before it left no room for
            choice.choice(_EDITS)(copy, choice)
    return copy


def _some(sequence: Any, choice: Choice) -> Any:
    return choice.choice(list(sequence)) if len(sequence) else None


def _names(proto: onnx.ModelProto) -> list[str]:
    graph = proto.graph
    names = [tensor.name for tensor in graph.initializer] + [value.name for value in graph.input]
    return names + [name for item in graph.node for name in item.output]


def _rename(proto: onnx.ModelProto, choice: Choice) -> None:
    """Everywhere, so that the graph stays what it was."""
    old, new = _some(_names(proto), choice), choice.choice(_WORDS)
    for item in proto.graph.node:
        item.input[:] = [new if name == old else name for name in item.input]
        item.output[:] = [new if name == old else name for name in item.output]
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info, *proto.graph.initializer):
        if value.name == old:
            value.name = new


def _name_node(proto: onnx.ModelProto, choice: Choice) -> None:
    for item in proto.graph.node:
        item.name = choice.choice((item.name, *_WORDS))


def _shuffle(proto: onnx.ModelProto, choice: Choice) -> None:
    nodes = list(proto.graph.node)
    choice.shuffle(nodes)
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)


def _duplicate(proto: onnx.ModelProto, choice: Choice) -> None:
    item = _some(proto.graph.node, choice)
    if item is not None:
        twin = proto.graph.node.add()
        twin.CopyFrom(item)
        if choice.random() < 0.7:
            twin.output[:] = [f"{name}_twin" for name in twin.output]
            proto.graph.output.append(onnx.ValueInfoProto(name=twin.output[0]))


def _remove_node(proto: onnx.ModelProto, choice: Choice) -> None:
    if len(proto.graph.node):
        del proto.graph.node[choice.randrange(len(proto.graph.node))]


def _forget_shapes(proto: onnx.ModelProto, choice: Choice) -> None:
    del proto.graph.value_info[:]
    for value in (*proto.graph.input, *proto.graph.output):
        what = choice.randrange(4)
        if what == 0:
            value.type.tensor_type.ClearField("shape")
        elif what == 1:
            value.ClearField("type")
        elif what == 2:
            for size in value.type.tensor_type.shape.dim:
                size.dim_value = choice.choice((1, 2, 0, -1, 3, 2**40))


def _change_shape(proto: onnx.ModelProto, choice: Choice) -> None:
    value = _some([*proto.graph.input, *proto.graph.output], choice)
    if value is not None and choice.random() < 0.5:
        value.type.tensor_type.shape.dim.add().dim_value = choice.choice(_NUMBERS)
    elif value is not None and len(value.type.tensor_type.shape.dim):
        _some(value.type.tensor_type.shape.dim, choice).dim_param = choice.choice(_WORDS)


def _change_kind(proto: onnx.ModelProto, choice: Choice) -> None:
    value = _some([*proto.graph.input, *proto.graph.output, *proto.graph.value_info], choice)
    if value is None:
        return
    if choice.random() < 0.7:
        value.type.tensor_type.elem_type = choice.choice(_KINDS)
    else:
        inner = onnx.TypeProto()
        inner.CopyFrom(value.type)
        value.type.sequence_type.elem_type.CopyFrom(inner)


def _change_operator(proto: onnx.ModelProto, choice: Choice) -> None:
    item = _some(proto.graph.node, choice)
    if item is not None:
        item.op_type = choice.choice(_OPERATORS)
        item.domain = choice.choice((item.domain, item.domain, "ai.onnx", "com.microsoft", "my"))


def _change_operands(proto: onnx.ModelProto, choice: Choice) -> None:
    item = _some(proto.graph.node, choice)
    if item is None:
        return
    names = [*_names(proto), "", "nowhere"]
    what = choice.randrange(4)
    if what == 0 and len(item.input):
        item.input[choice.randrange(len(item.input))] = choice.choice(names)
    elif what == 1:
        item.input.append(choice.choice(names))
    elif what == 2 and len(item.input):
        del item.input[choice.randrange(len(item.input))]
    else:
        item.output.append(choice.choice(("", "second", *names)))


def _change_attribute(proto: onnx.ModelProto, choice: Choice) -> None:
    item = _some(proto.graph.node, choice)
    if item is None:
        return
    attribute = _some(item.attribute, choice)
    what = choice.randrange(6)
    if attribute is None or what == 0:
        name = choice.choice(("axis", "axes", "group", "transB", "perm", "to", "pads", "kernel_shape", "alpha"))
        value = choice.choice((choice.choice(_NUMBERS), 1.5, "x", [choice.choice(_NUMBERS)] * 2, float("nan")))
        item.attribute.append(helper.make_attribute(name, value))
    elif what == 1:
        attribute.i = choice.choice(_NUMBERS)
    elif what == 2:
        attribute.ints[:] = [choice.choice(_NUMBERS) for _ in attribute.ints][: choice.randrange(8)]
    elif what == 3:
        attribute.type = choice.choice((0, *AttributeProto.AttributeType.values()))
    elif what == 4:
        item.attribute.remove(attribute)
    else:
        attribute.name = choice.choice(_WORDS)


def _to_input(proto: onnx.ModelProto, choice: Choice) -> None:
    """A weight that a caller may override, or has to feed."""
    tensor = _some(proto.graph.initializer, choice)
    if tensor is not None:
        proto.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
        if choice.random() < 0.5:
            proto.graph.initializer.remove(tensor)


def _to_constant(proto: onnx.ModelProto, choice: Choice) -> None:
    tensor = _some(proto.graph.initializer, choice)
    if tensor is not None:
        nodes = [helper.make_node("Constant", [], [tensor.name], value=tensor), *proto.graph.node]
        proto.graph.initializer.remove(tensor)
        del proto.graph.node[:]
        proto.graph.node.extend(nodes)


def _change_tensor(proto: onnx.ModelProto, choice: Choice) -> None:
    tensor = _some(proto.graph.initializer, choice)
    if tensor is None:
        return
    what = choice.randrange(8)
    if what == 0:
        tensor.data_type = choice.choice(_KINDS)
    elif what == 1 and len(tensor.dims):
        tensor.dims[choice.randrange(len(tensor.dims))] = choice.choice(_NUMBERS)
    elif what == 2:
        tensor.dims.append(choice.choice((1, 2, 0, -1)))
    elif what == 3:
        tensor.raw_data = tensor.raw_data[: choice.randrange(len(tensor.raw_data) + 1)]
    elif what == 4 and tensor.data_type == TensorProto.FLOAT and len(tensor.raw_data):
        array = np.array(numpy_helper.to_array(tensor))
        array.reshape(-1)[choice.randrange(array.size) :] = choice.choice((np.nan, np.inf, 0.0, 1e38, -1e-40))
        tensor.raw_data = array.tobytes()
    elif what == 5:
        tensor.data_location = TensorProto.EXTERNAL
        entries = (("location", choice.choice(("w.bin", "../w.bin", "", "model.onnx"))), ("offset", "0"))
        tensor.external_data.extend(onnx.StringStringEntryProto(key=key, value=value) for key, value in entries)
    elif what == 6:
        array = choice.choice((np.zeros(0, np.float32), np.array(2.0, np.float32), np.ones((1, 1, 1), np.float32)))
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    else:
        proto.graph.initializer.add().CopyFrom(tensor)


def _change_outputs(proto: onnx.ModelProto, choice: Choice) -> None:
    what = choice.randrange(3)
    if what == 0:
        proto.graph.output.append(onnx.ValueInfoProto(name=_some(_names(proto), choice)))
    elif what == 1:
        proto.graph.output.append(_some(proto.graph.output, choice))
    else:
        proto.graph.input.append(_some([*proto.graph.input, *proto.graph.output], choice))


def _change_versions(proto: onnx.ModelProto, choice: Choice) -> None:
    what = choice.randrange(4)
    if what == 0:
        proto.ir_version = choice.choice((0, 1, 3, 4, 7, 9, 10, 11, 13, 99, 2**40))
    elif what == 1:
        proto.opset_import[0].version = choice.choice((*range(1, 27), 0, -1, 99, 2**40))
    elif what == 2:
        proto.opset_import.append(helper.make_opsetid(choice.choice(("", "ai.onnx", "my")), choice.choice((1, 12, 18))))
    else:
        del proto.opset_import[:]


def _change_text(proto: onnx.ModelProto, choice: Choice) -> None:
    proto.metadata_props.append(onnx.StringStringEntryProto(key=choice.choice(_WORDS), value=choice.choice(_WORDS)))
    item = _some(proto.graph.node, choice)
    if item is not None:
        item.doc_string = choice.choice(_WORDS)
        item.metadata_props.append(onnx.StringStringEntryProto(key="qcli.original_name", value=choice.choice(_WORDS)))
    proto.graph.name = choice.choice(_WORDS)


_EDITS: tuple[Callable[[onnx.ModelProto, Choice], None], ...] = (
    _rename, _name_node, _shuffle, _duplicate, _remove_node, _forget_shapes, _change_shape, _change_kind,
    _change_operator, _change_operands, _change_operands, _change_attribute, _change_attribute, _to_input,
    _to_constant, _change_tensor, _change_tensor, _change_outputs, _change_versions, _change_text,
)  # fmt: skip
