"""Random float models that compute something sensible: one seed, one model, the same on every machine.

A model is built while it runs: each node is executed as soon as it is made, so the shapes are known, and weights are
drawn so that values keep their size from layer to layer. What comes out is a network that quantizes well unless
somebody made a mistake.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from qcli.types import Array

BATCH = 3
_MICROSOFT = "com.microsoft"


@dataclass(frozen=True)
class Case:
    """A model with samples, and samples of another batch size where that is free."""

    seed: int
    proto: onnx.ModelProto
    samples: tuple[dict[str, Array], ...]
    others: tuple[dict[str, Array], ...]


class Net:
    """A graph that grows node by node. A body of If, Loop or Scan is one that sees what lies outside of it."""

    def __init__(self, seed: int, opset: int, outer: Net | None = None) -> None:
        self.rng = outer.rng if outer is not None else np.random.default_rng(seed)
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, Array] = {}
        self.values: dict[str, Array] = dict(outer.values) if outer is not None else {}
        self.outputs: list[str] = []
        self.numbers: list[int] = outer.numbers if outer is not None else [0]
        self.depth = outer.depth + 1 if outer is not None else 0
        self.domains: set[str] = outer.domains if outer is not None else set()

    def name(self, word: str) -> str:
        self.numbers[0] += 1
        return f"{word}{self.numbers[0]}"

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def pick(self, *items: Any) -> Any:
        return items[int(self.rng.integers(len(items)))]

    def whole(self, low: int, high: int) -> int:
        """An integer from low to high, both included."""
        return int(self.rng.integers(low, high + 1))

    def constant(self, array: Any, dtype: Any = np.float32) -> str:
        """An initializer, or now and then a Constant node."""
        made = np.asarray(array, dtype)
        name = self.name("w")
        self.values[name] = made
        if self.chance(0.1):
            value = numpy_helper.from_array(made)
            self.nodes.append(helper.make_node("Constant", [], [name], value=value, name=self.name("constant")))
        else:
            self.weights[name] = made
        return name

    def weight(self, *shape: int, fan: int) -> str:
        spread = np.exp(self.rng.uniform(-1, 1)) if self.chance(0.3) else 1.0
        return self.constant(self.rng.standard_normal(shape) / np.sqrt(fan) * spread)

    def vector(self, size: int, scale: float = 0.5) -> str:
        return self.constant(self.rng.standard_normal(size) * scale)

    def shape(self, value: str) -> tuple[int, ...]:
        return self.values[value].shape

    def op(self, operator: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """Adds a node, runs it, and gives the names of its results."""
        names = [self.name(operator.lower()) for _ in range(outputs)]
        domain = attributes.pop("domain", "")
        self.domains.add(domain)
        label = "" if self.chance(0.2) else f"/{names[0]}"
        node = helper.make_node(operator, list(inputs), names, name=label, domain=domain, **attributes)
        self.nodes.append(node)
        self.values.update(zip(names, self._executed(node, names), strict=True))
        return names[0] if outputs == 1 else tuple(names)

    def _executed(self, node: onnx.NodeProto, names: list[str]) -> list[Array]:
        needed = {name for name in (*node.input, *read_in(node)) if name in self.values}
        feeds = {name: self.values[name] for name in sorted(needed)}
        infos = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in feeds.items()
        ]
        graph = helper.make_graph([node], "one", infos, [onnx.ValueInfoProto(name=name) for name in names])
        return session(model_of(graph, self.opset)).run(names, feeds)  # type: ignore[no-any-return]

    def body(self) -> Net:
        return Net(0, self.opset, self)

    def graph(self, inputs: Sequence[str] = (), outputs: Sequence[str] = ()) -> onnx.GraphProto:
        """This net as the body of a node."""
        kinds = [self._info(name) for name in inputs]
        weights = [numpy_helper.from_array(array, name) for name, array in self.weights.items()]
        return helper.make_graph(self.nodes, self.name("body"), kinds, [self._info(name) for name in outputs], weights)

    def _info(self, name: str) -> onnx.ValueInfoProto:
        array = self.values[name]
        return helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(array.dtype), [None] * array.ndim if array.ndim else []
        )


def read_in(node: onnx.NodeProto) -> set[str]:
    """All names that the bodies of a node read."""
    bodies = [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    found = {name for body in bodies for inner in body.node for name in (*inner.input, *read_in(inner))}
    return found | {output.name for body in bodies for output in body.output}


def model_of(graph: onnx.GraphProto, opset: int) -> onnx.ModelProto:
    imports = [helper.make_opsetid("", opset), helper.make_opsetid(_MICROSOFT, 1)]
    made: onnx.ModelProto = helper.make_model(graph, opset_imports=imports, ir_version=8)
    return made


def session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


# Convolutional parts: [N, C, spatial ...] to the same rank.


def conv(net: Net, x: str) -> str:
    channels, rank = net.shape(x)[1], len(net.shape(x)) - 2
    group = net.pick(1, 1, 1, channels, 2 if channels % 2 == 0 else 1)
    out = channels if group == channels else net.pick(4, 6, 8)
    kernel = min(net.pick(1, 3, 3, 5 if rank == 1 else 2), *net.shape(x)[2:])
    fan = channels // group * kernel**rank
    inputs = [x, net.weight(out, channels // group, *[kernel] * rank, fan=fan)]
    if net.chance(0.6):
        inputs.append(net.vector(out))
    attributes: dict[str, Any] = {"group": group} if group > 1 or net.chance(0.2) else {}
    if net.chance(0.3):
        attributes["auto_pad"] = net.pick("SAME_UPPER", "SAME_LOWER", "VALID")
    else:
        attributes["pads"] = [kernel // 2] * (2 * rank)
        if kernel == 3 and min(net.shape(x)[2:]) > 5 and net.chance(0.2):
            attributes.update(dilations=[2] * rank, pads=[2] * (2 * rank))
    if net.chance(0.2):
        attributes["strides"] = [2] * rank
    if net.chance(0.05) and rank == 2:
        activation = net.pick("Relu", "LeakyRelu", "Tanh")
        extra = {"activation": activation, **({"activation_params": [0.1]} if activation == "LeakyRelu" else {})}
        return str(net.op("FusedConv", *inputs, domain=_MICROSOFT, **attributes, **extra))
    return str(net.op("Conv", *inputs, **attributes))


def transposed(net: Net, x: str) -> str:
    channels, rank = net.shape(x)[1], len(net.shape(x)) - 2
    group = net.pick(1, 2 if channels % 2 == 0 else 1)
    out = net.pick(2, 4)
    inputs = [x, net.weight(channels, out, *[2] * rank, fan=channels // group)]
    if net.chance(0.5):
        inputs.append(net.vector(out * group))
    return str(net.op("ConvTranspose", *inputs, group=group, strides=[2] * rank))


def normalized(net: Net, x: str) -> str:
    size = net.shape(x)[1]
    gain = net.constant(net.rng.uniform(0.5, 1.5, size))
    mean, variance = net.vector(size, 0.3), net.constant(net.rng.uniform(0.5, 2, size))
    return str(net.op("BatchNormalization", x, gain, net.vector(size), mean, variance))


def activated(net: Net, x: str) -> str:
    kind = net.pick("Relu", "Relu", "Clip", "LeakyRelu", "Sigmoid", "HardSwish", "PRelu", "Max", "Min", "Tanh", "Swish")
    if kind == "Clip" and net.opset < 11:
        return str(net.op("Clip", x, min=0.0, max=6.0))
    if kind == "Clip":
        bounds = [net.constant(net.pick(0.0, -1.0)), net.constant(net.pick(6.0, 1.0))]
        return str(net.op("Clip", x, *net.pick(bounds, bounds[:1], ["", bounds[1]])))
    if kind in ("Max", "Min"):
        bound = net.constant(net.pick(0.0, -0.5) if kind == "Max" else net.pick(1.0, 2.0))
        return str(net.op(kind, *net.pick((x, bound), (bound, x))))
    if kind == "HardSwish" and net.opset >= 14:
        return str(net.op("HardSwish", x))
    if kind == "PRelu":
        size = net.shape(x)[1]
        return str(net.op("PRelu", x, net.constant(net.rng.uniform(0, 0.5, (size, *[1] * (len(net.shape(x)) - 2))))))
    if kind in ("Swish", "HardSwish"):
        return str(net.op("Mul", *net.pick((x, y := net.op("Sigmoid", x)), (y, x))))
    return str(net.op(kind, x, **({"alpha": 0.1} if kind == "LeakyRelu" else {})))


def pooled(net: Net, x: str) -> str:
    spatial = net.shape(x)[2:]
    if min(spatial) < 4:
        return x
    kind = net.pick("MaxPool", "MaxPool", "AveragePool", "Indices")
    attributes: dict[str, Any] = {
        "kernel_shape": [net.pick(2, 3)] * len(spatial),
        "strides": [net.pick(1, 2)] * len(spatial),
    }
    if net.opset >= 10 and net.chance(0.4):
        attributes["ceil_mode"] = 1
    if net.chance(0.4):
        attributes["pads"] = [1] * (2 * len(spatial))
    if kind == "AveragePool" and net.chance(0.4):
        attributes["count_include_pad"] = 1
    if kind == "Indices":
        return str(net.op("MaxPool", x, outputs=2, **attributes)[0])
    return str(net.op(kind, x, **attributes))


def combined(net: Net, x: str) -> str:
    """The value joined with another one or with a constant."""
    shape = net.shape(x)
    kind = net.pick("Add", "Add", "Mul", "Concat", "Sub", "Div", "residual", "twice", "constants")
    if kind == "twice":
        return str(net.op("Add", x, x))
    if kind == "residual":
        y = conv(net, x) if len(shape) > 2 else activated(net, x)
        return str(net.op("Add", *net.pick((x, y), (y, x)))) if net.shape(y) == shape else y
    peers = [name for name, array in net.values.items() if array.shape == shape and array.dtype == np.float32]
    peers = [name for name in peers if name not in net.weights and name != x] or [x]
    other = peers[net.whole(0, len(peers) - 1)]
    if kind == "Concat":
        return str(net.op("Concat", x, other, axis=1))
    if kind in ("Add", "Mul") and net.chance(0.5) and other != x:
        return str(net.op(kind, x, other))
    form = net.pick((), (1,), (1, shape[1], *[1] * (len(shape) - 2)), (shape[1], *[1] * (len(shape) - 2)), shape[1:])
    constant = net.constant(net.rng.uniform(0.5, 1.5, form) * net.pick(1, -1))
    operator = kind if kind in ("Add", "Mul", "Sub", "Div") else net.pick("Add", "Mul")
    order = (x, constant) if operator == "Div" or net.chance(0.6) else (constant, x)
    return str(net.op(operator, *order))


def moved(net: Net, x: str) -> str:
    """Data that is only cut, padded, turned or spread."""
    shape = net.shape(x)
    rank = len(shape)
    kind = net.pick("Split", "Slice", "Pad", "Transpose", "Resize", "DepthToSpace", "Squeeze", "Reshape", "Identity")
    if kind == "Split" and shape[1] % 2 == 0:
        parts = split(net, x, 1, [shape[1] // 2] * 2)
        return str(net.op("Concat", parts[1], activated(net, parts[0]), axis=1)) if net.chance(0.5) else parts[0]
    if kind == "Slice" and net.opset >= 10 and min(shape[2:], default=0) > 4:
        return str(net.op("Slice", x, *[net.constant(item, np.int64) for item in ([1], [-1], [2])]))
    if kind == "Pad" and net.opset >= 11:
        pads = [0, 0, *[1] * (rank - 2), 0, 0, *[net.pick(0, 1)] * (rank - 2)]
        extra = net.pick([], [net.constant(0.0)], [net.constant(0.5)])
        return str(
            net.op(
                "Pad",
                x,
                net.constant(pads, np.int64),
                *extra,
                mode="constant" if extra else net.pick("constant", "edge"),
            )
        )
    if kind == "Transpose":
        order = [0, *net.rng.permutation(np.arange(1, rank)).tolist()]
        return str(net.op("Transpose", x, perm=order))
    if kind == "Resize" and rank == 4 and net.opset >= 13 and shape[2] < 12:
        mode = net.pick("nearest", "linear")
        return str(
            net.op(
                "Resize",
                x,
                "",
                net.constant([1, 1, 2, 2]),
                mode=mode,
                **(
                    {"nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"} if net.chance(0.6) else {}
                ),
            )
        )
    if kind == "DepthToSpace" and net.opset >= 11 and rank == 4 and shape[1] % 4 == 0 and shape[2] < 12:
        return str(net.op("DepthToSpace", x, blocksize=2, mode=net.pick("DCR", "CRD")))
    if kind == "Squeeze":
        return axes_op(net, "Squeeze", axes_op(net, "Unsqueeze", x, [2]), [2])
    if kind == "Reshape":
        flat = net.op("Reshape", x, net.constant([0, shape[1], -1], np.int64))
        return str(net.op("Reshape", flat, net.constant([0, 0, *shape[2:]], np.int64))) if rank > 3 else str(flat)
    return str(net.op("Identity", x))


def split(net: Net, x: str, axis: int, sizes: list[int]) -> tuple[str, ...]:
    if net.opset < 13:
        return tuple(net.op("Split", x, outputs=len(sizes), axis=axis, split=sizes))
    if net.opset >= 18 and len(set(sizes)) == 1 and net.chance(0.5):
        return tuple(net.op("Split", x, outputs=len(sizes), axis=axis, num_outputs=len(sizes)))
    return tuple(net.op("Split", x, net.constant(sizes, np.int64), outputs=len(sizes), axis=axis))


def axes_op(net: Net, operator: str, x: str, axes: list[int]) -> str:
    if net.opset < 13:
        return str(net.op(operator, x, axes=axes))
    return str(net.op(operator, x, net.constant(axes, np.int64)))


Part = Callable[[Net, str], str]
CONVOLUTIONAL: tuple[Part, ...] = (
    conv,
    conv,
    conv,
    normalized,
    activated,
    activated,
    pooled,
    combined,
    combined,
    moved,
    transposed,
)
