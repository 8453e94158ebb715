"""Searching activation ranges by the output of the whole quantized model, one value after the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import msgspec
import numpy as np

from qcli.calibrate import Progress
from qcli.measured import seen
from qcli.plugins import choice_of
from qcli.scales import ends_of
from qcli.solve import Solution, site_key
from qcli.statistics import Statistics
from qcli.ties import tied
from qcli.types import Entry, Plan, Role, Scale

_WORTH_DB = 0.02
"""What a change must gain in each part of the samples to be kept: less is chance."""

_MOST_STEPS = 4
"""How often the range of one value may change in one direction."""

Judge = Callable[[Solution], tuple[float, ...] | None]
"""The signal-to-noise ratios of a solution in dB, in several parts of the samples."""

Settle = Callable[[Solution], Solution | None]
"""The same solution with biases that fit its scales; None if some bias no longer fits."""


_LEAST_ROOM = 1.02


class _Reached(NamedTuple):
    solution: Solution
    ratios: tuple[float, ...]


@dataclass(frozen=True)
class RangeSearch:
    """Which values may change, and how a change is judged."""

    plan: Plan
    statistics: Statistics
    judge: Judge
    settle: Settle
    progress: Progress

    def run(self, solution: Solution, factors: tuple[float, ...], limit: int) -> Solution:
        """The best solution found: each change gains in every part of the samples."""
        reached = self.judge(solution)
        if reached is None:
            return solution
        best = _Reached(solution, reached)
        groups = self._groups(solution, limit)
        for number, group in enumerate(groups, 1):
            self.progress(number, len(groups))
            for factor in factors:
                found = self._along(best, group, factor)
                if found is not best:
                    best = found
                    break
        return best.solution

    def _along(self, start: _Reached, group: tuple[Entry, ...], factor: float) -> _Reached:
        """Multiplies the range again and again for as long as that gains."""
        best = start
        for _ in range(_MOST_STEPS):
            scaled = self._scaled(best.solution, group, factor)
            tried = self.settle(scaled) if scaled is not None else None
            ratios = self.judge(tried) if tried is not None else None
            if tried is None or ratios is None:
                break
            if any(new < old + _WORTH_DB for new, old in zip(ratios, best.ratios, strict=True)):
                break
            best = _Reached(tried, ratios)
        return best

    def _scaled(self, solution: Solution, group: tuple[Entry, ...], factor: float) -> Solution | None:
        """All scales of a group times a factor, at most up to the extrema; None where they are reached already."""
        scales = {site_key(entry): solution.scales[site_key(entry)] for entry in group}
        room = max(self._room(entry, scales[site_key(entry)]) for entry in group)
        if factor > 1 and room < _LEAST_ROOM:
            return None
        times = np.float32(min(factor, room) if factor > 1 else factor)
        changed = {
            key: msgspec.structs.replace(scale, scale=(scale.scale * times).astype(np.float32))
            for key, scale in scales.items()
        }
        return Solution({**solution.scales, **changed}, dict(solution.codes))

    def _room(self, entry: Entry, scale: Scale) -> float:
        """By how much the grid must grow to span all values."""
        known = seen(entry.site.value, "histogram", self.statistics)
        if known is None:
            return 1.0
        extremes = (float(known.lower.min()), float(known.upper.max()))
        return max(reached / end for reached, end in zip(extremes, ends_of(scale), strict=True) if end)

    def _groups(self, solution: Solution, limit: int) -> list[tuple[Entry, ...]]:
        """Entries that share a scale, those first whose range is widest beside their typical values."""
        ties = tied(self.plan)
        groups: dict[str, list[Entry]] = {}
        for entry in self.plan.entries:
            constant = site_key(entry) in solution.codes or entry.site.role not in (Role.INPUT, Role.OUTPUT)
            if not constant and choice_of(entry.range).name != "fixed":
                groups.setdefault(ties.get(entry.site.value, entry.site.value), []).append(entry)
        crests = {name: max(self._crest(entry) for entry in entries) for name, entries in groups.items()}
        order = sorted((name for name in groups if crests[name] > 0), key=lambda name: (-crests[name], name))
        return [tuple(groups[name]) for name in order[:limit]]

    def _crest(self, entry: Entry) -> float:
        """The largest magnitude over the root of the mean square; 0 for constants and what no sample reached."""
        known = seen(entry.site.value, "histogram", self.statistics)
        if known is None or not known.counts.sum():
            return 0.0
        power = float((known.points**2 * known.counts).sum() / known.counts.sum())
        return float(max(-known.lower.min(), known.upper.max()) / np.sqrt(power)) if power > 0 else 0.0
