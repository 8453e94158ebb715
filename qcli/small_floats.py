"""Activations in floats of eight bits: what of them saturates on samples."""

from __future__ import annotations

import numpy as np

from qcli.distribution import Distribution
from qcli.levels import native_of
from qcli.measured import seen_at
from qcli.plugins import choice_of
from qcli.scales import ends_of
from qcli.solve import Solution, site_key
from qcli.statistics import Statistics
from qcli.types import Plan, Role, Scale

_MANY = 1e-3
"""The share of a value's numbers that may saturate before it is worth a word: ranges that clip outliers want some."""

_NAMED = 3


def doubts_about_saturation(plan: Plan, solution: Solution, statistics: Statistics) -> list[str]:
    """A sentence about the activations in floats of eight bits that end before the samples do.

    Example: a range `fixed` from -448 to 448 has the scale 1, and what is beyond 448 becomes 448.
    """
    found: dict[str, str] = {}
    for entry in plan.entries:
        if entry.site.role not in (Role.INPUT, Role.OUTPUT) or native_of(entry.grid) is None:
            continue
        known = seen_at(entry, statistics)
        if known is not None:
            said = _beyond(known, solution.scales[site_key(entry)])
            if said:
                found[entry.site.value] = f"'{entry.site.value}' {said} ({choice_of(entry.grid.format).name})"
    if not found:
        return []
    listed = "; ".join(list(found.values())[:_NAMED])
    more = f"; and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    return [f"floats of 8 bits saturate on the samples: {listed}{more}; widen their ranges"]


def _beyond(known: Distribution, scale: Scale) -> str:
    """How much of what was seen lies further beyond a grid than rounding to its last level explains, or nothing."""
    levels = np.asarray(scale.levels, np.float64)
    lowest, highest = (end * (1.5 - levels[-2] / levels[-1] / 2) for end in ends_of(scale))
    lower, upper = float(known.lower.min()), float(known.upper.max())
    if lower >= lowest and upper <= highest:
        return ""
    reached, end = (upper, ends_of(scale)[1]) if upper / highest > lower / lowest else (lower, ends_of(scale)[0])
    said = f"reaches {reached:.4g}, the grid {end:.4g}"
    if known.resolution == 0:  # the ends alone were measured
        return said
    outside = (known.points < lowest) | (known.points > highest)
    share = float(known.counts[outside].sum() / known.counts.sum())
    return f"{said}, {share:.1%} saturates" if share > _MANY else ""
