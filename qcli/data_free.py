"""Filling in `range: batchnorm`: intervals that need no samples, where the graph says what to expect."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from qcli.errors import NothingToDoError
from qcli.expectation import Expectations
from qcli.graph import Model
from qcli.plugins import choice_of, create
from qcli.recipe import Recipe
from qcli.samples._preprocess import parse
from qcli.types import Entry, Plan, Role

_HINT = "calibrate on samples with another preset and -d; int8-weights and int8-dynamic need none"


def fill_in(model: Model, plan: Plan, recipe: Recipe, warn: Callable[[str], None]) -> Plan:
    """The plan with the ends of each activation's range `batchnorm`, and `because` with the rule.

    Inputs lie between what the recipe's preprocessing makes of the darkest and the brightest pixel, or between the ends
    that a rule gives them; else they are assumed to be standard normal, and a warning says so.
    Raises NothingToDoError for a value that no BatchNormalization describes.
    """
    if not any(_is_open(entry) for entry in plan.entries):
        return plan
    inputs = ends_of_inputs(model, plan, recipe)
    known: dict[float, Expectations] = {}
    filled: list[Entry] = []
    for entry in plan.entries:
        if _is_open(entry):
            sigmas = create("ranges", entry.range).sigmas
            if sigmas not in known:
                known[sigmas] = Expectations(model.graph, sigmas, inputs)
            entry = _filled(entry, known[sigmas], sigmas)
        filled.append(entry)
    _say(model, inputs, warn)
    return msgspec.structs.replace(plan, entries=tuple(filled))


def _is_open(entry: Entry) -> bool:
    """True for an activation whose range is `batchnorm`, not yet filled in."""
    if entry.site.role not in (Role.INPUT, Role.OUTPUT) or choice_of(entry.range).name != "batchnorm":
        return False
    return create("ranges", entry.range).lower is None


def _filled(entry: Entry, known: Expectations, sigmas: float) -> Entry:
    expected = known.get(entry.site.value)
    if expected is None:
        problem = f"the range of '{entry.site.value}' is not known without samples: {known.why_not(entry.site.value)}"
        raise NothingToDoError(problem, _HINT)
    ends = {"lower": round(expected.lower, 6), "upper": round(expected.upper, 6)}
    because = f"{entry.because}; beta and gamma of BatchNormalization, {sigmas:g} standard deviations"
    return msgspec.structs.replace(entry, range={"batchnorm": {"sigmas": sigmas, **ends}}, because=because)


def ends_of_inputs(model: Model, plan: Plan, recipe: Recipe) -> dict[str, tuple[float, float]]:
    """Between what the values of each input lie, where a recipe's preprocessing or a rule says so."""
    ends: dict[str, tuple[float, float]] = {}
    written = recipe.samples.calibration.preprocess
    if written is not None:
        table = parse(written).values_of_codes()
        ends = {spec.name: (float(table.min()), float(table.max())) for spec in model.inputs()}
    names = {spec.name for spec in model.inputs()}
    for entry in plan.entries:
        options = choice_of(entry.range).options
        if entry.site.value in names and options.get("lower") is not None and options.get("upper") is not None:
            ends[entry.site.value] = (float(options["lower"]), float(options["upper"]))
    return ends


def _say(model: Model, inputs: Mapping[str, tuple[float, float]], warn: Callable[[str], None]) -> None:
    assumed = [spec.name for spec in model.inputs() if spec.name not in inputs]
    warn("no samples were measured: activation ranges are those that BatchNormalization's beta and gamma promise")
    if assumed:
        listed = ", ".join(f"'{name}'" for name in assumed)
        how = "say what it is with samples.calibration.preprocess, or with a rule for it"
        warn(f"the input {listed} is assumed to have mean 0, deviation 1 and no value beyond 4; {how}")
