"""Nodes that decode a weight, in front of what reads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from qcli.graph import Graph, Node, Value, add_initializer, insert_before, make_node, share_initializer
from qcli.types import Array, Deferred


class Lines:
    """Writes nodes in front of a reader, named after the weight that they decode."""

    def __init__(self, graph: Graph, reader: Node, name: str) -> None:
        self.graph = graph
        self.name = name
        self._reader = reader

    def add(
        self, operator: str, inputs: list[Value], suffix: str, attributes: Mapping[str, Any] | None = None
    ) -> Value:
        name = f"{self.name}_{suffix}"
        node = make_node(operator, inputs, name=name, output=name, attributes=attributes)
        insert_before(self._reader, node, self.graph)
        return node.outputs[0]

    def constant(self, suffix: str, array: Array | Deferred) -> Value:
        return add_initializer(self.graph, f"{self.name}_{suffix}", array)

    def shared(self, name: str, array: Array) -> Value:
        return share_initializer(self.graph, name, array)

    def unfolded(self, codes: Value) -> Value:
        """The codes as floats behind a node that onnxruntime never computes in advance."""
        return self.add("DequantizeLinear", [codes, self.shared("table_one", np.ones((), np.float32))], "kept")
