"""Values that share one scale: who belongs together, and what spans them all."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qcli.types import Interval, Plan


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


def spanning(intervals: Sequence[Interval]) -> Interval:
    """The smallest interval that holds all of them, channel by channel."""
    lower = np.min([interval.lower for interval in intervals], axis=0)
    return Interval(lower=lower, upper=np.max([interval.upper for interval in intervals], axis=0))
