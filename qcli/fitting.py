"""Ranges that are good for some sites only: weighted ones for weights, those that need rows for logits."""

from __future__ import annotations

from collections.abc import Iterable

from qcli.errors import UsageError
from qcli.levels import is_uniform
from qcli.plugins import choice_of, create, load
from qcli.recipe import Recipe
from qcli.types import Entry, Role, Site, Spec

_HINT = "give the range in a rule of its own, with match: {value: ..., role: output}"


def check_ranges(entries: Iterable[Entry]) -> None:
    """Raises UsageError for an entry whose range cannot be found for its site."""
    for entry in entries:
        named = choice_of(entry.range).name
        if entry.site.role is not Role.WEIGHT and getattr(create("ranges", entry.range), "weighted", False):
            problem = f"{entry.because}: '{entry.site.value}' is no weight, and only those have weighted ranges"
            raise UsageError(problem, "add match: {role: weight} to the rule")
        _check_levels(entry, named)
        reason = _no_logits(entry.site) if needs_rows(entry.range) else ""
        if reason:
            problem = f"{entry.because}: '{named}' is for logits; '{entry.site.value}' {reason}"
            raise UsageError(problem, _HINT)


def _check_levels(entry: Entry, named: str) -> None:
    """Some ranges reckon with evenly spaced levels; formats that learn their table need none at all."""
    if entry.site.role is Role.BIAS or named in _FOR_TABLES or is_uniform(entry.grid):
        return
    if entry.site.role is not Role.WEIGHT and named in _FOR_ACTIVATIONS:
        return
    if not create("formats", entry.grid.format).learned:
        problem = f"{entry.because}: the range '{named}' reckons with evenly spaced levels"
        hint = f"for {choice_of(entry.grid.format).name} use {', '.join(_FOR_TABLES[:-1])} or {_FOR_TABLES[-1]}"
        raise UsageError(problem, hint)


_FOR_TABLES = ("mse", "minmax", "percentile", "fixed")
"""Ranges that say nothing about levels, or that measure those that there are."""

_FOR_ACTIVATIONS = ("batchnorm",)


def check_rules(recipe: Recipe, entries: Iterable[Entry]) -> None:
    """Raises UsageError for a rule for logits where the plan quantizes none: kernels can give them in float."""
    used = {repr(entry.range) for entry in entries}
    for sourced in recipe.rules:
        spec = sourced.rule.range
        if spec is not None and needs_rows(spec) and repr(spec) not in used:
            problem = f"{sourced.origin}: nothing that it matches is quantized by '{choice_of(spec).name}'"
            raise UsageError(problem, "remove the rule: logits that nothing in integers reads stay float")


def needs_rows(spec: Spec) -> bool:
    """True for a range that is found from whole rows of a value."""
    statistic = create("ranges", spec).statistic
    return statistic is not None and getattr(load("stats", statistic), "axis", None) is not None


def _no_logits(site: Site) -> str:
    """Why a site's values are no rows of logits [N, classes] (or [N, classes, 1, 1]), or nothing."""
    if site.role is Role.WEIGHT:
        return "is a weight"
    if site.shape is None:
        return "has a shape that is not known"
    if len(site.shape) < 2 or any(size != 1 for size in site.shape[2:]):
        return f"has the shape {list(site.shape)}, not [N, classes]".replace("None", "?")
    return "has a single class" if site.shape[1] == 1 else ""
