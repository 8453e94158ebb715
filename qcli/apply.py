"""Writing a solution into a graph. Nothing is decided here."""

from __future__ import annotations

from collections.abc import Hashable

from qcli.encodings._weights import Coded, Pool
from qcli.graph import Graph, Model, Node, Value, constant_of, graph_of, insert_after, make_node, node_key
from qcli.plugins import create
from qcli.scales import ends_of
from qcli.solve import Solution, site_key
from qcli.targets._support import traits_of
from qcli.types import Entry, Plan, Role, Scale


def apply_plan(model: Model, plan: Plan, solution: Solution) -> Model:
    """The quantized model; the model given stays as it is."""
    quantized = model.copy()
    writer = _Writer(quantized, solution, shields=traits_of(create("targets", plan.target)).here)
    coded = [entry for entry in plan.entries if site_key(entry) in solution.codes]
    static, others = _by_node(coded, calibrated=True), _by_node(coded, calibrated=False)
    for entries in static:
        writer.constants(entries)
    results = [entry for entry in plan.entries if entry.site.role is Role.OUTPUT]
    for entry in results:
        writer.result(entry)
    for entry in plan.entries:
        if entry.site.role is Role.INPUT and site_key(entry) not in solution.codes:
            writer.edge(entry)
    for entries in others:
        writer.constants(entries)
    quantized.remove_unused()
    quantized.import_domains()
    quantized.sort()
    quantized.forget_shapes()
    quantized.fix_names()
    return quantized


def _by_node(entries: list[Entry], *, calibrated: bool) -> list[tuple[Entry, ...]]:
    """Entries of one node and one encoding together, in order; of static encodings, or of the others.

    The others come last, since they replace nodes.
    """
    groups: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        if create("encodings", entry.encoding).calibrated is calibrated:
            groups.setdefault((entry.site.node, repr(entry.encoding)), []).append(entry)
    return [tuple(group) for group in groups.values()]


class _Writer:
    """Puts encodings into one model. Constants with equal codes and scales are stored once.

    With `shields` nothing that the plan keeps float stands where onnxruntime would make integers of it.
    """

    def __init__(self, model: Model, solution: Solution, *, shields: bool) -> None:
        self._solution = solution
        self._shields = shields
        self._nodes = {node_key(node): node for node in model.nodes()}
        self._pool = Pool()
        self._edges: dict[Hashable, Value] = {}

    def constants(self, entries: tuple[Entry, ...]) -> None:
        """The weights, biases and constant operands of one node, stored as codes."""
        coded = tuple(self._coded(entry) for entry in entries)
        create("encodings", entries[0].encoding).write(coded, self._pool)

    def _coded(self, entry: Entry) -> Coded:
        key = site_key(entry)
        node = self._nodes[entry.site.node]
        return Coded(node, entry.site.operand, self._solution.codes[key], self._solution.scales[key])

    def result(self, entry: Entry) -> None:
        """A quantized result: all of its readers read it through the grid; a graph output keeps its name."""
        scale = self._solution.scales[site_key(entry)]
        value = self._value(entry)
        readers = tuple(value.uses())
        name = value.name or ""
        output = value.is_graph_output()
        if output:
            value.name = f"{name}_float"
        graph = graph_of(self._nodes[entry.site.node])
        through = create("encodings", entry.encoding).activation(graph, _before_clips(value, scale), name, scale)
        for reader, operand in readers:
            reader.replace_input_with(operand, through)
        if output:
            through.name, through.shape, through.type = name, value.shape, value.type
            graph.outputs[list(graph.outputs).index(value)] = through

    def edge(self, entry: Entry) -> None:
        """One operand reads its value through the grid; other readers do not."""
        node, operand, scale = self._nodes[entry.site.node], entry.site.operand, self._solution.scales[site_key(entry)]
        value = node.inputs[operand]
        if value is None:
            raise ValueError(f"operand {operand} of {node.name} is empty")
        graph = graph_of(node)
        levels = (scale.dtype, scale.lowest, scale.highest)
        known = (id(graph), value.name or "", float(scale.scale[0]), int(scale.zero_point[0]), levels)
        if known not in self._edges:
            encoding = create("encodings", entry.encoding)
            source = _shielded(graph, value) if self._shields and _would_be_quantized(value) else value
            self._edges[known] = encoding.activation(graph, source, value.name or "", scale)
        node.replace_input_with(operand, self._edges[known])

    def _value(self, entry: Entry) -> Value:
        return self._nodes[entry.site.node].outputs[entry.site.operand]


def _shielded(graph: Graph, value: Value) -> Value:
    """The value behind a Sum of one operand, which no fusion looks through."""
    name = f"{value.name}_kept_float"
    shield = make_node("Sum", [value], name=name, output=name)
    insert_after(value, shield, graph)
    return shield.outputs[0]


_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_FUSED = ("AveragePool", "GlobalAveragePool", "Softmax", "Sigmoid", "LeakyRelu", "Add", "Mul", "Concat")


def _would_be_quantized(value: Value) -> bool:
    """True for the result of a float operator between a DequantizeLinear and the QuantizeLinear to come.

    onnxruntime makes an integer kernel of what stands there, whatever the plan says of it, and gives the float weights
    of a Conv, ConvTranspose or Gemm one int8 scale of its own making (WeightBiasQuantization, seen in 1.31.1).
    """
    producer = value.producer()
    while producer is not None and (_bounds(producer) != _UNBOUNDED or _adds_constant(producer)):
        producer = next((item.producer() for item in producer.inputs if item is not None and item.producer()), None)
    if producer is None:
        return False
    read = [item for item in producer.inputs if item is not None and not _is_static(item)]
    fed = bool(read) and all((before := item.producer()) and before.op_type == "DequantizeLinear" for item in read)
    if producer.op_type in _LAYERS:
        return fed and producer.inputs[1] is not None and _is_static(producer.inputs[1])
    return fed and producer.op_type in _FUSED


def _is_static(value: Value) -> bool:
    """True for a constant, and for one that a Cast and a Mul decode: onnxruntime computes them first of all."""
    if constant_of(value) is not None:
        return True
    producer = value.producer()
    decodes = producer is not None and producer.op_type in ("Cast", "Mul")
    return decodes and all(item is not None and _is_static(item) for item in producer.inputs)  # type: ignore[union-attr]


def _adds_constant(node: Node) -> bool:
    return node.op_type == "Add" and any(constant_of(item) is not None for item in node.inputs)


def _before_clips(value: Value, scale: Scale) -> Value:
    """The value in front of the Relu, Clip, Max and Min that a saturating grid makes superfluous."""
    step = float(scale.scale[0])
    lowest, highest = ends_of(scale)
    while (producer := value.producer()) is not None:
        lower, upper = _bounds(producer)
        source = producer.inputs[0] if constant_of(producer.inputs[0]) is None else producer.inputs[1]
        alone = source is not None and len(tuple(source.uses())) == 1 and not source.is_graph_output()
        saturates = lowest >= lower - step / 2 and highest <= upper + step / 2
        if (lower, upper) == _UNBOUNDED or source is None or not alone or not saturates:
            return value
        value = source
    return value


_UNBOUNDED = (float("-inf"), float("inf"))


def _bounds(node: Node) -> tuple[float, float]:
    """What a node clips its input to; infinite for a node that does something else."""
    if node.op_type == "Relu":
        return 0.0, float("inf")
    if node.op_type == "Clip":
        lower = _scalar(node, 1)
        upper = _scalar(node, 2)
        return (_UNBOUNDED[0] if lower is None else lower), (_UNBOUNDED[1] if upper is None else upper)
    if node.op_type in ("Max", "Min") and len(node.inputs) == 2:
        bounds = [bound for bound in (_scalar(node, 0), _scalar(node, 1)) if bound is not None]
        if len(bounds) == 1:
            return (bounds[0], _UNBOUNDED[1]) if node.op_type == "Max" else (_UNBOUNDED[0], bounds[0])
    return _UNBOUNDED


def _scalar(node: Node, operand: int) -> float | None:
    array = constant_of(node.inputs[operand]) if operand < len(node.inputs) else None
    return float(array.reshape(-1)[0]) if array is not None and array.size == 1 else None
