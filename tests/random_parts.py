"""More parts of random models: matrices, attention, recurrent layers, bodies, and whole models made of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from random_models import BATCH, CONVOLUTIONAL, Case, Net, Part, model_of, split

from qcli.types import Array

_MICROSOFT = "com.microsoft"


def product(net: Net, x: str) -> str:
    """[..., K] times a matrix."""
    size = net.shape(x)[-1]
    out = net.pick(16, 20, 24, 4)
    if net.chance(0.08):
        w = net.weight(*((out, size) if (turned := net.chance(0.5)) else (size, out)), fan=size)
        return str(net.op("FusedMatMul", x, w, domain=_MICROSOFT, transB=int(turned), alpha=net.pick(1.0, 0.5)))
    y = net.op("MatMul", x, net.weight(size, out, fan=size))
    if net.chance(0.6):
        bias = net.constant(net.rng.standard_normal(net.pick((out,), (1, out), (1,), ())) / 2)
        y = net.op("Add", *net.pick((y, bias), (bias, y)))
    return str(y)


def shared(net: Net, x: str) -> str:
    """One weight in two nodes, as it is or transposed."""
    size = net.shape(x)[-1]
    w = net.weight(size, size, fan=size)
    y = net.op("MatMul", x, w)
    if net.chance(0.5):
        y = activated_flat(net, y)
    turned = net.op("Transpose", w, perm=[1, 0]) if net.chance(0.5) else w
    return str(net.op("MatMul", y, turned))


def left(net: Net, x: str) -> str:
    """A weight on the left."""
    rows = net.shape(x)[-2] if len(net.shape(x)) > 2 else 0
    if not rows:
        return product(net, x)
    return str(net.op("MatMul", net.weight(rows, rows, fan=rows), x))


def batched(net: Net, x: str) -> str:
    """A weight with more than two dimensions."""
    shape = net.shape(x)
    if len(shape) < 3:
        return product(net, x)
    return str(net.op("MatMul", x, net.weight(shape[-3] if len(shape) > 3 else 1, shape[-1], 16, fan=shape[-1])))


def gemm(net: Net, x: str) -> str:
    """On matrices: alpha, beta, transposes, and any bias that broadcasts."""
    if len(net.shape(x)) != 2:
        return product(net, x)
    size, out = net.shape(x)[1], net.pick(16, 20, 4)
    attributes: dict[str, Any] = {}
    if net.chance(0.3):
        attributes["alpha"] = net.pick(0.5, 2.0)
    if net.chance(0.3):
        attributes["beta"] = net.pick(0.5, 2.0, 0.0)
    turned = net.chance(0.5)
    if turned:
        attributes["transB"] = 1
    if net.chance(0.2):
        x, attributes["transA"] = str(net.op("Transpose", x, perm=[1, 0])), 1
    inputs = [x, net.weight(*((out, size) if turned else (size, out)), fan=size)]
    form = net.pick(None if net.opset >= 11 else (out,), (out,), (1, out), (), (1,), (1, 1), "computed")
    if form == "computed":
        inputs.append(net.op("Add", net.vector(out), axes_op_mean(net, x)))
    elif form is not None:
        inputs.append(net.constant(net.rng.standard_normal(form) / 2))
    return str(net.op("Gemm", *inputs, **attributes))


def axes_op_mean(net: Net, x: str) -> str:
    """The mean of everything, a scalar that is no constant."""
    return str(net.op("ReduceMean", x, keepdims=0))


def layer_norm(net: Net, x: str) -> str:
    size = net.shape(x)[-1]
    if net.opset >= 17:
        return str(
            net.op("LayerNormalization", x, net.constant(net.rng.uniform(0.5, 1.5, size)), net.vector(size), axis=-1)
        )
    return str(net.op("Softmax", x, axis=-1))


def activated_flat(net: Net, x: str) -> str:
    kind = net.pick("Relu", "Tanh", "Sigmoid", "LeakyRelu", "Clip", "Max")
    if kind == "Clip" and net.opset >= 11:
        return str(net.op("Clip", x, net.constant(-1.0), net.constant(1.5)))
    return str(net.op("Max", net.constant(-0.2), x) if kind in ("Max", "Clip") else net.op(kind, x))


def added(net: Net, x: str) -> str:
    """A residual, or a constant that broadcasts."""
    size = net.shape(x)[-1]
    if net.chance(0.5):
        return str(net.op("Add", product_of(net, x, size), x))
    form = net.pick((size,), (1, size), (), (*net.shape(x)[-2:-1], size) if len(net.shape(x)) > 2 else (size,))
    return str(net.op(net.pick("Add", "Mul", "Sub"), x, net.constant(net.rng.uniform(0.5, 1.5, form))))


def product_of(net: Net, x: str, out: int) -> str:
    size = net.shape(x)[-1]
    return str(net.op("MatMul", x, net.weight(size, out, fan=size)))


def attention(net: Net, x: str) -> str:
    """Scores between rows, of [N, T, D]."""
    if len(net.shape(x)) != 3:
        return activated_flat(net, x)
    query, key, value = (product_of(net, x, 16) for _ in range(3))
    scores = net.op("MatMul", query, net.op("Transpose", key, perm=[0, 2, 1]))
    scaled = net.op("Mul", scores, net.constant(0.25))
    return str(net.op("MatMul", net.op("Softmax", scaled, axis=-1), value))


def einsum(net: Net, x: str) -> str:
    shape = net.shape(x)
    if net.opset < 12 or len(shape) not in (2, 3):
        return product(net, x)
    size = shape[-1]
    letters = "nt"[: len(shape) - 1]
    if net.chance(0.5):
        return str(net.op("Einsum", x, net.weight(20, size, fan=size), equation=f"{letters}k,ok->{letters}o"))
    return str(net.op("Einsum", net.weight(size, 16, fan=size), x, equation=f"kj, {letters}k -> {letters}j"))


def recurrent(net: Net, x: str) -> str:
    """LSTM, GRU or RNN over [T, N, D]; the first output is [T, directions, N, H]."""
    shape = net.shape(x)
    if len(shape) != 3:
        return product(net, x)
    kind = net.pick("LSTM", "LSTM", "GRU", "RNN")
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind]
    direction = net.pick("forward", "reverse", "bidirectional")
    both, hidden, size = 1 + (direction == "bidirectional"), net.pick(8, 16), shape[2]
    data = net.op("Transpose", x, perm=[1, 0, 2])
    w, r = net.weight(both, gates * hidden, size, fan=size), net.weight(both, gates * hidden, hidden, fan=hidden)
    bias = net.constant(net.rng.standard_normal((both, 2 * gates * hidden)) / 3) if net.chance(0.7) else ""
    inputs = [data, w, r, bias]
    if net.chance(0.3):
        start = net.op("Expand", net.constant(np.full((1, 1, 1), 0.1)), hidden_shape(net, data, both, hidden))
        inputs += ["", start] + ([start] if kind == "LSTM" else [])
        if kind == "LSTM" and net.chance(0.5):
            inputs.append(net.constant(net.rng.standard_normal((both, 3 * hidden)) / 3))
    extra = {"linear_before_reset": 1} if kind == "GRU" and net.chance(0.5) else {}
    found = net.op(kind, *inputs, outputs=3 if kind == "LSTM" else 2, hidden_size=hidden, direction=direction, **extra)
    if net.chance(0.3):  # the last state alone
        net.nodes[-1].output[0] = ""
        return str(net.op("Transpose", found[1], perm=[1, 0, 2]))
    turned = net.op("Transpose", found[0], perm=[2, 0, 1, 3])
    return str(net.op("Reshape", turned, net.constant([0, 0, both * hidden], np.int64)))


def hidden_shape(net: Net, data: str, both: int, hidden: int) -> str:
    """[directions, N, hidden] with N from the data."""
    size = net.op("Gather", net.op("Shape", data), net.constant([1], np.int64), axis=0)
    return str(net.op("Concat", net.constant([both], np.int64), size, net.constant([hidden], np.int64), axis=0))


def halves(net: Net, x: str) -> str:
    size = net.shape(x)[-1]
    if size % 2:
        return activated_flat(net, x)
    parts = split(net, x, len(net.shape(x)) - 1, [size // 2] * 2)
    return str(net.op("Mul", parts[0], net.op("Sigmoid", parts[1])))


DENSE: tuple[Part, ...] = (
    *(product, product, shared, left, batched, gemm, gemm, gemm, layer_norm, activated_flat, activated_flat),
    *(added, added, attention, einsum, recurrent, halves),
)


def same(net: Net, x: str) -> str:
    """Parts that keep the shape, for bodies."""
    shape = net.shape(x)
    for _ in range(net.whole(1, 3)):
        if len(shape) >= 4 or (len(shape) == 3 and net.chance(0.2)):
            w = net.weight(shape[1], shape[1], *[1] * (len(shape) - 2), fan=shape[1])
            x = str(net.op("Conv", x, w, *([net.vector(shape[1])] if net.chance(0.5) else [])))
        else:
            x = product_of(net, x, shape[-1])
        x = activated_flat(net, x)
    return x


def decider(net: Net) -> str:
    """The mean of the model's input, which rounding does not touch: a branch is taken by both models or by none."""
    if "x" in net.values:
        return axes_op_mean(net, "x")
    return str(net.op("Sub", axes_op_mean(net, net.op("Cast", "ids", to=TensorProto.FLOAT)), net.constant(19.6)))


def branched(net: Net, x: str) -> str:
    """An If whose branches read the value from outside, and a weight from outside."""
    shape = net.shape(x)
    lent = net.weight(shape[-1], shape[-1], fan=shape[-1])
    condition = net.op("Greater", decider(net), net.constant(net.pick(0.0, 0.0, -100.0)))
    graphs = []
    for _ in range(2):
        body = net.body()
        y = nested(body, x) if net.depth < 1 and net.chance(0.3) else same(body, x)
        if net.chance(0.5):
            y = body.op("MatMul", y, lent)
        if not body.nodes or net.chance(0.2):
            y = body.op("Identity", y)
        graphs.append(body.graph(outputs=[y]))
    return str(net.op("If", condition, then_branch=graphs[0], else_branch=graphs[1]))


def looped(net: Net, x: str) -> str:
    """A Loop that carries the value, and scans what it computed on the way."""
    body = net.body()
    number, keep, state = (body.name(word) for word in ("i", "keep", "state"))
    body.values.update({number: np.array(0, np.int64), keep: np.array(True), state: net.values[x]})
    y = nested(body, state) if net.depth < 1 and net.chance(0.3) else same(body, state)
    if net.chance(0.5):
        y = body.op("Add", y, x)
    out, again = body.op("Tanh", y), body.op("Identity", keep)
    graph = body.graph([number, keep, state], [again, out, y if net.chance(0.5) else out])
    final, all_of_them = net.op(
        "Loop", net.constant(2, np.int64), net.constant(True, np.bool_), x, outputs=2, body=graph
    )
    if net.chance(0.3):
        net.outputs.append(all_of_them)
    return str(final)


def scanned(net: Net, x: str) -> str:
    """A Scan over the second axis of [N, T, D]."""
    if len(net.shape(x)) != 3:
        return branched(net, x)
    body = net.body()
    state, row = body.name("state"), body.name("row")
    start = net.op("Gather", x, net.constant(0, np.int64), axis=1)
    body.values.update({state: net.values[start], row: net.values[start]})
    y = body.op("Tanh", body.op("Add", same(body, state), product_of(body, row, net.shape(x)[-1])))
    kept = body.op("Identity", y)
    graph = body.graph([state, row], [y, kept])
    attributes = {"scan_input_axes": [1], "scan_output_axes": [1], "scan_input_directions": [net.pick(0, 1)]}
    return str(net.op("Scan", start, x, outputs=2, num_scan_inputs=1, body=graph, **attributes)[1])


def nested(net: Net, x: str) -> str:
    return str(net.pick(branched, looped, scanned)(net, x))


def flat(net: Net, x: str) -> str:
    """[N, C, ...] to [N, K]."""
    if len(net.shape(x)) > 2 and net.chance(0.6):
        x = str(net.op("GlobalAveragePool", x))
    return str(net.op("Flatten", x)) if len(net.shape(x)) > 2 else x


def embedded(net: Net, inputs: dict[str, Array], rank: int) -> str:
    """Rows of a table, by indices of some rank; the table may serve as the last matrix too."""
    rows, width = 40, 16
    inputs["ids"] = net.values["ids"] = net.rng.integers(0, rows, (BATCH, 5)[:rank]).astype(np.int64)
    axis = net.pick(0, 0, 1, -2)
    table = net.weight(width, rows, fan=1) if axis == 1 else net.weight(rows, width, fan=1)
    x = net.op("Gather", table, "ids", **({"axis": axis} if axis or net.chance(0.5) else {}))
    if axis == 1:
        order = [*range(1, rank + 1), 0]
        return str(net.op("Transpose", x, perm=order))
    if net.chance(0.3):
        net.outputs.append(net.op("MatMul", x, net.op("Transpose", table, perm=[1, 0])))
    return str(x)


def case_of(seed: int) -> Case:
    """The model of a seed, with six samples and two of another batch size."""
    net = Net(seed, int(np.random.default_rng(seed + 10**6).choice([9, 11, 12, 13, 14, 15, 17, 17, 18, 19, 20, 21])))
    inputs: dict[str, Array] = {}
    kind = net.pick("image", "image", "image", "dense", "dense", "ids", "volume", "signal")
    steps = net.whole(3, 9)
    shapes = {"image": (BATCH, 4, 10, 10), "volume": (BATCH, 2, 6, 6, 6), "signal": (BATCH, 4, 16)}
    if kind == "ids":
        x = embedded(net, inputs, net.pick(1, 2, 2))
    else:
        shape = shapes.get(kind) or net.pick((BATCH, 16), (BATCH, 20), (BATCH, 5, 16), (BATCH, 2, 5, 16))
        x = "x"
        inputs["x"] = net.values["x"] = net.rng.standard_normal(shape).astype(np.float32)
    parts = CONVOLUTIONAL if kind in shapes else DENSE
    controls = net.chance(0.35)
    for _ in range(steps):
        part = net.pick(branched, looped, scanned) if controls and net.chance(0.3) else net.pick(*parts)
        x = part(net, x)
        if net.chance(0.06) and x not in net.outputs:
            net.outputs.append(x)
    if kind in shapes:
        x = gemm(net, flat(net, x))
    net.outputs = list(dict.fromkeys([*net.outputs, x]))
    return finished(net, seed, inputs)


def finished(net: Net, seed: int, inputs: dict[str, Array]) -> Case:
    """The net as a model with oddities that exporters leave: idle and equal weights, inputs given out again."""
    if net.chance(0.15):
        net.weights[net.name("idle")] = net.rng.standard_normal((4, 4)).astype(np.float32)
    if net.chance(0.15) and net.weights:
        name = net.pick(*net.weights)
        copy = net.name("copy")
        net.weights[copy] = net.weights[name]
        readers = [(node, index) for node in net.nodes for index, value in enumerate(node.input) if value == name]
        if readers:
            readers[-1][0].input[readers[-1][1]] = copy
    straight = next(iter(inputs)) if net.chance(0.08) else None
    infos = [info(name, array, free=True) for name, array in inputs.items()]
    if net.chance(0.15):
        infos += [info(name, array) for name, array in net.weights.items()]
    outputs = [
        info(name, net.values[name], free=True, bare=True) for name in [*net.outputs, *([straight] if straight else [])]
    ]
    weights = [numpy_helper.from_array(array, name) for name, array in net.weights.items()]
    proto = model_of(helper.make_graph(net.nodes, f"seed{seed}", infos, outputs, weights), net.opset)
    samples = [_sample(inputs, seed * 100 + index, BATCH) for index in range(6)]
    others = [_sample(inputs, seed * 100 + index, size) for index, size in ((50, 1), (51, 5))]
    return Case(seed, proto, tuple(samples), tuple(others))


def info(name: str, array: Array, *, free: bool = False, bare: bool = False) -> onnx.ValueInfoProto:
    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    if bare:
        return helper.make_tensor_value_info(name, kind, [None] * array.ndim)
    shape = ["n", *array.shape[1:]] if free and array.ndim else list(array.shape)
    return helper.make_tensor_value_info(name, kind, shape)


def _sample(inputs: dict[str, Array], seed: int, batch: int) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    made: dict[str, Array] = {}
    for name, array in inputs.items():
        shape = (batch, *array.shape[1:])
        whole = array.dtype == np.int64
        made[name] = rng.integers(0, 40, shape) if whole else rng.standard_normal(shape).astype(np.float32)
    return made


def halved(case: Case) -> Case:
    """The same in float16; the scales of Resize stay float32, as its operator wants them."""
    proto = onnx.ModelProto.FromString(case.proto.SerializeToString())
    _halve(proto.graph, {name for node in proto.graph.node if node.op_type == "Resize" for name in node.input[2:3]})

    def fed(samples: tuple[dict[str, Array], ...]) -> tuple[dict[str, Array], ...]:
        return tuple(
            {name: array.astype(np.float16) if array.dtype == np.float32 else array for name, array in feeds.items()}
            for feeds in samples
        )

    return Case(case.seed, proto, fed(case.samples), fed(case.others))


def _halve(graph: onnx.GraphProto, kept: set[str]) -> None:
    for tensor in graph.initializer:
        if tensor.name not in kept:
            tensor.CopyFrom(_half(tensor))
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT and value.name not in kept:
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _halve(attribute.g, kept)
            elif attribute.HasField("t") and not kept & set(node.output):
                attribute.t.CopyFrom(_half(attribute.t))
            elif node.op_type == "Cast" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.FLOAT16


def _half(tensor: onnx.TensorProto) -> onnx.TensorProto:
    if tensor.data_type != TensorProto.FLOAT:
        return tensor
    made: onnx.TensorProto = numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name)
    return made
