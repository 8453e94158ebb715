"""Rows of a table in blocks by one operator of onnxruntime's own, which reads the codes packed."""

from __future__ import annotations

import numpy as np

from qcli.encodings._packed import BYTE, bits_of, packed, unsigned_shift
from qcli.encodings._steps import block_steps
from qcli.encodings._weights import Coded, Pool, home_of
from qcli.graph import Value, add_initializer, graph_of, insert_before, make_node, replace_value
from qcli.types import Array, Deferred

_MICROSOFT = "com.microsoft"


def gather_blocks(coded: Coded, pool: Pool) -> None:
    """GatherBlockQuantized in place of a Gather of rows of a table [V, D], in blocks along D.

    Source: onnxruntime, docs/ContribOperators.md, com.microsoft.GatherBlockQuantized version 1.
    """
    node, graph, scale = coded.node, graph_of(coded.node), coded.scale
    bits = bits_of(scale)
    shift, default = unsigned_shift(scale, bits)
    data = pool.once((coded.name, id(coded.codes), "rows"), lambda: _stored(coded, bits, shift))
    inputs = [data, node.inputs[1], block_steps(coded, pool)]
    if not default:
        inputs.append(pool.once((coded.name, id(scale), "row zeros"), lambda: _zeros(coded, bits, shift)))
    attributes = {"bits": bits, "block_size": scale.block or 0, "gather_axis": 0, "quantize_axis": 1}
    out = node.outputs[0]
    name = f"{out.name}_fetched"
    made = make_node("GatherBlockQuantized", inputs, name=name, output=name, attributes=attributes, domain=_MICROSOFT)
    insert_before(node, made, graph)
    made.name = node.name
    replace_value(graph, out, made.outputs[0])
    graph.remove(node, safe=True)


def _stored(coded: Coded, bits: int, shift: int) -> Value:
    """The codes [V, bytes of a row]; those of a large model are computed when they are written."""

    def make() -> Array:
        return packed((np.asarray(coded.codes).astype(np.int16) + shift).astype(np.uint8), bits)

    rows, columns = coded.codes.shape
    shape = (rows, columns * bits // BYTE)
    deferred = isinstance(coded.codes, Deferred)
    return add_initializer(home_of(coded), f"{coded.name}_rows", Deferred(shape, "uint8", make) if deferred else make())


def _zeros(coded: Coded, bits: int, shift: int) -> Value:
    zeros = packed((coded.scale.zero_point + shift).astype(np.uint8), bits)
    return add_initializer(home_of(coded), f"{coded.name}_zero", zeros)
