"""Which operator set a model needs before it is quantized."""

from __future__ import annotations

from collections.abc import Iterator

from qcli.encodings._native import NATIVE_OPSET
from qcli.granularity import is_unscaled, with_width
from qcli.legality import TABLE
from qcli.levels import is_uniform, native_of
from qcli.plugins import choice_of, create
from qcli.recipe import Recipe
from qcli.suitability import decoded_there
from qcli.targets._support import Traits, traits_of
from qcli.types import Grid, Match, Plan, Role, Rule, Spec


def required_opset(recipe: Recipe) -> int:
    """The lowest operator set in which every grid of the recipe can be written."""
    rules = [sourced.rule for sourced in recipe.rules]
    traits = traits_of(create("targets", recipe.target))
    widths = recipe.mixed.widths if recipe.mixed is not None else ()
    versions = [*_written_in(Role.WEIGHT, rules, traits, widths), *_written_in(Role.INPUT, rules, traits)]
    if recipe.convert is not None:
        versions.append(_CONVERTED[recipe.convert.to])
    return max(versions, default=10)


_CONVERTED = {"float16": 13, "bfloat16": 22}
"""Conv and most of what has no weights take bfloat16 from operator set 22; float16 was there from the beginning."""


def _written_in(role: Role, rules: list[Rule], traits: Traits, widths: tuple[int, ...] = ()) -> Iterator[int]:
    """The operator sets of all grids in all encodings that the rules could bring together at sites of a role.

    With `widths`, of integer grids in these widths too.
    """
    grids: list[Grid] = []
    encodings: list[Spec] = [_ENCODING]
    for rule in rules:
        if not _covers(rule, role):
            continue
        everywhere = rule.match in (Match(), Match(role=role))  # then it overrides what earlier rules say
        if rule.grid is not None:
            grids = [*([] if everywhere else grids), rule.grid]
        if rule.encoding is not None:
            encodings = [*([] if everywhere else encodings), rule.encoding]
    others = (with_width(grid, width) for grid in grids for width in widths)
    for grid in (*grids, *(other for other in others if other is not None)):
        yield from (_opset_of(decoded_there(encoding, grid, traits), grid) for encoding in encodings)


def _opset_of(spec: Spec, grid: Grid) -> int:
    """The operator set that codes on a grid need in an encoding. Those of a static one stand behind QuantizeLinear."""
    encoding, number_format = create("encodings", spec), create("formats", grid.format)
    if is_unscaled(grid.format):
        return int(number_format.min_opset)
    if encoding.calibrated and native_of(grid) is not None:
        return NATIVE_OPSET
    if not is_uniform(grid):
        return _table_opset(spec, grid)
    written = encoding.min_opset(number_format.bits(grid), grid.granularity)
    return int(max(written, number_format.min_opset if encoding.calibrated else 1))


def _table_opset(spec: Spec, grid: Grid) -> int:
    """That of the table that levels which are not evenly spaced are decoded by, whatever encoding was asked for."""
    named, number_format = choice_of(spec).name, create("formats", grid.format)
    table = create("encodings", spec if named == TABLE else TABLE)
    bits = number_format.bits(grid)
    return int(max(table.opset_of(number_format.entries(grid), bits, grid.granularity), number_format.min_opset))


def _covers(rule: Rule, role: Role) -> bool:
    named = rule.match.role
    return named is None or role in (named if isinstance(named, tuple) else (named,))


_ENCODING = "qdq"
"""That of sites that no rule gives one."""


def calibrates(recipe: Recipe) -> bool:
    """True for a recipe that gives activations a grid, for which samples are needed unless their range needs none."""
    about = [sourced.rule.range for sourced in recipe.rules if sourced.rule.match == Match(role=Role.INPUT)]
    ranges = [spec for spec in about if spec is not None]
    if ranges and create("ranges", ranges[-1]).statistic is None:
        return False
    return any(_calibrates(sourced.rule) for sourced in recipe.rules)


def _calibrates(rule: Rule) -> bool:
    """True for a rule that gives activations a grid."""
    return rule.grid is not None and _covers(rule, Role.INPUT)


def computes_in_integers(recipe: Recipe) -> bool:
    """True for a recipe under which kernels multiply codes, in whatever part of a model that suits."""
    rules = [sourced.rule for sourced in recipe.rules if sourced.rule.encoding is not None]
    dynamic = any(create("encodings", rule.encoding).multiplies for rule in rules if rule.encoding is not None)
    return dynamic or any(_calibrates(sourced.rule) for sourced in recipe.rules)


def written_opset(plan: Plan) -> int:
    """The operator set that a plan needs, also after its encodings were changed by hand."""
    coded = [entry for entry in plan.entries if entry.site.role is not Role.BIAS]
    return max(plan.opset, *(_opset_of(entry.encoding, entry.grid) for entry in coded), 1)
