"""`qcli recipe`: list, show, check, schema, init."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qcli.cli import _options as options
from qcli.cli._screen import Screen, on_screen

app = typer.Typer(help="Look at recipes: list, show, check, schema, init.", rich_markup_mode=None)


def list_(screen: Screen) -> None:
    """List the recipes that come with qcli."""
    from qcli.cli._tables import show_presets
    from qcli.cookbook import presets

    screen.show(presets(), show_presets)


def show(
    screen: Screen,
    name: Annotated[str, typer.Argument(metavar="NAME", help="A preset's name or a YAML file.", show_default=False)],
    settings: options.SetOption = None,
) -> None:
    """Show a recipe with all its layers joined, and where each value came from."""
    from qcli.cli._tables import show_recipe
    from qcli.recipe import load_recipe

    screen.show(load_recipe(name, tuple(settings or ())), show_recipe)


def check(
    screen: Screen,
    file: Annotated[str, typer.Argument(metavar="FILE", help="A YAML file.", show_default=False)],
    settings: options.SetOption = None,
) -> None:
    """Check a recipe: keys, types, names of plug-ins and their options, gates."""
    from qcli.cli._tables import show_checked
    from qcli.cookbook import check_recipe

    screen.show(check_recipe(file, tuple(settings or ())), show_checked)


def schema(screen: Screen) -> None:
    """Print the JSON schema of a recipe, for editors."""
    from qcli.cookbook import recipe_schema

    screen.data(recipe_schema())


def init(
    screen: Screen,
    model: Annotated[
        Path | None,
        typer.Argument(metavar="MODEL", help="A model to write the recipe for.", show_default=False),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="Write it here, not to stdout.", show_default=False),
    ] = None,
) -> None:
    """Write a commented recipe to start from."""
    from qcli.cookbook import write_starter

    screen.text(write_starter(model, output))


for _name, _work in (("list", list_), ("show", show), ("check", check), ("schema", schema), ("init", init)):
    app.command(_name)(on_screen(_work))
