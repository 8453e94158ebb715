"""A graph in the form that every later stage relies on."""

from __future__ import annotations

from qcli.graph import Model, normalize_graph
from qcli.steps._base import Step


class Normalize(Step, frozen=True, kw_only=True):
    """Gives nodes unique names, makes weights initializers and drops what computes nothing.

    Initializers leave the inputs, Constant nodes become initializers, Identity and Dropout disappear, equal
    weights are shared, nodes are sorted and unused ones removed.
    """

    def run(self, model: Model) -> int:
        return normalize_graph(model)
