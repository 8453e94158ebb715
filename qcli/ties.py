"""Values that share one scale."""

from __future__ import annotations

from qcli.types import Plan


def tied(plan: Plan) -> dict[str, str]:
    """The representative of each tied value's group."""
    parent: dict[str, str] = {}

    def find(value: str) -> str:
        while parent.setdefault(value, value) != value:
            value = parent[value]
        return value

    for tie in plan.ties:
        for value in tie.values[1:]:
            parent[find(value)] = find(tie.values[0])
    return {value: find(value) for value in parent}
