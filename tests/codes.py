"""What tests of encodings share: the stages without samples, and the float model that a result must equal."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from models import Feeds, Quantized, Stream, feeds_for, finished, wrapped

from qcli.graph import Model, Node, constant_of, node_key, normalize_graph, set_constant
from qcli.kernels import Kernels, read_kernels
from qcli.plan import make_plan
from qcli.plugins import create
from qcli.recipe import load_recipe
from qcli.solve import Solution, site_key
from qcli.types import Array, Plan, Role

EXACT = "rules=[{match: {role: weight}, range: minmax, rounding: nearest}]"
"""Nothing is clipped, so that every weight lies within half a step of its code."""


def stored_of(
    proto: onnx.ModelProto, recipe: str = "int8-weights", settings: Sequence[str] = (), feeds: Feeds | None = None
) -> Quantized:
    """Plan, solve and apply with a recipe that needs no statistics."""
    source = wrapped(proto)
    normalize_graph(source)
    plan = make_plan(source, load_recipe(recipe, tuple(settings)))
    return finished(source, plan, Stream((feeds or feeds_for(source),)))


def decoded(plan: Plan, solution: Solution, node: str, operand: int) -> Array:
    """The real values of the codes that stand for one weight."""
    [entry] = [one for one in plan.entries if (one.site.node, one.site.operand) == (node, operand)]
    codes, scale = solution.codes[site_key(entry)], solution.scales[site_key(entry)]
    return np.asarray(create("formats", entry.grid.format).decode(codes, scale))


def with_decoded_weights(quantized: Quantized) -> Model:
    """The float model, with what the codes stand for in place of each weight."""
    model = quantized.source.copy()
    nodes = {node_key(node): node for node in model.nodes()}
    for entry in quantized.plan.entries:
        if entry.site.role is Role.WEIGHT:
            node = nodes[entry.site.node]
            real = decoded(quantized.plan, quantized.solution, entry.site.node, entry.site.operand)
            set_constant(node.graph, node, entry.site.operand, real)  # type: ignore[arg-type]
    return model


def weights_of(quantized: Quantized) -> list[tuple[str, int, str]]:
    """Node, operand and encoding of every weight in the plan."""
    return [
        (entry.site.node, entry.site.operand, str(entry.encoding))
        for entry in quantized.plan.entries
        if entry.site.role is Role.WEIGHT
    ]


def reasons(quantized: Quantized) -> dict[str, str]:
    return {kept.node: kept.reason for kept in quantized.plan.kept_float}


def constants(model: Model) -> dict[str, Array]:
    """The constants of all graphs of a model, by name."""
    found = {}
    for graph in model.graphs():
        for name, value in graph.initializers.items():
            array = constant_of(value)
            if array is not None:
                found[name] = array
    return found


def float_weights(model: Model, above: int = 64) -> list[str]:
    """The float constants of more than that many elements that are still in the file."""
    return [name for name, array in constants(model).items() if array.dtype.kind == "f" and array.size > above]


def node_at(model: Model, key: str) -> Node:
    return next(node for node in model.nodes() if node_key(node) == key)


def kernels_of(quantized: Quantized, feeds: Feeds | None = None) -> Kernels:
    """What onnxruntime runs of it."""
    return read_kernels(quantized.model.serialize(), quantized.source, feeds or feeds_for(quantized.source))
