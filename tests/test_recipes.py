"""Every preset is valid, described, and plans on each sample model that it fits."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import model_path

from qcli.configure import convert
from qcli.cookbook import check_recipe, presets, starter
from qcli.errors import NothingToDoError, UsageError
from qcli.graph import load_model
from qcli.opsets import required_opset
from qcli.plan import make_plan, plan_text
from qcli.prepare import prepare
from qcli.recipe import load_recipe, preset_names
from qcli.types import Plan, Role
from qcli.watch import Watch
from qcli.yaml_file import parse_yaml

LONGEST_DESCRIPTION = 100

FITTING = ("cnn", "gru", "mlp", "transformer")


def plan_of(preset: str, model: str) -> tuple[Plan, Watch]:
    recipe = load_recipe(preset)
    watch = Watch()
    prepared = prepare(load_model(model_path(model)), required_opset(recipe), recipe.prepare, None, watch)
    return make_plan(prepared, recipe), watch


@pytest.mark.parametrize("preset", preset_names())
def test_preset_is_valid(preset: str) -> None:
    recipe = check_recipe(preset)
    assert recipe.rules
    assert recipe.prepare
    assert recipe.name == preset


@pytest.mark.parametrize("preset", preset_names())
def test_preset_says_what_it_is_in_one_line(preset: str) -> None:
    description = load_recipe(preset).description
    assert description.endswith(".")
    assert "\n" not in description
    assert len(description) <= LONGEST_DESCRIPTION


def test_presets_describe_themselves_and_not_what_they_extend() -> None:
    described = [preset.description for preset in presets().presets]
    assert len(set(described)) == len(described)


@pytest.mark.parametrize("model", FITTING)
@pytest.mark.parametrize("preset", preset_names())
def test_preset_plans_on_a_sample_model(preset: str, model: str) -> None:
    plan, watch = plan_of(preset, model)
    weights = [entry for entry in plan.entries if entry.site.role is Role.WEIGHT]
    assert weights
    assert all(entry.because for entry in plan.entries)
    assert all(kept.reason for kept in plan.kept_float)
    assert not [warning for warning in watch.warnings if "undone" in warning or "changed its outputs" in warning]


@pytest.mark.parametrize("preset", preset_names())
def test_plan_survives_its_file(preset: str) -> None:
    plan, _ = plan_of(preset, "cnn")
    assert convert(parse_yaml(plan_text(plan), "plan"), Plan, where="plan") == plan


def test_gru_is_kept_float_with_a_reason() -> None:
    plan, _ = plan_of("int8", "gru")
    assert {kept.op: kept.reason for kept in plan.kept_float}["GRU"]


def test_nothing_is_left_if_everything_is_kept_float() -> None:
    recipe = load_recipe("int8", ("rules=[{match: {}, keep: float}]",))
    model = prepare(load_model(model_path("mlp")), required_opset(recipe), recipe.prepare, None, Watch())
    with pytest.raises(NothingToDoError):
        make_plan(model, recipe)


def test_a_preset_that_is_misspelt_is_suggested() -> None:
    with pytest.raises(UsageError) as caught:
        load_recipe("int8-percentil")
    assert "int8-percentile" in caught.value.hint


@pytest.mark.parametrize("model", [None, *FITTING])
def test_starter_is_a_recipe(model: str | None, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(starter(model_path(model) if model else None), encoding="utf-8")
    assert check_recipe(str(file)).rules == load_recipe("int8").rules


def test_finish_is_refused_while_nothing_runs_there(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("version: 1\nextends: int8\nfinish: [normalize]\n")
    with pytest.raises(UsageError, match="finish"):
        load_recipe(str(recipe))
