"""Equal constants of different bodies, stored once."""

from __future__ import annotations

import hashlib
from itertools import count

import onnx_ir as ir

from qcli.graph.model import Model

_SMALLEST = 1024
"""Bytes below which a second copy costs less than the trouble."""


def share_between_bodies(model: Model) -> int:
    """Moves constants that occur in several graphs of a model to the main graph; the number of copies saved.

    Branches often hold the same weights, as in a decoder exported with and without its past.
    """
    graphs = list(model.graphs())
    if len(graphs) == 1:
        return 0
    found: dict[str, list[tuple[ir.Graph, ir.Value]]] = {}
    for graph in graphs:
        for value in graph.initializers.values():
            if (key := _content(value)) is not None:
                found.setdefault(key, []).append((graph, value))
    return sum(_share(model.graph, copies) for copies in found.values() if len(copies) > 1)


def _content(value: ir.Value) -> str | None:
    """What makes two constants equal; None for those that are small or must keep their name."""
    tensor = value.const_value
    if tensor is None or tensor.nbytes < _SMALLEST or value.is_graph_input() or value.is_graph_output():
        return None
    return f"{tensor.dtype} {tensor.shape} {hashlib.sha256(tensor.tobytes()).hexdigest()}"


def _share(main: ir.Graph, copies: list[tuple[ir.Graph, ir.Value]]) -> int:
    home, kept = next((copy for copy in copies if copy[0] is main), copies[0])
    if home is not main:
        del home.initializers[kept.name or ""]
        fixed = {value.name for value in (*main.initializers.values(), *main.inputs, *main.outputs)}
        if kept.name in fixed:  # a body may hide a name of the main graph, which is another value's
            kept.name = next(name for number in count(1) if (name := f"{kept.name}_{number}") not in fixed)
        main.register_initializer(kept)
    for graph, value in copies:
        if value is not kept:
            value.replace_all_uses_with(kept)
            del graph.initializers[value.name or ""]
    return len(copies) - 1
